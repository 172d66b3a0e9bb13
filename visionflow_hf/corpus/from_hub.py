"""Corpora from the Hub: Parquet shards, the voxel table and the card, as `push-corpus` leaves them there."""

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, load_dataset
from huggingface_hub import DatasetCard, HfApi, snapshot_download
from tqdm import tqdm

from visionflow_hf.corpus.shared_tables import read_tables
from visionflow_hf.errors import UserError
from visionflow_hf.hub_errors import HUB_ERRORS

SHARD = re.compile(r"data/(\w+)-[^/]*\.parquet")
BESIDE = ["voxels.parquet", "README.md"]


def fetch_corpus(name: str) -> Path:
    """The folder of the corpus ORG/NAME in the cache; what is there already is not fetched again.

    Raises:
        UserError: there is none, or the Hub cannot be reached.
    """
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=["data/*.parquet", *BESIDE]))
    except HUB_ERRORS as error:
        raise no_corpus(name, error) from error
    if not is_parquet(folder):
        raise without_shards(name)
    return folder


def stream_corpus(name: str, features: Features) -> tuple[DatasetDict, Path]:
    """The splits of the corpus ORG/NAME, read into memory with no copy on disk; once for all processes of a machine.

    Returns:
        The splits, and the folder of what lies beside them: voxel table and card.

    Raises:
        UserError: there is none, it has other columns than `features`, or the Hub cannot be reached.
    """
    try:
        revision = HfApi().dataset_info(name).sha
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=BESIDE))
        shards = shards_of(HfApi().list_repo_files(name, repo_type="dataset", revision=revision))
        if not shards:
            raise without_shards(name)
        corpus = DatasetDict()
        for split, files in shards.items():
            addresses = [f"hf://datasets/{name}@{revision}/{file}" for file in files]
            with tqdm(desc=f"reading {split}", unit=" rows", leave=False, disable=None) as bar:
                tables = read_tables(addresses, partial(stream_shard, features=features, bar=bar))
            corpus[split] = Dataset(pa.concat_tables(tables))
    except (KeyError, pa.ArrowInvalid) as error:
        raise UserError(
            f"corpus {name} cannot be read ({' '.join(str(error).split())[:100]}): whole Parquet files are expected, "
            f"with the columns {', '.join(features)}"
        ) from error
    except HUB_ERRORS as error:
        raise no_corpus(name, error) from error
    describe(corpus, folder)
    return corpus, folder


def stream_shard(address: str, features: Features, bar: tqdm) -> pa.Table:
    """The columns `features` of a Parquet file on the Hub; `bar` counts its rows."""
    batches = []
    rows = load_dataset("parquet", data_files=address, split="train", streaming=True)  # as a file alone is named
    for batch in rows.with_format("arrow").iter(100):
        batches.append(batch)
        bar.update(len(batch))
    return pa.concat_tables(batches).select(list(features)).cast(features.arrow_schema)


def no_corpus(name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{name} is no corpus: there is no such folder, and the Hub gives none ({reason})")


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
    return any(folder.glob("data/*.parquet"))


def load_parquet(folder: Path) -> DatasetDict:
    """The splits of such a folder, through the cache of `datasets`."""
    shards = shards_of(file.relative_to(folder).as_posix() for file in folder.glob("data/*.parquet"))
    corpus = load_dataset(
        "parquet", data_files={split: [str(folder / file) for file in files] for split, files in shards.items()}
    )
    describe(corpus, folder)
    return corpus


def describe(corpus: DatasetDict, folder: Path) -> None:
    """Each split's description is the unit, and its licence the data's, as they stand in the head of the card."""
    card = folder / "README.md"
    about = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    license = about.get("license", "unknown")
    for split in corpus.values():
        split.info.description = about.get("visionflow", {}).get("unit", "")
        split.info.license = "" if license == "unknown" else str(license)
