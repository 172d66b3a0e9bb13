"""`prepare arrays`: keys that lead into structs and cells, several subjects in one file, and categories of stimuli."""

import shlex

import h5py
import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk
from layouts import cells, five, seven

from visionflow_hf.cli import main

RNG = np.random.default_rng(3)
IMAGES = RNG.integers(0, 256, (12, 5, 4), dtype=np.uint8)
FMRI = {"ann": RNG.normal(size=(12, 6)), "bob": RNG.normal(size=(12, 3))}
KINDS = ["face", "house", "tool", "body"]
LABELS = [KINDS[number % 4] for number in range(12)]


def prepare(path, out, *flags) -> int:
    return main(["prepare", "arrays", str(path), str(out), *map(str, flags)])


def rows_of(out) -> pd.DataFrame:
    splits = load_from_disk(str(out))
    return pd.concat([split.remove_columns("image").to_pandas().assign(split=name) for name, split in splits.items()])


def assert_subjects(out, names=("ann", "bob")):
    """Each subject's responses, in whatever order, and the same images for both."""
    rows = rows_of(out)
    assert set(rows["subject"]) == set(names)
    for name, fmri in zip(names, FMRI.values(), strict=True):
        found = np.stack(list(rows.loc[rows["subject"] == name, "fmri"]))
        assert sorted(found.tolist()) == sorted(fmri.astype(np.float32).tolist())
    assert rows["stimulus_id"].nunique() == 12 and rows.groupby("stimulus_id")["split"].nunique().max() == 1


@pytest.mark.parametrize("write", [five, seven])
def test_subjects_in_structs(tmp_path, write):
    both = {name: {"resp": {"fmri": fmri}, "rois": cells(*["V1"] * fmri.shape[1])} for name, fmri in FMRI.items()}
    write(tmp_path / "d.mat", images=IMAGES, **both)
    flags = ["--images", "images", "--fmri", "{subject}/resp/fmri", "--rois", "{subject}/rois"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags) == 0
    assert_subjects(tmp_path / "out")
    voxels = pd.read_parquet(tmp_path / "out" / "voxels.parquet")
    assert voxels["subject"].tolist() == ["ann"] * 6 + ["bob"] * 3 and all(list(roi) == ["V1"] for roi in voxels["roi"])
    flags = ["--images", "images", "--fmri", "bob/resp/fmri", "--subject", "bob"]
    assert prepare(tmp_path / "d.mat", tmp_path / "one", *flags) == 0
    assert set(rows_of(tmp_path / "one")["subject"]) == {"bob"}


@pytest.mark.parametrize("name", ["d.npz", "d.h5"])
def test_subjects_by_the_names_of_arrays(tmp_path, name):
    arrays = {"images": IMAGES, "fmri_ann": FMRI["ann"], "fmri_bob": FMRI["bob"], "xyz_ann": np.ones((6, 3))}
    arrays["xyz_bob"] = np.full((3, 3), 2)
    if name == "d.npz":
        np.savez(tmp_path / name, **arrays)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            for key, array in arrays.items():
                file[f"data/{key}"] = array
    within = "" if name == "d.npz" else "data/"
    flags = ["--images", f"{within}images", "--fmri", f"{within}fmri_{{subject}}", "--xyz", f"{within}xyz_{{subject}}"]
    assert prepare(tmp_path / name, tmp_path / "out", *flags) == 0
    assert_subjects(tmp_path / "out")
    assert pd.read_parquet(tmp_path / "out" / "voxels.parquet")["x"].tolist() == [1.0] * 6 + [2.0] * 3


@pytest.mark.parametrize("write", [five, seven])
def test_a_cell_for_each_subject(tmp_path, write, refused):
    write(tmp_path / "d.mat", images=cells(*IMAGES), fmri=cells(*FMRI.values()))
    flags = ["--images", "images", "--fmri"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags, "fmri/{subject}") == 0
    assert_subjects(tmp_path / "out", names=("1", "2"))
    for key, message in (
        ("fmri/3", "fmri of .*d.mat has 2 cells: there is no fmri/3"),
        ("fmri/0", "there is no fmri/0"),
        ("fmri", "fmri has 2 cells of the 2 shapes .* fmri/1 names the first cell"),
        ("images/{subject}/x", "has no key such as images/{subject}/x"),
    ):
        refused(lambda key=key: prepare(tmp_path / "d.mat", tmp_path / "no", *flags, key), message)
    write(tmp_path / "same.mat", images=IMAGES, fmri=cells(FMRI["ann"], FMRI["ann"]))
    message = "fmri has 2 cells of shape .12, 6.: if each is a subject, give fmri/{subject}, or fmri/1 for the first"
    refused(lambda: prepare(tmp_path / "same.mat", tmp_path / "no", *flags, "fmri"), message)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("write", [five, seven])
