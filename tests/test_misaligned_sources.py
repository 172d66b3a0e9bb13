"""Sources whose parts could be taken for those of others: files in another order, runs, masks, names, places."""

import io

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.corpus.merge import merge
from visionflow_hf.corpus.repeats import ceilings_of_test, ncsnr_of_ceiling
from visionflow_hf.corpus.schema import Volume, join_tables, open_corpus, read_corpus, voxel_table, write_corpus
from visionflow_hf.corpus.table import refuse_order_of_letters
from visionflow_hf.corpus.voxels import read_mask, read_space
from visionflow_hf.errors import UserError


@pytest.fixture
def lab(tmp_path):
    """A table of 24 trials in 12 runs, one file of betas for each, and the images."""
    rng = np.random.default_rng(0)
    for name in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(tmp_path / f"{name}.png")
    for run in range(1, 13):
        np.save(tmp_path / f"run-{run}.npy", rng.normal(size=(2, 5)).astype(np.float32) + run)
    rows = [{"subject": "ann", "image": f"{trial % 8}.png", "run": 1 + trial // 2} for trial in range(24)]
    pd.DataFrame(rows).to_csv(tmp_path / "trials.tsv", sep="\t", index=False)
    return tmp_path


def prepare(folder, betas, *flags) -> int:
    words = [
        "prepare",
        "table",
        folder / "trials.tsv",
        folder / "out",
        "--images-folder",
        folder,
        "--betas",
        *betas,
        *flags,
    ]
    return main([str(word) for word in words])


def test_files_in_the_order_of_a_shell(lab, capsys):
    shell = sorted(lab.glob("run-*.npy"))
    assert prepare(lab, shell) == 2
    assert "run-10.npy where" in capsys.readouterr().err and not (lab / "out").exists()
    numbered = [lab / f"run-{run}.npy" for run in range(1, 13)]
    assert prepare(lab, numbered) == 0


@pytest.mark.parametrize("names", [["t0.25", "t0.5"], ["a1", "b0"], ["r2", "r1", "r10"], ["s1_r2", "s2_r1"], ["one"]])
def test_other_orders_are_those_of_the_user(names):
    refuse_order_of_letters(names)


def test_runs_that_start_again(lab, capsys):
    table = pd.read_csv(lab / "trials.tsv", sep="\t")
    table["run"] = (table["run"] - 1) % 6
    table["ses"] = np.arange(24) // 12
    table.to_csv(lab / "trials.tsv", sep="\t", index=False)
    np.save(lab / "all.npy", np.random.default_rng(1).normal(size=(24, 5)).astype(np.float32))
    assert prepare(lab, [lab / "all.npy"], "--zscore-runs") == 2
    assert "run 0 of ann is interrupted by other runs" in capsys.readouterr().err
    assert prepare(lab, [lab / "all.npy"], "--zscore-runs", "--session-column", "ses") == 0


def test_a_session_that_is_missing_in_some_rows_is_not_known(lab, capsys):
    table = pd.read_csv(lab / "trials.tsv", sep="\t")
    table["session"] = ["1"] * 12 + [""] * 12
    table.to_csv(lab / "trials.tsv", sep="\t", index=False)
    numbered = [lab / f"run-{run}.npy" for run in range(1, 13)]
    assert prepare(lab, numbered, "--split-by", "session") == 2
    assert "the session of each trial of ann is not known" in capsys.readouterr().err
    assert prepare(lab, numbered) == 0
    assert "session" not in read_corpus(lab / "out").splits["train"].column_names


def test_no_test_fraction_is_not_a_tenth(lab, capsys):
    table = pd.read_csv(lab / "trials.tsv", sep="\t")
    table["category"] = np.arange(24) % 8 // 2
    table.to_csv(lab / "trials.tsv", sep="\t", index=False)
    numbered = [lab / f"run-{run}.npy" for run in range(1, 13)]
    assert prepare(lab, numbered, "--split-by", "category", "--test-fraction", 0) == 2
    assert "the held-out fraction is 0" in capsys.readouterr().err


def test_minus_one_is_outside_of_a_mask(tmp_path):
    values = np.full((3, 3, 3), -1.0, np.float32)
    values[0, 0, :2] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "mask.nii.gz")
    assert read_mask(tmp_path / "mask.nii.gz", read_space(tmp_path / "mask.nii.gz")).tolist() == [0, 1]


def small_corpus(folder, images, subject="ann", place=(0, 1), test="t"):
    rng = np.random.default_rng(len(str(folder)))
    encoded = {name: {"path": None, "bytes": png(image)} for name, image in images.items()}

    def rows(split):
        for name in images:
            if (name == test) == (split == "test"):
                row = {"image": encoded[name], "fmri": rng.normal(size=2).astype(np.float32), "subject": subject}
                yield row | {"stimulus_id": name, "repeat": 0}

    splits = {split: (lambda split=split: rows(split)) for split in ("train", "test")}
    table = voxel_table(subject, 2, Volume((3, 3, 3), np.eye(4), np.array(place)))
    write_corpus(folder, splits, table, unit="arbitrary")
    return folder


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(*names, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 255, (8, 8), np.uint8) for name in names}


