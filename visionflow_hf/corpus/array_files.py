"""Arrays by their keys from .mat (v5 and v7.3), .npz and HDF5 files, in the order of axes of whoever wrote them."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse

from visionflow_hf.corpus.files import (
    existing,
    hdf5_dataset,
    hdf5_item,
    open_hdf5,
    own_values,
    reading,
    refuse_bomb,
    refuse_bombs,
)
from visionflow_hf.corpus.mat5 import load_mat5
from visionflow_hf.errors import UserError

MOST_NESTED = 2  # cells within cells that are looked through for subjects


def read_arrays(file: str | os.PathLike, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of these keys from a .mat (v5 or v7.3), .npz or .h5 file.

    MATLAB lays arrays out column by column, so that HDF5 shows those of a v7.3 file with their axes reversed: they
    come back here in MATLAB's own order. Sparse matrices come back dense, and cell arrays as their cells, down the
    columns. `data/images` is the field `images` of the struct `data`, `data/2` is the second cell of the cell array
    `data`, counted from 1 down the columns as MATLAB counts, and `data/images/2` is that field of the second struct of
    an array. Pickled arrays are refused.
    """
    file = Path(file)
    there = array_keys(file)
    if file.suffix.lower() == ".mat":  # further names lead into structs and cells
        refuse_unknown([key.split("/")[0] for key in keys], [key.split("/")[0] for key in there], file)
    else:
        refuse_unknown(keys, there, file)
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                return {key: read_hdf5(source, key, matlab=file.suffix.lower() == ".mat") for key in keys}
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as source:
                refuse_bombs(source.zip, [f"{key}.npy" for key in keys])
                arrays = {key: source[key] for key in keys}
            others = [key for key, array in arrays.items() if isinstance(array, bytes)]
            if others:  # NumPy gives back whatever does not begin as an array
                raise ValueError(f"{', '.join(others)} is no array")
            return arrays
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
            return [key for key in there if not key.startswith(("#refs#", "#subsystem#"))]
        if file.suffix.lower() == ".npz":
            with np.load(file, allow_pickle=False) as source:
                return source.files
        if file.suffix.lower() == ".mat":
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
    """One variable of a .mat file before v7.3, one field of a struct, or one cell."""
    name, *fields = key.split("/")
    array = variables[name]
    for field in fields:
        names = getattr(array.dtype, "names", None) or ()
        if array.dtype == object and field.isdecimal():
            refuse_absent_cell(int(field), array.size, name, file)
            array = array.ravel("F")[int(field) - 1]
        elif field in names:
            array = array[field].item() if array.size == 1 else array[field]
        else:
            raise UserError(f"{name} of {file} has no field {field}: its fields are {', '.join(names) or 'none'}")
        name = f"{name}/{field}"
    if scipy.sparse.issparse(array):
        return dense(array)
    if array.dtype == object:
        return array.ravel("F")
    if array.dtype.names:
        fields = ", ".join(f"{name}/{field}" for field in array.dtype.names)
        raise UserError(f"{name} of {file} is a struct: give one of its fields, {fields}")
    return array


def read_hdf5(source: h5py.File, key: str, matlab: bool) -> np.ndarray:
    """One dataset, in MATLAB's order of axes where MATLAB wrote it; its text as an array of str."""
    dataset = matlab_dataset(source, key) if matlab else hdf5_dataset(source, key)
    if isinstance(dataset, h5py.Group):
        return read_sparse(dataset, key)
    refuse_bomb(f"{key} of {source.filename}", dataset.nbytes, dataset.id.get_storage_size())
    array = np.asarray(dataset[()])
    if not matlab:
        return array
    if is_cell_array(dataset):
        cells = [own_values(source[reference], f"a cell of {key}") for reference in array.ravel()]
        values = [
            "" if is_empty(cell) else text_of(cell[()].T.ravel()) if is_text(cell) else cell[()].T for cell in cells
        ]
        return np.fromiter(values, dtype=object, count=len(values))
    if is_text(dataset) and array.ndim == 2:
        return np.array([text_of(row) for row in array.T])
    return array.T


def read_sparse(group: h5py.Group, key: str) -> np.ndarray:
    """A sparse matrix of a v7.3 file, dense: MATLAB's `ir`, `jc` and `data` are the CSC form."""
    parts = [own_values(group[name], key)[()] if name in group else np.empty(0) for name in ("data", "ir", "jc")]
    shape = int(group.attrs["MATLAB_sparse"]), len(parts[2]) - 1
    refuse_bomb(f"{key} of {group.file.filename}", 8 * np.prod(shape, dtype=float), sum(part.nbytes for part in parts))
    return dense(scipy.sparse.csc_matrix((parts[0], parts[1].astype(np.int64), parts[2].astype(np.int64)), shape))


def dense(matrix: scipy.sparse.spmatrix) -> np.ndarray:
    """Its rows are checked first: a damaged one could write beyond the array."""
    matrix = matrix.tocsc()
    matrix.check_format(full_check=True)
    return matrix.toarray()


