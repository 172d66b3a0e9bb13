"""NIfTI files: opened by nibabel, which is in the extra `brain`, and read some volumes at a time."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.files import BLOCK_BYTES, existing, reading
from visionflow_hf.errors import UserError

MAX_VOXELS = BLOCK_BYTES  # of one volume: a small file can claim any number


def is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def open_nifti(file: Path):
    """The header of a NIfTI file, by nibabel."""
    try:
        import nibabel
    except ImportError as error:
        raise UserError("reading NIfTI needs nibabel: pip install 'visionflow-hf[brain]'") from error
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
    if len(image.shape) != 3 or np.prod(image.shape, dtype=float) > MAX_VOXELS:
        raise UserError(f"{file} has shape {image.shape}: one volume (x, y, z) is expected")
    with reading(file):
        return np.asarray(image.dataobj)


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
