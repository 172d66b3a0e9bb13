"""The importers: every value of every trial of each layout, against index arithmetic written for the test."""

import re
import shutil

import h5py
import nibabel
import numpy as np
import pandas as pd
import pytest
import scipy.io
from datasets import load_from_disk
from layouts import pixels_of
from sources import assert_rows, names_of, of, prepare, rows_of, voxels_of

from visionflow_hf.corpus.schema import open_corpus


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
    for name, sides in (("subj01", {"lh": 7, "rh": 8}), ("subj06", {"lh": 6, "rh": 7})):
        masks = [np.load(source / name / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy") for side in sides]
        places = [place for mask in masks for place, known in enumerate(mask) if known]
        assert voxels_of(tmp_path / "out", name)["vertex"].tolist() == places
    assert "regions without 4 masks" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "out" / "voxels.parquet")
    table.drop(columns="vertex").to_parquet(tmp_path / "out" / "voxels.parquet")  # as corpora were before
    assert open_corpus(tmp_path / "out").subjects == {"subj01": 15, "subj06": 13}


@of("algonauts_challenge")
def test_algonauts_challenge_in_part(source, tmp_path, capsys, refused):
    images = source / "subj01" / "training_split" / "training_images"
    for file in sorted(images.iterdir())[:3]:
        file.unlink()
    (source / "subj06" / "training_split" / "training_fmri" / "rh_training_fmri.npy").unlink()
    (source / "subj01" / "roi_masks" / "rh.all-vertices_fsaverage_space.npy").unlink()
    assert prepare("algonauts23", source, tmp_path / "out") == 0
    vertex = voxels_of(tmp_path / "out", "subj01")["vertex"]
    assert vertex[:7].notna().all() and vertex[7:].isna().all()
    printed = capsys.readouterr().out
    assert "no place on the cortical surface, rh.all-vertices_fsaverage_space.npy absent" in printed
    assert "3 of 12 training images are absent" in printed and "subj06: left out" in printed
    assert {key[:2] for key in rows_of(tmp_path / "out")} == {
        ("subj01", f"nsd-{number:05d}") for number in (103, *range(8))
    }
    refused(
        lambda: prepare("algonauts23", source, tmp_path / "two", "--subjects", "subj02"),
        "there is no subject subj02: subj01, subj06 are there",
    )


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
    assert "3 of 11 vertices have no data" in printed and "1 stimulus (nsd-00040) in several splits" in printed


@of("algonauts_processed")
def test_algonauts_processed_in_part(source, tmp_path, capsys, refused):
    folder = source / "processed" / "size-256"
    (folder / "train" / "data-00001-of-00002.arrow").unlink()
    shutil.rmtree(folder / "val")
    assert prepare("algonauts23", folder, tmp_path / "out", "--subjects", "subj01") == 0
    assert "absent: val and 1 of 2 files of train" in capsys.readouterr().out
    assert open_corpus(tmp_path / "out").subjects == {"subj01": 11}
    shutil.copytree(folder, source / "processed" / "size-512")
    refused(
        lambda: prepare("algonauts23", source, tmp_path / "two"), r"2 sizes \(size-256, size-512\): give the folder"
    )


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
    assert "subj01: 3 sessions (1, 2, 4), without 1 session (3)" in printed and "regions without 5 masks" in printed
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
    assert set(split.values()) == {"train", "test"}
    flags = ["--test-fraction", 0.5, "--seed", 3, "--subjects"]
    for subject in ("subj01", "subj02"):  # imported alone, each stimulus is where it was
        assert prepare("nsd", source, tmp_path / subject, *flags, subject) == 0
        alone = rows_of(tmp_path / subject)
        assert {key: value[0] for key, value in alone.items()} == {
            key: value[0] for key, value in rows.items() if key[0] == subject
        }


@of("god", "god_legacy")
def test_god(source, tmp_path, capsys):
    assert prepare("god", source, tmp_path / "out") == 0
    expected = {}
    for name, voxels in (("Subject1", 10), ("Subject2", 7)):
        with h5py.File(source / f"{name}.h5") as file:
            values = (file["dataset"] if "dataset" in file else file["dataSet"])[:]
        for sample in values:
            if sample[0] == 3:
                continue
            digits = f"{sample[2]:.6f}"
            stimulus = f"n{digits[:-7]:0>8}_{digits[-6:].lstrip('0')}"
            (file,) = (source / "images").rglob(f"{stimulus}.*")
            repeat = sum(key[:2] == (name, stimulus) for key in expected)
            split = {1: "train", 2: "test"}[sample[0]]
            expected[name, stimulus, repeat] = (split, pixels_of(file), sample[4 : 4 + voxels])
    assert len(expected) == 40
    assert_rows(rows_of(tmp_path / "out"), expected)
    assert "Subject2: 2 of 22 samples left out" in capsys.readouterr().out
    table = voxels_of(tmp_path / "out", "Subject1")
    with h5py.File(source / "Subject1.h5") as file:
        value = (file["metadata"] if "metadata" in file else file["metaData"])["value"][:]
    assert np.array_equal(table[["x", "y", "z"]].to_numpy().T, value[6:9, 4:14])
    assert [list(names) for names in table["roi"]] == [["VC"]] + [["V1", "VC"]] * 3 + [["VC"]] * 6
    np.testing.assert_allclose(table["noise_ceiling"], ceiling_of(expected, "Subject1"), rtol=1e-5, atol=1e-7)


def ceiling_of(expected, subject) -> np.ndarray:
    """The share of signal in one trial, from the repeated stimuli, all repeated equally often."""
    rows = [(one, fmri) for (who, one, _), (_, _, fmri) in expected.items() if who == subject]
    trials = [[fmri for one, fmri in rows if one == stimulus] for stimulus in names_of(expected)]
    groups = np.array([group for group in trials if len(group) > 1])  # (stimuli, trials, voxels)
    noise = groups.var(1, ddof=1).mean(0)
    signal = (groups.mean(1).var(0, ddof=1) - noise / groups.shape[1]).clip(0)
    assert (signal > 0).any()
    return signal / (signal + noise)


@of("god")
def test_god_with_images_elsewhere_and_in_part(source, tmp_path, capsys, refused):
    (source / "images").rename(tmp_path / "elsewhere")
    refused(lambda: prepare("god", source, tmp_path / "out"), "no responses: a sample of DataType 1 or 2 whose image")
    gone = sorted((tmp_path / "elsewhere" / "test").iterdir())[0]
    gone.unlink()
    assert prepare("god", source, tmp_path / "out", "--images-folder", tmp_path / "elsewhere") == 0
    assert f"4 of 20 trials left out, without 1 image ({gone.stem})" in capsys.readouterr().out
    assert gone.stem not in names_of(rows_of(tmp_path / "out"))


@of("bold5000", "bold5000_mat", "bold5000_tables", "bold5000_hdf5")
def test_bold5000(source, tmp_path):
    assert prepare("bold5000", source, tmp_path / "out") == 0
    expected = {}
    order = [side + region for side in ("LH", "RH") for region in ("EarlyVis", "LOC", "OPA", "PPA", "RSC")]
    folder, lists = source / "BOLD5000_GLMsingle_ROI_betas", source / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists"
    for subject in ("CSI1", "CSI2"):
        if (folder / "mat" / f"{subject}_ROIs_TR34.mat").is_file():
            table = scipy.io.loadmat(folder / "mat" / f"{subject}_ROIs_TR34.mat")
            values = [table[region] for region in order]
        elif (folder / "mat" / f"{subject}_ROIs_TR34.h5").is_file():
            with h5py.File(folder / "mat" / f"{subject}_ROIs_TR34.h5") as table:
                values = [table[region][:] for region in order]
        else:
            files = [next(folder.glob(f"*/{subject}_*_{region}.*")) for region in order]
            values = [np.load(file) if file.suffix == ".npy" else scipy.io.loadmat(file)["betas"] for file in files]
        for row, name in enumerate((lists / subject / f"{subject}_imgnames.txt").read_text().split()):
            image = name[4:] if name.startswith("rep_") else name
            (file,) = (source / "BOLD5000_Stimuli").rglob(image)
            stimulus = image[: image.index(".")]
            repeat = sum(key[:2] == (subject, stimulus) for key in expected)
            fmri = np.concatenate([region[row] for region in values])
            expected[subject, stimulus, repeat] = ("test" if name != image else "train", pixels_of(file), fmri)
        table = voxels_of(tmp_path / "out", subject)
        sizes = [region.shape[1] for region in values]
        rois = [[name[:2].lower(), name[2:]] for name, size in zip(order, sizes, strict=True) for _ in range(size)]
        assert [list(names) for names in table["roi"]] == rois
        np.testing.assert_allclose(table["noise_ceiling"], ceiling_of(expected, subject), rtol=1e-5, atol=1e-7)
    assert len(expected) == 2 * (10 + 9)
    assert_rows(rows_of(tmp_path / "out"), expected)


@of("bold5000")
def test_bold5000_in_part(source, tmp_path, capsys):
    next(source.rglob("CSI1_*_RHRSC.npy")).unlink()
    next(source.rglob("CSI2_imgnames.txt")).unlink()
    next(source.rglob("airport1.jpg")).unlink()
    assert prepare("bold5000", source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "CSI1: without 1 region (RHRSC)" in printed and "CSI2: left out" in printed and "(airport1)" in printed
    assert len(rows_of(tmp_path / "out")) == 18


@of("things")
def test_things(source, tmp_path, capsys):
    assert prepare("things", source, tmp_path / "out") == 0
    expected = {}
    for subject in ("sub-01", "sub-03"):
        trials = pd.read_csv(source / "betas_csv" / f"{subject}_StimulusMetadata.csv")
        with h5py.File(source / "betas_csv" / f"{subject}_ResponseData.h5") as file:
            labels = [int(label) for label in file["ResponseData/block0_items"]]
            values = file["ResponseData/block0_values"][:]
        for trial in range(20):
            row = trials.iloc[trial]
            assert row["trial_id"] == trial
            stimulus = row["stimulus"].removesuffix(".jpg")
            repeat = sum(key[:2] == (subject, stimulus) for key in expected)
            pixels = pixels_of(source / "images" / row["concept"] / row["stimulus"])
            expected[subject, stimulus, repeat] = (row["trial_type"], pixels, values[:, labels.index(trial)])
        table, known = (
            voxels_of(tmp_path / "out", subject),
            pd.read_csv(source / "betas_csv" / f"{subject}_VoxelMetadata.csv"),
        )
        np.testing.assert_allclose(table["noise_ceiling"], known["nc_singletrial"] / 100, rtol=1e-6)
        assert np.array_equal(table[["x", "y", "z"]], known[["voxel_x", "voxel_y", "voxel_z"]])
        areas = [["V1", "glasser-V1"] if early else ["LO1 (prf)", "lFFA"] for early in known["V1"]]
        assert [list(names) for names in table["roi"]] == areas
    assert_rows(rows_of(tmp_path / "out"), expected)
    assert "sub-03: 1 of 21 trials left out, neither train nor test" in capsys.readouterr().out


@of("bold5000")
def test_bold5000_whose_lists_do_not_mark_repeats(source, tmp_path):
    """Those of release 2.0: the repeats are plain from the names."""
    assert prepare("bold5000", source, tmp_path / "marked") == 0
    for file in source.rglob("*_imgnames.txt"):
        file.write_text(file.read_text().replace("rep_", ""))
    assert prepare("bold5000", source, tmp_path / "out") == 0
    assert_rows(rows_of(tmp_path / "out"), rows_of(tmp_path / "marked"))


@of("things")
def test_things_whose_columns_have_pickled_names(source, tmp_path):
    """What pandas writes where the column voxel_id stands among whole numbers: the names are not read."""
    assert prepare("things", source, tmp_path / "named") == 0
    for file in source.rglob("*_ResponseData.h5"):
        with h5py.File(file, "a") as table:
            group = table["ResponseData"]
            order = np.argsort([int(label) for label in group["block0_items"]])
            group["block0_values"][:] = group["block0_values"][:][:, order]
            del group["block0_items"], group["axis0"]
            for name in ("block0_items", "axis0"):
                pickled = group.create_dataset(name, (1,), dtype=h5py.vlen_dtype(np.uint8))
                pickled[0] = np.frombuffer(b"not to be unpickled", np.uint8)
    assert prepare("things", source, tmp_path / "out") == 0
    assert_rows(rows_of(tmp_path / "out"), rows_of(tmp_path / "named"))
