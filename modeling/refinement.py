# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Gradient steps on the latent of a response: `reconstruct_image(..., refine=N)`.

    image = decoder(z, w)        maximise  LIKELIHOOD log p(fmri | image) + log q(z, w | fmri)

The response to the decoded image is the one that the model itself predicts, with the noise covariance that held-out
stimuli have shown. The steps begin at the mean of q(z, w | fmri). The likelihood counts little: its errors are those of
the encoding model, which voxels share to a larger part than their noise covariance says, and q knows the response too.
"""

import torch

from .latent_gaussian import Gaussian, LatentGaussian

STEP = 0.02  # Adam's; latents have a variance of about 1
LIKELIHOOD = 0.03  # its weight beside log q


def refined(
    model, posterior: LatentGaussian, fmri: torch.Tensor, subject_ids: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """z `(batch, latent_dim)` and w `(batch, linear_dim)` after some steps of Adam.

    Where the likelihood is beyond float32, the mean of q stays.

    Args:
        posterior: q(z, w | fmri).
        fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised.
        subject_ids (`torch.Tensor` of shape `(batch,)`): place of each row's subject; -1 for none, whose row stays.
    """
    with torch.inference_mode(False), torch.enable_grad():
        fmri, dtype = fmri.detach().clone(), posterior.learned.mean.dtype
        both = posterior.learned, posterior.linear  # copied, since tensors of inference mode take no part in gradients
        q = [Gaussian(one.mean.detach().clone().float(), one.logvar.detach().clone().float()) for one in both]
        latents = [one.mean.clone().requires_grad_() for one in q]
        optimizer = torch.optim.Adam(latents, lr=STEP)
        for _ in range(steps):
            far = [(latent - one.mean).square() / one.logvar.exp() for latent, one in zip(latents, q, strict=True)]
            log_q = -sum(one.sum() for one in far) / 2
            images = model.decode(*[latent.to(dtype) for latent in latents])
            total = log_q + LIKELIHOOD * log_likelihood(model, images, fmri, subject_ids)
            gradients = torch.autograd.grad(-total, latents)
            for latent, gradient in zip(latents, gradients, strict=True):
                latent.grad = gradient
            optimizer.step()
    found = [latent.detach() for latent in latents]
    finite = torch.stack([one.isfinite().all(1) for one in found]).all(0)[:, None]
    learned, linear = (torch.where(finite, one, of.mean).to(dtype) for one, of in zip(found, q, strict=True))
    return learned, linear


def log_likelihood(model, images: torch.Tensor, fmri: torch.Tensor, subject_ids: torch.Tensor) -> torch.Tensor:
    """The sum over rows of log p(fmri | image), `()`."""
    latent = model.encode_image(images)
    predicted = model.latent_to_fmri(latent.learned.mean, latent.linear.mean, subject_ids)
    total = 0
    for place in subject_ids[subject_ids >= 0].unique().tolist():
        rows, voxels = subject_ids == place, slice(model.config.num_voxels[place])
        total = (
            total
            + model.latent_to_fmri.log_likelihood(fmri[rows, voxels], predicted[rows, voxels], place).diagonal().sum()
        )
    return total
