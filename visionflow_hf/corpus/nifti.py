"""NIfTI files: opened by nibabel, which is in the extra `brain`, and read and written some volumes at a time."""

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from visionflow_hf.corpus.files import BLOCK_BYTES, existing, reading
from visionflow_hf.errors import UserError

MAX_VOXELS = BLOCK_BYTES  # of one volume: a small file can claim any number


def is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def import_nibabel(purpose: str):
    try:
        import nibabel
    except ImportError as error:
        raise UserError(f"{purpose} needs nibabel: pip install 'visionflow-hf[brain]'") from error
    return nibabel


def open_nifti(file: Path):
    """The header of a NIfTI file, by nibabel."""
    nibabel = import_nibabel("reading NIfTI")
    with reading(existing(file)):
        try:
            image = nibabel.load(file)
        except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
            raise ValueError(str(error)) from error
    if not isinstance(image, nibabel.Nifti1Image):
        raise UserError(f"{file} is a {type(image).__name__}: NIfTI volumes, .nii or .nii.gz, are expected")
    return image


def read_volume(file: Path) -> np.ndarray:
    """Array of shape (x, y, z), scaled as the header says."""
    image = open_nifti(file)
    shape, more = image.shape[:3], image.shape[3:]  # one volume may have a fourth axis of length 1
    if len(shape) != 3 or set(more) - {1} or np.prod(shape, dtype=float) > MAX_VOXELS:
        raise UserError(f"{file} has shape {image.shape}: one volume (x, y, z) is expected")
    with reading(file):
        return np.asarray(image.dataobj).reshape(shape)


def read_volumes(file: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The number of the first volume and the volumes of each block, array of shape (volumes, z, y, x), as stored.

    A NIfTI file is one stream of volumes, x running fastest; it is read once, from its beginning to its end.
    """
    image = open_nifti(file)
    width, height, depth, volumes = (*image.shape, 1)[:4]
    kind = image.get_data_dtype()
    some = max(BLOCK_BYTES // (8 * width * height * depth), 1)
    with reading(file), (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:
        stream.seek(image.dataobj.offset)
        for start in range(0, volumes, some):
            stop = min(start + some, volumes)
            length = (stop - start) * width * height * depth * kind.itemsize
            data = stream.read(length)
            if len(data) < length:
                raise UserError(f"{file} ends within trial {start + 1} to {stop} of {volumes}: is it whole?")
            yield start, np.frombuffer(data, dtype=kind).reshape(stop - start, depth, height, width)


def write_volumes(
    stream: BinaryIO,
    responses: Sequence[np.ndarray],
    shape: tuple[int, ...],
    affine: np.ndarray | None,
    voxels: np.ndarray,
) -> None:
    """Write a NIfTI file, uncompressed: float32 of shape (x, y, z, responses), 0 where there is no voxel.

    Args:
        responses: each of shape (voxels,).
        shape: (x, y, z).
        affine: from the place of a voxel to mm, array of shape (4, 4), or None where that is not known.
        voxels: their places in the grid, flattened in C order.
    """
    nibabel = import_nibabel("writing NIfTI")
    header = nibabel.Nifti1Header()
    try:
        header.set_data_shape((*shape, len(responses)))
    except nibabel.spatialimages.HeaderDataError as error:
        raise UserError(f"NIfTI has no room for {len(responses)} volumes of {shape}: at most 32767 a side") from error
    header.set_data_dtype(np.float32)
    header["magic"], header["vox_offset"] = b"n+1", header.single_vox_offset
    if affine is not None:
        header.set_zooms((*nibabel.affines.voxel_sizes(affine), 1))
        header.set_sform(affine, code="aligned")
        header.set_xyzt_units("mm")
    stream.write(header.binaryblock)
    stream.write(bytes(header.single_vox_offset - len(header.binaryblock)))
    for response in responses:
        volume = np.zeros(np.prod(shape), dtype=np.float32)
        volume[voxels] = response
        stream.write(volume.reshape(shape).tobytes(order="F"))
