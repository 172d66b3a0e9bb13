"""What a .mat (v5 and v7.3), .npz or HDF5 file holds: the shape and the type of each array."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from visionflow_hf.corpus.array_files import array_keys, is_cell_array, is_text
from visionflow_hf.corpus.files import open_hdf5, own_values, reading
from visionflow_hf.corpus.mat5 import load_mat5


def array_kinds(file: str | os.PathLike) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape of each array, in the order of axes in which `read_arrays` gives it, and the name of its type."""
    keys = array_keys(file)
    file = Path(file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: hdf5_kind(source[key], file.suffix.lower() == ".mat") for key in keys}
        if file.suffix.lower() == ".npz":
            with zipfile.ZipFile(file) as archive:
                return {key: npy_kind(archive, f"{key}.npy") for key in keys}
        kinds: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, array in load_mat5(file, keys).items():
            if name in keys:
                kinds |= mat5_kinds(name, array)
        return kinds


def mat5_kinds(name: str, array: np.ndarray) -> dict[str, tuple[tuple[int, ...], str]]:
    """An array, or those in the fields of a struct."""
    if not array.dtype.names:
        cells = [kind_of(np.asarray(cell)) for cell in array.ravel()] if array.dtype == object else []
        return {name: (array.shape, cell_kind(cells) if array.dtype == object else kind_of(array)[1])}
    fields = {field: array[field].item() if array.size == 1 else array[field] for field in array.dtype.names}
    return {key: kind for field, value in fields.items() for key, kind in mat5_kinds(f"{name}/{field}", value).items()}


def kind_of(array: np.ndarray) -> tuple[tuple[int, ...], str]:
    return array.shape, {"O": "cell", "U": "text", "V": "struct"}.get(array.dtype.kind, str(array.dtype))


def cell_kind(cells: Sequence[tuple[tuple[int, ...], str]]) -> str:
    """What the cells hold, where that is one thing."""
    shapes, kinds = ({cell[place] for cell in cells} for place in (0, 1))
    if len(kinds) != 1:
        return "cell"
    shape = f"{' x '.join(map(str, *shapes))} " if len(shapes) == 1 and kinds.isdisjoint(("text", "struct")) else ""
    return f"cell of {shape}{kinds.pop()}"


def hdf5_kind(dataset: h5py.Dataset, matlab: bool) -> tuple[tuple[int, ...], str]:
    stored = dataset.shape or ()  # a null data set has none
    shape = stored[::-1] if matlab else stored
    if is_cell_array(dataset):
        cells = [dataset.file[reference] for reference in np.ravel(own_values(dataset, dataset.name)[()])]
        return shape, cell_kind([hdf5_cell(cell) for cell in cells])
    if matlab and "MATLAB_object_decode" in dataset.attrs:
        return shape, f"MATLAB {dataset.attrs.get('MATLAB_class', b'object').decode()}"
    return shape, "text" if is_text(dataset) or h5py.check_string_dtype(dataset.dtype) else str(dataset.dtype)


def hdf5_cell(cell: h5py.HLObject) -> tuple[tuple[int, ...], str]:
    if not isinstance(cell, h5py.Dataset):
        return (), "struct"
    return (cell.shape, "cell") if is_cell_array(cell) else hdf5_kind(cell, matlab=True)


def npy_kind(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], str]:
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return shape, "text" if dtype.kind in "US" else str(dtype)
