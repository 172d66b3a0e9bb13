"""What `prepare arrays` learns of the voxels: regions, coordinates and noise ceilings, in arrays beside the responses.

A volume marks or names voxels on the grid of the scan. The responses follow its voxels as the language that wrote the
file takes them out by a mask: the first axis runs fastest in a .mat file, the last one in .npz and .h5 files.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.array_files import field_keys, read_arrays, vector
from visionflow_hf.corpus.files import reading
from visionflow_hf.corpus.repeats import shares
from visionflow_hf.corpus.schema import Volume
from visionflow_hf.errors import UserError, count


@dataclass
class VoxelKeys:
    """Keys of arrays that tell of the voxels, each may be None.

    Attributes:
        rois: one key, of the name or number of each voxel's region, array of shape (voxels,), or of a group or struct
            with a mask under the name of each region; or two keys, of masks and of their names: arrays of shape
            (regions, voxels) or (voxels, regions), volumes (regions, x, y, z) or (x, y, z, regions), or a cell array.
        xyz: coordinates, array of shape (voxels, 3) or (3, voxels).
        mask_volume: array of shape (x, y, z), above 0 at the voxels; gives their coordinates, counted from 0.
        noise_ceiling: share of the variance of one trial that the stimulus explains, array of shape (voxels,), 0 to 1
            or in percent.
    """

    rois: list[str] | None = None
    xyz: str | None = None
    mask_volume: str | None = None
    noise_ceiling: str | None = None


def voxel_columns(file: str | os.PathLike, keys: VoxelKeys, num_voxels: int, report: Callable[[str], None]) -> dict:
    """What `voxel_table` takes: `roi`, `x`, `y`, `z`, `volume`, `noise_ceiling`, as far as there are keys.

    Raises:
        UserError: an array does not have the expected form.
    """
    if keys.xyz and keys.mask_volume:
        raise UserError("--xyz and --mask-volume both tell where the voxels lie: give one of them")
    columns: dict = {}
    inside = None
    if keys.mask_volume:
        inside = volume_of(read_arrays(file, [keys.mask_volume])[keys.mask_volume], keys.mask_volume) > 0
    if keys.rois:
        names, masks = read_rois(file, keys.rois, num_voxels)
        if masks is None:
            columns["roi"] = [[name] if name not in ("", "0") else [] for name in names]
        else:
            if masks.ndim == 4 and inside is None:
                inside = masks.any(axis=0)
                report(f"the voxels are those that lie in any of the {count(names, 'region')}")
            columns["roi"] = region_lists(names, masks, inside, file, num_voxels, report)
    if inside is not None:
        if inside.sum() != num_voxels:
            raise UserError(
                f"{keys.mask_volume or ' '.join(keys.rois)} marks {inside.sum()} voxels, the responses have "
                f"{num_voxels}: give the mask that took them out of the volume as --mask-volume"
            )
        places = np.unravel_index(np.flatnonzero(inside.ravel(order_of(file))), inside.shape, order_of(file))
        columns |= dict(zip("xyz", places, strict=True))
        columns["volume"] = Volume(inside.shape, None, np.ravel_multi_index(places, inside.shape))
    if keys.xyz:
        places = coordinates(read_arrays(file, [keys.xyz])[keys.xyz], keys.xyz, num_voxels)
        columns |= dict(zip("xyz", places, strict=True))
    if keys.noise_ceiling:
        ceiling = read_arrays(file, [keys.noise_ceiling])[keys.noise_ceiling]
        columns["noise_ceiling"] = ceilings(ceiling, keys.noise_ceiling, num_voxels, report)
    return columns


def order_of(file: str | os.PathLike) -> str:
    return "F" if Path(file).suffix.lower() == ".mat" else "C"


def read_rois(file: str | os.PathLike, keys: list[str], num_voxels: int) -> tuple[list[str], np.ndarray | None]:
    """The name of each voxel and no masks, or the name of each region and masks (regions, voxels or x, y, z)."""
    if len(keys) > 2:
        raise UserError(f"--rois takes one key, or two of masks and their names: {len(keys)} were given")
    masks_key = keys[0]
    if len(keys) == 1 and (fields := field_keys(file, masks_key)):
        arrays = read_arrays(file, fields)
        return [key.split("/")[-1] for key in fields], stack(list(arrays.values()), masks_key, num_voxels)
    arrays = read_arrays(file, keys)
    array = arrays[masks_key]
    if len(keys) == 1:
        if array.dtype == bool:
            raise UserError(
                f"{masks_key} is a mask: give the name of each voxel's region, a group or struct with a mask under the "
                f"name of each region, or the key of their names after it, --rois {masks_key} NAMES"
            )
        names = texts(array, masks_key)
        if len(names) != num_voxels:
            raise UserError(
                f"{masks_key} has {len(names)} entries for {num_voxels} voxels: a name for each voxel is expected, or "
                f"a mask for each region and the key of their names after it, --rois {masks_key} NAMES"
            )
        return names, None
    number = arrays[keys[1]].size
    if array.dtype == object:
        masks = stack(list(array.ravel()), masks_key, num_voxels)
    elif array.ndim in (2, 4) and number in (array.shape[0], array.shape[-1]):
        first = array.shape[0] == number and (array.ndim == 4 or array.shape[1] == num_voxels)
        masks = stack(list(array if first else np.moveaxis(array, -1, 0)), masks_key, num_voxels)
    else:
        raise UserError(f"{masks_key} has shape {array.shape} for {number} names: a mask for each is expected")
    if len(masks) != number:
        raise UserError(f"{masks_key} has {len(masks)} masks, {keys[1]} has {number} names: one each is expected")
    return texts(arrays[keys[1]], keys[1]), masks


def stack(masks: list[np.ndarray], key: str, num_voxels: int) -> np.ndarray:
    """Bool array of shape (regions, voxels) or (regions, x, y, z)."""
    flat = [np.asarray(mask) for mask in masks]
    flat = [mask.ravel() if mask.ndim == 2 and 1 in mask.shape else mask for mask in flat]
    shapes = sorted({mask.shape for mask in flat})
    if len(shapes) != 1 or len(shapes[0]) not in (1, 3) or any(mask.dtype.kind not in "buif" for mask in flat):
        raise UserError(
            f"the masks in {key} have the {count(shapes, 'shape')}: numbers ({num_voxels},) or (x, y, z), the same for "
            "all regions, are expected"
        )
    if len(shapes[0]) == 1 and shapes[0] != (num_voxels,):
        raise UserError(f"the masks in {key} have {shapes[0][0]} entries for {num_voxels} voxels: one each is expected")
    return np.stack([mask > 0 for mask in flat])


def region_lists(
    names: list[str],
    masks: np.ndarray,
    inside: np.ndarray | None,
    file: str | os.PathLike,
    num_voxels: int,
    report: Callable[[str], None],
) -> list[list[str]]:
    """The regions of each voxel."""
    if masks.ndim == 4:
        if inside.shape != masks.shape[1:]:
            raise UserError(
                f"the masks of the regions have shape {masks.shape[1:]}, --mask-volume has {inside.shape}: they "
                "must be the same"
            )
        masks = np.stack([mask.ravel(order_of(file))[inside.ravel(order_of(file))] for mask in masks])
    empty = [name for name, mask in zip(names, masks, strict=True) if not mask.any()]
    if empty:
        report(f"{count(empty, 'region')} without a voxel")
    roi: list[list[str]] = [[] for _ in range(masks.shape[1])]
    for name, mask in zip(names, masks, strict=True):
        for place in np.flatnonzero(mask):
            roi[place].append(name)
    return roi


def texts(array: np.ndarray, key: str) -> list[str]:
    """The entries as text; whole numbers lose a decimal point, names of NIfTI files their ending."""
    names = []
    for value in vector(array, key):
        while isinstance(value, np.ndarray) and value.size == 1:
            value = value.ravel()[0]
        if isinstance(value, np.ndarray) and value.size == 0:
            value = ""
        names.append(plain_text(value, key).removesuffix(".gz").removesuffix(".nii"))
    return names


def plain_text(value, key: str) -> str:
    """An entry of the array `key` as text: bytes are UTF-8, whole numbers lose a decimal point, NaN is empty."""
    if isinstance(value, bytes):
        with reading(key):
            value = value.decode()
    elif value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        value = ""
    elif isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)
    return str(value).strip()


def volume_of(array: np.ndarray, key: str) -> np.ndarray:
    if array.ndim != 3 or array.dtype.kind not in "buif":
        raise UserError(f"{key} has shape {array.shape} and type {array.dtype}: numbers (x, y, z) are expected")
    return array


def coordinates(array: np.ndarray, key: str, num_voxels: int) -> np.ndarray:
    """Array of shape (3, voxels)."""
    if array.dtype.kind not in "iuf" or array.shape not in ((num_voxels, 3), (3, num_voxels)):
        raise UserError(
            f"{key} has shape {array.shape} and type {array.dtype}: numbers ({num_voxels}, 3), the coordinates of each "
            "voxel, are expected"
        )
    return array.T if array.shape == (num_voxels, 3) else array


def ceilings(array: np.ndarray, key: str, num_voxels: int, report: Callable[[str], None]) -> np.ndarray:
    """The noise ceilings from 0 to 1, array of shape (voxels,); NaN where it is not known."""
    if array.size != num_voxels or array.dtype.kind not in "iuf":
        raise UserError(
            f"{key} has shape {array.shape} and type {array.dtype}: one number for each of the {num_voxels} voxels is "
            "expected"
        )
    return shares(vector(array, key), key, report)
