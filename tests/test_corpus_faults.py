"""What a reader of the corpus code found: each test failed once."""

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from PIL import Image

from visionflow_hf.corpus.files import pictures_in
from visionflow_hf.corpus.images import prepare_images
from visionflow_hf.corpus.merge import merge
from visionflow_hf.corpus.schema import read_corpus, voxel_table, write_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.folders import new_folder
from visionflow_hf.processes import run


def corpus_of(path, splits, voxels, seed=0):
    """A corpus of 3 voxels; `splits` has (subject, stimuli) for each name."""

    def rows(subject, stimuli):
        for stimulus in stimuli:
            pixels = np.random.default_rng(stimulus).integers(0, 256, (8, 8), dtype=np.uint8)
            fmri = np.random.default_rng([seed, stimulus]).normal(size=3).astype(np.float32)
            yield {
                "image": Image.fromarray(pixels),
                "fmri": fmri,
                "subject": subject,
                "stimulus_id": f"s{stimulus}",
                "repeat": 0,
            }

    write_corpus(path, {name: partial(rows, *part) for name, part in splits.items()}, voxels, unit="z")
    return path


def test_the_fingerprint_of_a_split_is_that_of_its_rows(tmp_path):
    splits = {"train": ("ann", range(6)), "test": ("ann", range(6, 9))}
    one, same, other = (
        load_from_disk(str(corpus_of(tmp_path / name, splits, voxel_table("ann", 3), seed)))["train"]._fingerprint
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same != other


def test_merge_refuses_splits_that_it_would_drop(tmp_path):
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, voxel_table("ann", 3))
    splits = load_from_disk(str(one))
    more = {"train": ("ann", [6, 7]), "test": ("ann", [8])}
    splits["val"] = load_from_disk(str(corpus_of(tmp_path / "more", more, voxel_table("ann", 3))))["train"]
    splits.save_to_disk(str(tmp_path / "other"))
    shutil.copy(one / "voxels.parquet", tmp_path / "other")
    with pytest.raises(UserError, match="has a split val: rename it to one of train, validation, test"):
        merge(one, tmp_path / "other", tmp_path / "both", report=print)
    assert not (tmp_path / "both").exists()


def test_merged_noise_ceilings_are_those_of_their_voxels(tmp_path):
    table = voxel_table("ann", 3, noise_ceiling=np.array([0.1, 0.2, 0.3])).iloc[[2, 0, 1]]
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, table)
    other = corpus_of(tmp_path / "other", {"train": ("ann", [6, 7])}, voxel_table("ann", 3))
    merge(one, other, tmp_path / "both", report=print)
    assert read_corpus(tmp_path / "both").voxels_of("ann")["noise_ceiling"].tolist() == [0.1, 0.2, 0.3]


def test_a_subject_without_rows_does_not_stand_in_for_one_that_has_them(tmp_path):
    tables = pd.concat([voxel_table("ann", 3), voxel_table("bob", 5)])
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, tables)
    other = {"train": ("bob", range(4)), "test": ("bob", [4, 5])}
    other = corpus_of(tmp_path / "other", other, voxel_table("bob", 3))
    merge(one, other, tmp_path / "both", report=print)
    assert dict(read_corpus(tmp_path / "both").subjects) == {"ann": 3, "bob": 3}


def test_what_has_come_into_a_folder_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(UserError, match="has been filled meanwhile, and stays as it is: the result is in") as refusal,
        new_folder(tmp_path / "out", marker="m") as folder,
    ):
        (folder / "m").write_text("result")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    kept = str(refusal.value).rpartition("the result is in ")[2]
    assert (Path(kept) / "m").read_text() == "result"


def test_images_in_hidden_folders_are_no_stimuli(tmp_path):
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    assert [file.name for file in pictures_in(tmp_path / "images")] == ["a.png"]
    prepare_images(tmp_path / "images", tmp_path / "corpus", report=print)
    assert load_from_disk(str(tmp_path / "corpus"))["train"]["stimulus_id"][:] == ["a.png"]


def failing() -> None:
    raise UserError("no")


def test_processes_that_still_work_are_ended_with_an_error():
    began = time.monotonic()
    with pytest.raises(UserError, match="no"):
        list(run([failing, partial(time.sleep, 60)], 2))
    assert time.monotonic() - began < 50
