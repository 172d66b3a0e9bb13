"""Single-trial betas in BIDS derivatives: *_desc-SingletrialBetas_statmap.nii.gz beside *_trials.tsv.

The table says in its n-th row what the n-th volume is the response to. Its name has no entity of another value than the
volumes' name, and may lack some:

    sub-01/ses-01/func/sub-01_ses-01_task-images_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz
    sub-01/ses-01/func/sub-01_ses-01_task-images_desc-SingletrialBetas_trials.tsv
"""

import re
from pathlib import Path

import pandas as pd

from visionflow_hf.corpus.files import find_files
from visionflow_hf.corpus.texts import read_texts
from visionflow_hf.errors import UserError, count

BETAS = "*_desc-SingletrialBetas_statmap.nii.gz"
NAMED = {"sub": "subject", "ses": "session", "run": "run"}


def read_bids(folder: Path) -> tuple[pd.DataFrame, list[tuple[str]]]:
    """The trials of all tables below a folder, one table after the other, and the files of betas of each, one.

    The columns `subject`, `session` and `run` are the entities of the files' names, such as sub-01, where these have
    them.

    Raises:
        UserError: no betas, or betas without one table of their own.
    """
    files = [file for file in find_files(folder) if not file.name.startswith(".")]
    tables = [file for file in files if file.name.endswith("_trials.tsv")]
    found: dict[Path, Path] = {}
    for betas in files:
        if not re.fullmatch(r".*_desc-SingletrialBetas_statmap\.nii(\.gz)?", betas.name, flags=re.IGNORECASE):
            continue
        beside = [
            table
            for table in tables
            if table.parent == betas.parent and entities(table).items() <= entities(betas).items()
        ]
        if len(beside) != 1:
            raise UserError(
                f"{betas} has {count([table.name for table in beside], 'table')} of its trials beside it: one "
                "*_trials.tsv with the same entities is expected"
            )
        other = found.setdefault(beside[0], betas)
        if other != betas:
            raise UserError(f"{other} and {betas.name} both are betas of {beside[0].name}: leave one in the folder")
    if not found:
        raise UserError(f"{folder} has no {BETAS} in it: give the table of the trials, and --betas")
    trials = []
    for table, betas in found.items():
        rows = in_order_of_betas(read_texts(table), table)
        trials.append(rows.assign(**{NAMED[key]: f"{key}-{value}" for key, value in named(betas).items()}))
    shown = [(str(betas),) for rows, betas in zip(trials, found.values(), strict=True) for _ in range(len(rows))]
    return pd.concat(trials, ignore_index=True).fillna(""), shown


def in_order_of_betas(rows: pd.DataFrame, table: Path) -> pd.DataFrame:
    """The rows in the order of the volumes, where `beta_index` counts these."""
    if "beta_index" not in rows:
        return rows
    numbers = pd.to_numeric(rows["beta_index"], errors="coerce")
    if sorted(numbers) not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        raise UserError(f"beta_index of {table} must count the {len(rows)} trials from 0: is the file whole?")
    return rows.loc[numbers.sort_values().index].reset_index(drop=True)


def entities(file: Path) -> dict[str, str]:
    """{"sub": "01", "task": "images"} of sub-01_task-images_statmap.nii.gz."""
    return dict(re.findall(r"(?:^|_)([A-Za-z]+)-([^_.]+)", file.name.lower()))


def named(file: Path) -> dict[str, str]:
    return {key: value for key, value in re.findall(r"(?:^|_)([A-Za-z]+)-([^_.]+)", file.name) if key in NAMED}
