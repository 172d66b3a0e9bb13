"""Gabor-wavelet maps: energies and colours of an image."""

import math

import numpy as np
import pytest
import torch

from visionflow_hf.modeling.gabor_wavelets import (
    CYCLES,
    GRID,
    ORIENTATIONS,
    SIZES,
    WAVELETS,
    wavelet_channels,
    wavelet_maps,
)


def test_energies_are_those_of_the_formula():
    """One wavelet after the other, written out in two dimensions, on an image that is not square."""
    image = torch.rand(1, 1, 20, 32, generator=torch.Generator().manual_seed(0))
    maps = wavelet_maps(image)
    assert maps.shape == (1, wavelet_channels(1), GRID, GRID)
    for size, cycles, orientation, row, column in ((0, 2, 5, 0, 0), (2, 1, 3, 5, 9), (4, 0, 0, 15, 7)):
        down = ((np.arange(20) + 0.5) / 20 - (row + 0.5) / GRID)[:, None]
        across = ((np.arange(32) + 0.5) / 32 - (column + 0.5) / GRID)[None]
        sigma, angle = SIZES[size], orientation * math.pi / ORIENTATIONS
        envelope = np.exp(-(down**2 + across**2) / (2 * sigma**2))
        envelope /= np.linalg.norm(envelope)
        wave = np.exp(2j * math.pi * CYCLES[cycles] / sigma * (across * math.cos(angle) + down * math.sin(angle)))
        gabor = envelope * wave
        gabor -= envelope * gabor.sum() / envelope.sum()
        channel = (size * len(CYCLES) + cycles) * ORIENTATIONS + orientation
        expected = abs((gabor * image[0, 0].numpy()).sum())
        assert maps[0, channel, row, column] == pytest.approx(expected, abs=1e-5)


def test_a_blank_image_has_no_energy_and_its_colour():
    maps = wavelet_maps(torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 90, 70))
    assert maps[:, :WAVELETS].max() < 1e-4
    torch.testing.assert_close(maps[0, WAVELETS:, 3, 4], torch.tensor([0.2, 0.5, 0.9]))
