"""`prepare table`: every value of a lab's own files in its place, by loops over the table's lines and the voxels."""

import csv
import shutil
import sys

import h5py
import layouts
import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from datasets import load_from_disk
from layouts import pixels_of
from PIL import Image
from sources import of, prepare, prepare_table, rows_of
from test_importers import assert_rows, voxels_of

from visionflow_hf.cli import main

SUBJECTS = ("01", "02")


def lines_of(file) -> list[dict]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened, delimiter="," if file.suffix == ".csv" else "\t"))


def inside(mask) -> list[tuple[int, int, int]]:
    """The voxels that are not 0, z running fastest."""
    values = nibabel.load(mask).get_fdata()
    width, height, depth = values.shape
    return [(x, y, z) for x in range(width) for y in range(height) for z in range(depth) if values[x, y, z] != 0]


def trials_of(source) -> list[tuple[dict, list[float]]]:
    """Each line of the table of `layouts.table`, and the values of its volume in the mask."""
    files = {file.name: nibabel.load(file).get_fdata() for file in (source / "betas").iterdir()}
    masks = {name: inside(source / "masks" / f"sub-{name}_mask.nii.gz") for name in SUBJECTS}
    volumes: dict[str, int] = {}
    trials = []
    for line in lines_of(source / "trials.tsv"):
        name = f"{line['subject']}_{line['session']}_betas.nii.gz"
        number = volumes.get(name, 0)
        volumes[name] = number + 1
        trials.append((line, [files[name][x, y, z, number] for x, y, z in masks[line["subject"]]]))
    return trials


def numbered(trials) -> dict[tuple[str, str, int], tuple[dict, np.ndarray]]:
    """(subject, image, repeat): line, fMRI."""
    found = {}
    for line, values in trials:
        repeat = sum(key[:2] == (line["subject"], line["image"]) for key in found)
        found[line["subject"], line["image"], repeat] = (line, np.array(values))
    return found


def expected_rows(source, trials) -> dict:
    return {key: (None, pixels_of(source / "images" / key[1]), values) for key, (_, values) in numbered(trials).items()}


@pytest.mark.parametrize("volumes", [1000, 3])
@of("table")
def test_every_value_is_in_its_place(source, tmp_path, monkeypatch, volumes):
    monkeypatch.setattr("visionflow_hf.corpus.nifti.BLOCK_BYTES", 8 * 60 * volumes)
    assert prepare_table("table", source, tmp_path / "out") == 0
    trials = trials_of(source)
    assert len(trials) == 32
    assert_rows(rows_of(tmp_path / "out"), expected_rows(source, trials))
    names = {1: ["V1"], 2: ["V2"], 3: ["FFA"], 0: []}
    for name in SUBJECTS:
        table = voxels_of(tmp_path / "out", name)
        labels = nibabel.load(source / "rois" / f"sub-{name}_regions.nii.gz").get_fdata()
        ceilings = nibabel.load(source / "ceilings" / f"sub-{name}_ceiling.nii.gz").get_fdata()
        places = inside(source / "masks" / f"sub-{name}_mask.nii.gz")
        assert len(table) == len(places) > 10
        for (x, y, z), row in zip(places, table.itertuples(), strict=True):
            assert (row.x, row.y, row.z) == (5 - 2 * x, 2.5 * z - 30, 3 * y + 7)
            assert list(row.roi) == names[labels[x, y, z]]
            assert row.noise_ceiling == pytest.approx(ceilings[x, y, z], rel=1e-6)
    unit = load_from_disk(str(tmp_path / "out"))["train"].info.description
    assert unit == "as in {subject}_{session}_betas.nii.gz"


