"""Where voxels lie: the mask that chooses them, their coordinates, regions and noise ceilings, from NIfTI volumes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.files import open_npy
from visionflow_hf.corpus.nifti import is_nifti, open_nifti, read_volume
from visionflow_hf.corpus.repeats import ncsnr_of_ceiling, shares
from visionflow_hf.corpus.texts import read_texts
from visionflow_hf.errors import UserError, count

SAME_PLACE = 1e-3  # mm that affines may differ by


@dataclass
class Space:
    """The grid that the volumes of a subject share, as one file states it.

    Attributes:
        shape: (x, y, z).
        affine: from the place of a voxel to mm, array of shape (4, 4), or None where that is not known.
    """

    file: Path
    shape: tuple[int, ...]
    affine: np.ndarray | None

    def check(self, file: Path, shape: tuple[int, ...], affine: np.ndarray | None) -> None:
        """Refuse a volume of another grid."""
        if tuple(shape) != tuple(self.shape):
            raise UserError(
                f"{file} has the grid {tuple(shape)}, {self.file} has {tuple(self.shape)}: they must be the same, so "
                "resample one to the other"
            )
        if affine is None or self.affine is None:
            return
        if not np.allclose(affine, self.affine, rtol=0, atol=SAME_PLACE):
            raise UserError(
                f"{file} and {self.file} have different affines (by up to {np.abs(affine - self.affine).max():.3g}): "
                "they must be the same, so resample one to the other"
            )

    def read(self, file: Path) -> np.ndarray:
        """A volume of this grid, array of shape (x, y, z)."""
        if not is_nifti(file):
            raise UserError(f"{file} is no NIfTI file: a .nii or .nii.gz volume of {tuple(self.shape)} is expected")
        volume = read_volume(file)
        self.check(file, volume.shape, open_nifti(file).affine)
        if volume.dtype.kind not in "iuf":
            raise UserError(f"{file} has the type {volume.dtype}: numbers are expected")
        return volume


def read_space(file: Path) -> Space:
    image = open_nifti(file)
    return Space(file, image.shape[:3], image.affine)


def read_mask(file: Path, space: Space) -> np.ndarray:
    """The places of the voxels above 0 in the flattened grid, array of shape (voxels,); some masks are -1 outside."""
    inside = np.flatnonzero(np.nan_to_num(space.read(file)) > 0)
    if not len(inside):
        raise UserError(f"{file} has no voxel above 0: is this the right mask?")
    return inside


def in_order_of_matlab(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The same places in a grid flattened in C order, x running fastest as where MATLAB indexes by a mask."""
    return places[np.lexsort(np.unravel_index(places, shape))]


def coordinates(space: Space, voxels: np.ndarray) -> dict[str, np.ndarray]:
    """x, y and z of each voxel in mm, where the space knows its affine."""
    if space.affine is None:
        return {}
    places = np.stack(np.unravel_index(voxels, space.shape), axis=1)
    return dict(zip("xyz", (places @ space.affine[:3, :3].T + space.affine[:3, 3]).T, strict=True))


def read_regions(
    files: Sequence[Path], names: Sequence[str], space: Space, voxels: np.ndarray, report: Callable[[str], None]
) -> list[list[str]]:
    """The regions of each voxel, from a volume of labels and the table of their names, or from a mask a region.

    Args:
        names: of the regions, if `files` are masks.
    """
    if len(files) == 2 and not is_nifti(files[1]):
        return named_labels(*files, space, voxels, report)
    roi: list[list[str]] = [[] for _ in voxels]
    for file, name in zip(files, names, strict=True):
        mask = np.nan_to_num(space.read(file).ravel()[voxels])
        labels = np.unique(mask[mask > 0])
        if len(labels) > 1 and not np.any(labels % 1):
            raise UserError(
                f"{file} has the labels {', '.join(f'{label:g}' for label in labels[:10])}, and a mask 1 alone: give "
                "the table of their names after it, with the columns index and name"
            )
        for place in np.flatnonzero(mask > 0):
            if name not in roi[place]:
                roi[place].append(name)
    return roi


def named_labels(
    file: Path, table: Path, space: Space, voxels: np.ndarray, report: Callable[[str], None]
) -> list[list[str]]:
    rows = read_texts(table)
    if "index" not in rows or "name" not in rows:
        raise UserError(f"{table} has the columns {', '.join(rows.columns)}: index and name of the labels are expected")
    try:
        indices = [int(index) for index in rows["index"]]
    except ValueError as error:
        raise UserError(f"index of {table} has {error}: whole numbers are expected") from error
    names = dict(zip(indices, rows["name"], strict=True))
    if len(names) < len(indices):
        raise UserError(f"{table} names a label twice: one row a label is expected")
    labels = space.read(file).ravel()[voxels]
    if not np.isfinite(labels).all() or np.any(labels % 1):
        raise UserError(f"{file} has labels that are no whole numbers: give a volume of labels, as {table} names them")
    unknown = sorted({int(label) for label in np.unique(labels)} - {0, *names})
    if unknown:
        report(f"{file.name}: {count(unknown, 'label')} without a name in {table.name}: in no region")
    return [[names[label]] if label and names.get(label) else [] for label in labels.astype(np.int64).tolist()]


def region_name(pattern: str) -> str:
    """What a mask's file name tells beside subject and so on: its BIDS entity `label`, or else all of it."""
    name = re.sub(r"\.nii(\.gz)?$", "", Path(pattern).name, flags=re.IGNORECASE)
    match = re.search(r"(?:^|_)label-([^_]+)", name)
    return match[1] if match else re.sub(r"(\w+-)?\{[^}]*\}", "", name).strip("_-. ") or name


def read_ceiling(
    file: Path, space: Space | None, voxels: np.ndarray | None, num_voxels: int, report: Callable[[str], None]
) -> np.ndarray:
    """The ncsnr of each voxel from its noise ceiling, array of shape (voxels,); NaN where it is not known."""
    if file.suffix.lower() == ".npy":
        ceiling = open_npy(file)
        if ceiling.shape != (num_voxels,) or ceiling.dtype.kind not in "iuf":
            raise UserError(
                f"{file} has shape {ceiling.shape} and type {ceiling.dtype}: one number for each of the {num_voxels} "
                "voxels is expected"
            )
    elif space is None:
        raise UserError(f"{file} needs --mask, which says where the voxels of the betas lie; or give a .npy file")
    else:
        ceiling = space.read(file).ravel()[voxels]
    return ncsnr_of_ceiling(shares(ceiling, file.name, report))