def test_cells_are_counted_down_the_columns_as_matlab_does(tmp_path, write):
    values = [np.full((12, 4), float(number)) + FMRI["ann"][:, :4] for number in range(6)]
    write(tmp_path / "d.mat", images=IMAGES, all=cells(*values, shape=(2, 3)))
    assert prepare(tmp_path / "d.mat", tmp_path / "out", "--images", "images", "--fmri", "all/2") == 0
    found = np.stack(list(rows_of(tmp_path / "out")["fmri"]))
    assert sorted(found.tolist()) == sorted(values[1].astype(np.float32).tolist())


def test_an_array_of_structs(tmp_path):
    """In v5 a struct array, in v7.3 a struct whose fields are cells."""
    structs = np.empty((1, 2), dtype=[("fmri", object), ("name", object)])
    for number, (name, fmri) in enumerate(FMRI.items()):
        structs[0, number] = (fmri, name)
    five(tmp_path / "five.mat", images=IMAGES, S=structs)
    seven(tmp_path / "seven.mat", images=IMAGES, S={"fmri": cells(*FMRI.values()), "name": cells(*FMRI)})
    for name in ("five.mat", "seven.mat"):
        flags = ["--images", "images", "--fmri", "S/fmri/{subject}"]
        assert prepare(tmp_path / name, tmp_path / f"{name} out", *flags) == 0
        assert_subjects(tmp_path / f"{name} out", names=("1", "2"))


@pytest.mark.parametrize("write", [five, seven])
def test_a_cell_for_each_trial(tmp_path, write):
    shown = cells(*[image.ravel(order="F")[None] for image in IMAGES], shape=(-1, 1))
    names = cells(*[f"im{number}" for number in range(12)], shape=(-1, 1))
    write(tmp_path / "d.mat", s={"im": shown, "y": cells(*FMRI["ann"][:, None]), "names": names})
    flags = ["--images", "s/im", "--fmri", "s/y", "--stimulus-ids", "s/names", "--image-shape", 5, 4, "--column-major"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags) == 0
    rows = [row for split in load_from_disk(str(tmp_path / "out")).values() for row in split]
    assert len(rows) == 12
    for row in rows:
        number = int(row["stimulus_id"].removeprefix("im"))
        assert np.array_equal(np.asarray(row["image"]), IMAGES[number])
        assert row["fmri"] == FMRI["ann"][number].astype(np.float32).tolist()


def test_strings_of_matlab_are_told(tmp_path, refused):
    seven(tmp_path / "d.mat", images=IMAGES, fmri=FMRI["ann"], s={"names": np.zeros((1, 6), np.uint32)})
    with h5py.File(tmp_path / "d.mat", "r+") as file:
        file["s/names"].attrs.update({"MATLAB_class": np.bytes_("string"), "MATLAB_object_decode": np.int32(3)})
    flags = ["--images", "images", "--fmri", "fmri", "--stimulus-ids", "s/names"]
    message = r"s/names of .*d.mat is a MATLAB string, which cannot be read: save cellstr\(s.names\) instead"
    refused(lambda: prepare(tmp_path / "d.mat", tmp_path / "out", *flags), message)


@pytest.mark.parametrize("write", [five, seven])
def test_categories_of_stimuli(tmp_path, write):
    write(tmp_path / "d.mat", images=IMAGES, fmri=FMRI["ann"], kind=cells(*LABELS, shape=(-1, 1)))
    flags = ["--images", "images", "--fmri", "fmri", "--category", "kind", "--split-by", "category"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags, "--test-fraction", 0.25) == 0
    rows = rows_of(tmp_path / "out")
    test, train = (set(rows.loc[rows["split"] == name, "category"]) for name in ("test", "train"))
    assert len(test) == 1 and test | train == set(KINDS) and not test & train
    of_response = {tuple(fmri): label for fmri, label in zip(FMRI["ann"].astype(np.float32), LABELS, strict=True)}
    assert [of_response[tuple(fmri)] for fmri in rows["fmri"]] == rows["category"].tolist()


