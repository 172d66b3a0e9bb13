"""Responses of one subject from several files, z-scored within sessions or runs if wanted.

    z = (response - mean of the voxel in the session) / its standard deviation there, and 0 where it does not vary

The files are read twice then, so that no session need fit into memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from visionflow_hf.corpus.betas import Betas
from visionflow_hf.corpus.source import Block
from visionflow_hf.errors import UserError, count

ROUNDING = 1e-12  # a constant voxel deviates less from its mean, as a share, and float32 that differ deviate more


@dataclass
class Piece:
    """The trials of one subject in one file.

    Attributes:
        places: of the trials in the file, array of shape (trials,), ascending.
        trials: their numbers among the trials of the subject.
        groups: the number of the session or run of each, to z-score in.
    """

    betas: Betas
    places: np.ndarray
    trials: np.ndarray
    groups: np.ndarray

    def blocks(self, voxels: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions in `places`, and the responses there, float32 array of shape (positions, voxels)."""
        for start, values in self.betas.blocks(voxels):
            first, last = np.searchsorted(self.places, [start, start + len(values)])
            if first < last:
                yield np.arange(first, last), values[self.places[first:last] - start]


@dataclass
class Moments:
    """Running mean and squares around it of each voxel, arrays of shape (voxels,)."""

    number: int = 0
    mean: np.ndarray | float = 0.0
    squares: np.ndarray | float = 0.0

    def add(self, values: np.ndarray) -> None:
        """Add an array of shape (trials, voxels), by the update of Chan, Golub and LeVeque 1983."""
        mean = values.mean(0, dtype=np.float64)
        squares = ((values - mean) ** 2).sum(0)
        total = self.number + len(values)
        step = mean - self.mean
        self.mean = self.mean + step * (len(values) / total)
        self.squares = self.squares + squares + step**2 * (self.number * len(values) / total)
        self.number = total

    def zscore(self, values: np.ndarray) -> np.ndarray:
        deviation = np.sqrt(self.squares / self.number)
        varies = deviation > ROUNDING * np.abs(self.mean)
        return np.where(varies, values - self.mean, 0) / np.where(varies, deviation, 1)


def zscored(values: np.ndarray) -> np.ndarray:
    """The trials of one session, float32 array of shape (trials, voxels)."""
    moments = Moments()
    moments.add(values)
    return moments.zscore(values).astype(np.float32)


def read_pieces(pieces: Sequence[Piece], voxels: np.ndarray | None, zscore: bool) -> Iterator[Block]:
    """All responses of these pieces.

    Raises:
        UserError: a NaN or infinite response.
    """
    moments: dict[int, Moments] = {}
    if zscore:
        for piece in pieces:
            for positions, values in piece.blocks(voxels):
                refuse_nan(piece, values)
                for group in np.unique(piece.groups[positions]):
                    moments.setdefault(group, Moments()).add(values[piece.groups[positions] == group])
    for piece in pieces:
        for positions, values in piece.blocks(voxels):
            refuse_nan(piece, values)
            for group in np.unique(piece.groups[positions]) if zscore else ():
                inside = piece.groups[positions] == group
                values[inside] = moments[group].zscore(values[inside])
            yield piece.trials[positions], 0, values


def refuse_nan(piece: Piece, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(0))
    if len(bad):
        raise UserError(
            f"{piece.betas.file} has NaN or infinite values in {count(bad, 'voxel')}: take these voxels out of the "
            "mask or of the array, or mend the values first"
        )


def varying(pieces: Sequence[Piece]) -> np.ndarray:
    """The places of the voxels that are finite in all trials and not constant, in the flattened grid."""
    low, high = np.inf, -np.inf
    for piece in pieces:
        for _, values in piece.blocks(None):
            low, high = np.minimum(low, values.min(0)), np.maximum(high, values.max(0))
    return np.flatnonzero(np.isfinite(low) & np.isfinite(high) & (low < high))


def together(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces in lists such that no session or run is in two of them."""
    number = len(pieces)
    rows = np.concatenate([np.full(len(piece.groups), at) for at, piece in enumerate(pieces)])
    columns = number + np.concatenate([piece.groups for piece in pieces])
    size = columns.max() + 1
    shared = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    _, labels = connected_components(shared, directed=False)
    lists: dict[int, list[Piece]] = {}
    for piece, label in zip(pieces, labels[:number].tolist(), strict=True):
        lists.setdefault(label, []).append(piece)
    return list(lists.values())
