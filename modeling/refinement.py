# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Gradient steps on the latent, up the likelihood of the response: `reconstruct_image(..., refine=N)`.

    image = decoder(z, w)        maximise  log p(fmri | image) + log N([z, w]; 0, 1)

The response to the decoded image is the one that the model itself predicts, with the noise covariance that held-out
stimuli have shown. The steps begin at the mean of q(z, w | fmri).
"""

import torch

from .latent_gaussian import LatentGaussian

STEP = 0.05  # Adam's; latents have a variance of about 1


def refined(
    model, posterior: LatentGaussian, fmri: torch.Tensor, subject_ids: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """z `(batch, latent_dim)` and w `(batch, linear_dim)` after some steps of Adam.

    Args:
        posterior: q(z, w | fmri).
        fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised.
        subject_ids (`torch.Tensor` of shape `(batch,)`): place of each row's subject.
    """
    with torch.inference_mode(False), torch.enable_grad():
        fmri = fmri.detach().clone()  # tensors of inference mode take no part in gradients
        latents = [one.mean.detach().clone().requires_grad_() for one in (posterior.learned, posterior.linear)]
        optimizer = torch.optim.Adam(latents, lr=STEP)
        for _ in range(steps):
            log_prior = -sum(one.square().sum() for one in latents) / 2
            total = log_prior + log_likelihood(model, model.decode(*latents), fmri, subject_ids)
            gradients = torch.autograd.grad(-total, latents, allow_unused=True)  # w is unused without linear decoder
            for latent, gradient in zip(latents, gradients, strict=True):
                latent.grad = gradient
            optimizer.step()
    learned, linear = (one.detach() for one in latents)
    return learned, linear


def log_likelihood(model, images: torch.Tensor, fmri: torch.Tensor, subject_ids: torch.Tensor) -> torch.Tensor:
    """The sum over rows of log p(fmri | image), `()`."""
    latent = model.encode_image(images)
    predicted = model.latent_to_fmri(latent.learned.mean, latent.linear.mean, subject_ids)
    total = 0
    for place in subject_ids.unique().tolist():
        rows, voxels = subject_ids == place, slice(model.config.num_voxels[place])
        total = (
            total
            + model.latent_to_fmri.log_likelihood(fmri[rows, voxels], predicted[rows, voxels], place).diagonal().sum()
        )
    return total
