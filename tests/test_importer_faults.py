"""Sources that were paired wrongly, cut short or refused though they are right."""

import h5py
import layouts
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from datasets import load_from_disk
from layouts import cells, five, nifti, seven
from PIL import Image
from sources import of, prepare, rows_of

from visionflow_hf.cli import main
from visionflow_hf.corpus.array_files import read_arrays
from visionflow_hf.corpus.schema import read_corpus
from visionflow_hf.errors import UserError

RNG = np.random.default_rng(0)
BOTH = ("--images", "images", "--fmri", "fmri")


def pictures(number: int) -> np.ndarray:
    return RNG.integers(0, 256, (number, 8, 9), dtype=np.uint8)


def table(folder, rows: pd.DataFrame, *flags) -> int:
    """`prepare table` of some rows, whose images are made."""
    (folder / "images").mkdir(exist_ok=True)
    for name in set(rows["image"]):
        Image.fromarray(pictures(1)[0]).save(folder / "images" / name)
    rows.assign(subject="s1").to_csv(folder / "trials.csv", index=False)
    words = ["prepare", "table", folder / "trials.csv", folder / "out", "--images-folder", folder / "images", *flags]
    return main([str(word) for word in words])


def paired(out) -> dict[str, float]:
    """The response of the first voxel to each stimulus."""
    return {row["stimulus_id"]: row["fmri"][0] for split in load_from_disk(str(out)).values() for row in split}


def test_files_in_the_order_of_a_shell_with_two_numbers(tmp_path, refused):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(24)]})
    files = [tmp_path / f"ses-{session}_run-{run}.npy" for session in (1, 2) for run in range(1, 13)]
    for place, file in enumerate(files):
        np.save(file, RNG.normal(size=(1, 4)) + place)
    complaint = "ses-1_run-10.npy where .*ses-1_run-2.npy is expected by number"
    refused(lambda: table(tmp_path, rows, "--betas", *sorted(files, key=str)), complaint)
    assert table(tmp_path, rows, "--betas", *files) == 0


@pytest.mark.parametrize("write", [five, seven])
def test_cells_of_a_table_go_down_its_columns(tmp_path, write):
    images, responses = pictures(6), RNG.normal(size=(6, 5))
    write(tmp_path / "d.mat", images=cells(*images, shape=(2, 3)), fmri=responses, n=cells(*"abcdef", shape=(2, 3)))
    assert prepare("arrays", tmp_path / "d.mat", tmp_path / "out", *BOTH, "--stimulus-ids", "n") == 0
    for (_, name, _), (_, pixels, fmri) in rows_of(tmp_path / "out").items():
        place = "abcdef".index(name)
        assert np.array_equal(pixels, images[place]) and np.allclose(fmri, responses[place])


@pytest.mark.parametrize("write", [five, seven])
def test_no_table_is_a_vector(tmp_path, refused, write):
    file = tmp_path / "d.mat"
    write(
        file,
        images=pictures(12),
        fmri=RNG.normal(size=(12, 24)),
        ids=np.arange(12.0).reshape(4, 3),
        nc=np.zeros((2, 3, 4)),
    )
    for flags, key in (("--stimulus-ids", "ids"), "ids"), (("--noise-ceiling", "nc"), "nc"), (("--rois", "nc"), "nc"):
        refused(
            lambda flags=flags: prepare("arrays", file, tmp_path / "out", *BOTH, *flags),
            rf"{key} has shape \(.*\): a vector is expected",
        )


def test_a_sparse_matrix_of_v73_is_read_densely(tmp_path):
    dense = np.where(RNG.random((12, 7)) < 0.4, RNG.normal(size=(12, 7)), 0)
    parts = scipy.sparse.csc_matrix(dense)
    seven(tmp_path / "d.mat", fmri={"data": parts.data, "ir": parts.indices, "jc": parts.indptr})
    with h5py.File(tmp_path / "d.mat", "r+") as file:
        file["fmri"].attrs["MATLAB_sparse"] = np.uint64(12)
    assert np.array_equal(read_arrays(tmp_path / "d.mat", ["fmri"])["fmri"], dense)


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_a_row_with_more_fields_than_the_header(tmp_path, refused, suffix):
    (tmp_path / "images").mkdir()
    for number in range(1, 7):
        Image.fromarray(pictures(1)[0]).save(tmp_path / "images" / f"{number}.png")
    np.save(tmp_path / "b.npy", RNG.normal(size=(6, 3)))
    separator = "\t" if suffix == ".tsv" else ","
    lines = [f"image{separator}subject", *(f"{row}{separator}{7 - row}.png{separator}s1" for row in range(1, 7))]
    (tmp_path / f"t{suffix}").write_text("\n".join(lines))
    flags = ("--images-folder", tmp_path / "images", "--betas", tmp_path / "b.npy")
    refused(lambda: prepare("table", tmp_path / f"t{suffix}", tmp_path / "out", *flags), "Expected 2 fields .* saw 3")
    (tmp_path / f"t{suffix}").write_text(f"image{separator}image\n1.png{separator}2.png\n")
    refused(lambda: prepare("table", tmp_path / f"t{suffix}", tmp_path / "out", *flags), "two columns of one name")


