"""Corpora from the Hub: Parquet shards, the voxel table and the card, as `push-corpus` leaves them there."""

from pathlib import Path

from datasets import DatasetDict, load_dataset
from huggingface_hub import DatasetCard, snapshot_download

from visionflow_hf.errors import UserError
from visionflow_hf.hub_errors import HUB_ERRORS

SHARDS = "data/{split}-*.parquet"
TAKEN = ("data/*.parquet", "voxels.parquet", "README.md")


def fetch_corpus(name: str) -> Path:
    """The folder of the corpus ORG/NAME in the cache; what is there already is not fetched again.

    Raises:
        UserError: there is none, or the Hub cannot be reached.
    """
    try:
        folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns=list(TAKEN)))
    except HUB_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name} is no corpus: there is no such folder, and the Hub gives none ({reason})") from error
    if not is_parquet(folder):
        raise UserError(
            f"{name} on the Hub is no corpus (no data/*.parquet in it): push one with `visionflow push-corpus`"
        )
    return folder


def is_parquet(folder: Path) -> bool:
    return any(folder.glob(SHARDS.format(split="*")))


def load_parquet(folder: Path) -> DatasetDict:
    """The splits of such a folder, through the cache of `datasets`; the unit stands in the head of the card."""
    files = sorted(folder.glob(SHARDS.format(split="*")))
    splits = dict.fromkeys(file.name.split("-")[0] for file in files)
    for split in splits:
        splits[split] = [str(file) for file in sorted(folder.glob(SHARDS.format(split=split)))]
    corpus = load_dataset("parquet", data_files=splits)
    card = folder / "README.md"
    about = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict() if card.is_file() else {}
    for split in corpus.values():
        split.info.description = about.get("visionflow", {}).get("unit", "")
    return corpus
