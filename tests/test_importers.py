"""The importers: every value of every trial of each layout, against index arithmetic written for the test."""

import re

import h5py
import layouts
import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from datasets import load_from_disk
from layouts import pixels_of

from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import open_corpus


@pytest.fixture
def source(tmp_path, request):
    """A source of the layout that the test names, written anew."""
    folder = tmp_path / "source"
    folder.mkdir()
    getattr(layouts, request.param)(folder)
    return folder


def of(*names):
    return pytest.mark.parametrize("source", names, indirect=True)


def prepare(layout, source, out, *flags) -> int:
    return main(["prepare", layout, str(source), str(out), *map(str, flags)])


def rows_of(out) -> dict[tuple[str, str, int], tuple[str, np.ndarray, np.ndarray]]:
    """(subject, stimulus, repeat): split, pixels, fMRI of all rows of a corpus."""
    open_corpus(out)  # with its checks
    rows = {}
    for split, data in load_from_disk(str(out)).items():
        for row in data:
            key = (row["subject"], row["stimulus_id"], row["repeat"])
            assert key not in rows
            rows[key] = (split, np.asarray(row["image"]), np.array(row["fmri"], np.float32))
    return rows


def assert_rows(rows, expected):
    """Args: expected: (subject, stimulus, repeat): (split, pixels, fMRI), a None as split fits any."""
    assert set(rows) == set(expected)
    for key, (split, pixels, fmri) in expected.items():
        assert split in (None, rows[key][0]), key
        assert np.array_equal(rows[key][1], pixels), key
        assert rows[key][2].dtype == np.float32 and np.array_equal(rows[key][2], fmri.astype(np.float32)), key


def voxels_of(out, subject) -> pd.DataFrame:
    table = pd.read_parquet(out / "voxels.parquet")
    table = table[table["subject"] == subject]
    assert table["voxel"].tolist() == list(range(len(table)))
    return table


@of("algonauts_challenge")
def test_algonauts_challenge(source, tmp_path, capsys):
    assert prepare("algonauts23", source, tmp_path / "out", "--test-fraction", 0.3) == 0
    expected = {}
    for name in ("subj01", "subj06"):
        folder = source / name / "training_split"
        sides = [np.load(folder / "training_fmri" / f"{side}_training_fmri.npy") for side in ("lh", "rh")]
        for file in (folder / "training_images").iterdir():
            row, number = map(int, re.findall(r"\d+", file.stem))
            fmri = np.concatenate([side[row - 1] for side in sides])
            expected[name, f"nsd-{number:05d}", 0] = (None, pixels_of(file), fmri)
    assert_rows(rows_of(tmp_path / "out"), expected)
    table = voxels_of(tmp_path / "out", "subj06")
    labels = np.load(source / "subj06" / "roi_masks" / "rh.prf-visualrois_challenge_space.npy")
    names = ["Unknown", "V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"]
    for place, label in enumerate(labels):
        regions = set(table["roi"].iloc[6 + place])
        assert "rh" in regions and regions & set(names) == ({names[label]} if label else set())
    assert "regions without 4 masks" in capsys.readouterr().out


