"""What an importer returns: subjects with their trials, and functions that read images and responses."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from visionflow_hf.corpus.files import read_images
from visionflow_hf.errors import UserError

Block = tuple[np.ndarray, int, np.ndarray]  # trials, first voxel, values of shape (trials, voxels from the first on)


@dataclass
class Subject:
    """One subject of a source.

    Attributes:
        stimuli: the stimulus of each trial, in the order of the recording.
        splits: the split that the source puts each trial in, or None where it leaves that open.
        num_voxels: length of a response.
        parts: functions that yield the responses in blocks; all of them together cover every trial and voxel.
        voxels: what `voxel_table` takes: `roi`, `x`, `y`, `z`, `vertex`, `volume`.
        ncsnr: noise-ceiling signal-to-noise ratio of one trial, array of shape (voxels,), where the source has it.
        sessions: the session of each trial, where the source has it.
    """

    name: str
    stimuli: list[str]
    splits: list[str] | None
    num_voxels: int
    parts: list[Callable[[], Iterator[Block]]]
    voxels: dict = field(default_factory=dict)
    ncsnr: np.ndarray | None = None
    sessions: list[str] | None = None


@dataclass
class Source:
    """What an importer found.

    Attributes:
        images: functions that yield (stimulus, image), the image as uint8 pixels or as an encoded file; all of them
            together yield every stimulus at least once.
        unit: what one unit of the responses means, in a phrase.
        categories: the category of each stimulus, where the source has it.
    """

    subjects: list[Subject]
    images: list[Callable[[], Iterator[tuple[str, np.ndarray | bytes]]]]
    unit: str
    categories: dict[str, str] | None = None


def choose_subjects(there: Sequence[str], asked: Sequence[str] | None, expected: str | os.PathLike) -> list[str]:
    """The subjects to import: those asked for, or all that are there.

    Args:
        expected: where a subject is looked for, for those who give another folder.
    """
    there = sorted(there)
    if not there:
        raise UserError(f"there is no {expected}, nor that of another subject: is this the right folder?")
    for name in asked or []:
        if name not in there:
            raise UserError(f"there is no subject {name}: {', '.join(there)} are there")
    return [name for name in there if name in (asked or there)]


def refuse_absent(found: Sequence[Subject], asked: Sequence[str] | None, expected: str) -> None:
    """No subject at all, or not one that was asked for: then a partial download is too little."""
    absent = sorted(set(asked or []) - {subject.name for subject in found})
    if absent or not found:
        raise UserError(f"there are no responses{' of ' + ', '.join(absent) if absent else ''}: {expected} is expected")


def image_parts(subjects: Sequence[Subject], files: dict[str, Path]) -> list[Callable]:
    """`images` of a source whose stimuli are files, a hundred at a time."""
    shown = list(dict.fromkeys(stimulus for subject in subjects for stimulus in subject.stimuli))
    return [
        partial(read_images, {stimulus: files[stimulus] for stimulus in shown[start : start + 100]})
        for start in range(0, len(shown), 100)
    ]
