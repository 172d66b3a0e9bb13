# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The four losses, each a mean per element over the rows that have what it compares."""

import torch
from torch import nn

from .latent_gaussian import LatentGaussian

HALF_LEVEL = 1 / 512  # of 256 grey levels, on a 0..1 scale
LEAST = 1e-30  # 0 log 0 = 0


def image_loss(reconstructions: list[tuple[torch.Tensor, torch.Tensor]], pixel_values: torch.Tensor) -> torch.Tensor:
    """mean x log(x / p) + (1 - x) log((1 - x) / (1 - p)) over pixels, rows and reconstructions.

    x is the pixel and p its reconstruction, both on a 0..1 scale: the Bernoulli log-likelihood of a VAE, from which the
    pixel's own entropy is taken so that a perfect image has loss 0. Beside a squared error it keeps black black and
    white white. p is held half a grey level off 0 and 1.

    Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, appendix C.1.

    Args:
        reconstructions: pairs of images `(batch, channels, height, width)` and the rows `(batch,)`, bool, that count.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`)
    """
    x = pixel_values.float().clamp(0, 1)
    divergences = [BernoulliDivergence.apply(image.float(), x) for image, _ in reconstructions]
    return row_mean(torch.cat(divergences), torch.cat([rows for _, rows in reconstructions]))


class BernoulliDivergence(torch.autograd.Function):
    """mean x log(x / p) + (1 - x) log((1 - x) / (1 - p)) over the pixels of each row, `(batch,)`.

        p = HALF_LEVEL + (1 - 2 HALF_LEVEL) image        d/dp = (p - x) / (p (1 - p)) / pixels

    Its gradient is written out, and all is computed in place: large images take as long as their memory is read.
    """

    @staticmethod
    def forward(ctx, image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(image, x)
        p, rest = held_off(image), 1 - x
        divergence = x.clamp(min=LEAST).div_(p).log_().mul_(x)
        divergence += rest.clamp(min=LEAST).div_(1 - p).log_().mul_(rest)
        return divergence.flatten(1).mean(1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        image, x = ctx.saved_tensors
        p = held_off(image)
        scale = gradient * ((1 - 2 * HALF_LEVEL) / image.shape[1:].numel())
        return (p - x).mul_(scale[:, None, None, None]).div_(p).div_(1 - p), None


def held_off(image: torch.Tensor) -> torch.Tensor:
    """The image, on a 0..1 scale, half a grey level off 0 and 1."""
    return (image * (1 - 2 * HALF_LEVEL)).add_(HALF_LEVEL)


def kl_loss(posterior: LatentGaussian, rows: torch.Tensor) -> torch.Tensor:
    """mean KL(q || N(0, 1)) over latent dimensions and rows."""
    return row_mean(posterior.kl_to_standard().mean(1), rows)


def alignment_loss(image_posterior: LatentGaussian, fmri_posterior: LatentGaussian, rows: torch.Tensor) -> torch.Tensor:
    """mean KL(q(z | image) || q(z | fmri)) over latent dimensions and rows.

    It draws the two means together and, at the same time, makes the fMRI's variance tell how far they are apart.
    """
    return row_mean(image_posterior.kl_to(fmri_posterior).mean(1), rows)


def contrastive_loss(image_means: torch.Tensor, fmri_means: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """mean of -log softmax_j(cos(f_i, g_j) / temperature) at j = i, over rows, and both ways round.

    Beside the alignment loss, which asks how far a response's latent is from its image's, it asks whether the others
    are farther. Source: Oord et al. 2018, Representation Learning with Contrastive Predictive Coding; Radford et al.
    2021, Learning Transferable Visual Models from Natural Language Supervision, for both ways round.

    Args:
        image_means, fmri_means (`torch.Tensor` of shape `(batch, latent_dim)`): f and g, less what all rows share.
    """
    similarity = nn.functional.normalize(fmri_means, dim=1) @ nn.functional.normalize(image_means, dim=1).T
    own = torch.arange(len(similarity), device=similarity.device)
    one_way, other_way = (nn.functional.cross_entropy(each / temperature, own) for each in (similarity, similarity.T))
    return (one_way + other_way) / 2


def fmri_loss(
    predicted: torch.Tensor, fmri: torch.Tensor, num_voxels: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """mean (predicted - measured)^2 over voxels and rows; padding does not count.

    Args:
        predicted, fmri (`torch.Tensor` of shape `(batch, max_voxels)`): standardised on train.
        num_voxels (`torch.Tensor` of shape `(batch,)`): voxels of each row's subject.
    """
    real = torch.arange(fmri.shape[1], device=fmri.device) < num_voxels[:, None]
    errors = ((predicted - fmri).square() * real).sum(1) / num_voxels.clamp(min=1)
    return row_mean(errors, rows)


def row_mean(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Mean of `values` `(batch,)` over the rows that count; 0 where none does."""
    return (values * rows).sum() / rows.sum().clamp(min=1)