def test_categories_of_given_splits_and_of_repeats(tmp_path, refused):
    fmri, numbers = FMRI["ann"], np.arange(12) % 4
    np.savez(tmp_path / "d.npz", i=IMAGES[:8], f=fmri[:8], ti=IMAGES[8:], tf=fmri[8:], k=numbers[:8], tk=numbers[8:])
    np.savez(tmp_path / "all.npz", i=IMAGES[:8], f=fmri[:8], ti=IMAGES[8:], tf=fmri[8:], k=numbers.astype(float))
    flags = ["--images", "i", "--fmri", "f", "--test-images", "ti", "--test-fmri", "tf", "--category", "k"]
    assert prepare(tmp_path / "d.npz", tmp_path / "one", *flags, "--test-category", "tk") == 0
    assert prepare(tmp_path / "all.npz", tmp_path / "two", *flags) == 0
    for out in ("one", "two"):
        rows = rows_of(tmp_path / out)
        assert rows["category"].tolist() == list(map(str, numbers)) and rows["split"].tolist()[8:] == ["test"] * 4
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "no", *flags), "categories of train alone: give --test-cat")
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "no", *flags[:4], "--category", "tk"), "4 entries for 8 tri")
    only_test = [*flags[:-2], "--test-category", "tk"]
    refused(lambda: prepare(tmp_path / "d.npz", tmp_path / "no", *only_test), "--test-category needs --category")
    np.savez(tmp_path / "r.npz", i=IMAGES[[0, 1, 0]], f=fmri[:3], k=["a", "b", "c"], n=["x", "y", "x"])
    flags = ["--images", "i", "--fmri", "f", "--category", "k", "--stimulus-ids", "n"]
    refused(lambda: prepare(tmp_path / "r.npz", tmp_path / "no", *flags), "stimulus x of k has several categories")
    refused(lambda: prepare(tmp_path / "r.npz", tmp_path / "no", *flags[2:]), "leave out .*--category")
    assert not (tmp_path / "no").exists()


def test_names_of_one_subject_that_mean_other_images_of_another(tmp_path, refused):
    names = np.arange(12)
    arrays = {"s1/im": IMAGES, "s2/im": IMAGES[::-1], "s1/y": FMRI["ann"], "s2/y": FMRI["bob"], "s1/n": names}
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for key, array in (arrays | {"s2/n": names}).items():
            file[key] = array
    flags = ["--images", "{subject}/im", "--fmri", "{subject}/y", "--stimulus-ids", "{subject}/n"]
    message = "stimulus 0 of {subject}/n has several images: one name stands for one image"
    refused(lambda: prepare(tmp_path / "d.h5", tmp_path / "no", *flags), message)
    message = "--subject names the only subject: leave it out"
    refused(lambda: prepare(tmp_path / "d.h5", tmp_path / "no", *flags, "--subject", "s1"), message)
    flags[3] = "s1/y"
    refused(lambda: prepare(tmp_path / "d.h5", tmp_path / "no", *flags), "only if --fmri has it, too: --fmri is s1/y")


@pytest.mark.parametrize("write", [five, seven])
def test_the_listing_names_cells_and_proposes_all_subjects(tmp_path, write, capsys):
    both = {f"S{number}": {"fmri": fmri, "stim": IMAGES} for number, fmri in enumerate(FMRI.values(), start=1)}
    write(tmp_path / "d.mat", **both, image_label=cells(*LABELS), masks=cells(np.ones((3, 2)), np.zeros((3, 2))))
    assert prepare(tmp_path / "d.mat", tmp_path / "out") == 2
    printed = capsys.readouterr()
    lines = {line.split("  ")[0].strip(): line for line in printed.out.splitlines()}
    assert lines["masks"].endswith("1 x 2  cell of 3 x 2 float64") and lines["image_label"].endswith("cell of text")
    assert "12 x 6  float64" in lines["S1/fmri"] and "12 x 5 x 4  uint8" in lines["S2/stim"]
    command = shlex.split(printed.err.split("to begin with: visionflow ")[1])
    assert command[4:] == ["--images", "{subject}/stim", "--fmri", "{subject}/fmri", "--category", "image_label"]
    assert main(command) == 0
    assert_subjects(tmp_path / "out", names=("S1", "S2"))
    assert set(rows_of(tmp_path / "out")["category"]) == set(KINDS)


def test_text_of_hdf5_is_no_cell_array(tmp_path, refused):
    """Both have the type object for NumPy."""
    seven(tmp_path / "d.mat", images=IMAGES, s={"fmri": FMRI["ann"]})
    with h5py.File(tmp_path / "d.mat", "r+") as file:
        file["t"] = "images"
        file["u"] = ["images", "s/fmri"]
    flags = ["--images", "images", "--fmri"]
    assert prepare(tmp_path / "d.mat", tmp_path / "out", *flags, "{subject}/fmri") == 0
    refused(lambda: prepare(tmp_path / "d.mat", tmp_path / "no", *flags, "u/1"), "u of .*d.mat has 0 cells")
    refused(lambda: prepare(tmp_path / "d.mat", tmp_path / "no", *flags, "t"), "t has shape .*and type")
    refused(
        lambda: prepare(tmp_path / "d.mat", tmp_path / "no"), "nothing is written without --fmri KEY; to begin with"
    )