@pytest.mark.parametrize("flag, columns", [("sessions", ["session"]), ("runs", ["session", "run"])])
@of("table")
def test_zscoring(source, tmp_path, monkeypatch, flag, columns):
    monkeypatch.setattr("visionflow_hf.corpus.nifti.BLOCK_BYTES", 8 * 60 * 3)
    assert prepare_table("table", source, tmp_path / "out", f"--zscore-{flag}") == 0
    trials = trials_of(source)
    for line, values in trials:
        line["of"] = (line["subject"], *(line[column] for column in columns))
        line["raw"] = np.float32(values).astype(float)
    scaled = []
    for line, _ in trials:
        alike = np.stack([other["raw"] for other, _ in trials if other["of"] == line["of"]])
        scaled.append((line, (line["raw"] - alike.mean(0)) / alike.std(0)))
    rows = rows_of(tmp_path / "out")
    for key, (_, values) in numbered(scaled).items():
        np.testing.assert_allclose(rows[key][2], values, rtol=1e-4, atol=1e-5)
    unit = load_from_disk(str(tmp_path / "out"))["train"].info.description
    assert unit == f"standard deviation of the voxel within the {flag.removesuffix('s')}"


def test_zscoring_a_session_in_several_files(tmp_path):
    """Runs are files, and a session is z-scored as a whole; a constant voxel becomes 0."""
    rng = np.random.default_rng(0)
    values = rng.normal(1e4, 3, (12, 5)).astype(np.float32)
    values[:, 2] = 0.1
    for run in range(4):
        np.save(tmp_path / f"run{run}.npy", values[3 * run : 3 * run + 3])
    write_images(tmp_path / "images", 12)
    rows = {"image": [f"{image}.png" for image in range(12)], "run": np.repeat(range(4), 3)}
    pd.DataFrame(rows).assign(day=np.repeat(["a", "b"], 6)).to_csv(tmp_path / "trials.csv", index=False)
    words = ["--images-folder", tmp_path / "images", "--betas", tmp_path / "run{run}.npy", "--subject", "s"]
    flags = ["--session-column", "day", "--zscore-sessions"]
    assert prepare("table", tmp_path / "trials.csv", tmp_path / "out", *words, *flags) == 0
    rows = rows_of(tmp_path / "out")
    for image in range(12):
        day = values[:6] if image < 6 else values[6:]
        expected = (values[image] - day.mean(0, dtype=float)) / day.std(0, dtype=float)
        expected[2] = 0
        np.testing.assert_allclose(rows["s", f"{image}.png", 0][2], expected, rtol=1e-4, atol=1e-5)


def write_images(folder, number) -> None:
    rng = np.random.default_rng(5)
    for image in range(number):
        layouts.save(layouts.picture(rng), folder / f"{image}.png")


@of("table")
def test_kinds_of_tables(source, tmp_path):
    """Subjects that are whole numbers in CSV and Parquet are text; columns have the names that flags give."""
    table = pd.read_csv(source / "trials.tsv", sep="\t")
    assert table["subject"].tolist()[0] in (1, 2)
    for name in SUBJECTS:
        for folder in ("masks", "betas"):
            for file in (source / folder).glob(f"*{name}_*"):
                file.rename(file.with_name(file.name.replace(name, name[1:])))
    table = table.rename(columns={"subject": "participant", "image": "file name"})
    table.to_csv(source / "trials.csv", index=False)
    table.to_parquet(source / "trials.parquet")
    table.assign(participant=table["participant"].astype(float)).to_parquet(source / "floats.parquet")
    words = [
        *("--images-folder", source / "images", "--betas", source / "betas" / "{participant}_{session:d}_betas.nii.gz"),
        *("--mask", source / "masks" / "sub-{subject}_mask.nii.gz"),
        *("--subject-column", "participant", "--image-column", "file name"),
    ]
    found = []
    for name in ("trials.csv", "trials.parquet", "floats.parquet"):
        assert prepare("table", source / name, tmp_path / "out", *words, "--overwrite") == 0
        found.append(rows_of(tmp_path / "out"))
    assert {key[0] for key in found[0]} == {"1", "2"}
    for rows in found[1:]:
        assert_rows(rows, found[0])


