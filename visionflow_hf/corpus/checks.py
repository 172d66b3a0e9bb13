"""Checks of the rows of a corpus; each problem is one line with its remedy."""

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict

from visionflow_hf.corpus.responses import pairs_of, presence
from visionflow_hf.errors import count

UNPAIRED = ("train",)  # splits in which a row may lack its image or its fMRI


def check_rows(splits: DatasetDict) -> tuple[dict[str, int], list[str]]:
    """Look at every row.

    Returns:
        The number of voxels of each subject, sorted by name, and what is wrong.
    """
    voxels: dict[str, int] = {}
    problems: list[str] = []
    for name, split in splits.items():
        problems += _check_split(name, split, voxels)
    return dict(sorted(voxels.items())), problems


def _check_split(name: str, split: Dataset, voxels: dict[str, int]) -> list[str]:
    lengths, neither, nameless, no_image, no_fmri = [], [], [], 0, 0
    bad_values, bad_voxels = 0, set()
    row = 0
    for batch in split.with_format("arrow").iter(1000):
        has_image, has_fmri = (batch[column].is_valid().to_numpy(zero_copy_only=False) for column in ("image", "fmri"))
        no_image += int((~has_image).sum())
        no_fmri += int((~has_fmri).sum())
        subjects, stimuli = batch["subject"].to_pylist(), batch["stimulus_id"].to_pylist()
        fmri = batch["fmri"].combine_chunks()
        for at, length in enumerate(fmri.value_lengths().to_pylist()):
            subject = subjects[at]
            if not (has_image[at] or has_fmri[at]):
                neither.append(row + at)
            elif (has_fmri[at] and not subject) or (has_image[at] and stimuli[at] is None):
                nameless.append(row + at)
            elif has_fmri[at] and voxels.setdefault(subject, length) != length:
                lengths.append((row + at, length, subject))
        values = fmri.flatten().to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values)
        if bad.any():
            bad_values += int(bad.sum())
            place = np.concatenate([np.arange(length) for length in fmri.drop_null().value_lengths().to_numpy()])
            bad_voxels |= set(place[bad].tolist())
        row += len(batch)

    problems = []
    if neither:
        problems.append(f"split {name} has {count(neither, 'row')} with neither image nor fMRI: remove them")
    if nameless:
        problems.append(
            f"split {name} has {count(nameless, 'row')} without a name: give fMRI its subject, images their stimulus_id"
        )
    if name not in UNPAIRED:
        for missing, what in ((no_image, "an image"), (no_fmri, "fMRI")):
            if missing:
                problems.append(
                    f"split {name} has {missing} of {row} rows without {what}: "
                    "only train may have them, so remove them or move them there"
                )
    if lengths:
        at, length, subject = lengths[0]
        more = f", and {len(lengths) - 1} more rows are like it" if len(lengths) > 1 else ""
        problems.append(
            f"row {at} of split {name} has {length} voxels, {subject} has {voxels[subject]} elsewhere{more}: "
            "all responses of a subject must have the same voxels"
        )
    if bad_values:
        problems.append(
            f"split {name} has {bad_values} NaN or infinite values in {count(sorted(bad_voxels), 'voxel')}: "
            "remove these voxels or mend the values first"
        )
    return problems


def check_voxels(table: pd.DataFrame, voxels: dict[str, int]) -> list[str]:
    """Compare voxels.parquet with the number of voxels that each subject's responses have."""
    missing = [column for column in ("subject", "voxel", "roi", "noise_ceiling") if column not in table]
    if missing:
        return [f"voxels.parquet lacks {', '.join(missing)}: make the corpus again"]
    known = [names for names in table["roi"] if names is not None]
    wrong = [names for names in known if isinstance(names, (str, bytes)) or not hasattr(names, "__iter__")]
    if wrong or not all(isinstance(name, str) for names in known for name in names):
        return ["voxels.parquet has a roi that is no list of names: make the corpus again"]
    if not isinstance(table.attrs.get("grids", {}), dict):
        return ["grids in the metadata of voxels.parquet are no volumes by subject: make the corpus again"]
    if not pd.api.types.is_numeric_dtype(table["voxel"]) and len(table):
        return [f"voxel of voxels.parquet has the type {table['voxel'].dtype}: whole numbers are expected"]
    repeats = table.attrs.get("repeats", {})
    if not isinstance(repeats, dict) or not all(is_share_of_trials(one) for one in repeats.values()):
        return ["repeats in the metadata of voxels.parquet are no numbers by subject: make the corpus again"]
    ceiling = table["noise_ceiling"]
    if not pd.api.types.is_numeric_dtype(ceiling) and ceiling.notna().any():
        return [f"noise_ceiling of voxels.parquet has the type {ceiling.dtype}: numbers or null are expected"]
    known = ceiling.astype(float)
    beyond = known[np.isfinite(known) & ((known < 0) | (known > 1))]
    if len(beyond):
        return [
            f"noise_ceiling of voxels.parquet is {beyond.iloc[0]:g} in a voxel: shares of the variance from 0 to 1 are "
            "expected, percent divided by 100"
        ]
    empty = [subject for subject, expected in voxels.items() if not expected]
    if empty:
        return [f"the responses of {', '.join(empty)} have no voxels: remove this subject's rows or give them voxels"]
    numbers = {subject: table.loc[table["subject"] == subject, "voxel"].tolist() for subject in voxels}
    rows = {subject: len(own) for subject, own in numbers.items()}
    problems = [
        f"voxels.parquet has {rows[subject]} voxels of {subject}, the responses have {expected}: make the corpus again"
        for subject, expected in voxels.items()
        if rows[subject] != expected
    ]
    return problems or [
        f"voxels.parquet does not number the voxels of {subject} from 0: make the corpus again"
        for subject, own in numbers.items()
        if set(own) != set(range(len(own)))
    ]


def is_share_of_trials(value) -> bool:
    """Whether these are the means of 1 / trials, over all rows of a corpus and over those of test."""
    names = ("corpus", "test")
    return isinstance(value, dict) and all(
        isinstance(value.get(name), float) and 0 < value[name] <= 1 for name in names
    )


def check_trainable(splits: DatasetDict) -> list[str]:
    """What training and evaluation need in addition: pairs of at least 2 stimuli, and a test split."""
    if "train" in splits and not np.logical_and(*presence(splits["train"])).any():
        return [
            "train has no pair of image and fMRI, and a model learns from pairs: "
            "add them to these rows with `visionflow merge`"
        ]
    if "train" not in splits or "test" not in splits:
        return [
            f"the splits are {', '.join(splits)}: train and test are needed; `prepare` and `merge` draw a test split "
            "with --test-fraction 0.1"
        ]
    pairs = pairs_of(splits["train"])
    if len(set(pairs["stimulus_id"])) < 2:
        return ["train has 1 distinct stimulus with image and fMRI: training and crossvalidate need at least 2"]
    known = set(pairs["subject"])
    validation = splits.get("validation")
    if validation is not None and not (len(validation) and np.logical_and(*presence(validation)).any()):
        return ["validation has no pair of image and fMRI: add some, or remove the split, and train holds stimuli out"]
    unknown = set() if validation is None else set(validation["subject"]) - known
    if unknown:
        return [f"validation has {count(sorted(unknown), 'subject')} without a pair in train: move rows there"]
    return []
