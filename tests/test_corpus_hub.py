"""Corpora on the Hub: pushed as Parquet, read back by name, with the real client against a Hub on the loopback."""

import errno
import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import DatasetDict, Features, Value, load_from_disk
from datasets.exceptions import DatasetGenerationError
from loopback_hub import LoopbackHub, Repository, environment
from test_hub import stranger, visionflow

from visionflow_hf.cli import main
from visionflow_hf.corpus import from_hub, to_hub
from visionflow_hf.corpus.schema import FEATURES, read_corpus
from visionflow_hf.errors import UserError

LABELLED = Features({**FEATURES, "category": Value("string"), "session": Value("string")})

# What the card shows, by somebody without this package.
READ = """
import json
from datasets import load_dataset

name, output = sys.argv[1:]
corpus = load_dataset(name)
voxels = load_dataset(name, "voxels", split="voxels").to_pandas()
rows = [
    [
        *[row[name] for name in ("subject", "stimulus_id", "repeat", "category", "session", "fmri")],
        row["image"] and np.array(row["image"]).tolist(),
    ]
    for split in corpus.values()
    for row in split
]
with open(output, "w") as file:
    json.dump({"splits": corpus.num_rows, "rows": rows, "voxels": len(voxels)}, file)
"""


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def unpaired(corpus, tmp_path_factory):
    """`corpus`, with a row without fMRI and one without an image, with categories and sessions."""
    splits = load_from_disk(str(corpus))
    change = {0: {"fmri": None, "subject": None}, 1: {"image": None}}
    train = splits["train"].map(lambda row, index: change.get(index, {}), with_indices=True, features=FEATURES)
    path = tmp_path_factory.mktemp("corpus") / "unpaired"

    def labelled(row: dict, index: int) -> dict:
        return {"category": "odd" if int(row["stimulus_id"][-1]) % 2 else None, "session": f"0{index % 3}"}

    splits = DatasetDict(train=train, test=splits["test"])
    splits.map(labelled, with_indices=True, features=LABELLED).save_to_disk(str(path))
    read_corpus(corpus).voxels.to_parquet(path / "voxels.parquet", index=False)
    return path


@pytest.fixture(scope="module")
def pushed(hub, unpaired, tmp_path_factory):
    """The files of `lab/simulated`, with what its owner says of it."""
    home = tmp_path_factory.mktemp("home")
    (home / "cite.bib").write_text("@misc{digits, title = {Digits}}\n")
    flags = ["--license", "cc-by-4.0", "--source", "A simulated cortex.", "--citation", home / "cite.bib"]
    result = visionflow("push-corpus", unpaired, "lab/simulated", *flags, env=environment(hub, home))
    assert result.returncode == 0, result.stderr
    assert "lab/simulated/commit/" in result.stdout
    return hub.files("lab/simulated", "datasets")


def test_what_is_pushed(hub, pushed, unpaired):
    shards = ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    assert sorted(pushed) == [".gitattributes", "README.md", *shards, "voxels.parquet"]
    assert len(hub.repositories["datasets/lab/simulated"].commits) == 2  # its creation, and all of ours at once
    voxels = pd.read_parquet(io.BytesIO(pushed["voxels.parquet"]))
    pd.testing.assert_frame_equal(voxels, read_corpus(unpaired).voxels)
    _, head, body = pushed["README.md"].decode().split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "cc-by-4.0" and head["visionflow"]["unit"].startswith("simulated response")
    assert [one["config_name"] for one in head["configs"]] == ["default", "voxels"]
    for said in (
        "| fmri | list of float32",
        "A simulated cortex.",
        "cc-by-4.0",
        "@misc{digits",
        "| subj02 | 30 |",
        "| session | string, or null |",
    ):
        assert said in body, said
    assert "| train | 71 | 36 | 1 | 1 |" in body and str(unpaired) not in body


