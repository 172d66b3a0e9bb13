"""A synthetic visual cortex that sees photographs: V1 by Gabor energies, V4 and IT by the layers of a vision network.

A voxel of V1 is one of `visionflow_hf.corpus.simulate`, on the luminance. A voxel v of V4 or IT weights some channels c
of a layer, and pools each over the layer's grid in a Gaussian receptive field. With h_c the channel's activations and
s_c their standard deviation over images and places,

    signal_v(image) = sum_c w_vc / s_c sum_xy field_v(x, y) h_c(image, x, y)        w_vc ~ N(0, 1), sum field_v = 1

standardised over the stimuli, with noise as there. V4 reads a layer in the middle of the network, IT a late one
(Yamins et al. 2014; Guclu & van Gerven 2015); the form of a voxel is the feature-weighted receptive field of St-Yves &
Naselaris 2018; fields grow from V1 to ventral cortex (Kay et al. 2013).

The noise-ceiling signal-to-noise ratio (ncsnr) of a voxel is log-normal around its area's median in the Natural Scenes
Dataset (Allen et al. 2022): averages over three trials have there a median noise ceiling of 35.4 % in V1, 45.5 % in hV4
and 21.7 % in the ventral stream (means over the eight subjects, on fsaverage, as the notebooks of brain-score/vision,
data/allen2022_fmri, print them). The width of the distribution within an area is an assumption.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import nn
from tqdm import tqdm

from visionflow_hf.corpus.files import pictures_in
from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr_of_ceiling
from visionflow_hf.corpus.simulate import Population, gabor_energies, receptive_fields, standardised
from visionflow_hf.errors import UserError
from visionflow_hf.images import open_image, pixel_hash
from visionflow_hf.modeling.vision_encoder import layer_maps
from visionflow_hf.pretrained import input_size, layers_to_read, load_encoder

FIELD_SIZES = {"V1": 0.08, "V4": 0.18, "IT": 0.35}  # sigma of the receptive field as a share of the image's width
THREE_TRIAL_CEILINGS = {"V1": 0.354, "V4": 0.455, "IT": 0.217}  # medians in NSD
NCSNR_SPREAD = 0.5  # standard deviation of log(ncsnr) within an area
CHANNELS_PER_VOXEL = 32
LARGEST_LUMINANCE = 64  # px a side; V1 sees larger images reduced to this
BATCH = 32


class Photographs(Sequence):
    """Distinct pictures of a folder, in random order: their middle squares, all of one size, decoded when asked for.

    Args:
        number: how many; None for all. A picture that looks like an earlier one does not count.
        size: height and width in px.
        report: told how many pictures were left out.

    Attributes:
        ids: path of each within the folder.
        luminance: uint8 array of shape (pictures, side, side).

    Raises:
        UserError: no folder, too few pictures in it, or one that cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        number: int | None,
        size: int,
        rng: np.random.Generator,
        report: Callable[[str], None] = print,
    ):
        self.folder, self.size = Path(folder), size
        files = pictures_in(self.folder)
        names = [files[place].relative_to(self.folder).as_posix() for place in rng.permutation(len(files))]
        side = min(size, LARGEST_LUMINANCE)
        found, luminance, copies = {}, [], 0
        for name in tqdm(names, desc="photographs", unit="image", disable=None):
            if len(found) == number:
                break
            picture = self.open(name)
            if found.setdefault(pixel_hash(picture), name) != name:
                copies += 1
                continue
            grey = picture.convert("L")
            luminance.append(np.asarray(grey if side == size else grey.resize((side, side), Image.Resampling.BICUBIC)))
        if copies:
            report(f"left out {copies} of the pictures, which look like others")
        least = number or 2
        if len(found) < least:
            raise UserError(f"{folder} has too few distinct pictures, {len(found)}: at least {least} are needed")
        self.ids, self.luminance = list(found.values()), np.stack(luminance)

    def open(self, name: str) -> Image.Image:
        return ImageOps.fit(open_image(self.folder / name), (self.size, self.size))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place):
        return [self.open(name) for name in self.ids[place]] if isinstance(place, slice) else self.open(self.ids[place])


