# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""The feature spaces from which voxels are predicted: Gabor energies with colours, layers of the encoder, and z."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .gabor_wavelets import wavelet_maps
from .ridge import eigh

ENERGIES, LATENT = "energies", "latent"
BATCH = 64
WORKING_SET = 10_000_000  # numbers of maps, or of what fields read of them, that are in float32 at once
LARGEST = torch.finfo(torch.float16).max
LEAST_SCALE = 1e-4  # of a channel's standard deviation, against the largest
READ_CHANNELS = 128  # of a layer, that fields read: the main components of more
SOME_STIMULI = 500  # by which these are found


@dataclass
class LatentSpace:
    """The means of q(z | image) of some stimuli, `(stimuli, latent_dim)`, as the scores of a feature space."""

    scores: torch.Tensor
    name: str = LATENT


class FeatureSpace:
    """The maps of one kind of feature for some stimuli.

    Args:
        name: `energies` for Gabor energies and colours, else the encoder's layer, whose channels are standardised.
        values: float16 tensor of shape (channels, stimuli, places), which is changed in place; rounding is far below
            the responses' noise.

    Attributes:
        centre, scale: mean and standard deviation of each channel, `(channels,)`, by which `values` are standardised.
        mean: `(channels, places)`
        scores: float32 tensor of shape (stimuli, components), all of its principal components.
        read: what fields read, `(read channels, stimuli, places)`, the main ones of many channels.
        turn: `(channels, read channels)`, which makes `read` of `values`; None where it is the same.
    """

    def __init__(self, name: str, values: torch.Tensor):
        self.name, self.values = name, values
        self.grid = math.isqrt(values.shape[2])
        self.centre, self.scale = (fill(len(values), device=values.device) for fill in (torch.zeros, torch.ones))
        if name != ENERGIES:
            found = [torch.std_mean(part, (1, 2), correction=0) for part in in_parts(values)]
            self.scale, self.centre = (torch.cat(parts) for parts in zip(*found, strict=True))
            self.scale = self.scale.clamp(min=max(LEAST_SCALE * float(self.scale.max()), 1e-12))
            start = 0
            for part in in_parts(values):  # in place: all in float32 would fill memory
                own = slice(start, start := start + len(part))
                values[own] = (part - self.centre[own, None, None]) / self.scale[own, None, None]
        self.mean = torch.cat([part.mean(1) for part in in_parts(values)])
        stimuli = values.shape[1]
        products = torch.zeros(stimuli, stimuli, device=values.device)
        for part in in_parts(values):
            centred = (part - part.mean(1, keepdim=True)).transpose(0, 1).flatten(1)
            products += centred @ centred.T
        sizes, vectors = eigh(products)
        kept = sizes > 1e-6 * sizes.max()
        self._sizes = sizes[kept]
        self.scores = vectors[:, kept] * self._sizes.sqrt()
        self.read, self.turn = values, None
        if name != ENERGIES and len(values) > READ_CHANNELS:
            some = values[:, :: -(-stimuli // SOME_STIMULI)].flatten(1).float()
            _, turn = eigh(some.cov(correction=0))
            self.turn = turn[:, -READ_CHANNELS:]
            parts = [torch.einsum("ck,csp->ksp", self.turn, part.float()) for part in values.split(BATCH, dim=1)]
            self.read = torch.cat([part.half() for part in parts], dim=1)

    def of_scores(self, weights: torch.Tensor) -> torch.Tensor:
        """The linear map of `values` that a linear map of `scores` is: `(components, k)` to `(channels, places, k)`."""
        dual = self.scores @ (weights / self._sizes[:, None])
        dual = dual - dual.mean(0)
        return torch.cat([torch.einsum("csp,sk->cpk", part, dual) for part in in_parts(self.values)])


def in_parts(values: torch.Tensor, rows: torch.Tensor | slice = slice(None)) -> Iterator[torch.Tensor]:
    """Some channels of `(channels, stimuli, places)` at a time, for all or some stimuli, in float32."""
    for part in values.split(max(1, WORKING_SET // values[0].numel())):
        yield part[:, rows].float()


def feature_spaces(model, stimuli, stimulus_ids: list[str]) -> list[FeatureSpace]:
    """The Gabor energies and colours of stimuli, and the maps of the encoder's layers in `config.linear_layers`."""
    layers, widths = model.config.linear_layers, model.config.linear_widths
    maps = {ENERGIES: [], **{f"layer {layer}": [] for layer in layers}}
    for start in range(0, len(stimulus_ids), BATCH):
        names = stimulus_ids[start : start + BATCH]
        pixels = stimuli.pixel_values(names).to(model.device)
        parts = [wavelet_maps(pixels).flatten(2)]
        if layers:
            features = stimuli.image_features(names)
            features = model.extract_image_features(pixels)[0] if features is None else features.to(model.device)
            of_layers = features[:, model.feature_sizes[0] :].clamp(-LARGEST, LARGEST)
            places = model.feature_sizes[1] // sum(widths)
            parts += [part.unflatten(1, (-1, places)) for part in of_layers.split([places * n for n in widths], dim=1)]
        for own, part in zip(maps.values(), parts, strict=True):
            own.append(part.transpose(0, 1).half())
    return [FeatureSpace(name, torch.cat(maps.pop(name), dim=1)) for name in list(maps)]  # each lies in memory once
