"""Writers of the layouts that labs hold, small: names, keys, types, axis orders, scalings and index bases as theirs."""

import io
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas as pd
import scipy.io
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture


def picture(rng: np.random.Generator, height: int = 9, width: int = 12) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(file)


def pixels_of(file: Path) -> np.ndarray:
    with Picture.open(file) as picture:
        return np.asarray(picture.convert("RGB"))


def algonauts_challenge(root: Path) -> None:
    """Two subjects with 12 and 9 training images, of which they share images 100 to 103; 3 test images each."""
    rng = np.random.default_rng(1)
    shown = {"subj01": [*range(100, 104), *range(8)], "subj06": [*range(100, 104), *range(20, 25)]}
    images = {number: picture(rng, 10, 10) for number in range(200)}
    for name, numbers in shown.items():
        vertices = {"lh": 7, "rh": 8} if name == "subj01" else {"lh": 6, "rh": 7}
        training, test = root / name / "training_split", root / name / "test_split"
        (training / "training_fmri").mkdir(parents=True)
        (root / name / "roi_masks").mkdir()
        for side, count in vertices.items():
            fmri = rng.normal(size=(len(numbers), count)).astype(np.float32)
            np.save(training / "training_fmri" / f"{side}_training_fmri.npy", fmri)
            fsaverage = np.zeros(163842, np.int64)
            fsaverage[rng.choice(163842, count, replace=False)] = 1
            np.save(root / name / "roi_masks" / f"{side}.all-vertices_fsaverage_space.npy", fsaverage)
            for mask, most in (("prf-visualrois", 7), ("floc-bodies", 4), ("floc-faces", 5), ("streams", 7)):
                labels = rng.integers(0, most + 1, count)
                np.save(root / name / "roi_masks" / f"{side}.{mask}_challenge_space.npy", labels)
        names = {0: "Unknown", 1: "V1v", 2: "V1d", 3: "V2v", 4: "V2d", 5: "V3v", 6: "V3d", 7: "hV4"}
        np.save(root / name / "roi_masks" / "mapping_prf-visualrois.npy", names, allow_pickle=True)
        for row, number in enumerate(numbers, start=1):
            save(images[number], training / "training_images" / f"train-{row:04d}_nsd-{number:05d}.png")
        for row, number in enumerate(range(150, 153), start=1):
            save(images[number], test / "test_images" / f"test-{row:04d}_nsd-{number:05d}.png")


PROCESSED_FEATURES = Features(
    {
        "split": Value("string"),
        "subject": Value("string"),
        "subject_id": Value("int64"),
        "sample_id": Value("int64"),
        "nsd_id": Value("int64"),
        "image": Image(),
        "activity": List(Value("float32")),
    }
)


def algonauts_processed(root: Path) -> None:
    """Two subjects on 11 vertices, of which subj06 lacks three; image 40 is val for one and train for the other."""
    rng = np.random.default_rng(2)
    images = {number: picture(rng, 8, 8) for number in range(60)}
    seen = {
        "train": {"subj01": [1, 2, 3, 4, 5, 6], "subj06": [40, 11, 12, 13]},
        "val": {"subj01": [40, 41], "subj06": [14]},
        "testval": {"subj01": [50, 51], "subj06": [50, 15]},
        "test": {"subj01": [55], "subj06": [56]},
    }
    for split, subjects in seen.items():
        rows = []
        for subject, numbers in subjects.items():
            for sample, number in enumerate(numbers):
                activity = rng.normal(size=11).astype(np.float32)
                if subject == "subj06":
                    activity[[2, 7, 10]] = 0
                rows.append(
                    {
                        "split": split,
                        "subject": subject,
                        "subject_id": int(subject[-2:]) - 1,
                        "sample_id": sample,
                        "nsd_id": number,
                        "image": Picture.fromarray(images[number]),
                        "activity": None if split == "test" else activity,
                    }
                )
        if split == "train":
            rows = [rows[place] for place in rng.permutation(len(rows))]
        data = Dataset.from_list(rows, features=PROCESSED_FEATURES)
        data.save_to_disk(str(root / "processed" / "size-256" / split), num_shards=2)


