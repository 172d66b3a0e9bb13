"""What a corpus is: its columns, the voxel table beside them, and the checks that every reader relies on."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_from_disk

from visionflow_hf.corpus.checks import check_rows, check_trainable, check_voxels
from visionflow_hf.corpus.files import FORMAT_ERRORS
from visionflow_hf.corpus.from_hub import about_corpus, fetch_corpus, is_parquet, load_parquet, stream_corpus
from visionflow_hf.corpus.leakage import (
    Pictures,
    in_words,
    leakage,
    look,
    refusal,
    renamed,
    replaced,
    second_names,
    together,
)
from visionflow_hf.corpus.shards import write_split
from visionflow_hf.errors import UserError, count
from visionflow_hf.folders import new_folder

logger = logging.getLogger(__name__)

FEATURES = Features(
    {
        "image": Image(),
        "fmri": List(Value("float32")),
        "subject": Value("string"),
        "stimulus_id": Value("string"),
        "repeat": Value("int32"),
    }
)
OPTIONAL = ("category", "session")  # further columns of text, where the source has them
SPLIT_BY = ("stimulus", "category", "session")
SPLITS = ("train", "validation", "test")


def is_text(kind) -> bool:
    return isinstance(kind, Value) and kind.dtype in ("string", "large_string")


KINDS = {  # what columns of other types than `FEATURES` may have
    "fmri": lambda kind: isinstance(kind.feature, Value) and kind.feature.dtype.startswith(("float", "int", "uint")),
    "subject": is_text,
    "stimulus_id": is_text,
    "repeat": lambda kind: isinstance(kind, Value) and kind.dtype.startswith(("int", "uint")),
}
STIMULI = "stimuli"  # the folder of the images where rows hold their paths
MARKER = "dataset_dict.json"  # what `datasets` leaves in the folder of a DatasetDict


@dataclass
class Corpus:
    """An opened and checked corpus.

    Attributes:
        splits: `train`, `test` and maybe `validation`, each with the columns of `FEATURES` and maybe of `OPTIONAL`.
        voxels: one row a voxel, see `voxel_table`.
        subjects: number of voxels of each subject, sorted by name.
        pictures: what the images of the stimuli are known by, see `visionflow_hf.corpus.leakage`.
        leakage: the stimuli that are in two splits, in words; empty where there are none.
        split_by: what test holds out: `stimulus`, or whole categories or sessions, in words.
    """

    splits: DatasetDict
    voxels: pd.DataFrame
    subjects: dict[str, int]
    pictures: Pictures
    leakage: str = ""
    split_by: str = SPLIT_BY[0]

    @property
    def unit(self) -> str:
        """The unit of `fmri`, as the importer stated it."""
        return next(iter(self.splits.values())).info.description

    @property
    def license(self) -> str:
        """The licence of the data, as the card of a pushed corpus states it; empty where nobody has."""
        return next(iter(self.splits.values())).info.license

    def voxels_of(self, subject: str) -> pd.DataFrame:
        """The subject's rows of `voxels`, in the order of its responses."""
        return self.voxels[self.voxels["subject"] == subject].sort_values("voxel")


def name_by_pixels(image: np.ndarray) -> str:
    """The name of a stimulus that has none: a hash of its uint8 pixels, array of shape (height, width[, channels])."""
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


