"""What the image side makes of each distinct stimulus: a frozen encoder's features, and the latents."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from visionflow_hf.corpus.responses import images_of
from visionflow_hf.modeling import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.modeling.gabor_wavelets import wavelet_maps
from visionflow_hf.modeling.latent_gaussian import LatentGaussian

BATCH = 64


@torch.no_grad()
def encoder_features(
    model: VisionFlowModel, processor: VisionFlowProcessor, split: Dataset, stimulus_ids: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Features of each stimulus, float32 on the CPU; computed once, since a frozen encoder gives no others."""
    model.eval()
    features = {}
    for start in tqdm(range(0, len(stimulus_ids), BATCH), desc="encoding the stimuli", unit="batch"):
        names = stimulus_ids[start : start + BATCH]
        pixels = processor(images=images_of(split, names))["pixel_values"].to(model.device)
        features |= dict(zip(names, model.extract_image_features(pixels)[0].float().cpu(), strict=True))
    return features


@torch.no_grad()
def image_latents(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    split: Dataset,
    stimulus_ids: Sequence[str],
    features: dict[str, torch.Tensor],
) -> np.ndarray:
    """Means of q(z | image), float32 array of shape (stimuli, latent_dim)."""
    model.eval()
    means = []
    for start in range(0, len(stimulus_ids), BATCH):
        posterior = posterior_of(model, processor, split, stimulus_ids[start : start + BATCH], features)
        means.append(posterior.mean.float().cpu().numpy())
    return np.concatenate(means)


def posterior_of(
    model: VisionFlowModel,
    processor: VisionFlowProcessor,
    split: Dataset,
    stimulus_ids: Sequence[str],
    features: dict[str, torch.Tensor],
) -> LatentGaussian:
    """q(z | image) of a batch of stimuli, with the encoder's `features` if there are any."""
    if features and not model.config.wavelet_dim:
        return model.encode_image(None, torch.stack([features[name] for name in stimulus_ids]).to(model.device))
    pixels = processor(images=images_of(split, stimulus_ids))["pixel_values"].to(model.device)
    if not features:
        return model.encode_image(pixels)
    known = torch.stack([features[name] for name in stimulus_ids]).to(model.device)
    return model.encode_image(None, torch.cat([known, wavelet_maps(pixels).flatten(1)], dim=1))