def nsd(root: Path) -> None:
    """subj01 with sessions 1, 2 and 4 in HDF5, subj02 with session 1 in NIfTI; 6 trials a session, 30 images in all.

    Every subject has 10 images in three trials each, the first 3 shared by all; masterordering mixes them.
    """
    rng = np.random.default_rng(3)
    volume, trials = (5, 4, 6), 6
    subjectim = np.stack([np.r_[28, 2, 17, rng.permutation(np.r_[3:17, 18:28, 29:31])[:7]] for _ in range(8)])
    ordering = np.concatenate([rng.permutation(np.repeat(np.arange(1, 11), 3)), rng.integers(1, 11, 40 * trials - 30)])
    stimuli = root / "nsddata_stimuli" / "stimuli" / "nsd"
    stimuli.mkdir(parents=True)
    with h5py.File(stimuli / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = rng.integers(0, 256, (30, 9, 9, 3), dtype=np.uint8)
    experiment = root / "nsddata" / "experiments" / "nsd"
    experiment.mkdir(parents=True)
    design = {"masterordering": ordering[None], "subjectim": subjectim, "sharedix": subjectim[:1, :3]}
    scipy.io.savemat(experiment / "nsd_expdesign.mat", {key: table.astype(float) for key, table in design.items()})
    for name, sessions in (("subj01", (1, 2, 4)), ("subj02", (1,))):
        betas = root / "nsddata_betas" / "ppdata" / name / "func1pt8mm" / "betas_fithrf_GLMdenoise_RR"
        regions = root / "nsddata" / "ppdata" / name / "func1pt8mm" / "roi"
        betas.mkdir(parents=True)
        regions.mkdir(parents=True)
        for session in sessions:
            values = rng.integers(-3000, 3000, (*volume, trials), dtype=np.int16)
            if name == "subj01":
                with h5py.File(betas / f"betas_session{session:02d}.hdf5", "w") as file:
                    chunks = None if session == 1 else (trials, 1, 1, 1) if session == 2 else (2, 6, 4, 5)
                    file.create_dataset("betas", data=values.T, chunks=chunks, compression=chunks and "gzip")
            else:
                nifti(values, betas / f"betas_session{session:02d}.nii.gz")
        general = np.where(rng.random(volume) < 0.3, 1, -1).astype(np.int16)
        nifti(general, regions / "nsdgeneral.nii.gz")
        nifti(np.where(np.arange(5)[:, None, None] < 2, general, -1), regions / "lh.nsdgeneral.nii.gz")
        nifti(np.where(np.arange(5)[:, None, None] >= 2, general, -1), regions / "rh.nsdgeneral.nii.gz")
        nifti(rng.integers(-1, 8, volume, dtype=np.int16), regions / "prf-visualrois.nii.gz")
        nifti(rng.random(volume).astype(np.float32), betas / "ncsnr.nii.gz")


def nifti(array: np.ndarray, file: Path) -> None:
    if array.dtype == np.int64:
        array = array.astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.8, 1.8, 1.8, 1])), file)


