"""Variables of .mat files before v7.3, whose elements are looked through before scipy reads them.

scipy takes the type of an element for the place in a table, and a cell within a cell for a call within a call: on a
damaged file either can end the process. Source: MathWorks, MAT-File Format, "Level 5 MAT-File Format".
"""

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import scipy.io
from scipy.io.matlab import matfile_version

MATRIX, COMPRESSED = 14, 15  # types of elements
VALUES = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18)  # types of elements that hold numbers or characters
CELL, STRUCT, OBJECT, CHAR, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 16, 17  # classes of matrices
NUMBERS = range(6, 16)  # classes of numbers, from double to uint64
COMPLEX = 1 << 11  # of the flags of a matrix
MOST_DEPTH = 100  # of matrices within one another
MOST_BYTES = 2**20  # of the names and sizes of a matrix


def load_mat5(file: str | os.PathLike, names: Collection[str] | None = None) -> dict:
    """What scipy's `loadmat` gives for the variables of these names, or for all.

    Raises:
        ValueError: scipy would end the process on these variables.
    """
    check_elements(Path(file), names)
    with warnings.catch_warnings():  # of scipy 1.18: sparse matrices will be sparse arrays; both are taken here
        warnings.filterwarnings("ignore", "The default value for `spmatrix`", DeprecationWarning)
        return scipy.io.loadmat(file, variable_names=names)


def check_elements(file: Path, names: Collection[str] | None = None) -> None:
    """Go through the elements of the variables of these names, or of all.

    Raises:
        ValueError: scipy would end the process on them. What it refuses itself is passed over.
    """
    with open(file, "rb") as opened:
        if matfile_version(opened)[0] != 1:  # version 4, which has no types of elements
            return
        opened.seek(126)
        order = "<" if opened.read(2) == b"IM" else ">"
        try:
            while True:
                kind, size = struct.unpack(f"{order}II", taken(opened, 8))
                after, variable = opened.tell() + size, opened
                if kind == COMPRESSED:
                    variable = io.BufferedReader(Inflated(opened, size))
                    kind, _ = struct.unpack(f"{order}II", taken(variable, 8))
                if kind != MATRIX:
                    return
                Elements(variable, order).check_variable(names)
                opened.seek(after)
        except EOFError:
            return


class Elements:
    """The elements of one variable, from the first one behind its tag."""

    def __init__(self, stream: BinaryIO, order: str):
        self.stream, self.order = stream, order

    def check_variable(self, names: Collection[str] | None) -> None:
        matrix, name = self.header()
        if names is None or name in names or matrix[0] == OPAQUE:  # which has its name among its values
            self.check_values(*matrix)

    def check_matrix(self, depth: int) -> None:
        kind, size, _ = self.tag()
        if kind != MATRIX:
            raise EOFError
        if size:
            self.check_values(*self.header()[0], depth)

    def header(self) -> tuple[tuple[int, int, list[int]], str]:
        """The class, the flags and the sizes of a matrix, and its name."""
        flags, _ = struct.unpack(f"{self.order}8xII", taken(self.stream, 16))
        if flags & 0xFF == OPAQUE:
            return (OPAQUE, flags, []), ""
        sizes = self.small_value()
        name = self.small_value().decode("latin1")
        return (flags & 0xFF, flags, list(struct.unpack(f"{self.order}{len(sizes) // 4}i", sizes))), name

    def check_values(self, matrix: int, flags: int, sizes: list[int], depth: int = 0) -> None:
        if depth > MOST_DEPTH:
            raise ValueError(f"matrices are nested deeper than {MOST_DEPTH}")
        if matrix in NUMBERS:
            self.check_numbers(2 if flags & COMPLEX else 1)
        elif matrix == SPARSE:
            self.check_numbers(4 if flags & COMPLEX else 3)
        elif matrix == CHAR:
            self.check_numbers(1)
        elif matrix == CELL:
            self.check_matrices(math.prod(sizes), depth)
        elif matrix in (STRUCT, OBJECT):
            if matrix == OBJECT:
                self.small_value()  # the name of its class
            (length,) = struct.unpack(f"{self.order}i", self.small_value())
            fields = len(self.small_value()) // length if length else 0
            self.check_matrices(math.prod(sizes) * fields, depth)
        elif matrix == FUNCTION:
            self.check_matrices(1, depth)
        elif matrix == OPAQUE:
            while (found := self.tag())[0] != MATRIX:
                self.skip(*found[1:])
            if found[1]:
                self.check_values(*self.header()[0], depth + 1)
        else:
            raise EOFError

    def check_numbers(self, count: int) -> None:
        for _ in range(count):
            kind, size, inline = self.tag()
            if kind not in VALUES:
                raise ValueError(f"an element of unknown type {kind}")
            self.skip(size, inline)

    def check_matrices(self, count: int, depth: int) -> None:
        for _ in range(count):
            self.check_matrix(depth + 1)

    def tag(self) -> tuple[int, int, bytes | None]:
        """The type of the next element, its bytes, and its value where the tag itself holds it."""
        tag = taken(self.stream, 8)
        kind, size = struct.unpack(f"{self.order}II", tag)
        if kind >> 16 > 4:
            raise ValueError(f"{kind >> 16} bytes within a tag")
        if kind >> 16:
            return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
        return kind, size, None

    def small_value(self) -> bytes:
        _, size, inline = self.tag()
        if inline is not None:
            return inline
        if size > MOST_BYTES:
            raise ValueError(f"a name of {size} bytes")
        return taken(self.stream, size + -size % 8)[:size]

    def skip(self, size: int, inline: bytes | None) -> None:
        """Go behind a value, which ends at a multiple of eight bytes."""
        size = 0 if inline is not None else size + -size % 8
        if self.stream.seekable():
            self.stream.seek(size, os.SEEK_CUR)
            return
        while size:
            size -= len(taken(self.stream, min(size, MOST_BYTES)))


class Inflated(io.RawIOBase):
    """What a compressed element holds."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left, self.unpack = file, size, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = b""
        while not data and not self.unpack.eof:
            packed = self.unpack.unconsumed_tail
            if not packed:
                packed = self.file.read(min(self.left, MOST_BYTES))
                self.left -= len(packed)
            data = self.unpack.decompress(packed, len(buffer))
            if not packed and not data:
                break
        buffer[: len(data)] = data
        return len(data)


def taken(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or EOFError where there are fewer."""
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