def test_a_stranger_reads_every_value(hub, pushed, unpaired, tmp_path):
    env = environment(hub, tmp_path / "home")
    stranger(READ, "lab/simulated", tmp_path / "rows.json", env=env, cwd=tmp_path)
    read = json.loads((tmp_path / "rows.json").read_text())
    assert read["splits"] == {"train": 72, "test": 24} and read["voxels"] == 60
    splits = load_from_disk(str(unpaired))
    for row, (subject, stimulus, repeat, category, session, fmri, image) in zip(
        [row for name in ("train", "test") for row in splits[name]], read["rows"], strict=True
    ):
        assert (row["subject"], row["stimulus_id"], row["repeat"]) == (subject, stimulus, repeat)
        assert (row["category"], row["session"]) == (category, session)
        assert (row["fmri"], row["image"] and np.array(row["image"]).tolist()) == (fmri, image)


@pytest.mark.nightly
def test_train_and_evaluate_by_name_online_and_then_offline(hub, pushed, unpaired, tmp_path):
    env = environment(hub, tmp_path / "home")
    flags = ["--max_steps", 4, "--disable_tqdm", "true", "--validation_fraction", 0.1, "--linear_dim", 0]
    result = visionflow("train", "lab/simulated", tmp_path / "run", *flags, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    asked = len(hub.requests)
    offline = env | {"HF_HUB_OFFLINE": "1"}
    result = visionflow("evaluate", tmp_path / "run", "lab/simulated", tmp_path / "report", env=offline)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(hub.requests) == asked
    assert (tmp_path / "report" / "metrics.json").is_file()
    assert main(["train", str(unpaired), str(tmp_path / "local"), *map(str, flags)]) == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "local"))
    assert one == other
    assert "simulated response" in (tmp_path / "run" / "README.md").read_text()


def test_a_stream_of_several_shards_has_every_row(hub, pushed, unpaired, tmp_path):
    train = pq.read_table(io.BytesIO(pushed["data/train-00000-of-00001.parquet"]))
    shards = {}
    for number in range(3):
        shard = io.BytesIO()
        pq.write_table(train.slice(number * 24, 24), shard)
        shards[f"data/train-{number:05d}-of-00003.parquet"] = shard.getvalue()
    repository = hub.repositories["datasets/lab/shards"] = Repository(private=False)
    repository.commit({name: content for name, content in pushed.items() if "train-" not in name} | shards)
    env = environment(hub, tmp_path / "home")
    script = (
        "import sys; from visionflow_hf.corpus.schema import read_corpus\n"
        "read_corpus(sys.argv[1], streaming=True).splits.save_to_disk(sys.argv[2])"
    )
    command = [sys.executable, "-c", script, "lab/shards", str(tmp_path / "read")]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    read, expected = load_from_disk(str(tmp_path / "read")), load_from_disk(str(unpaired))
    for name in ("train", "test"):
        assert read[name].features == LABELLED
        assert read[name].remove_columns("image")[:] == expected[name].remove_columns("image")[:]