def god(root: Path, data: str = "dataset", meta: str = "metadata", label: str = "stimulus_id") -> None:
    """Two subjects: 8 train images once, 3 test images in 4 trials each, 2 samples of imagery; voxels from column 4."""
    rng = np.random.default_rng(4)
    names = [f"n{rng.integers(1e6, 1e7):08d}_{image}" for image in (5, *range(21, 31))]
    for number, name in enumerate(names):
        folder = "training" if number < 8 else "test"
        save(picture(rng), root / "images" / folder / f"{name}.{'JPEG' if number % 2 else 'png'}")
    labels = [int(name[1:9]) + int(name[10:]) / 1e6 for name in names]
    for subject, voxels in (("Subject1", 10), ("Subject2", 7)):
        shown = [*rng.permutation(8), *rng.permutation(np.repeat([8, 9, 10], 4)), 8, 9]
        width = voxels + 7
        values = rng.normal(size=(len(names), width))[shown] + 0.5 * rng.normal(size=(len(shown), width))
        values[:, 0] = [1] * 8 + [2] * 12 + [3] * 2
        values[:, 2] = [labels[number] for number in shown]
        values[:, 3] = np.array(shown) + 1
        keys = ["DataType", "Run", label, "VoxelData", "ROI_V1", "ROI_VC", "voxel_x", "voxel_y", "voxel_z"]
        keys.append("image_index")
        table = np.full((len(keys), width), np.nan)
        table[[0, 1, 2], [0, 1, 2]] = 1
        table[3, 4 : 4 + voxels] = 1
        table[4, 5:8] = 1
        table[5, 4 : 4 + voxels] = 1
        table[6:9, 4 : 4 + voxels] = rng.normal(size=(3, voxels))
        table[9, 3] = 1
        with h5py.File(root / f"{subject}.h5", "w") as file:
            file[data] = values
            file[f"{meta}/key"] = np.array(keys, dtype="S")
            file[f"{meta}/description"] = np.array([f"what {key} says" for key in keys], dtype="S")
            file[f"{meta}/value"] = table
            file.create_group("vmap")


def god_legacy(root: Path) -> None:
    god(root, "dataSet", "metaData", "Label")


def bold5000(root: Path, suffix: str = ".npy") -> None:
    """CSI1 and CSI2: 10 images once, 3 repeated ones (rep_) three times; ten regions of 2 to 5 voxels."""
    rng = np.random.default_rng(5)
    once = [f"COCO_train2014_{number:012d}.jpg" for number in range(4)]
    once += [f"n0{number}443537_{number}.JPEG" for number in range(3)] + [f"airport{number}.jpg" for number in range(3)]
    repeated = ["rep_homeoffice1.jpg", "rep_n01930112_19568.JPEG", "rep_COCO_train2014_000000000099.jpg"]
    for number, name in enumerate(once + [name.removeprefix("rep_") for name in repeated]):
        kind = "COCO" if name.startswith("COCO") else "ImageNet" if name.startswith("n0") else "Scene"
        folder = root / "BOLD5000_Stimuli" / "Scene_Stimuli" / "Presented_Stimuli" / kind
        pixels = picture(rng)
        save(pixels if number else pixels[..., 0], folder / name)  # one photograph is grey
    betas = root / "BOLD5000_GLMsingle_ROI_betas" / ("py" if suffix == ".npy" else "mat")
    betas.mkdir(parents=True)
    for subject in ("CSI1", "CSI2"):
        names = rng.permutation(once + repeated * 3).tolist()
        distinct = once + repeated
        lists = root / "BOLD5000_Stimuli" / "Stimuli_Presentation_Lists" / subject
        lists.mkdir(parents=True)
        (lists / f"{subject}_imgnames.txt").write_text("\n".join(names) + "\n")
        regions = {}
        for side in ("LH", "RH"):
            for region in ("EarlyVis", "LOC", "OPA", "PPA", "RSC"):
                evoked = rng.normal(size=(len(distinct), rng.integers(2, 6)))[[distinct.index(name) for name in names]]
                regions[side + region] = evoked + 0.5 * rng.normal(size=evoked.shape)
                file = betas / f"{subject}_GLMbetas-TYPED-FITHRF-GLMDENOISE-RR_allses_{side}{region}{suffix}"
                if suffix == ".npy":
                    np.save(file, regions[side + region])
                elif suffix == ".mat":
                    scipy.io.savemat(file, {"betas": regions[side + region]})
        if suffix == "_ROIs_TR34.mat":
            scipy.io.savemat(betas / f"{subject}{suffix}", regions)
        if suffix == "_ROIs_TR34.h5":
            with h5py.File(betas / f"{subject}{suffix}", "w") as file:
                for region, values in regions.items():
                    file[region] = values


def bold5000_mat(root: Path) -> None:
    bold5000(root, ".mat")


def bold5000_tables(root: Path) -> None:
    bold5000(root, "_ROIs_TR34.mat")


def bold5000_hdf5(root: Path) -> None:
    bold5000(root, "_ROIs_TR34.h5")


