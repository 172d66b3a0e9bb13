"""Stimuli in two splits, by name or by pixels, and images that have two names.

Of each stimulus the first row that shows it is looked at, and others whose files have another size. Images with equal
bytes are equal; the others are decoded, as a model would see them, and their pixels are compared by hash: 10,000 images
of 224 px take about 18 s, a pass of reading them. An image that was scaled or compressed again is another one here.
"""

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Image
from tqdm import tqdm

from visionflow_hf.errors import UserError, count
from visionflow_hf.hub_cache import file_of
from visionflow_hf.images import open_image, pixel_hash

BATCH = 64
SEEN = "train_images.txt"  # in a model folder: the hashes of all images that the model was trained on


class Picture(NamedTuple):
    """What is compared of an image, a hash of its pixels, and its (width, height) in px."""

    pixels: str
    size: tuple[int, int]


Pictures = dict[str, dict[str, Picture]]  # of each split, by stimulus


def look(splits: DatasetDict) -> Pictures:
    """The picture of each stimulus that has one, by split.

    Raises:
        UserError: an image that cannot be read.
    """
    by_bytes: dict[bytes, Picture] = {}
    pictures: Pictures = {}
    for name, split in splits.items():
        first, others = rows_to_compare(split)
        names = list(first)
        pictures[name] = {}
        with (
            ThreadPoolExecutor() as pool,  # decoders release the GIL
            tqdm(total=len(first), desc=f"comparing the images of {name}", unit="image", delay=3, leave=False) as bar,
        ):
            for start in range(0, len(names), BATCH):
                stimuli = names[start : start + BATCH]
                images = encoded(split, [first[stimulus] for stimulus in stimuli])
                keys = [hashlib.sha256(image).digest() for image in images]
                new = {key: place for place, key in enumerate(keys) if key not in by_bytes}
                where = [f"the image in row {first[stimuli[place]]} of split {name}" for place in new.values()]
                by_bytes |= zip(new, pool.map(picture, [images[place] for place in new.values()], where), strict=True)
                pictures[name] |= {stimulus: by_bytes[key] for stimulus, key in zip(stimuli, keys, strict=True)}
                bar.update(len(images))
        for stimulus, row in others:  # encoded otherwise than in the first row: another image, or another file of it
            if picture(encoded(split, [row])[0], f"the image in row {row} of split {name}") != pictures[name][stimulus]:
                raise UserError(
                    f"stimulus {stimulus} has two images, in rows {first[stimulus]} and {row} of split {name}: "
                    "a name must belong to one image, so rename one of them"
                )
    return pictures


def rows_to_compare(split: Dataset) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """The first row with an image of each stimulus, and one row of it for each other size that its file has."""
    first: dict[str, int] = {}
    sizes: dict[str, set[int | None]] = {}
    others = []
    row = 0
    for batch in split.select_columns(["image", "stimulus_id"]).with_format("arrow").iter(1000):
        there = batch["image"].is_valid().to_pylist()
        lengths = pc.binary_length(pc.struct_field(batch["image"], "bytes")).to_pylist()
        for stimulus, has_image, length in zip(batch["stimulus_id"].to_pylist(), there, lengths, strict=True):
            if has_image:
                first.setdefault(stimulus, row)
                known = sizes.setdefault(stimulus, {length})
                if length not in known:
                    known.add(length)
                    others.append((stimulus, row))
            row += 1
    return first, others


def encoded(split: Dataset, rows: list[int]) -> list[bytes]:
    """The images of these rows, as files hold them."""
    images = split.select_columns("image").cast_column("image", Image(decode=False)).select(rows)["image"]
    try:
        return [Path(item["path"]).read_bytes() if item["bytes"] is None else item["bytes"] for item in images]
    except OSError as error:
        raise UserError(f"the image {error.filename} is gone ({error.strerror}): make the corpus again") from error


def picture(image: bytes, where: str) -> Picture:
    """The hash and the size of an encoded image."""
    decoded = open_image(image, where)
    return Picture(pixel_hash(decoded), decoded.size)


