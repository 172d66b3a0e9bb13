"""Splits and folds that hold out whole categories or sessions, and what corpora and reports say of them."""

import json

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from PIL import Image
from sources import of

from visionflow_hf.cli import main
from visionflow_hf.corpus.categories import clusters, small_copies
from visionflow_hf.corpus.schema import read_corpus
from visionflow_hf.corpus.splits import category_folds, draw_groups, session_folds
from visionflow_hf.crossvalidate import split_folds
from visionflow_hf.errors import UserError
from visionflow_hf.training.arguments import ModelArguments


def prepare(source, out, *flags) -> int:
    files = [
        "--images-folder",
        str(source / "images"),
        "--betas",
        f"{source}/betas/{{subject}}_{{session}}_betas.nii.gz",
    ]
    return main(["prepare", "table", str(source / "trials.tsv"), str(out), *files, *flags])


def rows_of(corpus) -> pd.DataFrame:
    splits = load_from_disk(corpus).remove_columns(["image", "fmri"])
    return pd.concat([split.to_pandas().assign(split=name) for name, split in splits.items()])


def test_folds_hold_out_whole_categories_once():
    categories = list("aabbbccdea")
    folds = list(category_folds(categories, 3, seed=1))
    assert sorted(row for _, held in folds for row in held) == list(range(10))
    for train, held in folds:
        assert sorted([*train, *held]) == list(range(10))
        assert {categories[row] for row in train}.isdisjoint(categories[row] for row in held)
    with pytest.raises(UserError, match="6 folds by category, of which there are 5"):
        list(category_folds(categories, 6, seed=1))


def test_folds_by_session_train_on_none_of_the_held_out_stimuli():
    #          0    1    2    3    4    5    6
    sessions = ["1", "1", "2", "2", "2", "3", "3"]
    stimuli = ["a", "b", "a", "c", "d", "c", "e"]
    folds = {tuple(held.tolist()): set(train.tolist()) for train, held in session_folds(sessions, stimuli, 3, seed=0)}
    assert folds == {(0, 1): {3, 4, 5, 6}, (3, 4): {0, 1, 6}, (6,): {0, 1, 2, 3, 4}}
    with pytest.raises(UserError, match="no row is left to train on"):
        list(session_folds(["1", "2"], ["a", "a"], 2, seed=0))


def test_the_drawn_groups_have_about_the_share():
    groups = ["a"] * 10 + ["b"] * 20 + ["c"] * 30 + ["d"] * 40
    sizes = dict(a=10, b=20, c=30, d=40)
    for seed in range(5):
        held = draw_groups(groups, 0.3, seed, "category")
        assert 0 < sum(sizes[name] for name in held) <= 50
    with pytest.raises(UserError, match="all trials belong to one category"):
        draw_groups(["a", "a"], 0.3, 0, "category")


def test_images_that_look_alike_are_one_cluster():
    rng = np.random.default_rng(0)
    colours = [(250, 20, 20), (20, 250, 20)]
    noise = rng.integers(-15, 15, (10, 30, 40, 3))
    images = [Image.fromarray((noise[n] + colours[n % 2]).clip(0, 255).astype(np.uint8)) for n in range(10)]
    found = clusters(small_copies(images), seed=0)
    assert len(set(found[::2])) == len(set(found[1::2])) == 1 and found[0] != found[1]


@of("table")
def test_whole_categories_are_in_test(source, tmp_path, capsys):
    trials = pd.read_csv(source / "trials.tsv", sep="\t", dtype=str)
    trials["kind"] = [f"{image.split('/')[0]} {int(image[-5]) % 2}" for image in trials["image"]]
    trials.to_csv(source / "trials.tsv", sep="\t", index=False)
    flags = ("--split-by", "category", "--test-fraction", "0.25", "--category-column", "kind")
    assert prepare(source, tmp_path / "out", *flags) == 0
    assert "test holds out 1 of 4 categories of the source" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    expected = [f"{name.split('/')[0]} {int(name[-5]) % 2}" for name in rows["stimulus_id"]]
    assert rows["category"].tolist() == expected and len(rows) == 32
    assert rows.groupby("category")["split"].nunique().max() == 1 and set(rows["split"]) == {"train", "test"}
    assert read_corpus(tmp_path / "out").split_by == "1 of 4 categories of the source"


