"""`prepare god`: Generic Object Decoding, one bdpy file a subject (Horikawa & Kamitani 2017).

`dataset` has a row a sample and a column for whatever is known of it. `metadata/value` has a row a key, which says what
a column is: 1 under VoxelData for a voxel, under ROI_V1 for one of V1, NaN where it does not apply. The column Label,
or stimulus_id, holds category.image as one number: 1443537.022563 is image n01443537_22563. Older files say dataSet and
metaData.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from visionflow_hf.corpus.files import BLOCK_BYTES, find_files, hdf5_dataset, index_images, open_hdf5
from visionflow_hf.corpus.source import Block, Source, Subject, choose_subjects, image_parts, refuse_absent
from visionflow_hf.errors import UserError, count

SPLITS = {1: "train", 2: "test"}  # by DataType; 3 is imagery, which has no image before the eyes


def read_god(
    source: Path,
    subjects: Sequence[str] | None = None,
    images_folder: str | os.PathLike | None = None,
    report: Callable[[str], None] = print,
) -> Source:
    """The source in a folder with one .h5 a subject, whose name is the file's; train and test are those of DataType.

    Args:
        subjects: names such as Subject1; all that are there without.
        images_folder: where n01443537_22563.JPEG and so on lie; without, somewhere in `source`.

    Raises:
        UserError: the source does not have the expected form.
    """
    files = {file.stem: file for file in sorted(source.glob("[!.]*.h5"))}
    images = index_images(find_files(Path(images_folder or source)))
    found = []
    for name in choose_subjects(list(files), subjects, source / "Subject1.h5"):
        subject = read_subject(files[name], images, report)
        if subject is not None:
            found.append(subject)
    refuse_absent(found, subjects, f"a sample of DataType 1 or 2 whose image lies in {images_folder or source}")
    categories = {name: name.split("_")[0] for subject in found for name in subject.stimuli}  # WordNet's numbers
    return Source(found, image_parts(found, images), "as in the bdpy files of Generic Object Decoding", categories)


def read_subject(file: Path, images: dict[str, Path], report: Callable[[str], None]) -> Subject | None:
    with open_hdf5(file) as source:
        data, meta = ("dataset", "metadata") if "dataset" in source else ("dataSet", "metaData")
        if data not in source or meta not in source:
            report(f"{file.name}: left out, it has no {data} and {meta}, but {', '.join(sorted(source)[:10])}")
            return None
        dataset = hdf5_dataset(source, data)
        if dataset.ndim != 2 or dataset.dtype.newbyteorder("=") != np.float64:
            raise UserError(
                f"{data} of {file} has shape {dataset.shape} and type {dataset.dtype}: float64 (samples, columns) is "
                "expected, since Label has 13 digits"
            )
        samples, width = dataset.shape
        known = read_metadata(source, meta, width)
        label = "Label" if "Label" in known else "stimulus_id"  # as in the files published since 2019
        if "DataType" not in known or label not in known:
            report(f"{file.stem}: left out, {meta} names no DataType and Label (it has {', '.join(known)})")
            return None
        kinds, labels = (dataset[:, only_column(known, key, f"{meta} of {file}")] for key in ("DataType", label))
    regions = {key.removeprefix("ROI_"): row == 1 for key, row in known.items() if key.startswith("ROI_")}
    inside = known["VoxelData"] == 1 if "VoxelData" in known else np.any([np.zeros(width), *regions.values()], axis=0)
    voxels = np.flatnonzero(inside)
    if not len(voxels):
        raise UserError(f"{meta} of {file} names no voxel: 1 under VoxelData or ROI_V1 and so on is expected")

    viewed = np.flatnonzero(np.isin(kinds, list(SPLITS)))
    names = {row: image_name(labels[row], file) for row in viewed}
    trials = np.array([row for row in viewed if names[row] in images], dtype=np.int64)
    if len(viewed) < samples:
        report(f"{file.stem}: {samples - len(viewed)} of {samples} samples left out, neither train nor test (imagery)")
    if len(trials) < len(viewed):
        absent = sorted(set(names.values()) - set(images))
        number = len(viewed) - len(trials)
        report(f"{file.stem}: {number} of {len(viewed)} trials left out, without {count(absent, 'image')}")
    if not len(trials):
        return None
    step = max(BLOCK_BYTES // (8 * width), 1)
    return Subject(
        file.stem,
        stimuli=[names[row] for row in trials],
        splits=[SPLITS[int(kinds[row])] for row in trials],
        num_voxels=len(voxels),
        parts=[
            partial(read_rows, file, data, start, start + step, trials, voxels) for start in range(0, samples, step)
        ],
        voxels={
            "roi": [[name for name, row in regions.items() if row[voxel]] for voxel in voxels],
            **{axis: known[f"voxel_{axis}"][voxels] for axis in "xyz" if f"voxel_{axis}" in known},
        },
    )


def read_metadata(source: h5py.File, group: str, width: int) -> dict[str, np.ndarray]:
    """What each key says of the columns, arrays of shape (columns,)."""
    keys, values = hdf5_dataset(source, f"{group}/key"), hdf5_dataset(source, f"{group}/value")
    if keys.ndim != 1 or values.shape != (len(keys), width) or values.dtype.kind != "f":
        raise UserError(
            f"{group}/value of {source.filename} has shape {values.shape} and type {values.dtype}: "
            f"numbers ({keys.size} keys, {width} columns) are expected"
        )
    names = [key.decode() if isinstance(key, bytes) else str(key) for key in keys]
    return dict(zip(names, values[:], strict=True))


def only_column(known: dict[str, np.ndarray], key: str, where: str) -> int:
    places = np.flatnonzero(known[key] == 1)
    if len(places) != 1:
        raise UserError(f"{where} names {len(places)} columns {key}: one is expected")
    return int(places[0])


def image_name(label: float, file: Path) -> str:
    """1443537.022563 is n01443537_22563."""
    if not 0 < label < 1e9:
        raise UserError(f"{file} has the label {label}: category.image is expected, such as 1443537.022563")
    category, image = f"{label:.6f}".split(".")
    return f"n{int(category):08d}_{int(image)}"


def read_rows(file: Path, data: str, start: int, stop: int, trials: np.ndarray, voxels: np.ndarray) -> Iterator[Block]:
    """The trials among these rows of the file."""
    first, last = np.searchsorted(trials, [start, stop])
    with open_hdf5(file) as source:
        rows = hdf5_dataset(source, data)[start:stop]
    yield np.arange(first, last), 0, rows[np.ix_(trials[first:last] - start, voxels)]
