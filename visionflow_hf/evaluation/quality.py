"""The figures that a report draws: pixel correlation of each stimulus and r of each voxel."""

from dataclasses import dataclass

import numpy as np

from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_ceiling
from visionflow_hf.evaluation.predictions import methods
from visionflow_hf.metrics import is_constant, pixel_correlation, voxel_correlation


@dataclass
class VoxelScores:
    """Pearson r between measured and predicted fMRI of each voxel over the held-out stimuli.

    Attributes:
        r: by subject and method (model, ridge, ...), arrays of shape (voxels,), NaN for a constant voxel.
        ceiling: by subject, the share of the variance of the responses that the stimulus explains, array of shape
            (voxels,), NaN where unknown and for a constant voxel. Its square root is the r of a perfect model.
    """

    r: dict[str, dict[str, np.ndarray]]
    ceiling: dict[str, np.ndarray]

    @classmethod
    def of(cls, predictions: dict[str, np.ndarray]) -> "VoxelScores":
        r, ceiling = {}, {}
        for subject in subjects_of(predictions):
            measured = np.asarray(predictions[f"fmri/{subject}"])
            r[subject] = {
                method: voxel_correlation(measured, np.asarray(predictions[name]))[0]
                for method, name in methods(predictions, f"fmri_predicted/{subject}").items()
            }
            trials = predictions["trials"][predictions["subject"] == subject]
            known = ceiling_of_average(ncsnr_of_ceiling(predictions[f"noise_ceiling/{subject}"]), trials)
            ceiling[subject] = np.where(is_constant(measured), np.nan, known)
        return cls(r, ceiling)

    def together(self, method: str) -> np.ndarray:
        """r of the voxels of all subjects, one after the other; array of shape (voxels of all,)."""
        return np.concatenate([by_method[method] for by_method in self.r.values()])

    @property
    def all_ceilings(self) -> np.ndarray:
        """The ceilings of the voxels of all subjects, one after the other; array of shape (voxels of all,)."""
        return np.concatenate(list(self.ceiling.values()))


def subjects_of(predictions: dict[str, np.ndarray]) -> list[str]:
    return list(dict.fromkeys(predictions["subject"].tolist()))


def pixel_correlations(predictions: dict[str, np.ndarray]) -> np.ndarray:
    """pixcorr of the model's reconstruction of each row; array of shape (rows,)."""
    return pixel_correlation(predictions["image"], predictions["reconstruction"])
