"""`prepare things`: THINGS-fMRI in its tables, betas_csv (Hebart et al. 2023).

sub-01_ResponseData.h5 is what pandas' to_hdf writes: rows are voxels, a column bears the number of its trial, and one
holds voxel_id. sub-01_StimulusMetadata.csv tells of each trial_id what was shown and whether it is train or test,
sub-01_VoxelMetadata.csv of each voxel_id where it lies, its noise ceiling in percent and, as 0 or 1, its regions.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from visionflow_hf.corpus.assemble import write_source
from visionflow_hf.corpus.files import (
    blocks,
    existing,
    find_files,
    hdf5_dataset,
    index_images,
    open_hdf5,
    plain_name,
    reading,
)
from visionflow_hf.corpus.repeats import ncsnr_of_ceiling
from visionflow_hf.corpus.schema import MARKER
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import refuse_existing

NO_REGION = re.compile(r"voxel_.*|subject_id|nc_.*|splithalf_.*|prf-.*|Unnamed.*")


def prepare_things(
    source: str | os.PathLike,
    out: str | os.PathLike,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    test_fraction: float | None = None,
    average: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    num_proc: int = 1,
    report: Callable[[str], None] = print,
) -> None:
    """Write the corpus `out` from the folder with betas_csv.

    Args:
        subjects: names such as sub-01; all that are there without.
        images_folder: where aardvark_01b.jpg and so on lie; without, somewhere in `source`.
        test_fraction: share of the stimuli to draw as test; without, train and test are those of the source.

    Raises:
        UserError: for whatever in the source or the flags does not fit; nothing is written then.
    """
    refuse_existing(out, overwrite, MARKER)
    source = Path(source)
    files = list(find_files(source))
    images = index_images(find_files(Path(images_folder)) if images_folder else files)
    responses = {match[1]: file for file in files if (match := re.fullmatch(r"(sub-\d+)_ResponseData\.h5", file.name))}
    found = []
    for name in choose_subjects(list(responses), subjects, source / "betas_csv" / "sub-01_ResponseData.h5"):
        subject = read_subject(name, responses[name], images, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"a trial of train or test whose image lies in {images_folder or source}")
    write_source(
        Source(found, image_parts(found, images), "single-trial response estimate (THINGS-fMRI)"),
        out,
        test_fraction=test_fraction,
        average=average,
        seed=seed,
        overwrite=overwrite,
        num_proc=num_proc,
        report=report,
    )


def read_subject(name: str, file: Path, images: dict[str, Path], report: Callable[[str], None]) -> Subject | None:
    stimulus_file = file.with_name(f"{name}_StimulusMetadata.csv")
    voxel_file = file.with_name(f"{name}_VoxelMetadata.csv")
    absent = [table.name for table in (stimulus_file, voxel_file) if not table.is_file()]
    if absent:
        report(f"{name}: left out, without {' and '.join(absent)}")
        return None
    tables, voxel_ids = read_layout(file)
    recorded = {trial for table in tables.values() for trial in table if trial is not None}
    table = read_csv(stimulus_file, ["trial_id", "trial_type", "stimulus"])
    unknown = sorted(recorded - set(table["trial_id"]))
    if unknown or table["trial_id"].duplicated().any():
        raise UserError(
            f"{stimulus_file} must tell of each trial once: {count(unknown, 'column')} of {file.name} without a row"
        )
    table = table[table["trial_id"].isin(recorded)]
    viewed = table[table["trial_type"].isin(["train", "test"])]
    if len(viewed) < len(table):
        report(f"{name}: {len(table) - len(viewed)} of {len(table)} trials left out, neither train nor test")
    names = viewed["stimulus"].map(lambda stimulus: Path(plain_name(str(stimulus), stimulus_file)).stem)
    kept = names.isin(list(images)).to_numpy()
    if not kept.all():
        missing = sorted(set(names) - set(images))
        report(f"{name}: {(~kept).sum()} of {len(kept)} trials left out, without {count(missing, 'image')}")
    if not kept.any():
        return None
    trials = {trial: place for place, trial in enumerate(viewed["trial_id"][kept])}
    voxels, ncsnr = read_voxels(voxel_file, voxel_ids)
    return Subject(
        name,
        stimuli=names[kept].tolist(),
        splits=viewed["trial_type"][kept].tolist(),
        num_voxels=len(voxel_ids),
        parts=[
            partial(read_block, file, key, block, [trials.get(trial, -1) for trial in columns[block[1]]])
            for key, columns in tables.items()
            for block in block_places(file, key)
        ],
        voxels=voxels,
        ncsnr=ncsnr,
    )


def read_layout(file: Path) -> tuple[dict[str, list[int | None]], np.ndarray | None]:
    """The trial in each column of each block of values, None for a column of something else; the voxel of each row."""
    tables: dict[str, list[int | None]] = {}
    voxel_ids = None
    rows = set()
    with open_hdf5(file) as source:
        groups = [name for name in source if isinstance(source.get(name, getlink=True), h5py.HardLink)]
        for key in [
            f"{group}/{block}"
            for group in groups
            if isinstance(source[group], h5py.Group)
            for block in source[group]
            if re.fullmatch(r"block\d+_values", block)
        ]:
            values, items = hdf5_dataset(source, key), hdf5_dataset(source, key.replace("_values", "_items"))
            if values.ndim != 2 or items.shape != values.shape[1:] or values.dtype.kind not in "iuf":
                raise UserError(
                    f"{key} of {file} has shape {values.shape} and type {values.dtype}, its columns have shape "
                    f"{items.shape}: numbers (voxels, columns) are expected"
                )
            if items.dtype.kind not in "iuS" and not h5py.check_string_dtype(items.dtype):
                raise UserError(f"the columns of {key} of {file} are {items.dtype}: text or whole numbers are expected")
            labels = [item.decode() if isinstance(item, bytes) else str(item) for item in items]
            wrong = [label for label in labels if not label.isdigit() and label != "voxel_id"]
            if wrong:
                raise UserError(f"{key} of {file} has {count(wrong, 'column')}: the trials' numbers are expected")
            tables[key] = [int(label) if label.isdigit() else None for label in labels]
            rows.add(len(values))
            if "voxel_id" in labels:
                voxel_ids = values[:, labels.index("voxel_id")].astype(np.int64)
    trials = [trial for table in tables.values() for trial in table if trial is not None]
    if len(rows) != 1 or not trials or len(set(trials)) < len(trials):
        raise UserError(f"{file} holds no table with a column a trial: what pandas wrote is expected, block0_values")
    return tables, np.arange(rows.pop()) if voxel_ids is None else voxel_ids


def read_csv(file: Path, columns: list[str]) -> pd.DataFrame:
    with reading(existing(file)):
        table = pd.read_csv(file)
    absent = [column for column in columns if column not in table]
    if absent:
        raise UserError(f"{file} has no {' and '.join(absent)}: its columns are {', '.join(map(str, table.columns))}")
    return table


def read_voxels(file: Path, voxel_ids: np.ndarray) -> tuple[dict, np.ndarray | None]:
    """Regions and coordinates of the voxels in the order of the responses, and their ncsnr where it is known."""
    table = read_csv(file, ["voxel_id"]).set_index("voxel_id")
    if table.index.duplicated().any() or not np.isin(voxel_ids, table.index).all() or len(table) != len(voxel_ids):
        raise UserError(
            f"{file} tells of {len(table)} voxels, the responses are of {len(voxel_ids)}: not the same ones"
        )
    table = table.loc[voxel_ids]
    voxels: dict = {"roi": [[] for _ in voxel_ids]}
    for column in map(str, table.columns):
        if not NO_REGION.fullmatch(column) and table[column].isin([0, 1]).all():
            for place in np.flatnonzero(table[column] == 1):
                voxels["roi"][place].append(column)
    for axis in "xyz":
        if f"voxel_{axis}" in table:
            voxels[axis] = numbers(table[f"voxel_{axis}"], file)
    if "nc_singletrial" not in table:
        return voxels, None
    ceiling = numbers(table["nc_singletrial"], file) / 100
    if np.nanmin(ceiling, initial=0) < 0 or np.nanmax(ceiling, initial=0) > 1:
        raise UserError(f"nc_singletrial of {file} is beyond 0 to 100: percent is expected")
    return voxels, ncsnr_of_ceiling(ceiling)


def numbers(column: pd.Series, file: Path) -> np.ndarray:
    with reading(f"{column.name} of {file}"):
        return column.to_numpy(dtype=np.float64)


def block_places(file: Path, key: str) -> list[tuple[slice, ...]]:
    with open_hdf5(file) as source:
        return list(blocks(hdf5_dataset(source, key)))


def read_block(file: Path, key: str, place: tuple[slice, slice], trials: list[int]) -> Iterator[Block]:
    """Some voxels of some trials; -1 for columns that are not imported."""
    columns = np.flatnonzero(np.array(trials) >= 0)
    if len(columns):
        with open_hdf5(file) as source:
            values = hdf5_dataset(source, key)[place]
        yield np.array(trials)[columns], place[0].start, values[:, columns].T
