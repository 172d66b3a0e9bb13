# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Augmented images for the image stage, made from the stimuli."""

import math

import torch
from torch.nn import functional as F

ROTATION, SHEAR, SCALE, SHIFT = math.radians(15), 0.15, 0.15, 0.1
FEW_STIMULI = 50  # with fewer, half of the augmented images are composed of two; other stages heed it, too
MANY_STIMULI = 300  # of as many the decoder memorises none: half of the images can come as they are
CELLS = 4  # a composed image takes each cell of a 4 x 4 grid from one of two images


def augment(images: torch.Tensor, distinct: int) -> torch.Tensor:
    """Randomly moved images and, of fewer than 50 distinct stimuli, half of them composed of two.

    A composed image looks like no stimulus, but it keeps the decoder from memorising a handful of them. Uses torch's
    random state, which the Trainer seeds, saves and restores.

    Args:
        images (`torch.Tensor` of shape `(batch, channels, height, width)`)
        distinct: how many distinct stimuli there are.
    """
    if distinct >= FEW_STIMULI or len(images) < 2:
        return move(images)
    half = len(images) // 2
    return torch.cat([move(images[:half]), compose(move(images[half:], amount=0.3))])


def move(images: torch.Tensor, amount: float = 1.0) -> torch.Tensor:
    """Random rotation, shear, scale and shift of each image; the border is repeated beyond the image."""

    def draw(limit: float) -> torch.Tensor:
        return (torch.rand(len(images), device=images.device) * 2 - 1) * limit * amount

    angle, shear = draw(ROTATION), draw(SHEAR)
    wide, tall = draw(SCALE).exp(), draw(SCALE).exp()
    aspect = images.shape[-1] / images.shape[-2]  # the grid counts in halves of each side
    first = torch.stack([angle.cos() * wide, (shear - angle.sin() * tall) / aspect, 2 * draw(SHIFT)], dim=-1)
    second = torch.stack([angle.sin() * wide * aspect, angle.cos() * tall, 2 * draw(SHIFT)], dim=-1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def compose(images: torch.Tensor) -> torch.Tensor:
    """Each image with a random other: half of them cell by cell (CutMix on a coarse grid), half as a blend (mixup).

    Sources: Yun et al. 2019, CutMix; Zhang et al. 2018, mixup.
    """
    others = images[torch.randperm(len(images), device=images.device)]
    half = len(images) // 2
    cells = (torch.rand(half, 1, CELLS, CELLS, device=images.device) < 0.5).to(images.dtype)
    cells = F.interpolate(cells, size=images.shape[-2:])
    share = torch.rand(len(images) - half, 1, 1, 1, device=images.device, dtype=images.dtype)
    mask = torch.cat([cells, share.expand(-1, 1, *images.shape[-2:])])
    return mask * images + (1 - mask) * others
