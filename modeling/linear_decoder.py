# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The linear decoder, which takes a share of decoding where distinct stimuli are few.

A decoder trained on few stimuli makes new images too much like them, and a linear map from the latent to pixels does
better.
"""

import torch

from .alignment import image_latents
from .feature_spaces import BATCH
from .fmri_bridges import put
from .ridge import Ridge, RidgePath, squared_norm

PENALTY = 1e-3  # times the mean squared norm of a centred latent: next to none
LEAST_PREDICTED = 1e-3  # of the variance of a latent dimension


@torch.no_grad()
def fit_linear_decoder(model, stimulus_ids: list[str], stimuli, errors: torch.Tensor) -> None:
    """Fit the linear map from the latents of stimuli to their pixels, of 32 px a side at most.

        pixels ~ (s [z, w]) M        s = 1 - error / variance, of each latent dimension

    There are mostly more dimensions than stimuli. The image is read from those that fMRI predicts.

    Args:
        stimuli: as in `refit.RowImages`.
        errors (`torch.Tensor` of shape `(latent_dim + linear_dim,)`):
            Mean squared error with which the latent is predicted from fMRI on held-out stimuli.
    """
    latents, decoder = image_latents(model, stimuli, stimulus_ids).mean, model.linear_decoder
    predicted = (1 - errors / latents.var(0, correction=0).clamp(min=1e-12)).clamp(min=LEAST_PREDICTED)
    pixels = []
    for start in range(0, len(stimulus_ids), BATCH):  # all at full size can fill memory
        batch = stimuli.pixel_values(stimulus_ids[start : start + BATCH])
        if list(batch.shape[2:]) != decoder.shape[1:]:
            batch = torch.nn.functional.interpolate(batch, decoder.shape[1:], mode="bilinear", antialias=True)
        pixels.append(batch.flatten(1))
    scaled = latents * predicted
    ridge = RidgePath(scaled, torch.cat(pixels).to(model.device)).solve(PENALTY * squared_norm(scaled))
    weights = predicted[:, None] * ridge.weights
    from_learned, from_linear = weights.split([model.config.latent_dim, model.config.linear_dim])
    put(decoder.from_learned, Ridge(from_learned, ridge.intercept, ridge.penalty))
    decoder.from_linear.weight.copy_(from_linear.T)
