"""Scratch files: images and responses of a source, gathered in blocks, by several processes side by side if wanted.

Sources keep the trials of a stimulus far apart, and often a voxel's trials together rather than a trial's voxels. Once
gathered, any trial is read at once, and memory never holds more than a block.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from visionflow_hf.corpus.files import BLOCK_BYTES
from visionflow_hf.corpus.responses import check_responses
from visionflow_hf.corpus.source import Block, Source
from visionflow_hf.errors import UserError, count
from visionflow_hf.images import is_plain_rgb, is_transparent, open_image, pixel_hash
from visionflow_hf.processes import run


@dataclass
class Picture:
    """Where the encoded image of a stimulus lies, the hash of its pixels, and whether it is transparent in places."""

    file: Path
    start: int
    length: int
    pixels: str
    transparent: bool = False

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.start)
            return file.read(self.length)


@dataclass
class StoredResponses:
    """Responses in a file of float32, array of shape (trials, voxels)."""

    file: Path
    num_voxels: int

    def write(self, trials: np.ndarray, first: int, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, dtype=np.float32)
        with open(self.file, "r+b", buffering=0) as file:
            for trial, row in zip(trials, values, strict=True):
                file.seek(4 * (int(trial) * self.num_voxels + first))
                file.write(row)

    def read(self, trials: Sequence[int]) -> np.ndarray:
        values = np.empty((len(trials), self.num_voxels), dtype=np.float32)
        with open(self.file, "rb", buffering=0) as file:
            for row, trial in zip(values, trials, strict=True):
                file.seek(4 * int(trial) * self.num_voxels)
                file.readinto(row)
        return values

    def blocks(self, trials: Sequence[int]) -> Iterator[np.ndarray]:
        step = max(BLOCK_BYTES // (4 * self.num_voxels), 1)
        for start in range(0, len(trials), step):
            yield self.read(trials[start : start + step])


def gather_images(source: Source, scratch: Path, num_proc: int, report: Callable[[str], None]) -> dict[str, Picture]:
    tasks = [partial(store_images, part, scratch / f"images-{index}") for index, part in enumerate(source.images)]
    wanted = set().union(*(subject.stimuli for subject in source.subjects))
    pictures: dict[str, Picture] = {}
    with tqdm(total=len(wanted), desc="images", unit=" images", disable=None, leave=False) as bar:
        for stored in run(tasks, num_proc):
            before = len(pictures)
            for stimulus, picture in stored.items():
                pictures.setdefault(stimulus, picture)
            bar.update(len(pictures) - before)
    missing = sorted(wanted - set(pictures))
    if missing:
        raise UserError(f"{count(missing, 'stimulus')} without an image: the source is incomplete")
    transparent = [stimulus for stimulus in wanted if pictures[stimulus].transparent]
    if transparent:
        report(
            f"{count(sorted(transparent), 'image')} with transparent pixels: their colours are kept and what shone "
            "through is not; save the images over the background that the subjects saw"
        )
    return pictures


def store_images(part: Callable[[], Iterator[tuple[str, np.ndarray | bytes]]], path: Path) -> dict[str, Picture]:
    """Write the images of one part to a file: upright RGB files unchanged, others as PNG."""
    pictures: dict[str, Picture] = {}
    with open(path, "wb") as file:
        for stimulus, image in part():
            if stimulus in pictures:
                continue
            transparent = False
            if isinstance(image, bytes):
                name = f"the image {stimulus}"
                transparent = is_transparent(image, name)
                picture = open_image(image, name).convert("RGB")
                encoded = image if is_plain_rgb(image, name) else to_png(picture)
            else:
                picture = Image.fromarray(image)
                encoded = to_png(picture)
            pictures[stimulus] = Picture(path, file.tell(), len(encoded), pixel_hash(picture), transparent)
            file.write(encoded)
    return pictures


def to_png(picture: Image.Image) -> bytes:
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    return encoded.getvalue()


def gather_responses(source: Source, scratch: Path, num_proc: int) -> list[StoredResponses]:
    responses, tasks = [], []
    for index, subject in enumerate(source.subjects):
        stored = StoredResponses(scratch / f"responses-{index}", subject.num_voxels)
        with open(stored.file, "wb") as file:
            file.truncate(4 * len(subject.stimuli) * subject.num_voxels)
        responses.append(stored)
        tasks += [partial(store_responses, part, stored, subject.name) for part in subject.parts]
    values = sum(len(subject.stimuli) * subject.num_voxels for subject in source.subjects)
    with tqdm(total=4 * values, desc="responses", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for written in run(tasks, num_proc):
            bar.update(4 * written)
            values -= written
    if values:
        raise UserError("the number of responses in the source changed while it was read: run the command again")
    return responses


def store_responses(part: Callable[[], Iterator[Block]], stored: StoredResponses, subject: str) -> int:
    written = 0
    for trials, first, values in part():
        stored.write(trials, first, check_responses(values, f"{subject}, voxels from {first} on,"))
        written += values.size
    return written
