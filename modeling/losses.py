# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The four losses, each a mean per element over the rows that have what it compares."""

import torch
from torch import nn

from .latent_gaussian import LatentGaussian

HALF_LEVEL = 1 / 512  # of 256 grey levels, on a 0..1 scale
LEAST = 1e-30  # 0 log 0 = 0
VALUES_AT_ONCE = 2**19  # 2 MiB


def image_loss(reconstructions: torch.Tensor, pixel_values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """mean x log(x / p) + (1 - x) log((1 - x) / (1 - p)) over pixels, rows and reconstructions.

    x is the pixel and p its reconstruction, both on a 0..1 scale: the Bernoulli log-likelihood of a VAE, from which the
    pixel's own entropy is taken so that a perfect image has loss 0. Beside a squared error it keeps black black and
    white white. p is held half a grey level off 0 and 1.

    Source: Kingma & Welling 2014, Auto-Encoding Variational Bayes, appendix C.1.

    Args:
        reconstructions (`torch.Tensor` of shape `(times, batch, channels, height, width)`)
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`)
        rows (`torch.Tensor` of shape `(times, batch)`, bool): which reconstructions count.
    """
    divergence = BernoulliDivergence.apply(reconstructions.float(), pixel_values.float().clamp(0, 1))
    return row_mean(divergence, rows)


class BernoulliDivergence(torch.autograd.Function):
    """mean x log(x / p) + (1 - x) log((1 - x) / (1 - p)) over the pixels of each image, `(times, batch)`.

        p = HALF_LEVEL + (1 - 2 HALF_LEVEL) image        d/dp = (p - x) / (p (1 - p)) / pixels

    Its gradient is written out, and all is computed in place, and for as many rows at a time as a processor's cache
    holds: large images take as long as their memory is read.
    """

    @staticmethod
    def forward(ctx, images: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(images, x)
        means = []
        for some in parts(images):
            p, one, rest = held_off(images[:, some]), x[some], 1 - x[some]
            divergence = (one.clamp(min=LEAST) / p).log_().mul_(one)
            divergence += (rest.clamp(min=LEAST) / (1 - p)).log_().mul_(rest)
            means.append(divergence.flatten(2).mean(2))
        return torch.cat(means, dim=1)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        images, x = ctx.saved_tensors
        scale = gradient[:, :, None, None, None] * ((1 - 2 * HALF_LEVEL) / x[0].numel())
        result = torch.empty_like(images)
        for some in parts(images):
            p = held_off(images[:, some])
            result[:, some] = (p - x[some]).mul_(scale[:, some]).div_(p).div_(1 - p)
        return result, None


def parts(images: torch.Tensor) -> list[slice]:
    """The rows of `(times, batch, channels, height, width)`, `VALUES_AT_ONCE` or a single row at a time."""
    count = max(1, VALUES_AT_ONCE // images[:, 0].numel())
    return [slice(start, start + count) for start in range(0, images.shape[1], count)]


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
