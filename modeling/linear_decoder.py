# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The linear decoders: of pixels, which takes a share of decoding where distinct stimuli are few, and of the embedding.

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
def fit_linear_decoders(model, stimulus_ids: list[str], stimuli, errors: torch.Tensor) -> None:
    """Fit the linear maps from the latents of images to their pixels, of 32 px a side at most, and to their embedding.

        pixels, embedding ~ (s [z, w]) M        s = 1 - error / variance, of each latent dimension

    There are mostly more dimensions than images. The image is read from those that fMRI predicts.

    Args:
        stimulus_ids: of images with and without fMRI.
        stimuli: as in `refit.RowImages`.
        errors (`torch.Tensor` of shape `(latent_dim + linear_dim,)`):
            Mean squared error with which the latent is predicted from fMRI on held-out stimuli.
    """
    latents, decoder = image_latents(model, stimuli, stimulus_ids).mean, model.linear_decoder
    predicted = (1 - errors / latents.var(0, correction=0).clamp(min=1e-12)).clamp(min=LEAST_PREDICTED)
    targets = []
    for start in range(0, len(stimulus_ids), BATCH):  # all at full size can fill memory
        names = stimulus_ids[start : start + BATCH]
        pixels, features = stimuli.pixel_values(names), stimuli.image_features(names, with_linear=False)
        small = pixels
        if list(pixels.shape[2:]) != decoder.shape[1:]:
            small = torch.nn.functional.interpolate(pixels, decoder.shape[1:], mode="bilinear", antialias=True)
        embedding = model.embed_image(pixels.to(model.device), features)
        targets.append(torch.cat([small.flatten(1).to(model.device), embedding.float().to(model.device)], dim=1))
    path = RidgePath(latents * predicted, torch.cat(targets))
    ridge = path.solve(PENALTY * squared_norm(path.values, len(latents)))
    weights = predicted[:, None] * ridge.weights
    parts = [len(decoder.from_learned.bias), len(model.embedding_decoder.bias)]
    (to_pixels, to_embedding), (level, embedding_level) = weights.split(parts, dim=1), ridge.intercept.split(parts)
    from_learned, from_linear = to_pixels.split([model.config.latent_dim, model.config.linear_dim])
    put(decoder.from_learned, Ridge(from_learned, level, ridge.penalty))
    decoder.from_linear.weight.copy_(from_linear.T)
    put(model.embedding_decoder, Ridge(to_embedding, embedding_level, ridge.penalty))
