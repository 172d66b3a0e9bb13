"""Arrays of one shape, each found by a key, in memory-mapped files that several runs can share.

A file is written whole under a hidden name and then renamed, so that what has a name is complete. Nothing is ever
changed in place: who needs more adds a file, and two processes that add the same arrays at once do no harm.
"""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from visionflow_hf.errors import UserError


class KeptArrays:
    """The arrays in the files of a folder.

    Args:
        folder: made where it is missing.
        dtype, shape: of one array.
    """

    def __init__(self, folder: Path, dtype: str, shape: Sequence[int]):
        self.folder, self.shape = folder, tuple(shape)
        self.record = np.dtype([("key", "V32"), ("values", dtype, self.shape)])
        self.files: dict[str, np.ndarray] = {}
        self.place: dict[bytes, tuple[str, int]] = {}
        self.reread()

    def __contains__(self, key: bytes) -> bool:
        return key in self.place

    def reread(self) -> None:
        """Know the files that have come since."""
        for file in sorted(self.folder.glob("*.npy")):
            if file.name not in self.files:
                records = np.load(file, mmap_mode="r")
                self.files[file.name] = records
                self.place |= {key.tobytes(): (file.name, row) for row, key in enumerate(records["key"])}

    def add(self, keys: Sequence[bytes], batches: Iterable[np.ndarray]) -> None:
        """Keep one array a key, which come in `batches`, arrays of shape (some, *shape).

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        part = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".part", delete=False) as part:
                layout = np.lib.format.dtype_to_descr(self.record)
                header = {"descr": layout, "fortran_order": False, "shape": (len(keys),)}
                np.lib.format.write_array_header_1_0(part, header)
                written = 0
                for batch in batches:
                    records = np.empty(len(batch), self.record)
                    records["key"] = np.frombuffer(b"".join(keys[written : written + len(batch)]), "V32")
                    records["values"] = batch
                    part.write(records.tobytes())
                    written += len(batch)
            os.replace(part.name, self.folder / f"{Path(part.name).stem.strip('.')}.npy")
        except BaseException as error:
            if part is not None:
                Path(part.name).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise UserError(
                    f"{self.folder} cannot be written ({error.strerror}): make room, or name another folder with "
                    "--stimulus_cache"
                ) from error
            raise
        self.reread()

    def take(self, keys: Sequence[bytes]) -> np.ndarray:
        """A copy of the arrays with these keys, of shape (keys, *shape)."""
        taken = np.empty((len(keys), *self.shape), self.record["values"].base)
        for row, key in enumerate(keys):
            file, place = self.place[key]
            taken[row] = self.files[file]["values"][place]
        return taken
