# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The image decoders: a stack of ConvTranspose2d layers, alone or before a frozen autoencoder; and a linear map."""

import math
from itertools import pairwise

import torch
from torch import nn

from .losses import HALF_LEVEL

SMALLEST_GRID = 7  # 224 px is 7 doubled five times
LINEAR_SIDE = 32  # px
STRETCH = 0.01


class ConvTransposeDecoder(nn.Module):
    """Latent to image: a linear map to a grid of at most 7 x 7 cells, which is doubled until it covers the image.

    `last` follows the stack: a `StretchedSigmoid` where it ends at pixels.
    """

    def __init__(self, config, image_size: list[int], num_channels: int, last: nn.Module | None = None):
        super().__init__()
        self.image_size = image_size
        doublings = max(0, math.ceil(math.log2(max(image_size) / SMALLEST_GRID)))
        self.grid = [math.ceil(side / 2**doublings) for side in image_size]
        widths = [
            min(config.decoder_channels * 2 ** (doublings - level), config.decoder_max_channels)
            for level in range(doublings + 1)
        ]
        self.seed = nn.Linear(config.latent_dim, widths[0] * math.prod(self.grid))
        layers = []
        for width, next_width in pairwise(widths):
            layers += [
                group_norm(width),
                nn.GELU(),
                nn.ConvTranspose2d(width, next_width, kernel_size=4, stride=2, padding=1, bias=False),
            ]
        layers += [group_norm(widths[-1]), nn.GELU()]
        layers += [nn.ConvTranspose2d(widths[-1], num_channels, kernel_size=3, padding=1), last or nn.Identity()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """`(batch, latent_dim)` to `(batch, num_channels, height, width)`, in the range of the last layer."""
        seed = self.seed(latent).unflatten(1, (-1, *self.grid))
        seed = seed.contiguous(memory_format=torch.channels_last)  # in which convolutions are fast, on CPU and GPU
        return crop(self.layers(seed), self.image_size)


def group_norm(width: int) -> nn.GroupNorm:
    """As many groups as there can be, up to 8, of 8 channels or more: narrower ones are many times slower on a CPU."""
    return nn.GroupNorm(max(n for n in range(1, 9) if n == 1 or (width % n == 0 and width >= 8 * n)), width)


class StretchedSigmoid(nn.Module):
    """y = clamp(1.02 sigmoid(x) - 0.01, 0, 1): unlike a sigmoid it reaches 0 and 1, so that black is without haze.

    Source: Louizos et al. 2018, Learning Sparse Neural Networks through L0 Regularization, section 2.3.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of the same shape, on a 0..1 scale."""
        return ((1 + 2 * STRETCH) * x.sigmoid() - STRETCH).clamp(0, 1)


class AutoencoderKLDecoder(nn.Module):
    """Latent to image in two steps: a ConvTranspose2d stack writes the latents of an AutoencoderKL, whose frozen
    decoder turns them into pixels.

    Raises:
        ImportError: diffusers, to which the autoencoder belongs, is not installed.
    """

    def __init__(self, config):
        super().__init__()
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ImportError("decoder_type autoencoder_kl needs diffusers: pip install diffusers") from error
        self.image_size, self.grey = config.image_size, config.num_channels == 1
        autoencoder = AutoencoderKL.from_config(config.autoencoder_config)
        self.scale = autoencoder.config.scaling_factor
        self.shift = autoencoder.config.shift_factor or 0.0
        reduction = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        size = [math.ceil(side / reduction) for side in config.image_size]
        self.to_autoencoder = ConvTransposeDecoder(config, size, autoencoder.config.latent_channels)
        self.set_autoencoder(autoencoder)

    def set_autoencoder(self, autoencoder) -> None:
        """Take over the decoding half of an AutoencoderKL with the config's sizes, and freeze it."""
        self.from_autoencoder = nn.Sequential(autoencoder.post_quant_conv or nn.Identity(), autoencoder.decoder)
        self.from_autoencoder.requires_grad_(False)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """`(batch, latent_dim)` to `(batch, num_channels, height, width)` on a 0..1 scale."""
        image = self.from_autoencoder(self.to_autoencoder(latent) / self.scale + self.shift)
        image = crop(((image + 1) / 2).clamp(0, 1), self.image_size)
        return image.mean(1, keepdim=True) if self.grey else image


class LinearDecoder(nn.Module):
    """Latent to image: a linear map to pixels, of 32 px a side at most, enlarged to the image's size.

    After the linear map from fMRI to latent it is a linear map from fMRI to pixels.
    """

    def __init__(self, config):
        super().__init__()
        self.image_size = config.image_size
        scale = min(1.0, LINEAR_SIDE / max(config.image_size))
        self.shape = [config.num_channels, *(max(1, round(side * scale)) for side in config.image_size)]
        self.from_learned = nn.Linear(config.latent_dim, math.prod(self.shape))
        self.from_linear = nn.Linear(config.linear_dim, math.prod(self.shape), bias=False)

    def forward(self, learned: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
        """z `(batch, latent_dim)` and w `(batch, linear_dim)` to `(batch, num_channels, height, width)` in 0..1."""
        small = (self.from_learned(learned) + self.from_linear(linear)).unflatten(1, self.shape).clamp(0, 1)
        if self.shape[1:] == self.image_size:
            return small
        return nn.functional.interpolate(small, self.image_size, mode="bilinear", align_corners=False)


class EmbeddingDecoder(nn.Module):
    """Latent to the embedding of the image encoder: a linear map, fitted in closed form and not trained."""

    def __init__(self, config):
        super().__init__()
        self.register_buffer("weight", torch.zeros(config.feature_widths[-1], config.latent_dim + config.linear_dim))
        self.register_buffer("bias", torch.zeros(config.feature_widths[-1]))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[z, w] `(batch, latent_dim + linear_dim)` to `(batch, width)`, the width of the encoder's layer."""
        return nn.functional.linear(latent, self.weight.to(latent.dtype), self.bias.to(latent.dtype))


def blend(image: torch.Tensor, straight: torch.Tensor, share: float) -> torch.Tensor:
    """logit blend = (1 - share) logit image + share logit straight, on a 0..1 scale.

    Blended as odds, a black that one of them is sure of stays nearly black. Both are held off 0 and 1 by half a grey
    level.
    """
    odds = [one.float().logit(HALF_LEVEL) for one in (image, straight)]  # 1 - 1 / 512 is 1 in bfloat16
    return torch.lerp(*odds, share).sigmoid().to(image.dtype)


def crop(image: torch.Tensor, size: list[int]) -> torch.Tensor:
    """The middle of an image, of height and width `size`."""
    height, width = size
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]