@of("algonauts_challenge")
def test_algonauts_challenge_in_part(source, tmp_path, capsys, refused):
    images = source / "subj01" / "training_split" / "training_images"
    for file in sorted(images.iterdir())[:3]:
        file.unlink()
    (source / "subj06" / "training_split" / "training_fmri" / "rh_training_fmri.npy").unlink()
    assert prepare("algonauts23", source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "3 of 12 training images are absent" in printed and "subj06: left out" in printed
    assert {key[:2] for key in rows_of(tmp_path / "out")} == {
        ("subj01", f"nsd-{number:05d}") for number in (103, *range(8))
    }
    refused(lambda: prepare("algonauts23", source, tmp_path / "two", "--subjects", "subj02"), "holds no subj02")


@of("algonauts_processed")
def test_algonauts_processed(source, tmp_path, capsys):
    assert prepare("algonauts23", source, tmp_path / "out") == 0
    own = {"train": "train", "val": "validation", "testval": "test"}
    expected = {}
    for name, split in own.items():
        for row in load_from_disk(str(source / "processed" / "size-256" / name)):
            fmri = np.array(row["activity"], np.float32)
            if row["subject"] == "subj06":
                fmri = fmri[[0, 1, 3, 4, 5, 6, 8, 9]]
            key = (row["subject"], f"nsd-{row['nsd_id']:05d}", 0)
            one_split = "validation" if row["nsd_id"] == 40 else split  # val for one subject, train for the other
            expected[key] = (one_split, np.asarray(row["image"]), fmri)
    assert_rows(rows_of(tmp_path / "out"), expected)
    printed = capsys.readouterr().out
    assert "3 of 11 vertices are lacking" in printed and "1 stimulus (nsd-00040) in several splits" in printed


def nsd_trials(source, zscore=False):
    """(subject, stimulus, repeat): (split, pixels, fMRI in float64), by loops over trials and voxels' places."""
    design = scipy.io.loadmat(source / "nsddata" / "experiments" / "nsd" / "nsd_expdesign.mat")
    with h5py.File(source / "nsddata_stimuli" / "stimuli" / "nsd" / "nsd_stimuli.hdf5") as file:
        brick = file["imgBrick"][:]
    expected = {}
    for row, (name, sessions) in enumerate({"subj01": (1, 2, 4), "subj02": (1,)}.items()):
        folder = source / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
        mask = nibabel.load(source / "nsddata" / "ppdata" / name / "func1pt8mm" / "roi" / "nsdgeneral.nii.gz")
        mask = mask.get_fdata()
        places = [place for place in np.ndindex(mask.shape) if mask[place] > 0]
        for session in sessions:
            if name == "subj01":
                with h5py.File(folder / f"betas_session{session:02d}.hdf5") as file:
                    volumes = [file["betas"][trial].transpose(2, 1, 0) for trial in range(6)]
            else:
                betas = nibabel.load(folder / f"betas_session{session:02d}.nii.gz").get_fdata()
                volumes = [betas[..., trial] for trial in range(6)]
            fmri = np.array([[volume[place] / 300 for place in places] for volume in volumes])
            if zscore:
                fmri = (fmri - fmri.mean(0)) / fmri.std(0)
            for trial in range(6):
                place_in_row = int(design["masterordering"][0, (session - 1) * 6 + trial]) - 1
                image = int(design["subjectim"][row, place_in_row]) - 1
                stimulus = f"nsd-{image:05d}"
                repeat = sum(key[:2] == (name, stimulus) for key in expected)
                split = "test" if image + 1 in design["sharedix"] else "train"
                expected[name, stimulus, repeat] = (split, brick[image], fmri[trial])
    return expected


@of("nsd")
def test_nsd(source, tmp_path, capsys):
    assert prepare("nsd", source, tmp_path / "out") == 0
    assert_rows(rows_of(tmp_path / "out"), nsd_trials(source))
    printed = capsys.readouterr().out
    assert "subj01: 3 sessions, without 1 session (3)" in printed and "regions without 5 masks" in printed
    assert open_corpus(tmp_path / "out").unit == "percent signal change"
    table = voxels_of(tmp_path / "out", "subj01")
    regions = source / "nsddata" / "ppdata" / "subj01" / "func1pt8mm" / "roi"
    general, labels = (
        nibabel.load(regions / f"{name}.nii.gz").get_fdata() for name in ("nsdgeneral", "prf-visualrois")
    )
    ncsnr = source / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
    ncsnr = nibabel.load(ncsnr / "ncsnr.nii.gz").get_fdata()
    assert len(table) == (general > 0).sum()
    for _, voxel in table.iterrows():
        place = int(voxel.x), int(voxel.y), int(voxel.z)
        assert general[place] > 0 and ("lh" if place[0] < 2 else "rh") in voxel.roi
        area = {0: None, -1: None, 1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"}[labels[place]]
        assert set(voxel.roi) - {"lh", "rh"} == ({area} if area else set())
        assert voxel.noise_ceiling == pytest.approx(ncsnr[place] ** 2 / (ncsnr[place] ** 2 + 1), rel=1e-6)


@of("nsd")
def test_nsd_by_several_processes_and_z_scored(source, tmp_path):
    assert prepare("nsd", source, tmp_path / "out", "--zscore-sessions", "--num-proc", 2) == 0
    rows, expected = rows_of(tmp_path / "out"), nsd_trials(source, zscore=True)
    assert set(rows) == set(expected)
    for key, (split, pixels, fmri) in expected.items():
        assert rows[key][0] == split and np.array_equal(rows[key][1], pixels)
        np.testing.assert_allclose(rows[key][2], fmri, atol=1e-5)


@of("nsd")
def test_nsd_averages_and_the_ceiling_of_mixed_repeats(source, tmp_path):
    assert prepare("nsd", source, tmp_path / "out", "--average-repeats", "--subjects", "subj01") == 0
    trials = {key: value for key, value in nsd_trials(source).items() if key[0] == "subj01"}
    stimuli = sorted({stimulus for _, stimulus, _ in trials})
    groups = {one: [value for key, value in trials.items() if key[1] == one] for one in stimuli}
    rows = rows_of(tmp_path / "out")
    assert {key[1] for key in rows} == set(stimuli) and len(rows) == len(stimuli) < len(trials)
    for one, group in groups.items():
        split, _, fmri = rows["subj01", one, 0]
        assert split == group[0][0]
        np.testing.assert_allclose(fmri, np.mean([fmri for _, _, fmri in group], axis=0), rtol=1e-5, atol=1e-5)
    once, twice, thrice = (sum(len(group) == n for group in groups.values()) for n in (1, 2, 3))
    assert once and twice
    share = (once + twice / 2 + thrice / 3) / (once + twice + thrice)
    folder = source / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
    ncsnr = nibabel.load(folder / "ncsnr.nii.gz").get_fdata()
    for _, voxel in voxels_of(tmp_path / "out", "subj01").iterrows():
        ratio = ncsnr[int(voxel.x), int(voxel.y), int(voxel.z)]
        assert voxel.noise_ceiling == pytest.approx(ratio**2 / (ratio**2 + share), rel=1e-6)


@of("nsd")
def test_nsd_with_splits_drawn_anew(source, tmp_path):
    assert prepare("nsd", source, tmp_path / "out", "--test-fraction", 0.5, "--seed", 3) == 0
    rows = rows_of(tmp_path / "out")
    expected = {key: (None, *value[1:]) for key, value in nsd_trials(source).items()}
    assert_rows(rows, expected)
    split = {}
    assert all(split.setdefault(key[1], value[0]) == value[0] for key, value in rows.items())
    assert list(split.values()).count("test") == round(len(split) / 2)
