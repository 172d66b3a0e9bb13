"""What a lab's files hold beside the arrays and trials that are meant, and corpora that are merged."""

import json

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from datasets import load_from_disk
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import read_corpus

RNG = np.random.default_rng(0)
TRIALS = 40


def pictures(number: int = 20) -> np.ndarray:
    return RNG.integers(0, 256, (number, 8, 8), dtype=np.uint8)


def arrays(file, out, *flags) -> int:
    return main([str(word) for word in ("prepare", "arrays", file, out, *flags)])


@pytest.fixture
def lab(tmp_path):
    """A folder of 20 images, a table of 40 trials, betas of six voxels."""
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pictures()):
        Image.fromarray(image).save(tmp_path / "images" / f"i{number:02d}.png")
    table = pd.DataFrame({"image": [f"i{row % 20:02d}.png" for row in range(TRIALS)], "subject": "s1"})
    np.save(tmp_path / "b.npy", RNG.normal(size=(TRIALS, 6)))

    def prepare(rows: pd.DataFrame, out: str = "out", *flags) -> int:
        rows.to_csv(tmp_path / "trials.tsv", sep="\t", index=False)
        words = ["prepare", "table", tmp_path / "trials.tsv", tmp_path / out, "--images-folder", tmp_path / "images"]
        flags = flags if "--betas" in flags else ("--betas", tmp_path / "b.npy", *flags)
        return main([str(word) for word in (*words, *flags)])

    return table, prepare


def test_test_arrays_are_no_further_subjects(tmp_path, refused, capsys):
    file, n = tmp_path / "d.npz", 30
    responses = {f"fmri_S{s}{kind}": RNG.normal(size=(n, 5)) for s in (1, 2) for kind in ("", "_test")}
    np.savez(file, images=pictures(n), images_test=pictures(n), **responses)
    refused(lambda: arrays(file, tmp_path / "o"), "--images images --fmri 'fmri_{subject}' --test-images images_test")
    both = ("--images", "images", "--fmri", "fmri_{subject}")
    refused(lambda: arrays(file, tmp_path / "o", *both), "fits fmri_S1_test as well: give --test-fmri fmri_{subject}_t")
    assert not (tmp_path / "o").exists()
    tests = ("--test-images", "images_test", "--test-fmri", "fmri_{subject}_test")
    assert arrays(file, tmp_path / "o", *both, *tests) == 0
    corpus = read_corpus(tmp_path / "o")
    assert corpus.subjects == {"S1": 5, "S2": 5}
    test = corpus.splits["test"]
    rows = [row for row, name in enumerate(test["subject"]) if name == "S2"]
    np.testing.assert_array_equal(np.array(test["fmri"])[rows], responses["fmri_S2_test"].astype(np.float32))


def test_the_one_subject_of_a_table_with_two_is_refused(lab, tmp_path, refused):
    table, prepare = lab
    for name in ("s1", "s2"):
        np.save(tmp_path / f"b_{name}.npy", RNG.normal(size=(TRIALS, 6)))
    two = pd.concat([table, table.assign(subject="s2")])
    betas = ("--betas", tmp_path / "b_{subject}.npy")
    refused(lambda: prepare(two, "out", *betas, "--subject", "s1"), "has the subjects s1, s2: --subject names the only")
    assert prepare(table, "out", "--subject", "ann") == 0  # another name for the only one
    assert set(load_from_disk(tmp_path / "out")["train"]["subject"]) == {"ann"}


def test_categories_that_contradict_one_another_or_are_missing(lab, tmp_path, refused, capsys):
    table, prepare = lab
    contrary = table.assign(category=["a"] * 20 + ["b"] * 20)
    missing = table.assign(category=["" if row % 20 == 3 else "b" for row in range(TRIALS)])
    for number, rows in enumerate((contrary, missing)):
        assert prepare(rows, f"out{number}") == 0
        assert "categories are left out: " in capsys.readouterr().out
        assert "category" not in load_from_disk(tmp_path / f"out{number}")["train"].column_names
    asked = ("--category-column", "category")
    refused(lambda: prepare(contrary, "out", *asked), "stimulus i00.png of .*trials.tsv has the categories a and b")
    refused(lambda: prepare(missing, "out", *asked), "category of .*trials.tsv is missing in row 4")


