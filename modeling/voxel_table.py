# Copyright 2026 The VisionFlow authors. Licensed under the Apache License, Version 2.0.
"""What is known of a model's voxels: regions, places and noise ceilings, in voxels.parquet beside the weights."""

import json
import os

import numpy as np
from transformers.utils import logging

from .optional_files import optional_file

logger = logging.get_logger(__name__)
logger.addFilter(lambda record: record.levelno >= logging.get_verbosity())  # of transformers, under any name

VOXELS = "voxels.parquet"
NEEDED = ("subject", "voxel", "roi")
FSAVERAGE = 163842  # vertices of a hemisphere
ATTRIBUTES = b"PANDAS_ATTRS"  # the key of the file's metadata under which pandas keeps `DataFrame.attrs`


class VoxelTable:
    """
    The voxel table of a corpus, for the subjects of a model.

    Args:
        table (`pyarrow.Table`): a row a voxel. Columns: `subject`, `voxel` (place in the subject's responses), `roi`
            (list of region names), and where known `noise_ceiling`, `x`, `y`, `z`, `vertex` and `place` (in the
            subject's volume, flattened in C order). `grids` in its metadata has the volume of each subject.

    Raises:
        ValueError: a column is missing or of another type, or voxels are not numbered from 0.
    """

    def __init__(self, table):
        missing = [name for name in NEEDED if name not in table.column_names]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        self.table = table
        names, numbers = (np.array(table[name].to_pylist(), dtype=object) for name in ("subject", "voxel"))
        self.rows = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
        for name, rows in self.rows.items():
            own = numbers[rows].tolist()
            if set(own) != set(range(len(own))):
                raise ValueError(f"the voxels of {name} are not numbered from 0 to {len(own) - 1}")
            self.rows[name] = rows[np.argsort(own)]
        self.regions = {}

    @classmethod
    def read(cls, file) -> "VoxelTable":
        """The table in a Parquet file, a path or a stream.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError, OSError: the file cannot be read, or is no voxel table.
        """
        try:
            from pyarrow.parquet import read_table
        except ImportError as error:
            raise ImportError(f"reading {VOXELS} needs pyarrow: pip install pyarrow") from error
        return cls(read_table(file))

    @classmethod
    def of_model(cls, name: str | os.PathLike, **options) -> "VoxelTable | None":
        """The table beside a model, in a folder or on the Hub; None where there is none, or no pyarrow to read it.

        Args:
            options: `revision`, `token` and so on, as `cached_file` takes them.

        Raises:
            OSError: the file is damaged, or the Hub does not answer.
        """
        file = optional_file(name, VOXELS, **options)
        if file is None:
            return None
        try:
            return cls.read(file)
        except ImportError as error:
            logger.warning(f"{error}. Without it the regions are not known, and a copy of the model will lack them")
        except (ValueError, TypeError, OSError) as error:
            raise OSError(f"{VOXELS} of {name} is damaged ({error}): copy it again, or train again") from error
        return None

    def write(self, folder: str | os.PathLike) -> None:
        """voxels.parquet in a folder."""
        try:
            from pyarrow.parquet import write_table
        except ImportError as error:
            raise ImportError(f"writing {VOXELS} needs pyarrow: pip install pyarrow") from error
        write_table(self.table, os.path.join(folder, VOXELS))

    def of(self, subject: str):
        """The voxels of a subject in the order of its responses, a `pyarrow.Table`; no rows where it is not known."""
        return self.table.take(self.rows.get(subject, np.zeros(0, dtype=np.int64)))

    def rois(self, subject: str) -> dict[str, np.ndarray]:
        """For each region the numbers of its voxels, int64 array; empty where no region is known."""
        if subject not in self.regions:
            found = {}
            for voxel, names in enumerate(self.of(subject)["roi"].to_pylist()):
                for name in dict.fromkeys(names or ()):
                    found.setdefault(str(name), []).append(voxel)
            self.regions[subject] = {name: np.array(voxels) for name, voxels in found.items()}
        return self.regions[subject]

    def volume(self, subject: str) -> tuple[tuple[int, int, int], np.ndarray | None, np.ndarray] | None:
        """Where the voxels of a subject lie in a volume; None where that is not known.

        Returns:
            The volume's shape (x, y, z); its affine to mm, `(4, 4)`, or None where that is not known; and the place of
            each voxel in it, flattened in C order, `(voxels,)`.

        Raises:
            ValueError: the table is damaged.
        """
        if subject not in self.rows or "place" not in self.table.column_names:
            return None
        try:
            grids = json.loads((self.table.schema.metadata or {}).get(ATTRIBUTES, b"{}")).get("grids", {})
            if subject not in grids:
                return None
            width, height, depth = (int(length) for length in grids[subject]["shape"])
            affine = grids[subject]["affine"]
            affine = None if affine is None else np.array(affine, dtype=np.float64).reshape(4, 4)
            places = np.array(self.of(subject)["place"].to_pylist(), dtype=np.int64)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{VOXELS} does not tell where the voxels of {subject} lie: it is damaged") from error
        if len(np.unique(places)) < len(places) or places.min() < 0 or places.max() >= width * height * depth:
            raise ValueError(f"the places of {subject} in {VOXELS} are not within its volume: it is damaged")
        return (width, height, depth), affine, places

    def surface(self, subject: str) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
        """Where the voxels of a subject lie on the surface fsaverage; None where that is not known of all of them.

        Returns:
            For each hemisphere, `lh` and `rh`, the numbers of its voxels and their vertices, from 0, two int64 arrays.

        Raises:
            ValueError: the table is damaged.
        """
        table = self.of(subject)
        vertices = table["vertex"].to_pylist() if "vertex" in table.column_names else []
        if not vertices or None in vertices:
            return None
        rois = self.rois(subject)
        sides = {side: rois.get(side, np.zeros(0, dtype=np.int64)) for side in ("lh", "rh")}
        if sorted(np.concatenate(list(sides.values())).tolist()) != list(range(len(vertices))):
            raise ValueError(f"{VOXELS} does not tell the hemisphere of each voxel of {subject}: it is damaged")
        try:
            vertices = np.array(vertices, dtype=np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"the vertices of {subject} in {VOXELS} are no whole numbers: it is damaged") from error
        for voxels in sides.values():
            own = vertices[voxels]
            if len(np.unique(own)) < len(own) or own.min(initial=0) < 0 or own.max(initial=0) >= FSAVERAGE:
                raise ValueError(f"the vertices of {subject} in {VOXELS} are not those of fsaverage: it is damaged")
        return {side: (voxels, vertices[voxels]) for side, voxels in sides.items()}

    def without(self, subject: str) -> "VoxelTable":
        """The table of the other subjects."""
        kept = [rows for name, rows in self.rows.items() if name != subject]
        return VoxelTable(self.table.take(np.sort(np.concatenate([*kept, np.zeros(0, dtype=np.int64)]))))


def remove_table(folder: str | os.PathLike) -> None:
    """Delete the table of another model that was saved to this folder before.

    Without pyarrow it stays: it may be the model's own, which could not be read.
    """
    path = os.path.join(folder, VOXELS)
    if can_read_tables() and os.path.isfile(path):
        os.remove(path)


def can_read_tables() -> bool:
    """Whether pyarrow is installed: without it, a model that knows no table may have one."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        return False
    return True
