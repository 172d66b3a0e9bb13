"""`visionflow push-corpus`: a corpus to the Hub, as Parquet shards with the voxel table and a card."""

import logging
import math
import os
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import Dataset, DatasetDict, Features
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from tqdm import tqdm

from visionflow_hf.cards import card_template
from visionflow_hf.corpus.inspect import split_summary
from visionflow_hf.corpus.schema import SPLITS, Corpus, read_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.folders import writing
from visionflow_hf.hub import make_repository
from visionflow_hf.hub_cache import whole_files
from visionflow_hf.hub_errors import hub_errors
from visionflow_hf.results import BENCHMARK

logger = logging.getLogger(__name__)

SHARD_BYTES = 500e6  # of a Parquet file, about


def push_corpus(
    path: str | os.PathLike,
    name: str,
    private: bool = False,
    license: str | None = None,
    source: str | None = None,
    citation: str | os.PathLike | None = None,
    benchmark: bool = False,
) -> str:
    """Push a corpus as one commit; returns the commit's address.

    Parquet files of about 500 MB are written to a temporary folder first, which takes as much room as the corpus.

    Args:
        name: ORG/NAME; the repository is made where there is none, and shards and eval.yaml of an older corpus go.
        private: make a new repository private.
        license: an identifier that the Hub knows, such as cc-by-4.0.
        source: where the data come from, in a sentence.
        citation: a file whose text says how to cite them. Without these three, what the card in the repository states
            stays; the corpus may know a license, too.
        benchmark: add eval.yaml, by which the Hub takes the data set for a benchmark with a leaderboard.

    Raises:
        UserError: a benchmark without a test split, a corpus that cannot be read or has a stimulus in two splits, a
            name that is none, no right to write there, or no connection; or it is public and shall be private.
    """
    corpus = read_corpus(path)
    corpus.splits = alike(corpus.splits)
    if benchmark and "test" not in corpus.splits:
        raise UserError(f"{path} has no test split, only {', '.join(corpus.splits)}: leave out --benchmark")
    try:
        cite = None if citation is None else Path(citation).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--citation {citation} cannot be read ({error}): give a text file, such as a .bib") from error
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="visionflow-push-") as made:
        folder = Path(made)
        with writing(f"{folder} (the environment variable TMPDIR names another place)"):
            write_shards(corpus, folder)
            corpus.voxels.to_parquet(folder / "voxels.parquet", index=False)
        with hub_errors(name):
            name = make_repository(api, name, private, repo_type="dataset")
            given = {"license": license, "source": source, "citation": cite}
            kept = {key: said for key, said in said_before(api, name).items() if not given[key]}
            if kept:
                logger.info(f"{', '.join(kept)} as in the card of {name} so far")
            about = given | {"license": license or corpus.license or "unknown"} | kept
            corpus_card(corpus, name, **about).save(folder / "README.md")
            if benchmark:
                tasks = benchmark_of(name, about["source"])
                (folder / "eval.yaml").write_text(
                    yaml.safe_dump(tasks, sort_keys=False, allow_unicode=True), encoding="utf-8"
                )
            message = f"VisionFlow corpus {name}"
            return api.upload_folder(
                repo_id=name,
                repo_type="dataset",
                folder_path=folder,
                delete_patterns=["eval.yaml", *(f"data/{split}-*" for split in SPLITS)],
                commit_message=message,
            ).commit_url


def alike(splits: DatasetDict) -> DatasetDict:
    """The splits with the columns of all of them, filled with null where one lacks them, since the columns of the first
    split are expected in the others."""
    features = Features({name: kind for split in splits.values() for name, kind in split.features.items()})
    whole = DatasetDict()
    for part, split in splits.items():
        for name in features.keys() - split.features.keys():
            nulls = pa.nulls(len(split), features.arrow_schema.field(name).type)
            split = split.add_column(name, nulls, feature=features[name])
        whole[part] = split.select_columns(list(features))
    return whole


def said_before(api: HfApi, name: str) -> dict:
    """What the card that `push-corpus` left in a repository states of `license`, `source` and `citation`."""
    if "README.md" not in api.list_repo_files(name, repo_type="dataset"):
        return {}
    with whole_files(name, "dataset"):
        card = Path(api.hf_hub_download(name, "README.md", repo_type="dataset"))
    try:
        text = card.read_text(encoding="utf-8")
        head = DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return {}
    if "visionflow" not in head:
        return {}
    source = re.search(r"\n## Provenance\s+(.+?) Unit of the fMRI: ", text, re.DOTALL)
    citation = re.search(r"\n## Citation\s+```\w*\n(.+?)\n```", text, re.DOTALL)
    said = {"license": head.get("license"), "source": source and source[1], "citation": citation and citation[1]}
    return {key: value for key, value in said.items() if value not in (None, "unknown", "Source not stated.")}


def write_shards(corpus: Corpus, folder: Path) -> None:
    """data/SPLIT-00000-of-00002.parquet and so on."""
    (folder / "data").mkdir()
    for name, split in corpus.splits.items():
        shards = max(1, math.ceil((split.data.nbytes + bytes_of_files(split)) / SHARD_BYTES))
        for index in tqdm(range(shards), desc=f"writing {name}", unit="shard", delay=3, leave=False):
            file = folder / "data" / f"{name}-{index:05d}-of-{shards:05d}.parquet"
            rows = split.shard(shards, index, contiguous=True).with_format("arrow")[:]
            Dataset(embed_table_storage(rows), info=split.info).to_parquet(file)


def bytes_of_files(split: Dataset) -> int:
    """The size of the images that the rows hold by their path."""
    batches = split.select_columns("image").with_format("arrow").iter(1000)
    files = (file for batch in batches for file in pc.struct_field(batch["image"], "path").to_pylist())
    return sum(os.path.getsize(file) for file in files if file and os.path.isfile(file))


def benchmark_of(name: str, source: str | None) -> dict:
    """What eval.yaml holds: a task for each direction, whose figures the models keep in .eval_results/.

    It names no framework, since the Hub has a list of those that it knows.

    Source: huggingface.co/docs/hub/eval-results.
    """
    return {
        "name": name.split("/")[-1],
        "description": source or "Images and fMRI responses to them.",
        "tasks": [{"id": task, "config": "default", "split": "test"} for task in BENCHMARK],
    }


def corpus_card(corpus: Corpus, name: str, license: str, source: str | None, citation: str | None) -> DatasetCard:
    """The card, from the template corpus_card.md; its head keeps the unit, and says which files are which split."""
    configs = [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": f"data/{split}-*"} for split in corpus.splits],
        },
        {"config_name": "voxels", "data_files": [{"split": "voxels", "path": "voxels.parquet"}]},
    ]
    return DatasetCard.from_template(
        DatasetCardData(
            license=license,
            pretty_name=name.split("/")[-1],
            tags=["visionflow", "fmri", "visual-cortex"],
            configs=configs,
            visionflow={"unit": corpus.unit, "split_by": corpus.split_by},
        ),
        template_path=str(card_template("corpus_card.md")),
        name=name,
        unit=corpus.unit,
        splits={split: split_summary(rows, corpus.pictures[split]) for split, rows in corpus.splits.items()},
        subjects=corpus.subjects,
        columns=next(iter(corpus.splits.values())).column_names,
        license=license,
        source=source,
        citation=citation,
    )
