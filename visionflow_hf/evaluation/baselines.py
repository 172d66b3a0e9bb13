"""Baselines: ridge regression between voxels and pixels, from an encoder's layer to voxels, and the nearest stimulus.

They are fitted for one subject on the trials of train. Their fMRI is in the unit of the corpus.
"""

from collections.abc import Iterable

import numpy as np
import torch

from visionflow_hf.corpus.responses import Responses
from visionflow_hf.metrics import cross_correlation
from visionflow_hf.modeling import VisionFlowProcessor
from visionflow_hf.modeling.ridge import Ridge, fit_ridge

LEAST_SCALE = 1e-4  # of a feature


class RidgeBaseline:
    """Ridge regression from voxels to pixels and from pixels to voxels.

    Ridge is linear regression with an L2 penalty on the weights. The penalty, one for all targets, is the one with the
    least squared error on held-out stimuli of train.

    Args:
        seen: the responses of train.
        images: uint8 array of shape (stimuli, height, width[, 3]), the images of `stimulus_ids`.
        device: where to fit and predict.
    """

    def __init__(
        self,
        seen: Responses,
        stimulus_ids: list[str],
        images: np.ndarray,
        processor: VisionFlowProcessor,
        subject: str,
        device: torch.device | str = "cpu",
    ):
        self.mean, self.std = processor.fmri_mean[subject], processor.fmri_std[subject]
        self.shape, self.device = images.shape[1:], device
        position = {stimulus: row for row, stimulus in enumerate(stimulus_ids)}
        pixels = self._pixels(images)[[position[stimulus] for stimulus in seen.stimulus_ids]]
        fmri = self._tensor((seen.fmri - self.mean) / self.std)
        self.to_pixels = fit_ridge(fmri, pixels, seen.stimulus_ids)
        self.to_fmri = fit_ridge(pixels, fmri, seen.stimulus_ids)

    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        """uint8 array of shape (rows, height, width[, 3]) from responses (rows, voxels)."""
        pixels = self._predict(self.to_pixels, self._tensor((fmri - self.mean) / self.std))
        return np.rint(pixels.reshape(-1, *self.shape).clip(0, 1) * 255).astype(np.uint8)

    def predict_fmri(self, images: np.ndarray) -> np.ndarray:
        """Responses (rows, voxels) to uint8 images of shape (rows, height, width[, 3])."""
        return self._predict(self.to_fmri, self._pixels(images)) * self.std + self.mean

    def _pixels(self, images: np.ndarray) -> torch.Tensor:
        return self._tensor(images.reshape(len(images), -1)) / 255

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    @staticmethod
    def _predict(ridge: Ridge, features: torch.Tensor) -> np.ndarray:
        return ridge.predict(features).cpu().numpy()


class FeatureRidgeBaseline:
    """Encoding: ridge regression from the best single layer of the model's encoder, over 7 x 7 cells, to voxels.

    Each feature is divided by its standard deviation. Layer and penalty are those with the least squared error on
    held-out stimuli of train.

    Args:
        seen: the responses of train.
        features: of each layer the features `(stimuli, channels * 49)` of `stimulus_ids`.
    """

    def __init__(
        self,
        seen: Responses,
        stimulus_ids: list[str],
        features: Iterable[torch.Tensor],
        processor: VisionFlowProcessor,
        subject: str,
    ):
        self.mean, self.std = processor.fmri_mean[subject], processor.fmri_std[subject]
        average, _ = seen.averaged()
        order = [average.stimulus_ids.index(stimulus) for stimulus in stimulus_ids]
        fmri = torch.from_numpy(((average.fmri[order] - self.mean) / self.std).astype(np.float32))
        least = np.inf
        for layer, values in enumerate(features):
            scale = values.std(0, correction=0).clamp(min=LEAST_SCALE)
            ridge = fit_ridge(values / scale, fmri.to(values.device), stimulus_ids)
            error = float(ridge.held_out_error.mean())
            if error < least:
                least, self.layer, self.scale, self.ridge = error, layer, scale, ridge

    def predict_fmri(self, features: Iterable[torch.Tensor]) -> np.ndarray:
        """Responses (rows, voxels) to images with these features."""
        (own,) = [values for layer, values in enumerate(features) if layer == self.layer]
        return self.ridge.predict(own / self.scale).cpu().numpy() * self.std + self.mean


class NearestBaseline:
    """Decoding: the image of the train stimulus whose response has the highest Pearson r over voxels with a response.

    Encoding: the response, averaged over repeats, to the train stimulus whose image has the highest Pearson r over
    pixels with an image.

    Args:
        seen: the responses of train.
        images: uint8 array of shape (stimuli, height, width[, 3]), the images of `stimulus_ids`.
    """

    def __init__(
        self, seen: Responses, stimulus_ids: list[str], images: np.ndarray, processor: VisionFlowProcessor, subject: str
    ):
        self.mean, self.std = processor.fmri_mean[subject], processor.fmri_std[subject]
        average, _ = seen.averaged()
        order = [average.stimulus_ids.index(stimulus) for stimulus in stimulus_ids]
        self.fmri, self.images = average.fmri[order], images

    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        """uint8 array of shape (rows, height, width[, 3]) from responses (rows, voxels)."""
        known, asked = ((values - self.mean) / self.std for values in (self.fmri, fmri))
        return self.images[cross_correlation(known, asked).argmax(0)]

    def predict_fmri(self, images: np.ndarray) -> np.ndarray:
        """Responses (rows, voxels) to uint8 images of shape (rows, height, width[, 3])."""
        return self.fmri[cross_correlation(self.images, images).argmax(0)]