@of("table_of_arrays")
def test_kinds_of_arrays(source, tmp_path):
    values = {
        "npy": np.load(source / "betas" / "session.npy"),
        "npz": np.load(source / "betas" / "session.npz")["fmri"],
        "mat": scipy.io.loadmat(source / "betas" / "session.mat")["fmri"],
    }
    with h5py.File(source / "betas" / "session.h5") as file:
        values["h5"] = file["fmri"][()]
    expected, seen = {}, {kind: 0 for kind in values}
    for line in lines_of(source / "trials.csv"):
        name, kind = line["picture"], line["kind"]
        key = ("7", name, sum(one[1] == name for one in expected))
        expected[key] = (None, pixels_of(source / "images" / name), values[kind][seen[kind]])
        seen[kind] += 1
    assert prepare_table("table_of_arrays", source, tmp_path / "out") == 0
    assert_rows(rows_of(tmp_path / "out"), expected)
    assert voxels_of(tmp_path / "out", "7")[["x", "y", "z"]].isna().all(axis=None)

    with h5py.File(source / "betas" / "session.mat", "w") as file:  # as MATLAB writes v7.3
        file["others"], file["fmri"] = np.zeros(3), values["mat"].T
    assert prepare_table("table_of_arrays", source, tmp_path / "two", "--betas-key", "fmri") == 0
    assert_rows(rows_of(tmp_path / "two"), expected)


