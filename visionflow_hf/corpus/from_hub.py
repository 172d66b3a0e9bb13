"""Corpora from the Hub: Parquet shards, the voxel table and the card, as `push-corpus` writes them."""

import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import yaml
from datasets import Dataset, DatasetDict, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from huggingface_hub import DatasetCard, HfApi, snapshot_download
from tqdm import tqdm

from visionflow_hf.errors import UserError
from visionflow_hf.hub_cache import whole_files
from visionflow_hf.hub_errors import reading_corpus

SHARD = re.compile(r"data/(\w+)-[^/]*\.parquet")
BESIDE = ["voxels.parquet", "README.md"]


def fetch_corpus(name: str) -> Path:
    """The folder of the corpus ORG/NAME in the cache; what is there already is not fetched again.

    Raises:
        UserError: there is none, it cannot be stored here, or the Hub does not answer.
    """
    with reading_corpus(name), whole_files(name, "dataset"):
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["data/*.parquet", *BESIDE]))
    if not is_parquet(folder):
        raise without_shards(name)
    return folder


def stream_corpus(name: str, features: Features, optional: Sequence[str]) -> tuple[DatasetDict, Path]:
    """The splits of the corpus ORG/NAME, read by `datasets` into the memory of this process, with no copy on disk.

    Args:
        features: columns that it must have.
        optional: columns of text that are read where they are there.

    Returns:
        The splits, and the folder of what lies beside them: voxel table and card.

    Raises:
        UserError: there is none, it has other columns than `features`, or the Hub does not answer.
    """
    corpus = DatasetDict()
    with reading_corpus(name):
        revision = HfApi().dataset_info(name).sha
        with whole_files(name, "dataset"):
            folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=BESIDE))
        shards = shards_of(HfApi().list_repo_files(name, repo_type="dataset", revision=revision))
        if not shards:
            raise without_shards(name)
        for split, files in shards.items():
            addresses = [f"hf://datasets/{name}@{revision}/{file}" for file in files]
            try:
                corpus[split] = Dataset(read_stream(addresses, split, features, optional))
            except (KeyError, pa.ArrowException) as error:
                raise UserError(
                    f"corpus {name} cannot be read ({' '.join(str(error).split())[:100]}): whole Parquet files are "
                    f"expected, with the columns {', '.join(features)}"
                ) from error
    describe(corpus, folder)
    return corpus, folder


def read_stream(addresses: list[str], split: str, features: Features, optional: Sequence[str]) -> pa.Table:
    """The columns `features`, and those of `optional` that are there, of Parquet files on the Hub."""
    batches = []
    rows = load_dataset("parquet", data_files=addresses, split="train", streaming=True)  # `datasets` names it so
    with tqdm(desc=f"reading {split}", unit=" rows", leave=False, disable=None) as bar:
        for batch in rows.with_format("arrow").iter(100):
            texts = {name: Value("string") for name in optional if is_text(batch.schema, name)}
            there = Features({**features, **texts})
            batches.append(batch.select(list(there)).cast(there.arrow_schema))
            bar.update(len(batch))
    return pa.concat_tables(batches, promote_options="default")


def is_text(schema: pa.Schema, name: str) -> bool:
    there = schema.field(name).type if name in schema.names else None
    return there is not None and (pa.types.is_string(there) or pa.types.is_large_string(there))


def without_shards(name: str) -> UserError:
    return UserError(
        f"{name} on the Hub is no corpus (no data/*.parquet in it): push one with `visionflow push-corpus`"
    )


def shards_of(files: Iterable[str]) -> dict[str, list[str]]:
    """The Parquet files of each split, out of all files of a repository."""
    shards: dict[str, list[str]] = {}
    for file in sorted(files):
        if match := SHARD.fullmatch(file):
            shards.setdefault(match[1], []).append(file)
    return shards


def is_parquet(folder: Path) -> bool:
    return os.path.isdir(folder) and any(folder.glob("data/*.parquet"))  # unlike `Path.is_dir`, for names of any length


def load_parquet(folder: Path) -> DatasetDict:
    """The splits of such a folder, through the cache of `datasets`.

    Raises:
        UserError: a shard is damaged, the splits have other columns, or the cache has no room.
    """
    shards = shards_of(file.relative_to(folder).as_posix() for file in folder.glob("data/*.parquet"))
    files = {split: [str(folder / file) for file in own] for split, own in shards.items()}
    try:
        corpus = load_dataset("parquet", data_files=files)
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        remedy = "whole Parquet files are expected, all with the same columns: push the corpus again"
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free some, or name a folder on another disk in HF_DATASETS_CACHE"
        told = cause.details() if isinstance(cause, CastError) else str(cause)
        raise UserError(f"corpus {folder} cannot be read ({' '.join(told.split())[:200]}): {remedy}") from error
    describe(corpus, folder)
    return corpus


def about_corpus(folder: Path) -> dict:
    """The metadata of the card in a folder."""
    card = folder / "README.md"
    try:
        return DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"the metadata of {card} cannot be read ({' '.join(str(error).split())[:200]})") from error


def describe(corpus: DatasetDict, folder: Path) -> None:
    """Set the description of each split to the unit and its license to that of the data, from the card's metadata."""
    about = about_corpus(folder)
    license = about.get("license", "unknown")
    for split in corpus.values():
        split.info.description = about.get("visionflow", {}).get("unit", "")
        split.info.license = "" if license == "unknown" else str(license)
