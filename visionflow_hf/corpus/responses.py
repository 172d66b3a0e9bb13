"""The responses and the images of a split as arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from datasets import Image as DatasetsImage
from PIL import Image

from visionflow_hf.corpus.repeats import average_repeats
from visionflow_hf.errors import UserError, count
from visionflow_hf.images import open_image


@dataclass
class Responses:
    """Trials of one subject: `fmri` of shape (trials, voxels) in the corpus's unit, and the stimulus of each."""

    fmri: np.ndarray
    stimulus_ids: list[str]

    def averaged(self) -> tuple["Responses", np.ndarray]:
        """One row a stimulus, and the number of trials in each, array of shape (stimuli,)."""
        fmri, distinct, counts = average_repeats(self.fmri, self.stimulus_ids)
        return Responses(fmri, distinct), counts


def presence(split: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have an image, and which have fMRI: two bool arrays of shape (rows,)."""
    there: dict[str, list[np.ndarray]] = {"image": [], "fmri": []}
    for batch in split.select_columns(list(there)).with_format("arrow").iter(1000):
        for column, parts in there.items():
            parts.append(batch[column].is_valid().to_numpy())
    return np.concatenate(there["image"]), np.concatenate(there["fmri"])


def pairs_of(split: Dataset) -> Dataset:
    """The rows that have an image and fMRI."""
    has_image, has_fmri = presence(split)
    return chosen(split, has_image & has_fmri)


def unpaired_of(split: Dataset) -> Dataset:
    """The rows that lack their image or their fMRI."""
    has_image, has_fmri = presence(split)
    return chosen(split, ~(has_image & has_fmri))


def images_alone(split: Dataset) -> Dataset:
    """The rows that have an image without fMRI."""
    has_image, has_fmri = presence(split)
    return chosen(split, has_image & ~has_fmri)


def without(split: Dataset, held_out: Dataset) -> Dataset:
    """The rows of stimuli that are not among those held out."""
    names = set(held_out["stimulus_id"])
    return chosen(split, np.array([stimulus not in names for stimulus in split["stimulus_id"]], dtype=bool))


def chosen(split: Dataset, rows: np.ndarray) -> Dataset:
    """The rows where a bool array (rows,) is true; the split itself where it is true everywhere."""
    return split if rows.all() else split.select(np.flatnonzero(rows))


def responses_of(split: Dataset, subject: str) -> Responses:
    """All trials of `subject` in the order of the split, with or without an image."""
    rows = np.flatnonzero(np.asarray(split["subject"]) == subject)
    values, stimulus_ids, filled = np.empty((0, 0), dtype=np.float32), [], 0
    for batch in split.select_columns(["fmri", "stimulus_id"]).select(rows).with_format("arrow").iter(1000):
        batch = batch.filter(batch["fmri"].is_valid())
        part = batch["fmri"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        part = part.reshape(len(batch), len(part) // max(len(batch), 1))
        if len(part):
            if not filled:
                values = np.empty((len(rows), part.shape[1]), dtype=np.float32)
            values[filled : filled + len(part)] = part
            filled += len(part)
            stimulus_ids += batch["stimulus_id"].to_pylist()
    return Responses(values[:filled], stimulus_ids)


def images_of(split: Dataset, stimulus_ids: Sequence[str]) -> list[Image.Image]:
    """The image of each stimulus, from the first row that shows it, as `visionflow_hf.images.open_image` gives it."""
    return list(each_image_of(split, stimulus_ids))


def each_image_of(split: Dataset, stimulus_ids: Sequence[str]) -> Iterator[Image.Image]:
    """The same, one after the other."""
    first: dict[str, int] = {}
    for row, stimulus in enumerate(split["stimulus_id"]):
        first.setdefault(stimulus, row)
    files = image_files(split.select([first[stimulus] for stimulus in stimulus_ids]))
    for file, name in zip(files, stimulus_ids, strict=True):
        yield open_image(file, f"the image of {name}")


def image_files(split: Dataset) -> Iterator[bytes | str]:
    """The image file of each row, its bytes or its path."""
    for file in split.select_columns("image").cast_column("image", DatasetsImage(decode=False))["image"]:
        yield file["bytes"] or file["path"]


def check_responses(array: np.ndarray, key: str) -> np.ndarray:
    """Float32 array of shape (trials, voxels), every value finite."""
    if array.ndim != 2 or array.dtype.kind not in "iuf" or array.size == 0:
        raise UserError(f"{key} has shape {array.shape} and type {array.dtype}: numbers (trials, voxels) are expected")
    array = array.astype(np.float32)
    bad = ~np.isfinite(array)
    if bad.any():
        raise UserError(
            f"{key} has {bad.sum()} NaN or infinite values in {count(np.flatnonzero(bad.any(0)), 'voxel')}: "
            "remove these voxels or mend the values first"
        )
    return array
