# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The four losses, each a mean per element over the rows that have what it compares."""

import torch

from .latent_gaussian import Gaussian, LatentGaussian

HALF_LEVEL = 1 / 512  # of 256 grey levels, on a 0..1 scale


def image_loss(reconstructions: torch.Tensor, pixel_values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """mean x log(x / p) + (1 - x) log((1 - x) / (1 - p)) over pixels, rows and reconstructions.

    x is the pixel and p its reconstruction, both on a 0..1 scale: the Bernoulli log-likelihood of a VAE, from which the
    pixel's own entropy is taken so that a perfect image has loss 0. Beside a squared error it keeps black black and
    white white. p is held half a grey level off 0 and 1. x is data: gradients reach the image through p alone.

    Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, appendix C.1.

    Args:
        reconstructions (`torch.Tensor` of shape `(times, batch, channels, height, width)`)
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`)
        rows (`torch.Tensor` of shape `(times, batch)`, bool): which reconstructions count.
    """
    x = pixel_values.detach().float().clamp(0, 1)
    p = HALF_LEVEL + (1 - 2 * HALF_LEVEL) * reconstructions.float()
    divergence = torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x) - x * p.log() - (1 - x) * (1 - p).log()
    return row_mean(divergence.flatten(-3).mean(-1), rows)


def kl_loss(posterior: Gaussian, rows: torch.Tensor) -> torch.Tensor:
    """mean KL(q || N(0, 1)) over dimensions and rows."""
    return row_mean(posterior.kl_to_standard().mean(1), rows)


def alignment_loss(image_posterior: LatentGaussian, fmri_posterior: LatentGaussian, rows: torch.Tensor) -> torch.Tensor:
    """mean KL(q(z, w | image) || q(z, w | fmri)) over latent dimensions and rows.

    It draws the two means together and, at the same time, makes the fMRI's variance tell how far they are apart.
    """
    return row_mean(image_posterior.kl_to(fmri_posterior).mean(1), rows)


def fmri_loss(
    predicted: torch.Tensor, fmri: torch.Tensor, num_voxels: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """mean (predicted - measured)^2 over voxels and rows; padding does not count.

    Args:
        predicted, fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised on train.
        num_voxels (`torch.Tensor` of shape `(batch,)`, int): voxels of each row's subject.
    """
    real = torch.arange(fmri.shape[1], device=fmri.device) < num_voxels[:, None]
    errors = ((predicted - fmri).float().square() * real).sum(1) / num_voxels.clamp(min=1)
    return row_mean(errors, rows)


def row_mean(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(batch,)` over the rows that count; 0 where none does."""
    return (values * rows).sum() / rows.sum().clamp(min=1)
