"""Files of betas in any format, read some trials at a time: NIfTI, .npy, .npz, .h5 and .mat.

Volumes are (x, y, z) of one trial or (x, y, z, trials), arrays (trials, voxels) or (x, y, z, trials). A .npz or .mat
file before v7.3 is read into memory as a whole, the others are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from visionflow_hf.corpus.array_files import array_keys, read_arrays
from visionflow_hf.corpus.files import BLOCK_BYTES, existing, hdf5_dataset, open_hdf5, open_npy, reading
from visionflow_hf.corpus.nifti import MAX_VOXELS, is_nifti, open_nifti, read_volumes
from visionflow_hf.errors import UserError, count


@dataclass
class Betas:
    """The responses in one file.

    Attributes:
        key: name of the array in a .npz, .h5 or .mat file.
        trials: number of trials.
        grid: (voxels,) or (x, y, z).
        affine: from the place of a voxel to mm, array of shape (4, 4), where the file states it.
    """

    file: Path
    key: str | None
    trials: int
    grid: tuple[int, ...]
    affine: np.ndarray | None

    def blocks(self, voxels: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
        """The first trial and the responses of each block, float32 array of shape (trials, voxels).

        Args:
            voxels: their places in the flattened `grid`, in C order; all without.
        """
        if voxels is None:
            voxels = np.arange(np.prod(self.grid))
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
            for start, values in self.volumes(voxels) if is_nifti(self.file) else self.rows(voxels):
                yield start, values.astype(np.float32)

    def volumes(self, voxels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Of a NIfTI file, scaled as the header says."""
        stored = np.ravel_multi_index(np.unravel_index(voxels, self.grid), self.grid, order="F")
        scale = open_nifti(self.file).dataobj
        for start, block in read_volumes(self.file):
            values = block.reshape(len(block), -1)[:, stored]
            if (scale.slope, scale.inter) != (1, 0):
                values = values * np.float64(scale.slope) + np.float64(scale.inter)
            yield start, values

    def rows(self, voxels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Of an array."""
        step = max(BLOCK_BYTES // (8 * int(np.prod(self.grid))), 1)
        with opened(self.file, self.key) as (array, reverse), reading(self.file):
            for start in range(0, self.trials, step):
                some = slice(start, start + step)
                block = np.moveaxis(array[..., some], -1, 0) if (array.ndim == 2) == reverse else array[some]
                if reverse:
                    block = block.transpose(0, *range(block.ndim - 1, 0, -1))
                yield start, block.reshape(len(block), -1)[:, voxels]


def open_betas(file: Path, key: str | None) -> Betas:
    """What a file holds, with no value read where its format allows that.

    Raises:
        UserError: another format, or neither volumes nor an array of trials.
    """
    if is_nifti(file):
        image = open_nifti(file)
        shape, kind, affine = image.shape, image.get_data_dtype(), image.affine
        expected = "numbers (x, y, z) or (x, y, z, trials) are expected"
        fits = len(shape) in (3, 4)
    else:
        if file.suffix.lower() not in (".npy", ".npz", ".mat") and not h5py.is_hdf5(existing(file)):
            raise UserError(f"{file} is neither NIfTI (.nii or .nii.gz), .npy, .npz, .mat nor HDF5: give one of these")
        if key is None and file.suffix != ".npy":
            key = only_key(file)
        with opened(file, key) as (array, reverse):
            stored = array.shape or ()  # a null data set has none
            shape, kind, affine = stored[::-1] if reverse else stored, array.dtype, None
        expected = "numbers (trials, voxels) or (x, y, z, trials) are expected"
        fits = len(shape) in (2, 4)
    if not fits or kind.kind not in "iuf" or 0 in shape:
        raise UserError(f"{file} has shape {shape} and type {kind}: {expected}")
    if len(shape) == 4 and shape[1:3] == (1, 1):  # GLMsingle's betas of voxels in no grid, (voxels, 1, 1, trials)
        return Betas(file, key, shape[3], shape[:1], affine)
    if len(shape) == 2:
        return Betas(file, key, shape[0], shape[1:], affine)
    if np.prod(shape[:3], dtype=float) > MAX_VOXELS:
        raise UserError(f"{file} has shape {shape}: at most {MAX_VOXELS} voxels a volume are read")
    return Betas(file, key, shape[3] if len(shape) == 4 else 1, shape[:3], affine)


def only_key(file: Path) -> str:
    keys = array_keys(file)
    if len(keys) != 1:
        raise UserError(f"{file} holds {count(sorted(keys), 'array')}: name that of the betas with --betas-key")
    return keys[0]


@contextmanager
def opened(file: Path, key: str | None) -> Iterator[tuple[np.ndarray | h5py.Dataset, bool]]:
    """An array as it is stored, and whether its axes are reversed, as HDF5 shows those of MATLAB."""
    if file.suffix.lower() == ".npy":
        yield open_npy(file), False
    elif h5py.is_hdf5(existing(file)):
        with open_hdf5(file) as source:
            yield hdf5_dataset(source, key), file.suffix.lower() == ".mat"
    else:
        yield np.asarray(read_arrays(file, [key])[key]), False
