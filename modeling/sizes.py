# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""Sizes that are chosen from the data: of a small image encoder, and of the MLPs between latent and fMRI."""

import math

from transformers import ViTConfig


def small_vit(image_size: list[int], channels: int) -> ViTConfig:
    """A ViT of 0.1 M parameters for stimuli too small for a pretrained one, with about 8 patches a side."""
    patch = max(1, round(max(image_size) / 8))
    side = math.ceil(max(image_size) / patch) * patch
    return ViTConfig(
        image_size=[side, side],
        patch_size=patch,
        num_channels=channels,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
    )


def bridge_width(num_voxels: list[int]) -> int:
    """1,024 hidden units, fewer where the maps to all voxels would then exceed 64 M weights, 128 at least."""
    affordable = 64_000_000 // sum(num_voxels)
    return max(128, min(1024, 2 ** (affordable.bit_length() - 1)))