def test_trials_without_an_image_need_no_split_and_no_repeat(lab, tmp_path, refused):
    table, prepare = lab
    split = ["test" if row % 20 < 4 else "train" for row in range(TRIALS)]
    rows = table.assign(split=split, repeat=[row // 20 for row in range(TRIALS)], stimulus_id=table["image"])
    rows = rows.astype(object)
    rows.loc[7, ["image", "split", "repeat", "stimulus_id"]] = "n/a"
    assert prepare(rows) == 0
    assert len(load_from_disk(tmp_path / "out")["train"]) + 8 == TRIALS - 1
    rows.loc[20, "stimulus_id"] = ""
    refused(lambda: prepare(rows, "two"), "stimulus_id of .* is missing in row 21")


@pytest.mark.parametrize("file", ["d.npz", "d.mat"])
def test_what_is_missing_is_no_name(tmp_path, file, refused):
    write = scipy.io.savemat if file.endswith("mat") else lambda path, values: np.savez(path, **values)
    labels = np.array([1.0] * 10 + [2.0] * 9 + [np.nan])
    mask = np.array([True, False, True, True, False])
    regions = {"roi": np.array([1, 2, np.nan, np.nan, 0.0]), "labels": labels, "mask": mask}
    write(tmp_path / file, {"images": pictures(), "fmri": RNG.normal(size=(20, 5)), **regions})
    keys = ("--images", "images", "--fmri", "fmri")
    assert arrays(tmp_path / file, tmp_path / "out", *keys, "--rois", "roi") == 0
    assert [list(names) for names in read_corpus(tmp_path / "out").voxels["roi"]] == [["1"], ["2"], [], [], []]
    for flag in ("--category", "--stimulus-ids"):
        refused(
            lambda flag=flag: arrays(tmp_path / file, tmp_path / "o", *keys, flag, "labels"), "labels is missing in"
        )
    refused(
        lambda: arrays(tmp_path / file, tmp_path / "o", "--fmri", "fmri", "--stimulus-ids", "labels"),
        "labels is missing in trial 20",
    )
    if file.endswith("npz"):  # MATLAB keeps no bool
        refused(
            lambda: arrays(tmp_path / file, tmp_path / "o", *keys, "--rois", "mask"), "mask is a mask: give the name"
        )


def test_one_line_for_what_is_no_array_of_trials(tmp_path, lab, refused, capsys):
    table, prepare = lab
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["e"], file["f"], file["g"] = h5py.Empty("f"), RNG.normal(size=(20, 5)), pictures()
        file["one"] = 3.0
    assert arrays(tmp_path / "d.h5", tmp_path / "o") == 2
    assert "f    20 x 5  float64" in capsys.readouterr().out
    refused(lambda: prepare(table, "o", "--betas", tmp_path / "d.h5", "--betas-key", "e"), r"d.h5 has shape \(\)")
    keys = ("--images", "g", "--fmri", "f")
    refused(lambda: arrays(tmp_path / "d.h5", tmp_path / "o", "--images", "one", "--fmri", "f"), "one is one number")
    refused(lambda: arrays(tmp_path / "d.h5", tmp_path / "o", "--images", "g", "--fmri", ""), "nothing is written wit")
    long = tmp_path / ("x" * 300)
    refused(lambda: arrays(tmp_path / "d.h5", long, *keys), "File name too long")
    refused(lambda: main(["inspect", str(long)]), "is no corpus")
    refused(lambda: arrays(tmp_path / "d.h5", tmp_path / "o", *keys, "--column-major"), "is for images that come as fl")


def test_transparent_images_are_told(lab, tmp_path, capsys):
    table, prepare = lab
    for number, alpha in ((3, 0), (5, 128), (7, 255)):
        file = tmp_path / "images" / f"i{number:02d}.png"
        picture = Image.open(file).convert("RGBA")
        picture.putalpha(alpha)
        picture.save(file)
    assert prepare(table) == 0
    assert "2 images (i03.png, i05.png) with transparent pixels: their colours are kept" in capsys.readouterr().out


def test_masks_in_a_struct_in_a_struct(tmp_path):
    masks = {"V1": np.array([1, 0, 0, 0, 1]), "V2": np.array([0, 1, 1, 0, 0])}
    data = {"images": pictures(), "fmri": RNG.normal(size=(20, 5)), "rois": masks}
    scipy.io.savemat(tmp_path / "d.mat", {"data": data})
    keys = ("--images", "data/images", "--fmri", "data/fmri", "--rois", "data/rois")
    assert arrays(tmp_path / "d.mat", tmp_path / "out", *keys) == 0
    expected = [["V1"], ["V2"], ["V2"], [], ["V1"]]
    assert [list(names) for names in read_corpus(tmp_path / "out").voxels["roi"]] == expected


def test_labels_without_their_table_are_no_mask(lab, tmp_path, refused):
    table, prepare = lab
    labels = np.array([0, 1, 2, 3, 1, 2], dtype=np.int16).reshape(1, 2, 3)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones_like(labels), np.eye(4)), tmp_path / "mask.nii.gz")
    np.save(tmp_path / "b.npy", RNG.normal(size=(TRIALS, 1, 2, 3)).transpose(1, 2, 3, 0))
    flags = ("--mask", tmp_path / "mask.nii.gz", "--rois", tmp_path / "labels.nii.gz")
    refused(lambda: prepare(table, "out", *flags), "has the labels 1, 2, 3, and a mask 1 alone: give the table")


