"""`prepare tvsd`: the THINGS ventral stream spiking dataset, multi-unit activity of two macaques (Papale et al. 2025).

monkeyF/THINGS_normMUA.mat is of MATLAB 7.3: train_MUA (electrodes, images), one trial each, and test_MUA_reps
(electrodes, images, repeats), averaged over the time in which the region responds; h5py shows the axes reversed.
monkeyF/_logs/things_imgs.mat names the images, train_imgs.things_path and test_imgs.things_path, as paths in the folder
of THINGS with MATLAB's backslashes. The region of an electrode follows from its number.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.array_files import read_arrays
from visionflow_hf.corpus.files import blocks, find_files, hdf5_dataset, index_images, open_hdf5, plain_name
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.corpus.things import concepts
from visionflow_hf.errors import UserError, count

ELECTRODES = 1024
REGIONS = {  # by the number of the electrode
    "monkeyF": ["V1"] * 512 + ["IT"] * 320 + ["V4"] * 192,
    "monkeyN": ["V1"] * 512 + ["V4"] * 256 + ["IT"] * 256,
}
ARRAYS = {"train_MUA": 2, "test_MUA_reps": 3}  # and their number of axes


def read_tvsd(
    source: Path,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in the folder with monkeyF and monkeyN; the repeated images are test, and each repeat is a trial.

    An electrode counts as a voxel.

    Args:
        subjects: monkeyF or monkeyN; all that are there without.
        images_folder: where aardvark_01b.jpg and so on lie; without, somewhere in `source`.

    Raises:
        UserError: the source does not have the expected form.
    """
    there = [name for name in REGIONS if (source / name / "THINGS_normMUA.mat").is_file()]
    images = index_images(find_files(Path(images_folder or source)))
    found = []
    for name in choose_subjects(there, subjects, source / "monkeyF" / "THINGS_normMUA.mat"):
        subject = read_subject(name, source / name, images, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(
        found, subjects, f"_logs/things_imgs.mat, and images of the names in it in {images_folder or source},"
    )
    unit = "multi-unit activity, normalised by the test trials of the day (TVSD)"
    return Source(found, image_parts(found, images), unit, concepts(found))


def read_subject(name: str, folder: Path, images: dict[str, Path], report: Callable[[str], None]) -> Subject | None:
    file, logs = folder / "THINGS_normMUA.mat", folder / "_logs" / "things_imgs.mat"
    if not logs.is_file():
        report(f"{name}: left out, without {logs}")
        return None
    shown = image_names(logs)
    with open_hdf5(file) as source:
        shapes = {key: hdf5_dataset(source, key).shape for key in ARRAYS}
        for key, shape in shapes.items():
            kind = hdf5_dataset(source, key).dtype
            if len(shape) != ARRAYS[key] or shape[-2:] != (len(shown[key]), ELECTRODES) or kind.kind != "f":
                axes = "electrodes, images, repeats" if ARRAYS[key] == 3 else "electrodes, images"
                raise UserError(
                    f"{key} of {file} has shape {shape[::-1]} and type {kind}: floating-point numbers ({axes}) are "
                    f"expected, with {ELECTRODES} electrodes and the {len(shown[key])} images of {logs.name}"
                )
    recorded, electrodes = with_values(file)
    empty = sum((~trials).sum() for trials in recorded.values())
    if empty:
        report(f"{name}: {empty} trials left out, without a value at any electrode")
    stimuli, splits, places = [], [], {}
    for key, names in shown.items():
        repeats = shapes[key][0] if ARRAYS[key] == 3 else 1
        kept = np.tile(np.array([image in images for image in names], dtype=bool), repeats) & recorded[key].ravel()
        places[key] = np.where(kept, len(stimuli) + np.cumsum(kept) - 1, -1).reshape(shapes[key][:-1])
        stimuli += [image for image, there in zip(names * repeats, kept, strict=True) if there]
        splits += ["test" if ARRAYS[key] == 3 else "train"] * kept.sum()
    total = sum(trials.size for trials in places.values())
    absent = sorted({image for names in shown.values() for image in names} - set(images))
    if absent:
        report(f"{name}: {total - empty - len(stimuli)} of {total} trials left out, without {count(absent, 'image')}")
    if not stimuli:
        return None
    if len(electrodes) < ELECTRODES:
        report(f"{name}: {ELECTRODES - len(electrodes)} of {ELECTRODES} electrodes lack values: removed")
    return Subject(
        name,
        stimuli,
        splits,
        num_voxels=len(electrodes),
        parts=[
            partial(read_block, file, key, place, places[key][place[:-1]], electrodes)
            for key in ARRAYS
            for place in block_places(file, key)
        ],
        voxels={"roi": [[REGIONS[name][electrode]] for electrode in electrodes]},
    )


def image_names(file: Path) -> dict[str, list[str]]:
    """The images of each array, without folder and ending."""
    keys = {"train_MUA": "train_imgs/things_path", "test_MUA_reps": "test_imgs/things_path"}
    paths = read_arrays(file, list(keys.values()))
    names = {}
    for array, key in keys.items():
        if not all(isinstance(path, str) for path in paths[key].ravel()):
            raise UserError(f"{key} of {file} has the type {paths[key].dtype}: a text for each image is expected")
        files = [re.split(r"[\\/]", path)[-1] for path in paths[key].ravel().tolist()]
        names[array] = [Path(plain_name(name, file)).stem for name in files]
    return names


def block_places(file: Path, key: str) -> list[tuple[slice, ...]]:
    with open_hdf5(file) as source:
        return list(blocks(hdf5_dataset(source, key)))


def with_values(file: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Which trials of each array have a number at any electrode, and the electrodes that have one in all of these."""
    recorded, finite = {}, np.ones(ELECTRODES, dtype=bool)
    with open_hdf5(file) as source:
        for key in ARRAYS:
            dataset = hdf5_dataset(source, key)
            recorded[key] = trials = np.zeros(dataset.shape[:-1], dtype=bool)
            for place in blocks(dataset):
                trials[place[:-1]] |= np.isfinite(dataset[place]).any(axis=-1)
            for place in blocks(dataset):
                values = np.isfinite(dataset[place]) | ~trials[place[:-1]][..., None]
                finite[place[-1]] &= values.all(axis=tuple(range(dataset.ndim - 1)))
    return recorded, np.flatnonzero(finite)


def read_block(
    file: Path, key: str, place: tuple[slice, ...], trials: np.ndarray, electrodes: np.ndarray
) -> Iterator[Block]:
    """Some electrodes in some trials; -1 for trials that are not imported."""
    first, last = np.searchsorted(electrodes, [place[-1].start, place[-1].stop])
    rows = np.flatnonzero(trials.ravel() >= 0)
    if len(rows) and first < last:
        with open_hdf5(file) as source:
            values = hdf5_dataset(source, key)[place].reshape(trials.size, -1)
        yield trials.ravel()[rows], int(first), values[np.ix_(rows, electrodes[first:last] - place[-1].start)]