class Network:
    """A frozen vision network, of which two layers stand for V4 and IT.

    Args:
        name: a folder, or a name on the Hub.
        image_size: height and width in px of the stimuli; a network that states no size sees them as they are.

    Raises:
        UserError: no such network, or one without two layers that give a feature map.
    """

    def __init__(self, name: str, image_size: int):
        encoder, own = load_encoder(name)
        self.encoder = encoder.eval()
        self.name = encoder.config._name_or_path
        self.size = input_size(encoder.config, own, [image_size, image_size])
        self.mode = "L" if getattr(encoder.config, "num_channels", 3) == 1 else "RGB"
        self.mean, self.std = (
            torch.tensor(own.get(key, [0.5] * 3))[: len(self.mode), None, None] for key in ("image_mean", "image_std")
        )
        layers = layers_to_read(encoder.config, self.size)
        if len(layers) < 2:
            raise UserError(f"network {name} has {len(layers)} layer with a feature map: V4 and IT need one each")
        self.layers = {"V4": layers[(len(layers) - 1) // 2], "IT": layers[-1]}

    @torch.no_grad()
    def grids(self, pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
        """What V4 and IT see of some pictures of one size: `(pictures, channels, rows, columns)` each."""
        pixels = np.stack([np.atleast_3d(picture.convert(self.mode)) for picture in pictures])
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        pixels = nn.functional.interpolate(pixels, self.size, mode="bilinear", antialias=True, align_corners=False)
        maps, _ = layer_maps(self.encoder, (pixels - self.mean) / self.std, list(self.layers.values()))
        return {area: one.grid for area, one in zip(self.layers, maps, strict=True)}


def ventral_cortices(
    pictures: Photographs, network: Network, subjects: int, voxels: int, rng: np.random.Generator
) -> list[Population]:
    """Draw a population of voxels of V1, V4 and IT for each subject, and show them the pictures.

    Raises:
        UserError: V4 or IT would see the same in all pictures.
    """
    scales = {area: grid.std((0, 2, 3)) for area, grid in network.grids(pictures[:BATCH]).items()}
    for area, scale in scales.items():
        if not len(changing_channels(scale)):
            raise UserError(
                f"{network.name} sees the same in all pictures, where {area} reads it: name a trained network"
            )
    populations, readers = [], []
    for _ in range(subjects):
        roi, x, y, sigma = receptive_fields(FIELD_SIZES, voxels, rng)
        signal = np.empty((len(pictures), voxels))
        early = roi == "V1"
        signal[:, early] = gabor_energies(pictures.luminance, x[early], y[early], sigma[early], rng)
        for area, scale in scales.items():
            own = np.flatnonzero(roi == area)
            weights = channel_weights(scale, len(own), rng)
            readers.append((area, signal, own, weights, (x[own], y[own], sigma[own])))
        medians = ncsnr_of_ceiling(np.array([THREE_TRIAL_CEILINGS[name] for name in roi])) / np.sqrt(3)
        ncsnr = medians * np.exp(NCSNR_SPREAD * rng.standard_normal(voxels))
        populations.append(Population(signal, roi, ceiling_of_average(ncsnr, [1])))
    for start in tqdm(range(0, len(pictures), BATCH), desc="network", unit="batch", disable=None):
        rows = slice(start, start + BATCH)
        grids = network.grids(pictures[rows])
        for area, signal, own, weights, fields in readers:
            seen = torch.einsum("bcyx,vc,vyx->bv", grids[area], weights, field_maps(*fields, grids[area].shape[2:]))
            signal[rows, own] = seen.numpy()
    for one in populations:
        one.signal = standardised(one.signal)
    return populations


def channel_weights(scale: torch.Tensor, voxels: int, rng: np.random.Generator) -> torch.Tensor:
    """Draw the weight of each channel in each voxel, `(voxels, channels)`, most of them 0.

    Args:
        scale: standard deviation of each channel, `(channels,)`; channels that hardly change are not drawn.
    """
    changing = changing_channels(scale)
    weights = np.zeros((voxels, len(scale)), np.float32)
    for one in weights:
        drawn = rng.choice(changing, min(CHANNELS_PER_VOXEL, len(changing)), replace=False)
        one[drawn] = rng.standard_normal(len(drawn)) / scale[drawn].numpy()
    return torch.from_numpy(weights)


def changing_channels(scale: torch.Tensor) -> np.ndarray:
    """The channels whose standard deviation is at least a hundredth of the median, and well above rounding to 0."""
    return np.flatnonzero((scale > max(0.01 * scale.median().item(), 1e-30)).numpy())


def field_maps(x: np.ndarray, y: np.ndarray, sigma: np.ndarray, grid: Sequence[int]) -> torch.Tensor:
    """Receptive fields over the cells of a grid, `(voxels, rows, columns)`; each sums to 1.

    Args:
        x, y, sigma: as `receptive_fields` draws them, arrays of shape (voxels,).
        grid: number of rows and of columns.
    """
    across = (np.arange(grid[1]) + 0.5) / grid[1] - 0.5 - x[:, None]
    up = 0.5 - (np.arange(grid[0]) + 0.5) / grid[0] - y[:, None]
    squares = up[:, :, None] ** 2 + across[:, None, :] ** 2
    field = np.exp(-squares / (2 * sigma[:, None, None] ** 2))
    return torch.from_numpy((field / field.sum((1, 2), keepdims=True)).astype(np.float32))
