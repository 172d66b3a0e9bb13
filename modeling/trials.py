# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The responses of each subject to some stimuli: read once, standardised by the processor, on the CPU."""

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch

from .processing_visionflow import VisionFlowProcessor
from .ridge import BLOCK

ROWS = 1000  # read, and standardised, at once
MOST_KEPT = 4 * 2**30  # bytes of responses that stay in memory; those of a larger corpus are read again when needed


class Trials:
    """Trials with an image, subject by subject.

    Args:
        rows (`datasets.Dataset`): with an image and fMRI each.

    Attributes:
        held_out: stimuli whose trials are left out.
    """

    def __init__(self, rows, processor: VisionFlowProcessor):
        self.rows, self.processor, self.held_out = rows, processor, set()
        self._owners, self._names = np.asarray(rows["subject"]), np.asarray(rows["stimulus_id"], dtype=object)
        voxels = {name: len(mean) for name, mean in processor.fmri_mean.items()}
        self._all_kept = 4 * sum(voxels.get(owner, 0) for owner in self._owners.tolist()) <= MOST_KEPT
        self._read: dict[str, torch.Tensor] = {}

    def without(self, held_out: Collection[str]) -> "Trials":
        """The trials of all other stimuli; what has been read is shared."""
        fewer = copy.copy(self)
        fewer.held_out = self.held_out | set(held_out)
        return fewer

    @property
    def subjects(self) -> list[str]:
        """Those who have trials, in the processor's order."""
        return [name for name in self.processor.subjects if self.stimulus_ids(name)]

    def stimulus_ids(self, subject: str) -> list[str]:
        """The stimulus of each trial."""
        return [name for name in self._names[self._owners == subject] if name not in self.held_out]

    @property
    def stimuli(self) -> list[str]:
        """All distinct stimuli, in the order of the rows."""
        return [name for name in dict.fromkeys(self._names.tolist()) if name not in self.held_out]

    def fmri(self, subject: str) -> torch.Tensor:
        """`(trials, voxels)`, standardised."""
        if subject not in self._read:
            if not self._all_kept:
                self._read.clear()
            values = responses_of(self.rows.select(np.flatnonzero(self._owners == subject)))
            for start in range(0, len(values), ROWS):  # the processor returns the means of each as well
                some = slice(start, start + ROWS)
                values[some] = self.processor(fmri=values[some], subject=subject)["fmri"]
            self._read[subject] = torch.from_numpy(values)
        fmri = self._read[subject]
        if not self.held_out:
            return fmri
        return fmri[[name not in self.held_out for name in self._names[self._owners == subject]]]

    def some_stimuli(self, subject: str, most: int, seed: int) -> list[str]:
        """The subject's distinct stimuli, `most` of them at random where there are more."""
        distinct = list(dict.fromkeys(self.stimulus_ids(subject)))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(distinct))[:most])
        return [distinct[row] for row in chosen]

    def mean_responses(self, subject: str, stimuli: Sequence[str]) -> torch.Tensor:
        """The mean over the trials of each of some stimuli, `(stimuli, voxels)`."""
        fmri, rows = self._of(subject, stimuli)
        counts = torch.bincount(rows, minlength=len(stimuli))
        return fmri.new_zeros(len(stimuli), fmri.shape[1]).index_add_(0, rows, fmri) / counts[:, None]

    def squared_errors(self, subject: str, stimuli: Sequence[str], predicted: torch.Tensor) -> torch.Tensor:
        """Mean over single trials of (fmri - predicted)^2, `(voxels,)`, from `predicted` `(stimuli, voxels)`."""
        fmri, rows = self._of(subject, stimuli)
        blocks = zip(fmri.split(BLOCK, dim=1), predicted.cpu().split(BLOCK, dim=1), strict=True)
        return torch.cat([(measured - expected[rows]).square().mean(0) for measured, expected in blocks])

    def _of(self, subject: str, stimuli: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The trials of these stimuli, and the place of each one's stimulus among them."""
        place = {name: row for row, name in enumerate(stimuli)}
        kept = [(row, place[name]) for row, name in enumerate(self.stimulus_ids(subject)) if name in place]
        trials, rows = torch.tensor(kept).unbind(1)
        return self.fmri(subject)[trials], rows


def responses_of(rows) -> np.ndarray:
    """The fMRI of rows of one subject, `(rows, voxels)`."""
    values = np.empty((0, 0), dtype=np.float32)
    start = 0
    for batch in rows.select_columns("fmri").with_format("arrow").iter(ROWS):  # all at once can be beyond 2^31 numbers
        part = batch["fmri"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
        values = values if start else np.empty((len(rows), part.shape[1]), dtype=np.float32)
        values[start : start + len(part)] = part
        start += len(part)
    return values
