"""Arrays on disk whose rows are written as they come and read when they are asked for.

The predictions of a thousand photographs are larger than the memory of most machines.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np

BLOCK_BYTES = 64 * 2**20  # of an array that is copied


class Rows:
    """Rows of `.npy` files, as an array that is read-only: indexing reads the rows that are asked for, and no others.

    Args:
        files: arrays of one type whose shapes differ in the number of rows only.
        place: the file of each row and its place in the file, array of shape (rows, 2); a place may come twice.
    """

    def __init__(self, files: Sequence[Path], place: np.ndarray):
        self.files, self.place = list(files), place
        first = np.load(self.files[0], mmap_mode="r")
        self.dtype, self.shape = first.dtype, (len(place), *first.shape[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, rows) -> np.ndarray:
        """A copy of the rows that an index of the first axis names: a number, a slice, or an array."""
        places = self.place[rows]
        flat = places.reshape(-1, 2)
        taken = np.empty((len(flat), *self.shape[1:]), self.dtype)
        for number in np.unique(flat[:, 0]):
            own = np.flatnonzero(flat[:, 0] == number)
            taken[own] = np.load(self.files[number], mmap_mode="r")[flat[own, 1]]
        return taken.reshape(*places.shape[:-1], *self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def distinct(self) -> tuple["Rows", np.ndarray]:
        """The rows without those that come again, and the place of each row among them."""
        places, of_row = np.unique(self.place, axis=0, return_inverse=True)
        return Rows(self.files, places), of_row.reshape(-1)

    def of(self, rows: np.ndarray) -> "Rows":
        """Some of the rows, still on disk."""
        return Rows(self.files, self.place[rows])


def write_rows(file: Path, batches: Iterable[np.ndarray], rows: int) -> Rows:
    """Write batches of rows, `rows` in all, to the new file `file`."""
    batches = iter(batches)
    batch = next(batches)
    with open(file, "wb") as into:
        write_header(into, batch.dtype, (rows, *batch.shape[1:]))
        while batch is not None:
            into.write(np.ascontiguousarray(batch))
            batch = next(batches, None)
    return Rows([file], np.stack([np.zeros(rows, dtype=int), np.arange(rows)], axis=1))


def of_rows(values: np.ndarray | Rows, rows: np.ndarray) -> np.ndarray | Rows:
    """Some rows of an array, which stay on disk where they lie there."""
    return values.of(rows) if isinstance(values, Rows) else values[rows]


def one_above_the_other(arrays: Sequence[np.ndarray | Rows]) -> np.ndarray | Rows:
    """The arrays concatenated along their rows; on disk where all of them lie there."""
    if not all(isinstance(values, Rows) for values in arrays):
        return np.concatenate([np.asarray(values) for values in arrays])
    before = np.cumsum([0, *(len(values.files) for values in arrays)])
    places = [values.place + np.array([number, 0]) for values, number in zip(arrays, before, strict=False)]
    return Rows([file for values in arrays for file in values.files], np.concatenate(places))


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray | Rows]) -> None:
    """What `numpy.savez` writes, of arrays that may lie on disk."""
    with ZipFile(file, "w") as archive:  # noise does not compress, and trying takes longest
        for name, values in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as into:
                write_header(into, values.dtype, values.shape)
                step = max(1, BLOCK_BYTES * len(values) // max(values.size * values.dtype.itemsize, 1))
                for start in range(0, len(values), step):
                    into.write(np.ascontiguousarray(values[start : start + step]).tobytes())


def write_header(into, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """The beginning of a `.npy` file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(into, header)
