# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Gabor-wavelet energies of an image, the fixed features that explain early visual cortex best."""

import math

import torch

from .vision_encoder import average_pool, resized

GRID = 16  # places a side at which each wavelet is applied
SIZES = (0.055, 0.075, 0.1, 0.135, 0.18)  # sigma of the Gaussian envelope, as a share of the image's side
CYCLES = (0.25, 0.35, 0.5)  # cycles a sigma
ORIENTATIONS = 8
WAVELETS = len(SIZES) * len(CYCLES) * ORIENTATIONS
LONGEST_SIDE = 64  # px; larger images are reduced to it first: the finest wavelength is then 7 px


def wavelet_channels(num_channels: int) -> int:
    """How many maps `wavelet_maps` makes: the energies, and the mean colour around each place."""
    return WAVELETS + num_channels


def wavelet_maps(pixel_values: torch.Tensor) -> torch.Tensor:
    """Energies of complex cells on a grid of places, and the colour there.

        energy = |sum_xy image(x, y) g(x, y)|        g = Gaussian(sigma) * (exp(2 pi i cycles / sigma * u) - mean)

    u being the coordinate along the wavelet's orientation, and the mean being such that a blank image gives 0, at the
    border too. A g is a product of one function of x and one of y, which makes this cheap.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): on a 0..1 scale.

    Returns:
        `(batch, wavelet_channels(channels), GRID, GRID)`; the energies are ordered by size, then cycles, then
        orientation, and are those of the mean over the channels.

    Source: the Gabor wavelet pyramid of Kay et al. 2008; energy after Adelson & Bergen 1985.
    """
    pixels = pixel_values.float()
    height, width = pixels.shape[-2:]
    if max(height, width) > LONGEST_SIDE:
        share = LONGEST_SIDE / max(height, width)
        size = (max(1, round(height * share)), max(1, round(width * share)))
        pixels = resized(pixels, size)
    grey = pixels.mean(1)
    angles = torch.arange(ORIENTATIONS, device=pixels.device, dtype=pixels.dtype) * (math.pi / ORIENTATIONS)
    cycles = 2 * math.pi * torch.tensor(CYCLES, device=pixels.device, dtype=pixels.dtype)[:, None]
    energies = []
    for size in SIZES:
        (rows, tall), (columns, wide) = (_envelopes(side, size, pixels.device) for side in grey.shape[-2:])
        down = _waves(rows, tall, (cycles / size * angles.sin()).flatten())
        across = _waves(columns, wide, (cycles / size * angles.cos()).flatten())
        parts = torch.einsum("iopy,byx,joqx->bijopq", down, grey, across)
        means = torch.einsum("iop,joq->ijopq", down.sum(-1), across.sum(-1)) / torch.outer(rows.sum(1), columns.sum(1))
        parts = parts - means * torch.einsum("py,byx,qx->bpq", rows, grey, columns)[:, None, None, None]
        even, odd = parts[:, 0, 0] - parts[:, 1, 1], parts[:, 0, 1] + parts[:, 1, 0]
        energies.append((even.square() + odd.square() + 1e-12).sqrt())
    colours = average_pool(pixels, GRID)
    return torch.cat([*energies, colours], dim=1)


def _envelopes(side: int, size: float, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian envelope of each of the GRID places over the pixels of one side, and the distances, `(GRID, side)`."""
    pixels = (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side
    places = (torch.arange(GRID, device=device, dtype=torch.float32) + 0.5) / GRID
    distance = pixels - places[:, None]
    envelope = torch.exp(-distance.square() / (2 * size**2))
    return envelope / envelope.norm(dim=1, keepdim=True), distance


def _waves(envelope: torch.Tensor, distance: torch.Tensor, frequency: torch.Tensor) -> torch.Tensor:
    """Cosine and sine of each frequency along one side under the envelope, `(2, frequencies, GRID, side)`."""
    phase = distance * frequency[:, None, None]
    return torch.stack([envelope * phase.cos(), envelope * phase.sin()])