@pytest.mark.nightly
def test_train_in_a_stream_leaves_no_copy_and_gives_the_same_model(hub, pushed, unpaired, tmp_path, refused):
    env = environment(hub, tmp_path / "home")
    flags = ["--max_steps", 4, "--disable_tqdm", "true", "--validation_fraction", 0.1, "--linear_dim", 0]
    result = visionflow("train", "lab/simulated", tmp_path / "run", "--streaming", *flags, env=env)
    assert result.returncode == 0, result.stderr[-2000:]
    kept = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert not [file for file in kept if file.suffix == ".arrow" or file.name.startswith(("train-", "test-"))], kept
    assert main(["train", str(unpaired), str(tmp_path / "local"), *map(str, flags)]) == 0
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "local"))
    assert one == other
    assert "simulated response" in (tmp_path / "run" / "README.md").read_text()
    refused(
        lambda: main(["train", str(unpaired), str(tmp_path / "x"), "--streaming"]), "--streaming reads from the Hub"
    )
    for name, files, message in (
        ("lab/nowhere", None, "lab/nowhere is no corpus: there is no such folder"),
        (
            "lab/shreds",
            {"data/train-0.parquet": b"PAR1", "voxels.parquet": b"PAR1"},
            "lab/shreds cannot be read (Parquet",
        ),
        ("lab/table", {"data/train-0.parquet": pushed["voxels.parquet"]}, "with the columns image, fmri, subject"),
    ):
        if files:
            repository = hub.repositories[f"datasets/{name}"] = Repository(private=False)
            repository.commit(files)
        result = visionflow("train", name, tmp_path / "x", "--streaming", env=env)
        line = result.stderr.splitlines()[-1]
        assert result.returncode == 2 and line.startswith("error: ") and message in line, result.stderr[-2000:]
    assert not (tmp_path / "x").exists()


def test_pushed_again_old_shards_go_and_inspect_reads_the_new(hub, corpus, tmp_path):
    env = environment(hub, tmp_path / "home")
    assert visionflow("push-corpus", corpus, "lab/again", "--private", env=env).returncode == 0
    repository = hub.repositories["datasets/lab/again"]
    assert repository.private
    stale = dict(repository.commits[-1][1]) | {"data/train-00001-of-00002.parquet": b"old"}
    repository.commit(stale)
    assert visionflow("push-corpus", corpus, "lab/again", env=env).returncode == 0
    assert "data/train-00001-of-00002.parquet" not in hub.files("lab/again", "datasets")
    result = visionflow("inspect", "lab/again", "--json", env=env)
    assert result.returncode == 0, result.stderr
    page = json.loads(result.stdout)
    assert page["splits"]["train"]["pairs"] == 72 and page["unit"].startswith("simulated response")
    assert page["corpus"] == "lab/again" and page["disk_mib"] > 0
    nobody = environment(hub, tmp_path / "other home") | {"HF_TOKEN": "hf_wrong"}
    result = visionflow("inspect", "lab/again", env=nobody)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("error: lab/again is no corpus: there")
    card = hub.files("lab/again", "datasets")["README.md"].decode()
    assert "license: unknown" in card and "ask the owner of this repository" in card


def test_many_shards(monkeypatch, corpus, tmp_path):
    opened = read_corpus(corpus)
    monkeypatch.setattr(to_hub, "SHARD_BYTES", opened.splits["test"].data.nbytes)
    to_hub.write_shards(opened, tmp_path)
    assert len(list((tmp_path / "data").glob("train-*"))) >= 2 and len(list((tmp_path / "data").glob("test-*"))) == 1
    read = from_hub.load_parquet(tmp_path)
    for name, split in opened.splits.items():
        assert read[name].features == FEATURES
        assert read[name].remove_columns("image")[:] == split.remove_columns("image")[:]


def test_pushed_again_a_card_keeps_what_its_owner_said(hub, corpus, tmp_path):
    env = environment(hub, tmp_path / "home")
    (tmp_path / "cite.bib").write_text("@misc{digits,\n  title = {Digits}\n}\n")
    flags = ["--license", "cc-by-4.0", "--source", "3 T. Two mm.", "--citation", tmp_path / "cite.bib", "--benchmark"]
    assert visionflow("push-corpus", corpus, "lab/kept", *flags, env=env).returncode == 0
    files = hub.files("lab/kept", "datasets")
    assert "evaluation_framework" not in files["eval.yaml"].decode()  # the Hub knows those of others
    again = visionflow("push-corpus", corpus, "lab/kept", env=env)
    assert "license, source, citation as in the card of lab/kept so far" in again.stderr, again.stderr
    assert hub.files("lab/kept", "datasets")["README.md"] == files["README.md"]
    assert "eval.yaml" not in hub.files("lab/kept", "datasets")
    assert visionflow("push-corpus", corpus, "lab/kept", "--license", "mit", env=env).returncode == 0
    assert hub.files("lab/kept", "datasets")["README.md"].decode() == files["README.md"].decode().replace(
        "cc-by-4.0", "mit"
    )
    hub.repositories["datasets/lab/kept"].commit({"README.md": b"---\nlicense: mit\n---\nmine\n"})
    assert visionflow("push-corpus", corpus, "lab/kept", env=env).returncode == 0
    assert b"license: unknown" in hub.files("lab/kept", "datasets")["README.md"]  # that was no card of ours


