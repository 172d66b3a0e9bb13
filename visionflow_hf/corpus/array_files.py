"""Arrays by their keys from .mat (v5 and v7.3), .npz and HDF5 files, in the order of axes of whoever wrote them."""

import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from visionflow_hf.corpus.files import (
    existing,
    hdf5_dataset,
    open_hdf5,
    own_values,
    reading,
    refuse_bomb,
    refuse_bombs,
)
from visionflow_hf.corpus.mat5 import load_mat5
from visionflow_hf.errors import UserError


def read_arrays(file: str | os.PathLike, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these keys from a .mat (v5 or v7.3), .npz or .h5 file.

    MATLAB lays arrays out column by column, so that HDF5 shows those of a v7.3 file with their axes reversed: they
    come back here in MATLAB's own order. Sparse matrices of a v5 file come back dense; `data/images` is the field
    `images` of the struct `data`. Pickled arrays are refused.
    """
    file = Path(file)
    there = array_keys(file)
    is_mat5 = file.suffix == ".mat" and not h5py.is_hdf5(file)
    refuse_unknown([key.split("/")[0] for key in keys] if is_mat5 else keys, there, file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: read_hdf5(source, key, matlab=file.suffix == ".mat") for key in keys}
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as source:
                refuse_bombs(source.zip, [f"{key}.npy" for key in keys])
                return {key: source[key] for key in keys}
        refuse_bomb_of_mat5(file, {key.split("/")[0] for key in keys})
        variables = load_mat5(file, [key.split("/")[0] for key in keys])
        return {key: read_mat5(variables, key, file) for key in keys}


def array_keys(file: str | os.PathLike) -> list[str]:
    """The keys of the arrays in a .mat (v5 or v7.3), .npz or .h5 file."""
    file = existing(Path(file))
    with reading(file):
        if h5py.is_hdf5(file):
            there = []
            with open_hdf5(file) as source:
                source.visititems(lambda name, item: there.append(name) if isinstance(item, h5py.Dataset) else None)
            return [key for key in there if not key.startswith("#refs#")]
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as source:
                return source.files
        if file.suffix == ".mat":
            try:
                return [name for name, _, _ in scipy.io.whosmat(file)]
            except TypeError:  # whosmat fails on MATLAB's strings, tables and dates, which loadmat leaves out
                return [name for name in load_mat5(file) if name != "None" and not name.startswith("__")]
    raise UserError(f"{file} is neither .mat, .npz nor HDF5: give one of these")


def refuse_bomb_of_mat5(file: Path, names: Collection[str]) -> None:
    """`refuse_bomb` by the numbers of a .mat file before v7.3, whose variables may be compressed."""
    try:
        kinds = scipy.io.whosmat(file)
    except TypeError:  # see `array_keys`
        return
    for name, shape, _ in kinds:
        if name in names:
            refuse_bomb(f"{name} of {file}", np.prod(shape, dtype=float), file.stat().st_size)


def read_mat5(variables: dict, key: str, file: Path) -> np.ndarray:
    """One variable of a .mat file before v7.3, or one field of a struct."""
    name, *fields = key.split("/")
    array = variables[name]
    for field in fields:
        names = getattr(array.dtype, "names", None) or ()
        if field not in names or array.size != 1:
            raise UserError(f"{name} of {file} has no field {field}: its fields are {', '.join(names) or 'none'}")
        name, array = f"{name}/{field}", array[field].item()
    if scipy.sparse.issparse(array):
        return array.toarray()
    if array.dtype.names:
        fields = ", ".join(f"{name}/{field}" for field in array.dtype.names)
        raise UserError(f"{name} of {file} is a struct: give one of its fields, {fields}")
    return array


def read_hdf5(source: h5py.File, key: str, matlab: bool) -> np.ndarray:
    """One dataset, in MATLAB's order of axes where MATLAB wrote it; its text as an array of str."""
    dataset = hdf5_dataset(source, key)
    refuse_bomb(f"{key} of {source.filename}", dataset.nbytes, dataset.id.get_storage_size())
    array = dataset[()]
    if not matlab:
        return array
    if array.dtype == h5py.ref_dtype:  # a cell array
        cells = [own_values(source[reference], f"a cell of {key}") for reference in array.T.ravel()]
        values = [text_of(cell[()].T.ravel()) if is_text(cell) else cell[()].T for cell in cells]
        return np.fromiter(values, dtype=object, count=len(values))
    if is_text(dataset) and array.ndim == 2:
        return np.array([text_of(row) for row in array.T])
    return array.T


def is_text(dataset: h5py.Dataset) -> bool:
    """Whether MATLAB means UTF-16 codes; a cell whose class is not stated is text if it holds uint16."""
    kind = dataset.attrs.get("MATLAB_class")
    return kind == b"char" if kind is not None else dataset.dtype == np.uint16 and "#refs#" in dataset.name


def text_of(codes: np.ndarray) -> str:
    return "".join(map(chr, codes))


def refuse_unknown(keys: Sequence[str], there: Sequence[str], file: Path) -> None:
    for key in keys:
        if key not in there:
            raise UserError(f"{file} has no {key}: its keys are {', '.join(sorted(there))}")


def field_keys(file: str | os.PathLike, key: str) -> list[str]:
    """The keys of the arrays in a group of an HDF5 file or a struct of a .mat file; none where `key` is neither."""
    file = Path(file)
    if file.suffix == ".mat" and not h5py.is_hdf5(file):
        with reading(file):
            array = load_mat5(file, [key]).get(key)
        return [f"{key}/{name}" for name in array.dtype.names or ()] if isinstance(array, np.ndarray) else []
    return [name for name in array_keys(file) if name.startswith(f"{key}/")]


def array_kinds(file: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape of each array, in the order of axes in which `read_arrays` gives it, and the name of its type."""
    keys = array_keys(file)
    file = Path(file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: hdf5_kind(source[key], file.suffix == ".mat") for key in keys}
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                return {key: npy_kind(archive, f"{key}.npy") for key in keys}
        kinds: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, array in load_mat5(file, keys).items():
            if name in keys and array.dtype.names and array.size == 1:
                fields = {f"{name}/{field}": np.asarray(array[field].item()) for field in array.dtype.names}
                kinds |= {key: (field.shape, kind_of(field)) for key, field in fields.items()}
            elif name in keys:
                kinds[name] = (array.shape, kind_of(array))
        return kinds


def kind_of(array: np.ndarray) -> str:
    return {"O": "cell", "U": "text", "V": "struct"}.get(array.dtype.kind, str(array.dtype))


def hdf5_kind(dataset: h5py.Dataset, matlab: bool) -> tuple[tuple[int, ...], str]:
    shape = dataset.shape[::-1] if matlab else dataset.shape
    if dataset.dtype == h5py.ref_dtype:
        return shape, "cell"
    return shape, "text" if is_text(dataset) or h5py.check_string_dtype(dataset.dtype) else str(dataset.dtype)


def npy_kind(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, "text" if dtype.kind in "US" else str(dtype)