def leakage(splits: DatasetDict, pictures: Pictures) -> str:
    """The stimuli that are in two splits, in words; empty where there are none.

    For example: `2 stimuli (s3, s4 = s17 (same pixels)) in both train and test`.
    """
    by_name: dict[str, str] = {}
    by_pixels: dict[str, tuple[str, str]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for name, split in splits.items():
        for stimulus in sorted(set(split["stimulus_id"]) - {None}):
            other = by_name.setdefault(stimulus, name)
            if other != name:
                shared.setdefault((other, name), []).append(stimulus)
            elif stimulus in pictures[name]:
                other, twin = by_pixels.setdefault(pictures[name][stimulus].pixels, (name, stimulus))
                if other != name:
                    shared.setdefault((other, name), []).append(f"{twin} = {stimulus} (same pixels)")
    return "; ".join(f"{count(names, 'stimulus')} in both {one} and {other}" for (one, other), names in shared.items())


def refusal(leakage: str) -> str:
    """What is said of it."""
    return (
        f"{leakage}: a stimulus belongs to one split only, so remove it from the other; "
        "with --allow-leakage the command continues, and the results say so"
    )


def second_names(pictures: dict[str, Picture]) -> dict[str, str]:
    """For each stimulus whose image another name had before, that first name."""
    first: dict[str, str] = {}
    names = {stimulus: first.setdefault(shown.pixels, stimulus) for stimulus, shown in pictures.items()}
    return {stimulus: name for stimulus, name in names.items() if name != stimulus}


def in_words(names: dict[str, str]) -> list[str]:
    """`first = second` for each image that has two names."""
    return [f"{first} = {second}" for second, first in names.items()]


def renamed(split: Dataset, names: dict[str, str]) -> Dataset:
    """The split with some stimuli under other names, so that an image with two names is one stimulus."""
    column = [names.get(stimulus, stimulus) for stimulus in split["stimulus_id"]]
    return replaced(split, "stimulus_id", pa.array(column, pa.string()))


def replaced(split: Dataset, name: str, column: pa.Array) -> Dataset:
    """The split with another column in the place of one."""
    columns, feature = split.column_names, split.features[name]
    return split.remove_columns(name).add_column(name, column, feature=feature).select_columns(columns)


def together(parts: list[dict[str, Picture]]) -> dict[str, Picture]:
    """The stimuli of several splits or corpora.

    Raises:
        UserError: one name stands for two images.
    """
    pictures: dict[str, Picture] = {}
    several = [name for part in parts for name, shown in part.items() if pictures.setdefault(name, shown) != shown]
    if several:
        raise UserError(
            f"{count(several, 'stimulus')} with two images: a name must belong to one image, so rename one of them; of "
            "one picture in two sizes, import the same files"
        )
    return pictures


def write_seen(folder: Path, seen: Collection[str]) -> None:
    """Leave the hashes of the images that a model is trained on in its folder."""
    (folder / SEEN).write_text("".join(f"{pixels}\n" for pixels in sorted(seen)), encoding="utf-8")


def seen_by(run: str | Path) -> set[str]:
    """The hashes of the images that a model, in a folder or on the Hub, was trained on; none where it does not tell."""
    file = file_of(run, SEEN)
    return set() if file is None else set(file.read_text(encoding="utf-8").split())


def to_be_seen(pictures: Pictures) -> set[str]:
    """The hashes of the train and validation images."""
    return {shown.pixels for name in pictures if name != "test" for shown in pictures[name].values()}


def seen_in_training(run: str | Path, pictures: dict[str, Picture], split: str) -> str:
    """The stimuli of a split that this model was trained on, in words; empty where none is known."""
    seen = seen_by(run)
    names = sorted(stimulus for stimulus, shown in pictures.items() if shown.pixels in seen)
    return f"{count(names, 'stimulus')} of {split} among the images that the model was trained on" if names else ""
