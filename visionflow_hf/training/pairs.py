"""Pairs of image and fMRI, read from a corpus in whole batches."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from visionflow_hf.modeling import VisionFlowProcessor
from visionflow_hf.training.stimuli import Stimuli


class Pairs(torch.utils.data.Dataset):
    """Batches for `VisionFlowModel.forward`, each read at once from the corpus's memory-mapped files.

    Args:
        rows: with an image and fMRI each.
    """

    def __init__(self, rows: Dataset, processor: VisionFlowProcessor, stimuli: Stimuli):
        self.rows, self.processor, self.stimuli = rows, processor, stimuli
        self.stimulus_ids = list(rows["stimulus_id"])
        self.subject_ids = np.array([processor.subjects.index(name) for name in rows["subject"]])
        self.responses = rows.select_columns("fmri").with_format("arrow")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the processor makes of these rows, without means and deviations: training stays in standard units.

        And `image_features` where the encoder is frozen, and the rows of each subject.
        """
        subject_ids = self.subject_ids[rows]
        fmri = self.responses[rows]["fmri"].combine_chunks()
        values, ends = fmri.values.to_numpy(), fmri.offsets.to_numpy()
        means, deviations = self.processor.fmri_mean, self.processor.fmri_std
        standard = np.zeros((len(rows), np.diff(ends).max()), dtype=np.float32)
        for row, subject in enumerate(subject_ids):
            name, response = self.processor.subjects[subject], values[ends[row] : ends[row + 1]]
            np.subtract(response, means[name], out=standard[row, : len(response)])
            standard[row, : len(response)] /= deviations[name]
        return self.images([self.stimulus_ids[row] for row in rows]) | {
            "fmri": torch.from_numpy(standard),
            "subject_ids": torch.from_numpy(subject_ids),
            "subject_rows": {
                int(subject): torch.from_numpy(np.flatnonzero(subject_ids == subject))
                for subject in np.unique(subject_ids)
            },
        }

    def images(self, stimulus_ids: Sequence[str]) -> dict[str, torch.Tensor]:
        """The same of stimuli, without fMRI."""
        batch = {"pixel_values": self.stimuli.pixel_values(stimulus_ids)}
        features = self.stimuli.image_features(stimulus_ids)
        return batch if features is None else batch | {"image_features": features}