def matlab_dataset(source: h5py.File, key: str) -> h5py.Dataset | h5py.Group:
    """The array of a key of a v7.3 file, into the cells of which a number leads; the group of a sparse matrix."""
    item, name = source, ""
    for part in key.split("/"):
        if isinstance(item, h5py.Dataset):
            references = np.ravel(own_values(item, name)[()]) if is_cell_array(item) else []
            refuse_absent_cell(int(part) if part.isdecimal() else 0, len(references), name, source.filename)
            item = source[references[int(part) - 1]]
        else:
            item = hdf5_item(item, part)
        name = f"{name}/{part}".lstrip("/")
    if isinstance(item, h5py.Group) and "MATLAB_sparse" in item.attrs:
        return item
    if isinstance(item, h5py.Group):
        raise UserError(f"{key} of {source.filename} is a struct: give one of its fields, {', '.join(sorted(item))}")
    kind = item.attrs.get("MATLAB_class", b"").decode()
    if "MATLAB_object_decode" in item.attrs and kind != "function_handle":
        remedy = f"cellstr({name.replace('/', '.')})" if kind == "string" else "plain arrays"
        raise UserError(f"{key} of {source.filename} is a MATLAB {kind}, which cannot be read: save {remedy} instead")
    return own_values(item, key)


def refuse_absent_cell(number: int, cells: int, name: str, file: str | os.PathLike) -> None:
    if not 1 <= number <= cells:
        raise UserError(f"{name} of {file} has {cells} cells: there is no {name}/{number}")


def is_cell_array(dataset: h5py.Dataset) -> bool:
    """Whether it holds references, as MATLAB's cells do; its dtype alone equals that of text."""
    return h5py.check_ref_dtype(dataset.dtype) is h5py.Reference


def is_empty(dataset: h5py.Dataset) -> bool:
    """Whether MATLAB means an array without values, of which v7.3 stores the shape."""
    return bool(dataset.attrs.get("MATLAB_empty", 0))


def is_text(dataset: h5py.Dataset) -> bool:
    """Whether MATLAB means UTF-16 codes; a cell whose class is not stated is text if it holds uint16."""
    kind = dataset.attrs.get("MATLAB_class")
    return kind == b"char" if kind is not None else dataset.dtype == np.uint16 and "#refs#" in dataset.name


def text_of(codes: np.ndarray) -> str:
    return "".join(map(chr, codes))


def vector(array: np.ndarray, key: str) -> np.ndarray:
    """The entries of an array of which one axis at most is longer than 1.

    Raises:
        UserError: a table or volume, whose entries NumPy and MATLAB count in different orders.
    """
    if sum(length > 1 for length in array.shape) > 1:
        raise UserError(f"{key} has shape {array.shape}: a vector is expected, in the order of what it tells about")
    return array.ravel()


def refuse_unknown(keys: Sequence[str], there: Sequence[str], file: Path) -> None:
    for key in keys:
        if key not in there:
            raise UserError(f"{file} has no {key}: its keys are {', '.join(sorted(there))}")


def names_in(file: str | os.PathLike, pattern: str, placeholder: str) -> list[str]:
    """What stands for the placeholder of a pattern in the keys of a file, in their order."""
    file = existing(Path(file))
    first, *others = (re.escape(part) for part in pattern.split(placeholder))
    fits = re.compile(rf"{first}(?P<name>[^/]+){'(?P=name)'.join(others)}")
    with reading(file):
        if h5py.is_hdf5(file):
            with open_hdf5(file) as source:
                paths = list(hdf5_paths(source, ""))
        elif file.suffix.lower() == ".mat":
            root = re.compile(re.escape(pattern.split("/")[0]).replace(re.escape(placeholder), ".+"))
            keys = [key for key in array_keys(file) if root.fullmatch(key)]
            refuse_bomb_of_mat5(file, keys)
            variables = load_mat5(file, keys)
            paths = [path for key in keys for path in mat5_paths(variables[key], key)]
        else:
            paths = array_keys(file)
    names = list(dict.fromkeys(match["name"] for path in paths if (match := fits.fullmatch(path))))
    if not names:
        raise UserError(f"{file} has no key such as {pattern}: its keys are {', '.join(sorted(array_keys(file)))}")
    return names


def hdf5_paths(item: h5py.HLObject, name: str, cells: int = 0) -> Iterator[str]:
    """The keys of all arrays below an item, with the cells of MATLAB's up to some depth."""
    if isinstance(item, h5py.Group):
        for key in item:
            if not key.startswith("#") and isinstance(item.get(key, getlink=True), h5py.HardLink):
                yield from hdf5_paths(item[key], f"{name}/{key}".lstrip("/"), cells)
        return
    yield name
    if is_cell_array(item) and cells < MOST_NESTED:
        for number, reference in enumerate(np.ravel(own_values(item, name)[()]), start=1):
            yield from hdf5_paths(item.file[reference], f"{name}/{number}", cells + 1)


def mat5_paths(array: np.ndarray, name: str, cells: int = 0) -> Iterator[str]:
    """The same of a variable of a .mat file before v7.3."""
    yield name
    if array.dtype.names:
        for field in array.dtype.names:
            value = array[field].item() if array.size == 1 else array[field]
            yield from mat5_paths(value, f"{name}/{field}", cells)
    elif array.dtype == object and cells < MOST_NESTED:
        for number, cell in enumerate(array.ravel("F"), start=1):
            yield from mat5_paths(np.asarray(cell), f"{name}/{number}", cells + 1)


def field_keys(file: str | os.PathLike, key: str) -> list[str]:
    """The keys of the arrays in a group of an HDF5 file or a struct of a .mat file; none where `key` is neither."""
    file = Path(file)
    if file.suffix.lower() == ".mat" and not h5py.is_hdf5(file):
        with reading(file):
            name, *fields = key.split("/")
            array = load_mat5(file, [name]).get(name)
        for field in fields:
            if not isinstance(array, np.ndarray) or field not in (array.dtype.names or ()):
                return []
            array = array[field].item() if array.size == 1 else array[field]
        return [f"{key}/{name}" for name in array.dtype.names or ()] if isinstance(array, np.ndarray) else []
    return [name for name in array_keys(file) if name.startswith(f"{key}/")]