def one_subject(folder, trials) -> list:
    """A table of trials 0 to n that show images of their number, and the flags but --betas."""
    write_images(folder / "images", trials)
    rows = {
        "image": [f"{trial}.png" for trial in range(trials)],
        "session": [1 + trial // 3 for trial in range(trials)],
    }
    pd.DataFrame(rows).to_csv(folder / "trials.tsv", sep="\t", index=False)
    return [
        folder / "trials.tsv",
        folder / "out",
        "--images-folder",
        folder / "images",
        "--subject",
        "s",
        "--overwrite",
    ]


def fmri_of(out, trials) -> np.ndarray:
    rows = rows_of(out)
    assert len(rows) == trials
    return np.stack([rows["s", f"{trial}.png", 0][2] for trial in range(trials)])


def test_volumes_in_arrays_and_a_file_a_trial(tmp_path):
    """(x, y, z, trials) in .npy, .h5 and .mat, volumes of one trial, and one file after the other, are the same."""
    words = one_subject(tmp_path, 6)
    values = np.random.default_rng(1).normal(size=(3, 2, 4, 6)).astype(np.float32)
    mask = np.zeros((3, 2, 4), np.int16)
    mask[1], mask[0, 1, 2] = 1, 7
    layouts.volume(mask, tmp_path / "mask.nii")
    places = inside(tmp_path / "mask.nii")
    expected = np.array([[values[x, y, z, trial] for x, y, z in places] for trial in range(6)])
    np.save(tmp_path / "betas.npy", values)
    with h5py.File(tmp_path / "betas.h5", "w") as file:
        file.create_dataset("glm/betasmd", data=values, chunks=(1, 2, 2, 3))
    with h5py.File(tmp_path / "matlab.mat", "w") as file:
        file["betasmd"] = values.T
    np.save(tmp_path / "columns.npy", expected)
    for trial in range(6):
        layouts.volume(values[..., trial], tmp_path / f"volume_{trial}.nii.gz")
    for session in (1, 2):
        layouts.volume(values[..., 3 * session - 3 : 3 * session], tmp_path / f"session_{session:02d}.nii")
    layouts.volume(values.astype(">f4"), tmp_path / "big.nii")
    for betas in (
        ["betas.npy"],
        ["betas.h5"],
        ["matlab.mat"],
        ["columns.npy"],
        ["big.nii"],
        [f"volume_{trial}.nii.gz" for trial in range(6)],
        ["session_{session:02d}.nii"],
    ):
        flags = ["--betas", *(tmp_path / name for name in betas), "--mask", tmp_path / "mask.nii"]
        assert prepare("table", *words, *flags) == 0, betas
        assert np.array_equal(fmri_of(tmp_path / "out", 6), expected), betas
        table = voxels_of(tmp_path / "out", "s")
        assert list(zip(table["x"], table["y"], table["z"], strict=True)) == [
            (5 - 2 * x, 2.5 * z - 30, 3 * y + 7) for x, y, z in places
        ]


def test_without_a_mask_finite_voxels_that_vary(tmp_path, capsys):
    words = one_subject(tmp_path, 6)
    values = np.random.default_rng(1).normal(size=(3, 2, 4, 6)).astype(np.float32)
    values[0] = 0
    values[1, 0, 0], values[1, 0, 1, 4], values[1, 0, 2, 5] = 0.1, np.nan, -np.inf
    layouts.volume(values, tmp_path / "betas.nii.gz")
    np.save(tmp_path / "ceiling.npy", np.linspace(0, 0.9, 13))
    for region, plane in (("{subject}_early", 0), ("sub-{subject}_label-FFA_mask", 1)):
        mask = np.zeros((3, 2, 4), np.float32)
        mask[:, plane, 1:] = 1
        layouts.volume(mask, tmp_path / f"{region.replace('{subject}', 's')}.nii.gz")
    rois = ["--rois", tmp_path / "{subject}_early.nii.gz", tmp_path / "sub-{subject}_label-FFA_mask.nii.gz"]
    flags = ["--betas", tmp_path / "betas.nii.gz", "--noise-ceiling", tmp_path / "ceiling.npy", *rois]
    assert prepare("table", *words, *flags) == 0
    assert "s: 13 of 24 voxels are finite and not constant" in capsys.readouterr().out
    kept = [(x, y, z) for x in (1, 2) for y in (0, 1) for z in range(4) if (x, y) != (1, 0) or z == 3]
    expected = [[values[x, y, z, trial] for x, y, z in kept] for trial in range(6)]
    assert np.array_equal(fmri_of(tmp_path / "out", 6), expected)
    table = voxels_of(tmp_path / "out", "s")
    np.testing.assert_allclose(table["noise_ceiling"], np.linspace(0, 0.9, 13), rtol=1e-9)
    np.save(tmp_path / "ceiling.npy", np.linspace(0, 90, 13))
    assert prepare("table", *words, *flags, "--overwrite") == 0
    assert "ceiling.npy runs to 90: read as percent" in capsys.readouterr().out
    np.testing.assert_allclose(voxels_of(tmp_path / "out", "s")["noise_ceiling"], np.linspace(0, 0.9, 13), rtol=1e-9)
    assert [list(roi) for roi in table["roi"]] == [[("early", "FFA")[y]] if z else [] for _, y, z in kept]


@of("bids")
def test_bids_derivatives(source, tmp_path):
    assert prepare_table("bids", source, tmp_path / "out") == 0
    expected = {}
    for file in sorted(source.rglob("*_statmap.nii.gz")):
        if "SingletrialBetas" not in file.name:
            continue
        values = nibabel.load(file).get_fdata()
        start = "_".join(file.name.split("_")[:3])
        name = start.split("_")[0]
        for number, line in enumerate(lines_of(file.parent / f"{start}_desc-SingletrialBetas_trials.tsv")):
            stimulus = f"{line['label']}.jpg"
            repeat = sum(key[:2] == (name, stimulus) for key in expected)
            fmri = np.array([values[x, y, z, number] for x in (1, 2) for y in (1, 2) for z in range(3)])
            expected[name, stimulus, repeat] = (None, pixels_of(source / "stimuli" / stimulus), fmri)
    assert len(expected) == 20
    assert_rows(rows_of(tmp_path / "out"), expected)
    assert voxels_of(tmp_path / "out", "sub-01")[["x", "y", "z"]].iloc[0].tolist() == [3, -30, 10]


@of("bids")
def test_bids_entities_name_columns(source, tmp_path, refused):
    brain = np.zeros((3, 4, 3), np.uint8)
    for name, depth in (("sub-01", 1), ("sub-02", 2)):
        brain[2, 2, depth] = 1
        layouts.volume(brain, source / f"{name}_mask.nii.gz")
    flags = ["--mask", source / "{subject}_mask.nii.gz", "--zscore-runs"]
    assert prepare_table("bids", source, tmp_path / "out", *flags) == 0
    assert len(voxels_of(tmp_path / "out", "sub-01")) == 1 and len(voxels_of(tmp_path / "out", "sub-02")) == 2
    refused(
        lambda: prepare_table("bids", source, tmp_path / "two", "--mask", source / "{session}.nii.gz"),
        "--mask .* names 2 files .*ses-01.nii.gz, .*for sub-01: one a subject",
    )
    refused(lambda: prepare_table("bids", source, tmp_path / "two", "--betas", "x.nii"), "leave out --betas")
    betas = next(source.rglob("sub-02_ses-02_*SingletrialBetas_statmap.nii.gz"))
    shutil.copy(betas, betas.with_name(betas.name.replace("T1w", "MNI")))
    refused(lambda: prepare_table("bids", source, tmp_path / "two"), "both are betas of .*: leave one")
    next(source.rglob("sub-01_ses-02_*_trials.tsv")).unlink()
    refused(lambda: prepare_table("bids", source, tmp_path / "two"), "has 0 tables .*of its trials beside it")


def test_repeats_stimuli_and_splits(tmp_path, capsys):
    write_images(tmp_path / "images", 4)
    rows = pd.DataFrame(
        [
            ("a", "dog", "0.png", 3, "train"),
            ("a", "cat", "1.png", 1, "test"),
            ("a", "dog", "0.png", 1, "train"),
            ("b", "dog", "0.png", 1, "test"),
            ("b", "owl", "2.png", 1, "train"),
            ("b", "bat", "absent.png", 1, "train"),
            ("b", "fox", "", 1, "train"),
            ("a", "elk", "3", 1, "train"),
        ],
        columns=["subject", "stimulus_id", "image", "repeat", "split"],
    )
    rows.to_csv(tmp_path / "trials.csv", index=False)
    np.save(tmp_path / "betas.npy", np.arange(16, dtype=np.float32).reshape(8, 2))
    words = [tmp_path / "trials.csv", tmp_path / "out", "--images-folder", tmp_path / "images"]
    assert prepare("table", *words, "--betas", tmp_path / "betas.npy") == 0
    images = [pixels_of(tmp_path / "images" / f"{image}.png") for image in range(4)]
    assert_rows(
        rows_of(tmp_path / "out"),
        {
            ("a", "dog", 0): ("test", images[0], np.array([4, 5])),
            ("a", "dog", 1): ("test", images[0], np.array([0, 1])),
            ("a", "cat", 0): ("test", images[1], np.array([2, 3])),
            ("a", "elk", 0): ("train", images[3], np.array([14, 15])),
            ("b", "dog", 0): ("test", images[0], np.array([6, 7])),
            ("b", "owl", 0): ("train", images[2], np.array([8, 9])),
        },
    )
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 8 trials left out: 1 that name no image, and those of 1 image (absent.png) not in" in printed
    assert "1 stimulus (dog) in several splits of the source" in printed


def renamed(column, other):
    return lambda table: table.rename(columns={column: other})


def changed(column, row, value):
    def change(table):
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


TABLES = {
    "no image column": (renamed("image", "picture"), "no column image: its columns are .*name it with --image-column"),
    "no subject": (renamed("subject", "who"), "no column subject: .*--subject-column, or the one subject with"),
    "subject missing": (changed("subject", 1, ""), "subject of .* is missing in row 2"),
    "session missing": (changed("session", 0, "n/a"), "session of .* is missing in row 1"),
    "unknown column in a pattern": (renamed("session", "day"), r"names \{session\}, no column of .*: its columns are"),
    "a session more": (changed("session", 0, "9"), "there is no file .*_9_betas.nii.gz, which has the betas of 1 rows"),
    "a row too few": (lambda table: table.iloc[1:], "_betas.nii.gz has 4, and .*trials.tsv has 3 rows for it"),
    "climbing image": (changed("image", 2, "../secret.png"), r"names the image '../secret.png': a path within"),
    "absolute image": (changed("image", 2, "/etc/passwd"), "names the image '/etc/passwd': a path within"),
    "linked image": (changed("image", 2, "link.png"), "link.png is a link to a file outside"),
    "linked folder": (changed("image", 2, "away/secret.png"), "secret.png is a link to a file outside"),
    "ambiguous image": (changed("image", 2, "two"), r"names the image two, which may be 2 files .*two.jpg, .*two.png"),
    "no image there": (lambda table: table.assign(image="x" + table["image"]), "has none of the 12 images"),
    "climbing subject": (changed("subject", 0, "../01"), r"names the file '../01': a plain name"),
    "another split": (lambda table: table.assign(split="Train"), r"1 other value \(Train\): train, validation, test"),
    "only one split": (lambda table: table.assign(split="train"), "no trial in test: draw the splits with"),
    "a repeat twice": (lambda table: table.assign(repeat=1), "has repeat 1 of .* twice for 0[12]: number each"),
    "repeats as words": (lambda table: table.assign(repeat="yes"), "repeat of .* has other values than numbers"),
    "several images": (lambda table: table.assign(stimulus_id="one"), "stimulus one of .* has several images"),
    "no rows": (lambda table: table.iloc[:0], "has no rows"),
    "a column twice": (lambda table: table.assign(**{"run ": 1}), "has two columns of one name"),
}


@pytest.mark.parametrize("case", TABLES)
@of("table")
def test_tables_that_do_not_fit(source, tmp_path, refused, case):
    change, message = TABLES[case]
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (source / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    (source / "images" / "away").symlink_to(tmp_path)
    for name in ("two.png", "two.jpg"):
        Image.new("RGB", (9, 9)).save(source / "images" / name)
    table = change(pd.read_csv(source / "trials.tsv", sep="\t", dtype=str))
    table.to_csv(source / "trials.tsv", sep="\t", index=False)
    refused(lambda: prepare_table("table", source, tmp_path / "out"), message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.png", "source"]


def rewritten(name, change, affine=layouts.AFFINE):
    def way(source):
        file = source / name
        layouts.volume(change(np.asarray(nibabel.load(file).dataobj)), file, affine)

    return way


def with_nan(values):
    values[:, :, 2, 3] = np.nan
    return values


VOLUMES = {
    "mask of another grid": (
        rewritten("masks/sub-01_mask.nii.gz", lambda mask: mask[1:]),
        r"\(3, 3, 5\), .*\(4, 3, 5\)",
    ),
    "mask elsewhere": (
        rewritten("masks/sub-01_mask.nii.gz", lambda mask: mask, np.diag([2, 2, 2, 1])),
        "mask.nii.gz and .*betas.nii.gz have different affines .*resample",
    ),
    "labels elsewhere": (
        rewritten("rois/sub-02_regions.nii.gz", lambda labels: labels, np.diag([2, 2, 2, 1])),
        "sub-02_regions.nii.gz and .* have different affines",
    ),
    "a session elsewhere": (
        rewritten("betas/01_3_betas.nii.gz", lambda values: values, np.diag([2, 2, 2, 1])),
        "01_[0-9]_betas.nii.gz and .*01_[0-9]_betas.nii.gz have different affines",
    ),
    "empty mask": (rewritten("masks/sub-01_mask.nii.gz", lambda mask: mask * 0), "has no voxel above 0"),
    "a volume more": (
        rewritten("betas/01_3_betas.nii.gz", lambda values: values[..., [0, 1, 2, 3, 3]]),
        "01_3_betas.nii.gz has 5, and .* has 4 rows for it; one row a trial",
    ),
    "five dimensions": (
        rewritten("betas/01_3_betas.nii.gz", lambda values: values[..., None]),
        r"has shape \(4, 3, 5, 4, 1\) .*\(x, y, z\) or \(x, y, z, trials\)",
    ),
    "NaN": (rewritten("betas/01_3_betas.nii.gz", with_nan), "01_3_betas.nii.gz has NaN or infinite values in"),
    "labels that are shares": (
        rewritten("rois/sub-02_regions.nii.gz", lambda labels: labels.astype(np.float32) / 2),
        "labels that are no whole numbers",
    ),
    "labels that are infinite": (
        rewritten("rois/sub-02_regions.nii.gz", lambda labels: np.where(labels == 1, np.inf, labels)),
        "labels that are no whole numbers",
    ),
    "ceilings that are no shares": (
        rewritten("ceilings/sub-01_ceiling.nii.gz", lambda ceiling: 1000 * ceiling),
        "runs from 0 to .*: shares of the variance of one trial, 0 to 1 or in percent",
    ),
    "names without index": (
        lambda source: (source / "rois" / "regions.tsv").write_text("label\tname\n1\tV1\n"),
        "has the columns label, name: index and name",
    ),
    "a name twice": (
        lambda source: (source / "rois" / "regions.tsv").write_text("index\tname\n1\tV1\n1\tV2\n"),
        "names a label twice",
    ),
    "no mask of a subject": (lambda source: (source / "masks" / "sub-02_mask.nii.gz").unlink(), "--mask names for 02"),
    "no volumes": (lambda source: (source / "betas" / "01_3_betas.nii.gz").write_text("x"), "cannot be read"),
}


@pytest.mark.parametrize("case", VOLUMES)
@of("table")
def test_volumes_that_do_not_fit(source, tmp_path, refused, case):
    spoil, message = VOLUMES[case]
    spoil(source)
    refused(lambda: prepare_table("table", source, tmp_path / "out"), message)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_arrays_and_flags_that_do_not_fit(tmp_path, refused):
    words = one_subject(tmp_path, 6)
    values = np.ones((6, 4), np.float32)
    np.save(tmp_path / "betas.npy", values)
    np.save(tmp_path / "transposed.npy", values.T)
    np.save(tmp_path / "complex.npy", values.astype(complex))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=values, b=values)
    layouts.volume(np.ones((3, 1, 1), np.uint8), tmp_path / "mask.nii")
    vertices = nibabel.cifti2.BrainModelAxis.from_mask(np.ones(4), "CIFTI_STRUCTURE_CORTEX_LEFT")
    surface = nibabel.Cifti2Image(values, (nibabel.cifti2.ScalarAxis(list("abcdef")), vertices))
    nibabel.save(surface, tmp_path / "surface.dscalar.nii")
    betas = ["--betas", tmp_path / "betas.npy"]
    for flags, message in {
        (): "--betas is needed",
        ("--betas", tmp_path / "absent.npy"): "there is no file .*absent.npy, which has the betas of 6 rows",
        ("--betas", tmp_path / "trials.tsv"): "neither NIfTI",
        ("--betas", tmp_path / "transposed.npy"): r"has shape \(4, 6\), and .* has 6 rows for it: .*so transpose",
        ("--betas", tmp_path / "complex.npy"): "type complex128: numbers",
        ("--betas", tmp_path / "surface.dscalar.nii"): "is a Cifti2Image: NIfTI volumes",
        ("--betas", tmp_path / "pickled.npy"): "pickled.npy cannot be read .*Python objects",
        ("--betas", tmp_path / "several.npz"): r"holds 2 arrays \(a, b\): name that of the betas with --betas-key",
        ("--betas", tmp_path / "several.npz", "--betas-key", "c"): "has no c: its keys are a, b",
        (
            "--betas",
            tmp_path / "betas.npy",
            tmp_path / "transposed.npy",
        ): "betas.npy has 6, .*transposed.npy has 4, and",
        ("--betas", tmp_path / "{session"): "cannot be read",
        ("--betas", tmp_path / "{session.real}"): r"names \{session.real\}, no column",
        ("--betas", tmp_path / "{image:d}"): "formats {image} as a number",
        (*betas, "--mask", tmp_path / "mask.nii"): "has 3 voxels above 0, .*betas.npy has 4",
        (*betas, "--rois", tmp_path / "mask.nii"): "--rois needs --mask",
        (*betas, "--noise-ceiling", tmp_path / "mask.nii"): "needs --mask, .*or give a .npy",
        (*betas, "--noise-ceiling", tmp_path / "betas.npy"): "one number for each of the 4 voxels",
        (*betas, "--zscore-runs"): "--zscore-runs needs the run of each trial: name it with --run-column",
        (*betas, "--zscore-runs", "--run-column", "image"): "has one trial, which cannot be z-scored",
        (*betas, "--session-column", "day"): "no column day: its columns are image, session; .*--session-column",
        (*betas, "--zscore-runs", "--zscore-sessions"): "not allowed with argument",
        (*betas, "--subject-column", "image"): "not allowed with argument",
    }.items():
        refused(lambda flags=flags: prepare("table", *words, *flags), message)
    refused(
        lambda: main(["prepare", "table", str(tmp_path / "mask.nii"), "out", "--images-folder", "x", "--betas", "x"]),
        "mask.nii is neither .tsv, .csv nor .parquet",
    )
    assert not (tmp_path / "out").exists()


@of("table")
def test_nibabel_is_needed_for_volumes_alone(source, tmp_path, refused, monkeypatch):
    words = one_subject(tmp_path, 3)
    np.save(tmp_path / "betas.npy", np.eye(3))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert prepare("table", *words, "--betas", tmp_path / "betas.npy") == 0
    refused(lambda: prepare_table("table", source, tmp_path / "two"), r"needs nibabel: pip install 'visionflow-hf\[bra")