def test_a_table_with_a_byte_order_mark(tmp_path):
    rows = pd.DataFrame({"image": [f"i{number}.png" for number in range(12)], "subject": "s1"})
    np.save(tmp_path / "b.npy", RNG.normal(size=(12, 3)))
    assert table(tmp_path, rows, "--betas", tmp_path / "b.npy") == 0
    rows.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    flags = ("--images-folder", tmp_path / "images", "--betas", tmp_path / "b.npy")
    assert prepare("table", tmp_path / "bom.csv", tmp_path / "bom", *flags) == 0


def test_ceilings_just_above_one_are_no_percent(tmp_path, refused):
    given = {"images": pictures(20), "fmri": RNG.normal(size=(20, 4))}
    flags = (*BOTH, "--noise-ceiling", "nc")
    np.savez(tmp_path / "a.npz", nc=np.array([0.2, 0.5, 0.9, 1.0000001]), **given)
    assert prepare("arrays", tmp_path / "a.npz", tmp_path / "out", *flags) == 0
    assert np.allclose(read_corpus(tmp_path / "out").voxels["noise_ceiling"], [0.2, 0.5, 0.9, 1])
    np.savez(tmp_path / "b.npz", nc=np.array([0.2, 0.5, 0.9, 1.02]), **given)
    refused(lambda: prepare("arrays", tmp_path / "b.npz", tmp_path / "o", *flags), "too much for shares of a variance")


@of("algonauts_processed")
def test_what_datasets_has_cached_beside_the_shards_is_no_data(source, tmp_path):
    assert prepare("algonauts23", source, tmp_path / "before") == 0
    shard = next((source / "processed" / "size-256" / "train").glob("*.arrow"))
    for name in ("cache-0123456789abcdef.arrow", "._data-00000-of-00002.arrow"):
        (shard.parent / name).write_bytes(shard.read_bytes())
    assert prepare("algonauts23", source, tmp_path / "after") == 0
    assert rows_of(tmp_path / "before").keys() == rows_of(tmp_path / "after").keys()


@of("algonauts_challenge")
def test_a_subject_without_its_images_is_left_out(source, tmp_path, capsys):
    subjects = sorted(folder.name for folder in source.iterdir() if folder.is_dir())
    for file in (source / subjects[0] / "training_split" / "training_images").glob("*.png"):
        file.unlink()
    if len(subjects) > 1:
        assert prepare("algonauts23", source, tmp_path / "out") == 0
        assert f"{subjects[0]}: left out" in capsys.readouterr().out
        assert set(read_corpus(tmp_path / "out").subjects) == set(subjects[1:])


@of("laion_fmri")
def test_images_out_of_the_distribution_are_test_and_sessions_are_known(source, tmp_path):
    for file in [*source.rglob("*.csv"), *source.rglob("*trials.tsv")]:
        file.write_text(file.read_text().replace("shared_4rep_OOD_cropped_apple", "ood_cropped_apple"))
    assert prepare("laion-fmri", source, tmp_path / "out") == 0
    splits = load_from_disk(tmp_path / "out")
    assert "ood_cropped_apple" in splits["test"]["stimulus_id"][:]
    assert set(splits["train"]["session"]) == {"ses-01", "ses-03"}