def things(root: Path) -> None:
    """sub-01 and sub-03: 8 train images once, 3 test images 4 times, one catch trial; 9 and 6 voxels.

    The response table is what pandas writes with to_hdf: a block of floats and one of whole numbers, rows are voxels.
    """
    rng = np.random.default_rng(6)
    names = [f"{concept}_{number:02d}s.jpg" for concept in ("aardvark", "bus", "t-shirt") for number in range(1, 5)][
        :11
    ]
    for name in names:
        save(picture(rng, 10, 10), root / "images" / name.rsplit("_", 1)[0] / name)
    folder = root / "betas_csv"
    folder.mkdir()
    for subject, voxels in (("sub-01", 9), ("sub-03", 6)):
        shown = rng.permutation([*range(8), *[8, 9, 10] * 4])
        kinds = ["test" if image >= 8 else "train" for image in shown] + ["catch"]
        table = {
            "trial_type": kinds,
            "session": 1 + np.arange(len(kinds)) // 10,
            "run": 1 + np.arange(len(kinds)) // 5,
            "subject_id": 1,
            "trial_id": range(len(kinds)),
            "stimulus": [names[image] for image in shown] + ["catch_01.jpg"],
            "concept": [names[image].rsplit("_", 1)[0] for image in shown] + ["catch"],
        }
        pd.DataFrame(table).to_csv(folder / f"{subject}_StimulusMetadata.csv", index=False)
        early = rng.permutation(np.arange(voxels) < 3)
        table = {"voxel_id": range(voxels), "subject_id": 1, "voxel_x": rng.integers(0, 70, voxels)}
        table |= {"voxel_y": rng.integers(0, 90, voxels), "voxel_z": rng.integers(0, 60, voxels)}
        table |= {"nc_singletrial": rng.uniform(0, 40, voxels), "nc_testset": rng.uniform(40, 90, voxels)}
        table |= {"splithalf_uncorrected": rng.random(voxels), "splithalf_corrected": rng.random(voxels)}
        table |= {"prf-eccentricity": rng.random(voxels), "prf-polarangle": rng.random(voxels)}
        table |= {"prf-rsquared": rng.random(voxels), "prf-size": rng.random(voxels)}
        table |= {"V1": early.astype(int), "LO1 (prf)": (~early).astype(int), "lFFA": (~early).astype(int)}
        table |= {"glasser-V1": early.astype(float)}
        pd.DataFrame(table).to_csv(folder / f"{subject}_VoxelMetadata.csv", index=False)
        labels = rng.permutation(len(kinds))  # columns in another order than the table of trials
        with h5py.File(folder / f"{subject}_ResponseData.h5", "w") as file:
            group = file.create_group("ResponseData")
            group.attrs["pandas_type"], group.attrs["nblocks"] = np.bytes_("frame"), 2
            group["axis0"] = np.array(["voxel_id", *map(str, labels)], dtype="S")
            group["axis1"] = np.arange(voxels)
            group["block0_items"] = np.array([str(label) for label in labels], dtype="S")
            group["block0_values"] = rng.normal(size=(voxels, len(labels)))
            group["block0_values"].attrs["transposed"] = True
            group["block1_items"] = np.array(["voxel_id"], dtype="S")
            group["block1_values"] = np.arange(voxels)[:, None]


# left is right, and y and z are exchanged
AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 2.5, -30], [0, 3.0, 0, 7], [0, 0, 0, 1]])


def volume(array: np.ndarray, file: Path, affine: np.ndarray = AFFINE) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), file)


