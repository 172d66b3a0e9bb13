"""Reading what others wrote: numbers only, from the files of the source only, and one line where a file is damaged."""

import filecmp
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tokenize import TokenError

import h5py
import numpy as np
import pyarrow as pa
from scipy.io.matlab import MatReadError

from visionflow_hf.errors import UserError
from visionflow_hf.images import SUFFIXES

FORMAT_ERRORS = (  # what the readers of HDF5, .mat, .npy, .npz, Arrow, NIfTI and text raise on damaged files
    *(OSError, ValueError, TypeError, LookupError, SyntaxError, EOFError, ArithmeticError, RuntimeError, MemoryError),
    NameError,  # scipy's reader of .mat names a variable that it has not set
    *(struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, TokenError, MatReadError, pa.ArrowException),
)
MOST_UNPACKED = 2**28  # bytes of an array that may be any multiple of what its file stores: a small file can claim any
MOST_TIMES = 100  # as many bytes as are stored, beyond that
BLOCK_BYTES = 64 * 2**20  # of a source that are in memory at a time


@contextmanager
def reading(file: str | os.PathLike) -> Iterator[None]:
    """Raise `UserError` where `file` cannot be opened, or where a reader of its format finds it damaged."""
    try:
        yield
    except FORMAT_ERRORS as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
        if isinstance(error, MemoryError):
            raise UserError(
                f"{file} does not fit into memory ({error}), or is damaged: copy it again, or use more memory"
            ) from error
        detail = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{file} cannot be read ({detail}): is it whole?") from error


def existing(file: Path) -> Path:
    """The file itself, where it is one; a pipe or a device could make a reader wait for ever."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    return file


def refuse_bomb(name: str, unpacked: float, stored: int) -> None:
    """Raise `UserError` where an array would fill memory with what a file of few bytes only claims to hold."""
    if unpacked > max(MOST_UNPACKED, MOST_TIMES * stored):
        raise UserError(
            f"{name} claims {unpacked / 2**30:.1f} GiB, and {stored / 2**20:.1f} MiB are stored: it is damaged or "
            f"empty; at most {MOST_TIMES} times as much is read"
        )


def refuse_bombs(archive: zipfile.ZipFile, names: Iterable[str]) -> None:
    """`refuse_bomb` of members of an .npz file."""
    for name in names:
        if name in archive.namelist():
            member = archive.getinfo(name)
            refuse_bomb(f"{name} of {archive.filename}", member.file_size, member.compress_size)


@contextmanager
def open_hdf5(file: Path) -> Iterator[h5py.File]:
    with reading(existing(file)), h5py.File(file, "r", rdcc_nbytes=BLOCK_BYTES) as source:
        yield source


def hdf5_item(source: h5py.Group, key: str) -> h5py.Dataset | h5py.Group:
    """The data set or group of this key, to which no link leads: a link could lead into another file."""
    item, file = source, source.file.filename
    for name in key.strip("/").split("/"):
        link = item.get(name, getlink=True) if isinstance(item, h5py.Group) else None
        if link is None:
            raise UserError(f"{file} has no {key}: its keys are {', '.join(sorted(source))}")
        if not isinstance(link, h5py.HardLink):
            raise UserError(f"{key} of {file} is a link: only values that lie in the file itself are read")
        item = item[name]
    return item


def hdf5_group(source: h5py.File, key: str) -> h5py.Group:
    item = hdf5_item(source, key)
    if not isinstance(item, h5py.Group):
        raise UserError(f"{key} of {source.filename} is an array: a group is expected")
    return item


def hdf5_dataset(source: h5py.File, key: str) -> h5py.Dataset:
    """The data set of this key, whose values lie in this very file."""
    return own_values(hdf5_item(source, key), key)


def own_values(item: h5py.HLObject, key: str) -> h5py.Dataset:
    """The item itself, if its values lie in its file.

    Virtual data sets and external storage let a file show any other file that the user can read.
    """
    if not isinstance(item, h5py.Dataset):
        raise UserError(f"{key} of {item.file.filename} is a group: an array is expected")
    if item.is_virtual or item.external:
        raise UserError(f"{key} of {item.file.filename} lies in other files: only values in the file itself are read")
    return item


def blocks(dataset: h5py.Dataset) -> Iterator[tuple[slice, ...]]:
    """Slices that tile a data set, each of whole HDF5 chunks and of `BLOCK_BYTES` where the chunks allow."""
    shape = dataset.shape
    size = [min(length, most) for length, most in zip(dataset.chunks or (1,) * len(shape), shape, strict=True)]
    for axis in reversed(range(len(shape))):
        while size[axis] < shape[axis] and 2 * np.prod(size, dtype=float) * dataset.dtype.itemsize <= BLOCK_BYTES:
            size[axis] = min(2 * size[axis], shape[axis])
    starts = (range(0, length, step) for length, step in zip(shape, size, strict=True))
    for corner in product(*starts):
        yield tuple(
            slice(start, min(start + step, length)) for start, step, length in zip(corner, size, shape, strict=True)
        )


def open_npy(file: Path) -> np.ndarray:
    """An array that stays on disk until it is sliced; pickled ones are refused."""
    with reading(existing(file)):
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            if "Python objects" not in str(error):
                raise
            raise UserError(
                f"{file} cannot be read as numbers, since it holds Python objects: save the array in them alone, as in "
                "np.save('betas.npy', np.load(FILE, allow_pickle=True).item()['betasmd'])"
            ) from error
        if not isinstance(array, np.ndarray):
            raise UserError(f"{file} holds several arrays: one .npy array is expected")
        return array


def find_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, also behind links to folders, each folder once."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(path) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(path))
        folders.sort()
        for name in sorted(names):
            if (Path(path) / name).is_file():
                yield Path(path) / name


def pictures_in(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, by path; hidden ones are left out."""
    if not os.path.isdir(folder):  # unlike `Path.is_dir`, it takes names of any length
        raise UserError(f"{folder} is no folder: a folder of images is expected")
    shown = [path for path in find_files(folder) if not is_hidden(path, folder)]
    files = [path for path in shown if path.suffix.lower() in SUFFIXES]
    if not files:
        raise UserError(f"{folder} has no images: {', '.join(sorted(SUFFIXES))} are read")
    return files


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file in a folder, or a folder on the way to it, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def plain_name(name: str, source: str | os.PathLike) -> str:
    """A name that stays in its folder."""
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise UserError(f"{source} names the file {name!r}: a plain name without folders is expected")
    return name


def index_images(files: Iterable[Path]) -> dict[str, Path]:
    """The images among some files by their name without its ending; of equal files the first."""
    images: dict[str, Path] = {}
    for file in files:
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            other = images.setdefault(file.stem, file)
            if other != file and not filecmp.cmp(other, file, shallow=False):
                raise UserError(f"two images bear the name {file.stem}: {other} and {file}; remove one")
    return images


def read_images(files: dict[str, Path]) -> Iterator[tuple[str, bytes]]:
    """The encoded image of each stimulus."""
    for stimulus, file in files.items():
        with reading(file):
            yield stimulus, existing(file).read_bytes()
