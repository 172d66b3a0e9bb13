"""`visionflow push-corpus`: a corpus to the Hub, as Parquet shards with the voxel table and a card."""

import math
import os
import tempfile
from pathlib import Path

import pyarrow.compute as pc
import yaml
from datasets import Dataset
from datasets.table import embed_table_storage
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from tqdm import tqdm

from visionflow_hf.cards import card_template
from visionflow_hf.corpus.inspect import split_summary
from visionflow_hf.corpus.schema import SPLITS, Corpus, read_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.folders import writing
from visionflow_hf.hub import make_repository
from visionflow_hf.hub_errors import hub_errors
from visionflow_hf.results import BENCHMARK

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
        name: ORG/NAME; the repository is made where there is none, and shards of an older corpus go.
        private: make a new repository private.
        license: an identifier that the Hub knows, such as cc-by-4.0; that of the corpus without.
        source: where the data come from, in a sentence.
        citation: a file whose text says how to cite them.
        benchmark: add eval.yaml, by which the Hub takes the data set for a benchmark with a leaderboard.

    Raises:
        UserError: a benchmark without a test split, a corpus that cannot be read or has a stimulus in two splits, a
            name that is none, no right to write there, or no connection; or it is public and shall be private.
    """
    corpus = read_corpus(path)
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
            corpus_card(corpus, name, license or corpus.license or "unknown", source, cite).save(folder / "README.md")
            if benchmark:
                about = benchmark_of(name, source)
                (folder / "eval.yaml").write_text(
                    yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8"
                )
            message = f"VisionFlow corpus {name}"
            return api.upload_folder(
                repo_id=name,
                repo_type="dataset",
                folder_path=folder,
                delete_patterns=[f"data/{split}-*" for split in SPLITS],
                commit_message=message,
            ).commit_url


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

    Source: huggingface.co/docs/hub/eval-results.
    """
    return {
        "name": name.split("/")[-1],
        "description": source or "Images and fMRI responses to them.",
        "evaluation_framework": "visionflow",
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