def test_merged_subjects_are_named_and_their_places_compared(tmp_path):
    one = small_corpus(tmp_path / "one", pictures("a", "b", "t"))
    other = small_corpus(tmp_path / "other", pictures("c", "d", "u", seed=1), test="u")
    told = []
    merge(one, other, tmp_path / "both", report=told.append)
    assert any("ann is in both: taken for one subject" in line for line in told)
    table = pd.read_parquet(other / "voxels.parquet").drop(columns=["place", "vertex", "x"])
    table.to_parquet(other / "voxels.parquet")  # as the contract allows
    merge(one, other, tmp_path / "fewer", report=told.append)
    elsewhere = small_corpus(tmp_path / "elsewhere", pictures("c", "d", "u", seed=1), place=(0, 2), test="u")
    with pytest.raises(UserError, match="the voxels of ann differ in place"):
        merge(one, elsewhere, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_grid_of_a_table_belongs_to_its_subjects():
    ours = voxel_table("ann", 2, Volume((3, 3, 3), np.eye(4), np.array([0, 1])))
    theirs = voxel_table("bob", 2, Volume((5, 5, 5), None, np.array([0, 1])))
    theirs.attrs["grids"]["ann"] = {"shape": [5, 5, 5], "affine": None}
    assert join_tables([ours, theirs]).attrs["grids"]["ann"]["shape"] == [3, 3, 3]


def test_one_name_for_two_images(tmp_path):
    shown = pictures("a", "b", "t")
    small_corpus(tmp_path / "one", shown)
    rng = np.random.default_rng(0)

    def rows(split):
        for subject, image in (("ann", shown["a"]), ("bob", np.zeros((8, 8), np.uint8))):
            names = ("a", "b") if split == "train" else ("t",)
            for name in names:
                row = {"image": {"path": None, "bytes": png(image if name == "a" else shown[name])}, "subject": subject}
                yield row | {"fmri": rng.normal(size=2).astype(np.float32), "stimulus_id": name, "repeat": 0}

    table = join_tables([voxel_table("ann", 2), voxel_table("bob", 2)])
    splits = {split: (lambda split=split: rows(split)) for split in ("train", "test")}
    write_corpus(tmp_path / "two", splits, table, unit="arbitrary")
    with pytest.raises(UserError, match="stimulus a has two images, in rows 0 and 2 of split train"):
        open_corpus(tmp_path / "two")


def test_ceilings_are_those_of_the_rows_that_are_scored(lab):
    """Train stimuli have two trials, test stimuli six; rows are averages."""
    table = pd.read_csv(lab / "trials.tsv", sep="\t")
    table["image"] = [f"{trial % 6}.png" for trial in range(12)] + [f"{6 + trial % 2}.png" for trial in range(12)]
    table["split"] = ["train"] * 12 + ["test"] * 12
    table.to_csv(lab / "trials.tsv", sep="\t", index=False)
    assert prepare(lab, [lab / f"run-{run}.npy" for run in range(1, 13)], "--average-repeats") == 0
    voxels = read_corpus(lab / "out").voxels
    known = voxels["noise_ceiling"].to_numpy()
    ratio = ncsnr_of_ceiling(known) ** 2 * (6 / 2 + 2 / 6) / 8
    assert (known > 0).any()
    np.testing.assert_allclose(ceilings_of_test(voxels)["noise_ceiling"], ratio / (ratio + 1 / 6))
    np.testing.assert_array_equal(voxels["noise_ceiling"], known)