def table(root: Path) -> None:
    """trials.tsv of subjects 01 and 02 in four sessions of 4 trials, in 2 runs each; 12 images, 5 of them seen by both.

    The table mixes the sessions. Betas of subject 02 are scaled int16. Images lie in folders of animals and things.
    """
    rng = np.random.default_rng(8)
    images = [f"{kind}/{kind}_{number}.png" for kind in ("animals", "things") for number in range(6)]
    for image in images:
        save(picture(rng), root / "images" / image)
    shown = {"01": [*images[:9], *images[:7]], "02": [*images[4:], *images[4:]]}
    rows = [
        {"subject": name, "session": 1 + number // 4, "run": 1 + number % 4 // 2, "image": image}
        for name, seen in shown.items()
        for number, image in enumerate(seen)
    ]
    trials = pd.DataFrame(rows).iloc[rng.permutation(len(rows))]
    trials.to_csv(root / "trials.tsv", sep="\t", index=False)
    grid = (4, 3, 5)
    for name in shown:
        for session in range(1, 5):
            file = root / "betas" / f"{name}_{session}_betas.nii.gz"
            if name == "01":
                volume(rng.normal(size=(*grid, 4)).astype(np.float32), file)
            else:
                image = nibabel.Nifti1Image(rng.integers(-900, 900, (*grid, 4), dtype=np.int16), AFFINE)
                image.header.set_slope_inter(1 / 300, 0.5)
                nibabel.save(image, file)
        volume((rng.random(grid) < 0.4).astype(np.uint8), root / "masks" / f"sub-{name}_mask.nii.gz")
        volume(rng.integers(0, 4, grid, dtype=np.int16), root / "rois" / f"sub-{name}_regions.nii.gz")
        volume(rng.random(grid).astype(np.float32), root / "ceilings" / f"sub-{name}_ceiling.nii.gz")
    (root / "rois" / "regions.tsv").write_text("index\tname\n1\tV1\n2\tV2\n3\tFFA\n")


def table_of_arrays(root: Path) -> None:
    """trials.csv of one subject, whose four sessions of 3 trials are .npy, .npz, .h5 and .mat; no mask."""
    rng = np.random.default_rng(9)
    (root / "betas").mkdir()
    rows = []
    for number, kind in enumerate(("npy", "npz", "h5", "mat")):
        values = rng.normal(size=(3, 7)).astype(np.float32)
        file = root / "betas" / f"session.{kind}"
        if kind == "npy":
            np.save(file, values)
        elif kind == "npz":
            np.savez(file, fmri=values)
        elif kind == "mat":
            scipy.io.savemat(file, {"fmri": values})
        else:
            with h5py.File(file, "w") as opened:
                opened["fmri"] = values
        for trial in range(3):
            image = f"{(2 * number + trial) % 8}.jpg"
            save(picture(rng), root / "images" / image)
            rows.append({"participant": 7, "kind": kind, "picture": image})
    pd.DataFrame(rows).to_csv(root / "trials.csv", index=False)


def bids(root: Path) -> None:
    """Derivatives of sub-01 and sub-02 in two sessions of 5 trials, with trials.tsv beside the single-trial betas."""
    rng = np.random.default_rng(10)
    images = [f"shared_{number:02d}" for number in range(7)]
    for image in images:
        save(picture(rng), root / "stimuli" / f"{image}.jpg")
    brain = np.zeros((3, 4, 3), dtype=bool)
    brain[1:, 1:3] = True
    for name in ("sub-01", "sub-02"):
        for session in ("ses-01", "ses-02"):
            start = f"{name}_{session}_task-images"
            folder = root / "derivatives" / name / session / "func"
            values = np.where(brain[..., None], rng.normal(size=(*brain.shape, 5)), 0).astype(np.float32)
            volume(values, folder / f"{start}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz")
            volume(values[..., 0], folder / f"{start}_space-T1w_desc-Noiseceiling_statmap.nii.gz")
            trials = pd.DataFrame({"session": session, "run": [1, 1, 1, 2, 2], "label": rng.permutation(images)[:5]})
            trials.to_csv(folder / f"{start}_desc-SingletrialBetas_trials.tsv", sep="\t", index=False)


def laion_fmri(root: Path) -> None:
    """sub-01 with sessions 1 and 3, sub-03 with session 1; 9 trials of 6 images a session, two of them shared.

    A region of 5 x 4 x 6 voxels and another that overlaps it; some voxels are NaN in a session. A PNG is transparent.
    """
    rng = np.random.default_rng(7)
    shared = ["shared_12rep_LAION_cluster_1003_i0.jpg", "shared_4rep_OOD_cropped_apple.png"]
    own = {
        name: [f"unique_LAION_initial_cluster_{name[-1]}{n}_i1.jpg" for n in range(4)] for name in ("sub-01", "sub-03")
    }
    images = [*own["sub-03"], *shared, *own["sub-01"], "unique_LAION_nobody_i0.jpg"]
    (root / "stimuli").mkdir()
    with h5py.File(root / "stimuli" / "task-images_stimuli.h5", "w") as file:
        encoded = file.create_dataset("images", (len(images),), h5py.vlen_dtype(np.uint8))
        for row, name in enumerate(images):
            buffer = io.BytesIO()
            if name.endswith(".png"):
                Picture.fromarray(np.dstack([picture(rng), picture(rng)[..., :1]])).save(buffer, "PNG")
            else:
                Picture.fromarray(picture(rng)).save(buffer, "JPEG")
            encoded[row] = np.frombuffer(buffer.getvalue(), np.uint8)
    kinds = ["shared" if name.startswith("shared_") else "unique" for name in images]
    table = {"image_name": images, "dataset": "LAION", "unique_or_shared": kinds, "n_reps": 4}
    pd.DataFrame(table).to_csv(root / "stimuli" / "task-images_metadata.csv", index=False)
    for name, sessions in (("sub-01", ("ses-01", "ses-03")), ("sub-03", ("ses-01",))):
        for session in sessions:
            folder = root / "derivatives" / "glmsingle-tedana" / name / session / "func"
            folder.mkdir(parents=True)
            shown = rng.permutation([*own[name], *shared, *shared, own[name][0]])
            evoked = np.stack([np.random.default_rng(list(one.encode())).normal(size=(5, 4, 6)) for one in shown], -1)
            betas = (evoked + rng.normal(size=evoked.shape)).astype(np.float32)
            betas[:, :, 0 if session == "ses-01" else 1] = np.nan
            start = f"{name}_{session}_task-images"
            nifti(betas, folder / f"{start}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz")
            trials = pd.DataFrame({"session": session, "run": 1, "beta_index": range(len(shown)), "label": shown})
            trials.to_csv(folder / f"{start}_desc-SingletrialBetas_trials.tsv", sep="\t", index=False)
        for kind, region in (("retinotopy", "V1v"), ("laion", "laiongeneral")):
            folder = root / "derivatives" / "rois" / name / kind
            folder.mkdir(parents=True)
            start = f"{name}_space-T1w_res"
            nifti((rng.random((5, 4, 6)) < 0.5).astype(np.uint8), folder / f"{start}-1pt8_label-{region}_mask.nii.gz")
            nifti(np.ones((6, 5, 7), np.uint8), folder / f"{start}-1pt5_label-{region}_mask.nii.gz")


def mosaic(root: Path, left: int = 29696, right: int = 29716, below: int = 31870) -> None:
    """sub-01_GOD and sub-02_BOLD5000: 3 train images once, 2 test images three times; each trial has some NaN."""
    rng = np.random.default_rng(8)
    names = [
        "n01443537_22563.JPEG",
        "COCO_train2014_000000000009.jpg",
        "airport_1.png",
        "n01518878_8432.JPEG",
        "ash.jpg",
    ]
    for name in names:
        save(picture(rng), root / "stimuli" / name)
    for subject, ending in (("sub-01_GOD", ""), ("sub-02_BOLD5000", "_crc32-0a1b2c3d")):
        with h5py.File(root / f"{subject}{ending}.hdf5", "w", track_order=True) as file:
            file.attrs["subjectID"] = subject[:6]
            ceilings = file.create_group("noiseceilings")
            ceilings[f"{subject}_phase-test_n-1_noiseceiling"] = rng.uniform(0, 90, left + right + below)
            betas = file.create_group("betas", track_order=True)
            for number in rng.permutation([0, 1, 2, 3, 4]):
                phase = "test" if number > 2 else "train"
                for repeat in range(3 if phase == "test" else 1):
                    values = rng.normal(size=left + right + below)
                    empty = np.flatnonzero(rng.random(len(values)) < 0.02)
                    values[empty] = np.nan
                    stem = names[number].rsplit(".", 1)[0]
                    trial = betas.create_dataset(f"{subject}_stimulus-{stem}_phase-{phase}_rep-{repeat}", data=values)
                    trial.attrs["nan_indices"] = empty
                    trial.attrs["presented_stimulus_filename"] = names[number]


def mosaic_small(root: Path) -> None:
    mosaic(root, 7, 6, 3)


def tvsd(root: Path) -> None:
    """monkeyF and monkeyN: 12 train images once, 3 test images in 4 repeats; 1,024 electrodes, of which one is dead."""
    rng = np.random.default_rng(9)
    concepts = ("aardvark", "bus", "t-shirt", "dog", "pie")
    names = [f"{concept}\\{concept}_{n:02d}b.jpg" for concept in concepts for n in range(1, 4)]
    for name in names:
        save(picture(rng), root / "object_images" / Path(*name.split("\\")))
    shown = rng.permutation(names)
    for monkey in ("monkeyF", "monkeyN"):
        (root / monkey / "_logs").mkdir(parents=True)
        repeats = rng.normal(size=(1024, 3, 1)) + rng.normal(size=(1024, 3, 4))  # as MATLAB has them
        train = rng.normal(size=(1024, 12))
        train[77, 2] = np.nan
        with h5py.File(root / monkey / "THINGS_normMUA.mat", "w", userblock_size=512) as file:
            arrays = {"train_MUA": train, "test_MUA": repeats.mean(2), "test_MUA_reps": repeats}
            arrays |= {"SNR": rng.random((1024, 4)), "oracle": rng.random((1, 1024)), "reliab": rng.random((1024, 6))}
            for key, array in arrays.items():
                file[key] = array.T
                file[key].attrs["MATLAB_class"] = np.bytes_("double")
        with h5py.File(root / monkey / "_logs" / "things_imgs.mat", "w", userblock_size=512) as file:
            for key, images in (("train_imgs", shown[:12]), ("test_imgs", shown[12:])):
                group = file.create_group(key)
                group.attrs["MATLAB_class"] = np.bytes_("struct")
                for field in ("class", "things_path"):
                    texts = [image.split("\\")[0] if field == "class" else image for image in images]
                    cells = [matlab_text(file, text) for text in texts]
                    group.create_dataset(field, (len(cells), 1), h5py.ref_dtype)[:, 0] = cells


def matlab_text(file: h5py.File, text: str) -> h5py.Reference:
    cells = file.require_group("#refs#")
    cell = cells.create_dataset(f"c{len(cells)}", data=np.array([[ord(letter)] for letter in text], np.uint16))
    cell.attrs["MATLAB_class"] = np.bytes_("char")
    return cell.ref


def put(file: h5py.File, name: str, value) -> h5py.HLObject:
    """One MATLAB value as v7.3 stores it: structs are groups, cells are references, arrays have their axes reversed."""
    if isinstance(value, dict):
        group = file.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for field, inner in value.items():
            put(file, f"{name}/{field}", inner)
        return group
    if isinstance(value, np.ndarray) and value.dtype == object:
        cells = file.create_dataset(name, value.shape[::-1], dtype=h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_("cell")
        for place, inner in np.ndenumerate(value):
            number = len(file.require_group("#refs#"))
            cells[place[::-1]] = put(file, f"#refs#/{number}", inner).ref
        return cells
    if isinstance(value, str):
        stored = file.create_dataset(name, data=np.array([[ord(letter)] for letter in value], np.uint16))
        stored.attrs["MATLAB_class"] = np.bytes_("char")
        return stored
    return file.create_dataset(name, data=np.asarray(value).T)


def seven(path: Path, **values) -> None:
    """A .mat file as MATLAB writes it since v7.3: HDF5 with a user block."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in values.items():
            put(file, name, value)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def five(path: Path, **values) -> None:
    """A .mat file before v7.3."""
    scipy.io.savemat(path, values)


def cells(*values, shape=None) -> np.ndarray:
    """A cell array, filled down its columns as MATLAB counts."""
    array = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        array[number] = value
    return array.reshape(shape or (1, -1), order="F")