def test_the_rows_of_a_bids_table_may_be_in_another_order_than_the_betas(tmp_path):
    layouts.bids(tmp_path)
    flags = ("--images-folder", tmp_path / "stimuli", "--image-column", "label")
    tables = sorted(tmp_path.rglob("*_trials.tsv"))
    for file in tables:
        rows = pd.read_csv(file, sep="\t")
        rows.assign(beta_index=range(len(rows))).to_csv(file, sep="\t", index=False)
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")  # as macOS leaves it beside files
    assert prepare("table", tmp_path / "derivatives", tmp_path / "sorted", *flags) == 0
    for file in tables:
        pd.read_csv(file, sep="\t").sample(frac=1, random_state=1).to_csv(file, sep="\t", index=False)
    assert prepare("table", tmp_path / "derivatives", tmp_path / "shuffled", *flags) == 0
    before, after = (
        {key[:2]: row[2][0] for key, row in rows_of(tmp_path / out).items() if key[2] == 0}
        for out in ("sorted", "shuffled")
    )
    assert before == after


def test_betas_of_voxels_in_no_grid_as_glmsingle_saves_them(tmp_path):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(20)]})
    responses = RNG.normal(size=(8, 1, 1, 20)).astype(np.float32)
    np.save(tmp_path / "b.npy", responses)
    np.save(tmp_path / "c.npy", np.linspace(0, 0.7, 8))
    assert table(tmp_path, rows, "--betas", tmp_path / "b.npy", "--noise-ceiling", tmp_path / "c.npy") == 0
    assert paired(tmp_path / "out") == {f"i{number:02d}.png": responses[0, 0, 0, number] for number in range(20)}
    assert (
        "place" not in read_corpus(tmp_path / "out").voxels
        or read_corpus(tmp_path / "out").voxels["place"].isna().all()
    )


@pytest.mark.parametrize("write", [five, seven])
def test_columns_of_a_mat_file_follow_the_mask_as_in_matlab(tmp_path, write):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(20)]})
    inside = RNG.random((3, 2, 4)) < 0.6
    nifti(inside[..., None].astype(np.uint8), tmp_path / "mask.nii.gz")  # one volume with a fourth axis
    ceiling = RNG.random((3, 2, 4)).astype(np.float32) / 2
    nifti(ceiling, tmp_path / "ceiling.nii.gz")
    write(tmp_path / "b.mat", betas=RNG.normal(size=(20, inside.sum())))
    flags = ("--mask", tmp_path / "mask.nii.gz", "--noise-ceiling", tmp_path / "ceiling.nii.gz")
    assert table(tmp_path, rows, "--betas", tmp_path / "b.mat", *flags) == 0
    voxels = read_corpus(tmp_path / "out").voxels
    assert np.allclose(voxels["noise_ceiling"], ceiling.ravel("F")[inside.ravel("F")])
    np.save(tmp_path / "mask.npy", inside)


def test_a_mask_that_is_no_nifti(tmp_path, refused):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(20)]})
    nifti(RNG.normal(size=(3, 2, 4, 20)).astype(np.float32), tmp_path / "b.nii.gz")
    np.save(tmp_path / "mask.npy", np.ones((3, 2, 4)))
    flags = ("--betas", tmp_path / "b.nii.gz", "--mask", tmp_path / "mask.npy")
    refused(lambda: table(tmp_path, rows, *flags), "mask.npy is no NIfTI file: a .nii or .nii.gz volume")


@of("god")
def test_foreign_files_beside_the_subjects(source, tmp_path, capsys):
    with h5py.File(source / "ImageFeatures.h5", "w") as file:
        file["features"] = np.zeros(3)
    (source / "._Subject1.h5").write_bytes(b"\0\5\x16\7")
    first = next((source / "images" / "training").iterdir())
    (source / "copy").mkdir()
    (source / "copy" / first.name).write_bytes(first.read_bytes())
    assert prepare("god", source, tmp_path / "out") == 0
    assert "ImageFeatures.h5: left out, it has no" in capsys.readouterr().out
    rows = load_from_disk(tmp_path / "out")["train"]
    assert all(row["category"] == row["stimulus_id"].split("_")[0] for row in rows)


@of("things")
def test_sessions_and_categories_of_things(source, tmp_path):
    assert prepare("things", source, tmp_path / "out", "--split-by", "category", "--test-fraction", 0.3) == 0
    assert "categories of the source" in read_corpus(tmp_path / "out").split_by
    rows = load_from_disk(tmp_path / "out")["train"]
    assert set(rows["session"]) <= {"1", "2"}
    assert all(row["category"] == row["stimulus_id"].rsplit("_", 1)[0] for row in rows)


@of("things")
def test_a_trial_of_things_without_its_session_is_refused(source, tmp_path, refused):
    file = source / "betas_csv" / "sub-03_StimulusMetadata.csv"
    trials = pd.read_csv(file, dtype=object)
    trials.loc[2, "session"] = None
    trials.to_csv(file, index=False)
    refused(
        lambda: prepare("things", source, tmp_path / "out"), "sub-03_StimulusMetadata.csv has no session for 1 trials"
    )
    assert not (tmp_path / "out").exists()


