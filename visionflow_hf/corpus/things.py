"""`prepare things`: THINGS-fMRI in its tables, betas_csv (Hebart et al. 2023).

sub-01_ResponseData.h5 is what pandas' to_hdf writes: rows are voxels, a column bears the number of its trial, and one
holds voxel_id. Where numbers and text are mixed in the columns' names, pandas pickles these names; they are not read
then, and the columns are the trials in order, from 0. sub-01_StimulusMetadata.csv tells of each trial_id what was shown
and whether it is train or test, sub-01_VoxelMetadata.csv of each voxel_id where it lies, its noise ceiling in percent
and, as 0 or 1, its regions.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

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
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count

NO_REGION = re.compile(r"voxel_.*|subject_id|nc_.*|splithalf_.*|prf-.*|Unnamed.*")


def read_things(
    source: Path,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with betas_csv; train and test are those of the stimulus tables.

    Args:
        subjects: names such as sub-01; all that are there without.
        images_folder: where aardvark_01b.jpg and so on lie; without, somewhere in `source`.

    Raises:
        UserError: the source does not have the expected form.
    """
    files = list(find_files(source))
    images = index_images(find_files(Path(images_folder)) if images_folder else files)
    responses = {match[1]: file for file in files if (match := re.fullmatch(r"(sub-\d+)_ResponseData\.h5", file.name))}
    found = []
    for name in choose_subjects(list(responses), subjects, source / "betas_csv" / "sub-01_ResponseData.h5"):
        subject = read_subject(name, responses[name], images, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"a trial of train or test whose image lies in {images_folder or source}")
    unit = "single-trial response estimate (THINGS-fMRI)"
    return Source(found, image_parts(found, images), unit, concepts(found))


def concepts(subjects: Sequence[Subject]) -> dict[str, str]:
    """The category of each stimulus of THINGS: `aardvark` of aardvark_01b."""
    return {name: re.sub(r"_[^_]*$", "", name) for subject in subjects for name in subject.stimuli}


def read_subject(name: str, file: Path, images: dict[str, Path], report: Callable[[str], None]) -> Subject | None:
    stimulus_file = file.with_name(f"{name}_StimulusMetadata.csv")
    voxel_file = file.with_name(f"{name}_VoxelMetadata.csv")
    absent = [table.name for table in (stimulus_file, voxel_file) if not table.is_file()]
    if absent:
        report(f"{name}: left out, without {' and '.join(absent)}")
        return None
    tables, voxel_ids = read_layout(file)
    recorded = {trial for table in tables.values() for trial in table if trial is not None}
    table = pd.concat(read_csv(stimulus_file, ["trial_id", "trial_type", "stimulus"]), ignore_index=True)
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
    sessions = viewed["session"][kept] if "session" in viewed else None
    if sessions is not None and sessions.isna().any():
        raise UserError(f"{stimulus_file} has no session for {sessions.isna().sum()} trials: every trial needs one")
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
        sessions=None if sessions is None else sessions.astype(str).tolist(),
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
            if h5py.check_vlen_dtype(items.dtype) == np.uint8 and values.ndim == 2 and values.dtype.kind in "iuf":
                tables[key] = list(range(values.shape[1]))
                rows.add(len(values))
                continue
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


def read_csv(file: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    """The rows of a table, some at a time."""
    with reading(existing(file)):
        for table in pd.read_csv(file, chunksize=10000):
            absent = [column for column in columns if column not in table]
            if absent:
                raise UserError(
                    f"{file} has no {' and '.join(absent)}: its columns are {', '.join(map(str, table.columns))}"
                )
            yield table


def read_voxels(file: Path, voxel_ids: np.ndarray) -> tuple[dict, np.ndarray | None]:
    """Regions and coordinates of the voxels in the order of the responses, and their ncsnr where it is known."""
    places = {voxel: place for place, voxel in enumerate(voxel_ids.tolist())}
    measures = {"voxel_x": "x", "voxel_y": "y", "voxel_z": "z", "nc_singletrial": "ceiling"}
    known: dict = {"x": [], "y": [], "z": [], "ceiling": []}
    members: dict[str, list[int]] = {}  # of each region
    no_regions, seen = set(), []
    for table in read_csv(file, ["voxel_id"]):
        rows = [places.get(voxel) for voxel in table["voxel_id"].tolist()]
        seen += rows
        if None in rows:
            break
        for column in map(str, table.columns):
            if column in measures:
                with reading(f"{column} of {file}"):
                    known[measures[column]].append(table[column].to_numpy(dtype=np.float64))
            elif NO_REGION.fullmatch(column) or not table[column].isin([0, 1]).all():
                no_regions.add(column)
            else:
                inside = np.flatnonzero(table[column] == 1)
                members.setdefault(column, []).extend(rows[row] for row in inside)
    if len(places) != len(voxel_ids) or None in seen or sorted(seen) != list(range(len(voxel_ids))):
        raise UserError(
            f"{file} does not tell of the {len(voxel_ids)} voxels in the responses, each once: are both of one release?"
        )
    order = np.argsort(seen)
    voxels: dict = {axis: np.concatenate(known[axis])[order] for axis in "xyz" if known[axis]}
    voxels["roi"] = [[] for _ in voxel_ids]
    for region, inside in members.items():
        for place in inside if region not in no_regions else []:
            voxels["roi"][place].append(region)
    if not known["ceiling"]:
        return voxels, None
    ceiling = np.concatenate(known["ceiling"])[order] / 100
    if np.nanmin(ceiling, initial=0) < 0 or np.nanmax(ceiling, initial=0) > 1:
        raise UserError(f"nc_singletrial of {file} is beyond 0 to 100: percent is expected")
    return voxels, ncsnr_of_ceiling(ceiling)


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