@of("table")
def test_clusters_stand_in_for_categories(source, tmp_path):
    assert prepare(source, tmp_path / "out", "--split-by", "category") == 0
    rows = rows_of(tmp_path / "out")
    assert "category" not in rows and rows.groupby("stimulus_id")["split"].nunique().max() == 1
    assert read_corpus(tmp_path / "out").split_by == "1 of 2 clusters of images that look alike (8 x 8 px)"


@of("table")
def test_whole_sessions_are_in_test(source, tmp_path, capsys):
    assert prepare(source, tmp_path / "out", "--split-by", "session", "--test-fraction", "0.25") == 0
    held = read_corpus(tmp_path / "out").split_by.removeprefix("session ")
    trials = pd.read_csv(source / "trials.tsv", sep="\t", dtype=str)
    tested = set(trials.loc[trials["session"] == held, "image"])
    rows = rows_of(tmp_path / "out")
    test, train = rows[rows["split"] == "test"], rows[rows["split"] == "train"]
    assert set(test["session"]) == {held} and len(test) == (trials["session"] == held).sum() == 8
    assert len(train) == (~trials["image"].isin(tested)).sum() and tested.isdisjoint(train["stimulus_id"])
    left_out = (trials["image"].isin(tested) & (trials["session"] != held)).sum()
    assert f"{left_out} trials of test stimuli in other sessions left out" in capsys.readouterr().out


def test_sessions_that_are_not_known_are_told(tmp_path, refused):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, fmri=rng.normal(size=(8, 3)))
    words = [
        "prepare",
        "arrays",
        str(tmp_path / "a.npz"),
        str(tmp_path / "out"),
        "--images",
        "images",
        "--fmri",
        "fmri",
    ]
    refused(lambda: main([*words, "--split-by", "session"]), "session of each trial of subj01 is not known")
    assert not (tmp_path / "out").exists()


@of("table")
def test_folds_of_a_corpus_by_category_and_by_session(source, tmp_path):
    trials = pd.read_csv(source / "trials.tsv", sep="\t", dtype=str)
    trials.assign(category=trials["image"].str[:-5].str.split("/").str[0]).to_csv(
        source / "trials.tsv", sep="\t", index=False
    )
    assert prepare(source, tmp_path / "out") == 0
    rows = load_from_disk(tmp_path / "out")["train"]
    folds, told = split_folds(rows, "category", None, 0, ModelArguments(), None)
    assert told == "category, 2 categories of the corpus" and len(folds) == 2
    for train, held in folds:
        assert set(rows[train]["category"]).isdisjoint(rows[held]["category"])
    folds, told = split_folds(rows, "session", None, 0, ModelArguments(), None)
    assert told == "session, 4 in all"
    for train, held in folds:
        assert set(rows[train]["session"]).isdisjoint(rows[held]["session"])
        assert set(rows[train]["stimulus_id"]).isdisjoint(rows[held]["stimulus_id"])
    bare = rows.remove_columns(["category", "session"])
    folds, told = split_folds(bare, "category", 2, 0, ModelArguments(encoder="scratch"), None)
    assert told.endswith("clusters of images that look alike (8 x 8 px)") and len(folds) == 2
    with pytest.raises(UserError, match="the rows have no session"):
        split_folds(bare, "session", None, 0, ModelArguments(), None)


@pytest.mark.nightly
def test_a_cross_validation_says_what_it_holds_out(corpus, tmp_path):
    words = ["crossvalidate", str(corpus), str(tmp_path / "out"), "--max_steps", "2", "--disable_tqdm", "true"]
    assert main([*words, "--folds", "2", "--split-by", "category"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["split"] == "2 folds by category" and metrics["n_folds"] == 2 and metrics["n_stimuli"] == 40
    assert metrics["split_by"] == "category, 8 clusters of images that look alike (8 x 8 px)"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Held out by" in page and metrics["split_by"] in page
