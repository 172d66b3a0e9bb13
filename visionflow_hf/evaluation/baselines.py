"""What the model has to beat, in both directions: ridge regression between voxels and pixels, and what was seen before.

Both are fitted for one subject on the trials of train, and read and give fMRI in the corpus's unit.
"""

import numpy as np

from visionflow_hf.corpus.responses import Responses
from visionflow_hf.metrics import cross_correlation
from visionflow_hf.modeling import VisionFlowProcessor
from visionflow_hf.ridge import fit_ridge


class RidgeBaseline:
    """Ridge from voxels to pixels and from pixels to voxels.

    Args:
        images: uint8 array of shape (stimuli, height, width[, 3]), the images of `stimulus_ids`.
    """

    def __init__(
        self, seen: Responses, stimulus_ids: list[str], images: np.ndarray, processor: VisionFlowProcessor, subject: str
    ):
        self.mean, self.std = processor.fmri_mean[subject], processor.fmri_std[subject]
        self.shape = images.shape[1:]
        position = {stimulus: row for row, stimulus in enumerate(stimulus_ids)}
        pixels = self._pixels(images)[[position[stimulus] for stimulus in seen.stimulus_ids]]
        fmri = (seen.fmri - self.mean) / self.std
        self.to_pixels = fit_ridge(fmri, pixels, seen.stimulus_ids)
        self.to_fmri = fit_ridge(pixels, fmri, seen.stimulus_ids)

    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        pixels = self.to_pixels.predict((fmri - self.mean) / self.std).reshape(-1, *self.shape)
        return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)

    def predict_fmri(self, images: np.ndarray) -> np.ndarray:
        return self.to_fmri.predict(self._pixels(images)) * self.std + self.mean

    @staticmethod
    def _pixels(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).astype(np.float32) / 255


class NearestBaseline:
    """The image of the train stimulus whose response is most like a response, by Pearson r over voxels.

    And the response, averaged over repeats, to the train stimulus whose image is most like an image, by Pearson r over
    pixels.

    Args:
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
        known, asked = ((values - self.mean) / self.std for values in (self.fmri, fmri))
        return self.images[cross_correlation(known, asked).argmax(0)]

    def predict_fmri(self, images: np.ndarray) -> np.ndarray:
        return self.fmri[cross_correlation(self.images, images).argmax(0)]