def test_responses_alone_in_cells_and_of_several_subjects(tmp_path, refused):
    cells = np.empty((5, 1), dtype=object)
    for row in range(5):
        cells[row, 0] = RNG.normal(size=(1, 6))
    scipy.io.savemat(tmp_path / "d.mat", {"cells": cells})
    assert arrays(tmp_path / "d.mat", tmp_path / "out", "--fmri", "cells") == 0
    assert np.array(load_from_disk(tmp_path / "out")["train"]["fmri"]).shape == (5, 6)
    refused(lambda: arrays(tmp_path / "d.mat", tmp_path / "o", "--fmri", "{subject}"), "without --images there is one")


def merged(tmp_path, *corpora) -> tuple[dict, str]:
    words = ["merge", *(tmp_path / corpus for corpus in corpora), tmp_path / "both", "--overwrite"]
    assert main([str(word) for word in words]) == 0
    about = json.loads((tmp_path / "both" / "dataset_dict.json").read_text())
    return about, read_corpus(tmp_path / "both")


def test_a_merged_corpus_says_that_test_holds_out_categories_only_where_it_does(tmp_path, capsys):
    same = (("a", "s1", 0, 4), ("b", "s2", 1, 4), ("c", "s2", 0, 4))
    for name, subject, first, number in same:
        labels = [f"c{(row + first) % number}" for row in range(20)]
        arrays_of = {"images": pictures(), "fmri": RNG.normal(size=(20, 6)), "labels": np.array(labels)}
        np.savez(tmp_path / f"{name}.npz", **arrays_of)
        flags = ("--images", "images", "--fmri", "fmri", "--category", "labels", "--split-by", "category")
        flags += ("--test-fraction", ".3", "--subject", subject, "--seed", {"a": 0, "b": 1, "c": 0}[name])
        assert arrays(tmp_path / f"{name}.npz", tmp_path / name, *flags) == 0
    for other in "bc":
        held = [set(load_from_disk(tmp_path / name)["test"]["category"]) for name in ("a", other)]
        about, corpus = merged(tmp_path, "a", other)
        train, test = (set(corpus.splits[name]["category"]) for name in ("train", "test"))
        assert ("categories" in about["split_by"]) == (held[0] == held[1]) == (not train & test)
        assert ("no longer holds out" in capsys.readouterr().out) == (held[0] != held[1])


def test_the_noise_ceilings_of_a_subject_in_both(tmp_path, capsys):
    images, signal = pictures(), RNG.normal(size=(20, 6))

    def session(name: str, repeats: int, *flags) -> None:
        fmri = np.repeat(signal, repeats, 0) + RNG.normal(size=(20 * repeats, 6))
        np.savez(tmp_path / f"{name}.npz", images=np.repeat(images, repeats, 0), fmri=fmri)
        assert arrays(tmp_path / f"{name}.npz", tmp_path / name, "--images", "images", "--fmri", "fmri", *flags) == 0

    session("once", 1)
    session("again", 1)
    session("thrice", 3)
    session("mean", 3, "--average-repeats")

    def ceilings(*corpora) -> np.ndarray:
        return merged(tmp_path, *corpora)[1].voxels["noise_ceiling"].to_numpy(np.float64)

    known = read_corpus(tmp_path / "thrice").voxels["noise_ceiling"].to_numpy(np.float64)
    np.testing.assert_array_equal(ceilings("once", "thrice"), known)
    np.testing.assert_array_equal(ceilings("thrice", "once"), known)
    found = ceilings("once", "again")
    assert "noise ceilings of subj01: from the repeats in both" in capsys.readouterr().out
    assert np.isfinite(found).all() and abs(found.mean() - 0.5) < 0.2
    assert np.isnan(ceilings("mean", "thrice")).all()
    assert "no noise ceiling holds for all of them" in capsys.readouterr().out