@of("tvsd")
def test_a_trial_without_values_is_left_out_not_all_electrodes(source, tmp_path, capsys):
    with h5py.File(source / "monkeyF" / "THINGS_normMUA.mat", "r+") as file:
        file["test_MUA_reps"][2, 1] = np.nan
    assert prepare("tvsd", source, tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "monkeyF: 1 trials left out, without a value at any electrode" in said
    corpus = read_corpus(tmp_path / "out")
    assert corpus.subjects == {"monkeyF": 1023, "monkeyN": 1023}
    assert len(corpus.splits["test"]) == 11 + 12


def test_a_session_split_leaves_each_subject_trials_to_train_on(tmp_path, refused):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(30)]})
    np.save(tmp_path / "b.npy", RNG.normal(size=(30, 3)))
    assert table(tmp_path, rows, "--betas", tmp_path / "b.npy") == 0  # makes the images
    sessions, subjects = ["1"] * 10 + ["2"] * 10 + ["3"] * 10, ["a"] * 20 + ["b"] * 10
    rows.assign(session=sessions, subject=subjects).to_csv(tmp_path / "t.csv", index=False)
    for subject, own in (("a", slice(20)), ("b", slice(20, 30))):
        np.save(tmp_path / f"{subject}.npy", RNG.normal(size=(30, 3))[own])
    flags = ("--images-folder", tmp_path / "images", "--betas", tmp_path / "{subject}.npy", "--split-by", "session")
    ends = {}
    for seed in range(8):
        ends[seed] = prepare("table", tmp_path / "t.csv", tmp_path / f"o{seed}", *flags, "--seed", seed)
    assert set(ends.values()) == {0, 2}
    failed = next(seed for seed, code in ends.items() if code)
    refused(
        lambda: prepare("table", tmp_path / "t.csv", tmp_path / "x", *flags, "--seed", failed),
        "b would have no trial in train: give another --seed",
    )


def test_repeats_of_a_session_split_count_from_zero(tmp_path):
    rows = pd.DataFrame({"image": [f"i{number:02d}.png" for number in range(10)] * 4})
    rows["session"] = np.repeat(["1", "2", "3", "4"], 10)
    rows.loc[30:34, "image"] = [f"n{number}.png" for number in range(5)]
    rows.loc[35:, "image"] = "i00.png"
    np.save(tmp_path / "b.npy", RNG.normal(size=(40, 3)))
    written = 0
    for seed in range(4):
        flags = ("--betas", tmp_path / "b.npy", "--split-by", "session", "--test-fraction", 0.25, "--seed", seed)
        if table(tmp_path, rows, *flags, "--overwrite"):
            continue
        written += 1
        found: dict[str, list[int]] = {}
        for split in load_from_disk(tmp_path / "out").values():
            for stimulus, repeat in zip(split["stimulus_id"], split["repeat"], strict=True):
                found.setdefault(stimulus, []).append(repeat)
        assert all(sorted(repeats) == list(range(len(repeats))) for repeats in found.values())
    assert written > 1


def test_trials_last_in_one_array_alone(tmp_path, refused):
    for images, fmri, which in (
        ((8, 9, 3, 20), (20, 5), "images"),
        ((20, 8, 9), (5, 20), "fmri"),
        ((72, 20), (20, 5), "images"),
    ):
        np.savez(tmp_path / "d.npz", images=RNG.integers(0, 256, images, dtype=np.uint8), fmri=RNG.normal(size=fmri))
        refused(
            lambda: prepare("arrays", tmp_path / "d.npz", tmp_path / "out", *BOTH, "--image-shape", 8, 9),
            f"the last one does with 20 of {which}, so transpose the array",
        )


def test_a_damaged_sparse_matrix_is_one_line(tmp_path):
    seven(tmp_path / "d.mat", fmri={"data": np.ones(3), "ir": np.array([0, 1, 99]), "jc": np.array([0, 1, 3])})
    with h5py.File(tmp_path / "d.mat", "r+") as file:
        file["fmri"].attrs["MATLAB_sparse"] = np.uint64(12)
    with pytest.raises(UserError, match=r"d.mat cannot be read"):
        read_arrays(tmp_path / "d.mat", ["fmri"])
