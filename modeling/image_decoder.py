# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The image decoder: a stack of ConvTranspose2d layers whose depth follows the image size."""

import math
from itertools import pairwise

import torch
from torch import nn

SMALLEST_GRID = 7  # 224 px is 7 doubled five times


class ConvTransposeDecoder(nn.Module):
    """Latent to image: a linear map to a grid of at most 7 x 7 cells, which is doubled until it covers the image."""

    def __init__(self, config):
        super().__init__()
        self.image_size = config.image_size
        doublings = max(0, math.ceil(math.log2(max(config.image_size) / SMALLEST_GRID)))
        self.grid = [math.ceil(side / 2**doublings) for side in config.image_size]
        widths = [
            min(config.decoder_channels * 2 ** (doublings - level), config.decoder_max_channels)
            for level in range(doublings + 1)
        ]
        self.seed = nn.Linear(config.latent_dim, widths[0] * math.prod(self.grid))
        layers = []
        for width, next_width in pairwise(widths):
            layers += [
                nn.GroupNorm(math.gcd(8, width), width),
                nn.GELU(),
                nn.ConvTranspose2d(width, next_width, kernel_size=4, stride=2, padding=1),
            ]
        layers += [nn.GroupNorm(math.gcd(8, widths[-1]), widths[-1]), nn.GELU()]
        layers += [nn.ConvTranspose2d(widths[-1], config.num_channels, kernel_size=3, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """`(batch, latent_dim)` to `(batch, num_channels, height, width)` on a 0..1 scale, not clamped to it."""
        image = self.layers(self.seed(latent).unflatten(1, (-1, *self.grid)))
        height, width = self.image_size
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]