def test_splits_are_pushed_with_the_same_columns(corpus, unpaired, tmp_path):
    opened = read_corpus(corpus)
    opened.splits["train"] = read_corpus(unpaired).splits["train"]
    (tmp_path / "other").mkdir()
    to_hub.write_shards(opened, tmp_path / "other")
    with pytest.raises(
        UserError, match=r"new columns.*category.*\): whole Parquet files are expected, all with the same"
    ):
        from_hub.load_parquet(tmp_path / "other")
    unit = opened.unit
    opened.splits = to_hub.alike(opened.splits)
    (tmp_path / "same").mkdir()
    to_hub.write_shards(opened, tmp_path / "same")
    read = from_hub.load_parquet(tmp_path / "same")
    assert read["train"].features == read["test"].features == LABELLED and opened.unit == unit
    assert set(read["test"]["session"]) == {None} and set(read["train"]["session"]) == {"00", "01", "02"}


def test_a_cache_without_room_is_one_line(pushed, tmp_path, monkeypatch):
    def full(*words, **more):
        raise DatasetGenerationError("An error occurred") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(from_hub, "load_dataset", full)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=r"No space left on device\): free some, or name a folder on another disk"):
        from_hub.load_parquet(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lab/more/names", {}, "lab/more/names is no name on the Hub: give ORG/NAME"),
        ("lab/refused", {"HF_TOKEN": "hf_wrong"}, "the Hub refused lab/refused (401): log in with `hf auth login`"),
        pytest.param(*("lab/offline", {"HF_HUB_OFFLINE": "1"}, "the Hub cannot be reached"), marks=pytest.mark.nightly),
    ],
)
def test_a_push_that_cannot_be(hub, corpus, tmp_path, name, settings, message):
    result = visionflow("push-corpus", corpus, name, env=environment(hub, tmp_path / "home") | settings)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith(f"error: {message}"), result.stderr
    assert f"datasets/{name}" not in hub.repositories


def test_what_is_no_corpus(hub, corpus, tmp_path, refused):
    absent = tmp_path / "absent.bib"
    refused(lambda: main(["push-corpus", str(corpus), "lab/x", "--citation", str(absent)]), "absent.bib cannot be read")
    refused(lambda: main(["push-corpus", str(tmp_path), "lab/x"]), "is no corpus")
    refused(lambda: main(["inspect", "lab/nothing"]), "lab/nothing is no corpus: there is no such folder")
    env = environment(hub, tmp_path / "home")
    for name, kind, message in (
        ("lab/nothing", None, "lab/nothing is no corpus: there is no such folder, and the Hub gives none"),
        ("lab/texts", {"README.md": b"hello"}, "lab/texts on the Hub is no corpus (no data/*.parquet in it)"),
        ("lab/broken", {"data/train-0.parquet": b"PAR1", "voxels.parquet": b"PAR1"}, "cannot be read"),
    ):
        if kind:
            repository = hub.repositories[f"datasets/{name}"] = Repository(private=False)
            repository.commit(kind)
        result = visionflow("inspect", name, env=env)
        line = result.stderr.splitlines()[-1]
        assert result.returncode == 2 and line.startswith("error: ") and message in line, result.stderr[-2000:]
        assert "Traceback" not in result.stderr
