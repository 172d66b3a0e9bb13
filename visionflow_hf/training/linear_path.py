"""The linear path from the latent to pixels.

    logit image  =  (1 - share) logit decoder(z)  +  share logit linear(z, w)

Where distinct stimuli are few, a decoder that has learned from them makes new images too much like them, and a linear
map does better. The linear map is fitted in closed form to the stimuli of train: first from the learned dimensions z;
then what is left of the pixels, from what is left of the wavelet dimensions w when z is known. So it knows what voxels
tell of pixels even where z does not, and behind the linear map from fMRI to latent it is ridge regression from fMRI to
pixels. How large the share is, a rehearsal shows.
"""

import numpy as np
import torch
from datasets import Dataset

from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.image_decoder import LinearDecoder
from visionflow_hf.training.image_latents import image_latents
from visionflow_hf.training.stimuli import BATCH, Stimuli

PENALTY = 1e-3  # times the mean squared norm of a centred latent: next to none


@torch.no_grad()
def fit_linear_decoder(
    model: VisionFlowModel,
    train: Dataset,
    stimuli: Stimuli,
    gain: float,
) -> LinearDecoder:
    """The linear map from the latents of the stimuli in `train` to their pixels, for latents from fMRI with `gain`."""
    distinct = list(dict.fromkeys(train["stimulus_id"]))
    latents = np.float64(image_latents(model, stimuli, distinct))
    decoder = LinearDecoder(model.config)
    targets = pixels_of(stimuli, distinct, decoder.shape[1:]).flatten(1).double().numpy()
    mean, level = latents.mean(0), targets.mean(0)
    latents, targets = latents - mean, targets - level
    learned, wavelets = np.split(latents, [model.config.learned_dim], axis=1)
    learned = learned * gain
    both = solve(learned, np.concatenate([targets, wavelets], axis=1), penalty_of(learned))
    from_learned, shared = np.split(both, [targets.shape[1]], axis=1)
    own = wavelets - learned @ shared
    from_wavelets = solve(own, targets - learned @ from_learned, penalty_of(wavelets))
    weights = np.concatenate([from_learned - shared @ from_wavelets, from_wavelets])
    decoder.pixels.weight.copy_(torch.from_numpy(weights.T))
    decoder.pixels.bias.copy_(torch.from_numpy(level - mean @ weights))
    return decoder.to(model.device, model.dtype)


def penalty_of(columns: np.ndarray) -> float:
    return PENALTY * np.square(columns).sum(1).mean()


def solve(columns: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """The weights that minimise |targets - columns weights|^2 + penalty |weights|^2."""
    gram = columns.T @ columns + max(penalty, np.finfo(float).tiny) * np.eye(columns.shape[1])
    return np.linalg.solve(gram, columns.T @ targets)


def pixels_of(stimuli: Stimuli, stimulus_ids: list[str], size: list[int]) -> torch.Tensor:
    """`(stimuli, channels, *size)` on a 0..1 scale; shrunk batch by batch, since all at full size can fill memory."""
    pixels = []
    for start in range(0, len(stimulus_ids), BATCH):
        batch = stimuli.pixel_values(stimulus_ids[start : start + BATCH])
        if list(batch.shape[2:]) != size:
            batch = torch.nn.functional.interpolate(batch, size, mode="bilinear", antialias=True)
        pixels.append(batch)
    return torch.cat(pixels)
