"""The latents of stimuli, as the image side makes them."""

from collections.abc import Sequence

import numpy as np
import torch

from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.gabor_wavelets import wavelet_maps
from visionflow_hf.modeling.latent_gaussian import LatentGaussian
from visionflow_hf.training.stimuli import BATCH, Stimuli


@torch.no_grad()
def image_latents(model: VisionFlowModel, stimuli: Stimuli, stimulus_ids: Sequence[str]) -> np.ndarray:
    """Means of q(z | image), float32 array of shape (stimuli, latent_dim)."""
    model.eval()
    means = []
    for start in range(0, len(stimulus_ids), BATCH):
        posterior = posterior_of(model, stimuli, stimulus_ids[start : start + BATCH])
        means.append(posterior.mean.float().cpu().numpy())
    return np.concatenate(means)


def posterior_of(model: VisionFlowModel, stimuli: Stimuli, stimulus_ids: Sequence[str]) -> LatentGaussian:
    """q(z | image) of a batch of stimuli, from the frozen encoder's features where there are any."""
    features = stimuli.image_features(stimulus_ids)
    if features is not None and not model.config.wavelet_dim:
        return model.encode_image(None, features.to(model.device))
    pixels = stimuli.pixel_values(stimulus_ids).to(model.device)
    if features is None:
        return model.encode_image(pixels)
    return model.encode_image(None, torch.cat([features.to(model.device), wavelet_maps(pixels).flatten(1)], dim=1))