@dataclass
class Volume:
    """The grid of a scan, in which the voxels lie.

    Attributes:
        shape: (x, y, z).
        affine: from the place of a voxel to mm, array of shape (4, 4), or None where that is not known.
        places: of the voxels in the grid, flattened in C order, array of shape (voxels,).
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None
    places: np.ndarray


def voxel_table(subject: str, num_voxels: int, volume: Volume | None = None, **columns) -> pd.DataFrame:
    """The part of `voxels.parquet` that belongs to one subject.

    Args:
        volume: where the voxels lie in the scan. The table then has the column `place`, and shape and affine of the
            grid under `grids` in its `attrs`, which Parquet keeps.
        columns: what is known of `roi` (list of names a voxel), `noise_ceiling` (share of the variance of one corpus
            row, be it a trial or an average, that the stimulus explains), the coordinates `x`, `y`, `z`, and `vertex`
            (index in its hemisphere of fsaverage, which `roi` names as lh or rh), each of shape (voxels,). What is not
            given is empty, or null.
    """
    table = pd.DataFrame({"subject": subject, "voxel": np.arange(num_voxels, dtype=np.int32)})
    table["roi"] = columns.get("roi", [[] for _ in range(num_voxels)])
    for name in ("noise_ceiling", "x", "y", "z"):
        table[name] = np.asarray(columns.get(name, np.full(num_voxels, np.nan)), dtype=np.float64)
    table["vertex"] = pd.array(columns.get("vertex", [None] * num_voxels), dtype="Int32")
    table["place"] = pd.array([None] * num_voxels if volume is None else volume.places, dtype="Int64")
    if volume is not None:
        affine = None if volume.affine is None else np.asarray(volume.affine, dtype=np.float64).tolist()
        table.attrs["grids"] = {subject: {"shape": [int(length) for length in volume.shape], "affine": affine}}
    return table


def join_tables(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """The voxel tables of several subjects, one above the other."""
    whole = pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)
    whole.attrs = {}
    for kind in ("grids", "repeats"):
        known = [(table.attrs.get(kind, {}), set(table["subject"])) for table in tables]
        values = {name: value for of_table, own in known for name, value in of_table.items() if name in own}
        whole.attrs |= {kind: values} if values else {}
    return whole


def write_corpus(
    path: str | os.PathLike,
    rows: dict[str, Callable[[], Iterator[dict]]],
    voxels: pd.DataFrame,
    *,
    unit: str,
    overwrite: bool = False,
) -> None:
    """Write a corpus folder, whole or not at all.

    Args:
        rows: for each split a function that yields its rows, dicts with the keys of `FEATURES`.
        voxels: the voxel tables of all subjects, one above the other.
        unit: what one unit of `fmri` means, in a phrase.
    """
    with new_folder(path, overwrite, marker=MARKER) as folder:
        write_splits(folder, rows, voxels, unit)


def write_splits(
    folder: Path,
    rows: dict[str, Callable[[], Iterator[dict]]],
    voxels: pd.DataFrame,
    unit: str,
    more: Sequence[str] = (),
    split_by: str = SPLIT_BY[0],
) -> None:
    """What `write_corpus` writes, into a folder that is there already.

    Args:
        more: those of `OPTIONAL` that the rows have.
        split_by: as in `Corpus`.
    """
    features = Features({**FEATURES, **{name: Value("string") for name in more}})
    names = [name for name in SPLITS if name in rows]
    for name in names:
        write_split(folder / name, name, rows[name](), features, unit)
    voxels.to_parquet(folder / "voxels.parquet", index=False)
    (folder / MARKER).write_text(json.dumps({"splits": names, "split_by": split_by}))


def save_corpus(
    folder: Path, splits: DatasetDict, voxels: pd.DataFrame, unit: str, split_by: str = SPLIT_BY[0]
) -> None:
    """Splits, unit and voxel table, as `read_corpus` finds them."""
    for split in splits.values():
        split.info.description = unit
    splits.save_to_disk(str(folder))
    (folder / MARKER).write_text(json.dumps({"splits": list(splits), "split_by": split_by}))
    voxels.to_parquet(folder / "voxels.parquet", index=False)


def open_corpus(path: str | os.PathLike, allow_leakage: bool = False, streaming: bool = False) -> Corpus:
    """Open a corpus to train or evaluate on: sound, without leakage, with pairs in train and in test.

    Args:
        path: folder, or ORG/NAME on the Hub.
        allow_leakage: take a corpus in which a stimulus is in two splits, and say so in `leakage`.
        streaming: read a corpus of the Hub into memory, with no copy on disk.

    Raises:
        UserError: with the first thing that is wrong and its remedy.
    """
    corpus = read_corpus(path, allow_leakage, streaming)
    refuse(path, check_trainable(corpus.splits))
    return corpus


def read_corpus(path: str | os.PathLike, allow_leakage: bool = False, streaming: bool = False) -> Corpus:
    """As `open_corpus`, but train may have no pairs, and there need be no test split."""
    if streaming:
        if Path(path).exists():
            raise UserError(f"--streaming reads from the Hub, and {path} is on this disk: leave out --streaming")
        splits, folder = stream_corpus(str(path), FEATURES, OPTIONAL)
        splits = DatasetDict({name: found_again(split, folder) for name, split in splits.items()})
    else:
        folder = corpus_folder(path)
        splits = read_splits(folder)
    voxels = read_voxels(folder)
    subjects, problems = check_rows(splits)
    refuse(path, problems + check_voxels(voxels, subjects))
    pictures = look(splits)
    shared = leakage(splits, pictures)
    if shared and not allow_leakage:
        refuse(path, [refusal(shared)])
    together(list(pictures.values()))  # one name for two images would pair responses with the wrong one
    for name, split in splits.items():
        twins = second_names(pictures[name])
        if twins:
            logger.warning(f"{count(in_words(twins), 'image')} of {name} with two names: each is one stimulus")
            splits[name] = renamed(split, twins)
            pictures[name] = {stimulus: shown for stimulus, shown in pictures[name].items() if stimulus not in twins}
    return Corpus(splits, voxels, subjects, pictures, shared, split_by(folder))


def split_by(folder: Path) -> str:
    """What the corpus says of its splits, in the file of its splits or in its card."""
    if (folder / MARKER).is_file():
        about = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    else:
        about = about_corpus(folder).get("visionflow", {})
    return str(about.get("split_by", SPLIT_BY[0]))


def refuse(path: str | os.PathLike, problems: list[str]) -> None:
    """Raise `UserError` with the first of the problems, if there are any."""
    if problems:
        raise UserError(f"corpus {path}: {problems[0]}")


def corpus_folder(path: str | os.PathLike) -> Path:
    """The folder of a corpus that is named by its path, or by ORG/NAME on the Hub."""
    name = str(path)
    return Path(path) if os.path.exists(path) or name.count("/") != 1 else fetch_corpus(name)


def read_splits(path: Path) -> DatasetDict:
    """The splits as they stand, with nothing checked but their columns.

    Raises:
        UserError: no corpus, or one that cannot be read.
    """
    if not os.path.isfile(path / MARKER) and not is_parquet(path):
        raise UserError(f"{path} is no corpus (no {MARKER} in it): make one with `visionflow prepare` or `simulate`")
    for folder in (path, *(path / name for name in SPLITS)):
        for file in folder.iterdir() if folder.is_dir() else ():
            if file.is_fifo() or file.is_socket():  # which `datasets` would wait for
                raise UserError(f"{file} is no file: is corpus {path} whole? Make it again")
    try:
        splits = load_from_disk(str(path)) if (path / MARKER).is_file() else load_parquet(path)
        for split in splits.values():
            for column in {"subject", "stimulus_id"} & set(split.column_names):
                split.data[column].validate(full=True)  # that its text is UTF-8
        splits = splits.with_format(None)
    except (*FORMAT_ERRORS, AttributeError) as error:
        raise UserError(f"corpus {path} cannot be read ({error}): is it whole? Make it again") from error
    if not splits:
        raise UserError(f"corpus {path} has no splits: is it whole? Make it again")
    for name, split in splits.items():
        missing = [column for column in FEATURES if column not in split.column_names]
        if missing:
            raise UserError(
                f"split {name} of {path} lacks {', '.join(missing)} (it has {', '.join(split.column_names)}): "
                f"the columns of a corpus are {', '.join(FEATURES)}"
            )
        if type(split.features["image"]) is not Image or type(split.features["fmri"]) is not List:
            kinds = [f"{column} of type {split.features[column]}" for column in ("image", "fmri")]
            raise UserError(
                f"split {name} of {path} has {' and '.join(kinds)}: Image() and List of numbers are expected"
            )
        wrong = [
            f"{column} of type {split.features[column]}"
            for column, fits in KINDS.items()
            if not fits(split.features[column])
        ]
        if wrong:
            raise UserError(
                f"split {name} of {path} has {' and '.join(wrong)}: text is expected in subject and stimulus_id, "
                "numbers in fmri, whole numbers in repeat; `Dataset.cast_column` changes a type"
            )
        if not len(split):
            raise UserError(f"split {name} of {path} has no rows: make the corpus again")
    return DatasetDict({name: found_again(split, path) for name, split in splits.items()})


def found_again(split: Dataset, path: Path) -> Dataset:
    """The split with the paths of its images in `stimuli`: the folder of the corpus may lie elsewhere than it did.

    Raises:
        UserError: rows name files and the corpus has no such folder; a corpus must not show other files of this disk.
    """
    images = pa.chunked_array(split.data["image"])
    by_path = pc.and_(images.is_valid(), pc.struct_field(images, "bytes").is_null())
    if not pc.any(by_path).as_py():
        return split
    folder = path.absolute() / STIMULI
    if not folder.is_dir():
        raise UserError(f"corpus {path} names image files and has no folder {STIMULI}: copy it again, as a whole")
    found = [
        {"bytes": None, "path": str(folder.joinpath(*last_names(image["path"] or "")))} if named else image
        for named, image in zip(by_path.to_pylist(), images.to_pylist(), strict=True)
    ]
    return replaced(split, "image", pa.array(found, images.type))


def last_names(file: str) -> list[str]:
    """The name of a file and of its folder, which lead nowhere but downwards."""
    names = Path(file).parts
    return [name for name in names if name not in ("..", Path(file).anchor)][-2:]


def read_voxels(path: Path) -> pd.DataFrame:
    """The table of all subjects' voxels; what it leaves open is an empty list of regions, or NaN coordinates."""
    file = path / "voxels.parquet"
    if not file.is_file():
        raise UserError(f"{path} has no voxels.parquet, the voxel table beside the splits: make the corpus again")
    try:
        table = pd.read_parquet(file)
    except FORMAT_ERRORS as error:
        raise UserError(f"{file} cannot be read ({error}): is it whole? Make the corpus again") from error
    for column in ("x", "y", "z"):
        if column not in table:
            table[column] = np.nan
    if "roi" in table:
        table["roi"] = [[] if names is None else names for names in table["roi"]]
    return table
