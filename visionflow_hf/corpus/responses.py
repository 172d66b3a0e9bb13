"""The responses and the images of a split as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from PIL import Image

from visionflow_hf.corpus.repeats import average_repeats
from visionflow_hf.errors import UserError, count


@dataclass
class Responses:
    """Trials of one subject: `fmri` of shape (trials, voxels) in the corpus's unit, and the stimulus of each."""

    fmri: np.ndarray
    stimulus_ids: list[str]

    def averaged(self) -> tuple["Responses", np.ndarray]:
        """One row a stimulus, and the number of trials in each, array of shape (stimuli,)."""
        fmri, distinct, counts = average_repeats(self.fmri, self.stimulus_ids)
        return Responses(fmri, distinct), counts


def responses_of(split: Dataset, subject: str) -> Responses:
    """All trials of `subject` in the order of the split."""
    rows = np.flatnonzero(np.asarray(split["subject"]) == subject)
    table = split.select_columns(["fmri", "stimulus_id"]).select(rows).with_format("arrow")[:]
    fmri = table["fmri"].combine_chunks()
    values = fmri.flatten().to_numpy(zero_copy_only=False)
    return Responses(
        values.reshape(len(rows), len(values) // max(len(rows), 1)).astype(np.float32), table["stimulus_id"].to_pylist()
    )


def images_of(split: Dataset, stimulus_ids: Sequence[str]) -> list[Image.Image]:
    """The image of each stimulus, from the first row that shows it."""
    first: dict[str, int] = {}
    for row, stimulus in enumerate(split["stimulus_id"]):
        first.setdefault(stimulus, row)
    return list(split.select([first[stimulus] for stimulus in stimulus_ids])["image"])


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
