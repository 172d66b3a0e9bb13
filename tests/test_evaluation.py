"""Reports: metrics.json recomputed from predictions.npz by other means, baselines, pictures, folds, refusals."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import FOLDS, ROOT
from datasets import Dataset, load_from_disk
from PIL import Image
from sklearn.linear_model import Ridge

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.corpus.splits import stimulus_folds
from visionflow_hf.crossvalidate import check_folds, in_colour, without_groups
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.evaluate import losses_of, warn_of_units
from visionflow_hf.evaluation.predictions import (
    concatenate,
    decode_fmri,
    encode_images,
    owner,
    subjects_with_repeats,
)
from visionflow_hf.evaluation.report import write_report
from visionflow_hf.evaluation.scores import _mean, score
from visionflow_hf.hub import load_model, training_of


def read(folder):
    with np.load(folder / "predictions.npz") as arrays:
        return json.loads((folder / "metrics.json").read_text()), dict(arrays)


def test_the_report_is_complete(report):
    metrics, arrays = read(report)
    assert (metrics["split"], metrics["n_stimuli"], metrics["n_trials"]) == ("test", 4, 24)
    decoding = {"pixcorr", "ssim", "mse", "two_way", "top1", "top5"}
    reachable = {"voxel_r_mean", "voxel_r_median", "r2_median"}
    encoding = reachable | {"ceiling_normalised", "pattern_r"}
    blocks = [metrics, metrics["single_trial"], *metrics["subjects"].values()]
    blocks += [subject["single_trial"] for subject in metrics["subjects"].values()]
    for block in blocks:
        assert set(block["decoding"]) == {"model", "ridge", "nearest", "mean_image"}
        assert all(set(figures) == decoding for figures in block["decoding"].values())
        assert set(block["encoding"]) == {"model", "ridge", "nearest", "noise_ceiling"}
        for name, figures in block["encoding"].items():
            assert set(figures) == (reachable | {"share_measurable"} if name == "noise_ceiling" else encoding)
        assert block["encoding"]["noise_ceiling"]["share_measurable"] == 1  # the simulator draws them from .05 to .5
        retrieved = {f"retrieval_{ranked}_{k}" for ranked in ("image", "fmri") for k in ("top1", "top5", "top1_of_300")}
        assert set(block["latent"]) == {"cosine", *retrieved}
    assert metrics["decoding"]["mean_image"]["two_way"] == 0.5
    assert arrays["image"].dtype == arrays["reconstruction"].dtype == np.uint8
    assert arrays["fmri/subj01"].shape == arrays["fmri_predicted/subj01"].shape == (4, 30)
    assert {file.name for file in report.iterdir()} == {
        "metrics.json",
        "predictions.npz",
        "report.html",
        "reconstructions.png",
        "voxel_r.png",
        "losses.png",
    }
    for picture in report.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 20  # something is drawn


def test_the_arrays_are_what_model_and_corpus_give(report, run, corpus):
    _, arrays = read(report)
    model, processor = load_model(run)
    test = open_corpus(corpus).splits["test"]
    trials = responses_of(test, "subj02")
    rows = arrays["subject"] == "subj02"
    names = arrays["stimulus_id"][rows].tolist()
    averages = np.stack([trials.fmri[np.array(trials.stimulus_ids) == name].mean(0) for name in names])
    np.testing.assert_allclose(arrays["fmri/subj02"], averages, atol=1e-5)
    pictures = images_of(test, names)
    assert np.array_equal(arrays["image"][rows], np.stack([np.asarray(picture) for picture in pictures]))
    predicted, _ = encode_images(model, processor, pictures, "subj02")
    np.testing.assert_allclose(arrays["fmri_predicted/subj02"], predicted, atol=1e-5)
    images, _ = decode_fmri(model, processor, averages, "subj02", (16, 16))
    assert np.abs(arrays["reconstruction"][rows].astype(int) - images).max() <= 1
    round_trip, _ = decode_fmri(model, processor, predicted, "subj02", (16, 16), refine=0)
    assert np.abs(arrays["round_trip/reconstruction"][rows].astype(int) - round_trip).max() <= 1


def test_the_baselines_see_the_train_split_alone(report, corpus):
    _, arrays = read(report)
    train = open_corpus(corpus).splits["train"]
    seen = responses_of(train, "subj01")
    stack = np.stack([np.asarray(image) for image in images_of(train, seen.stimulus_ids)]) / 255
    mean = arrays["mean_image/reconstruction"]
    assert np.abs(mean[0] - stack.mean(0) * 255).max() <= 0.51 and (mean == mean[0]).all()
    standard = (seen.fmri - seen.fmri.mean(0)) / seen.fmri.std(0)
    held_out = (arrays["fmri/subj01"] - seen.fmri.mean(0)) / seen.fmri.std(0)
    pixels = stack.reshape(len(stack), -1)
    ridge = arrays["ridge/reconstruction"][arrays["subject"] == "subj01"].reshape(4, -1) / 255
    closest = min(
        np.abs(Ridge(alpha).fit(standard, pixels).predict(held_out).clip(0, 1) - ridge).max()
        for alpha in np.logspace(-5, 2, 15) * 30  # 30 voxels of variance 1
    )
    assert closest < 0.005
    names = list(dict.fromkeys(seen.stimulus_ids))
    average = np.stack([standard[np.array(seen.stimulus_ids) == name].mean(0) for name in names])
    nearest = arrays["nearest/reconstruction"][arrays["subject"] == "subj01"]
    for response, image in zip(held_out, nearest, strict=True):
        most_alike = names[np.argmax([np.corrcoef(response, other)[0, 1] for other in average])]
        assert np.array_equal(image, np.asarray(images_of(train, [most_alike])[0]))
    for image, response in zip(arrays["image"], arrays["nearest/fmri_predicted/subj01"], strict=False):
        r = [np.corrcoef(image.ravel(), stack[seen.stimulus_ids.index(name)].ravel())[0, 1] for name in names]
        expected = average[np.argmax(r)] * seen.fmri.std(0) + seen.fmri.mean(0)
        np.testing.assert_allclose(response, expected, atol=1e-4)


def test_evaluate_refuses_what_does_not_fit(run, corpus, colour_corpus, report, tmp_path, refused):
    out = tmp_path / "out"

    def evaluate(run, corpus, *flags):
        return main(["evaluate", str(run), str(corpus), str(out), *flags])

    refused(lambda: evaluate(run, colour_corpus), "unknown subject ann: this model knows subj01, subj02")
    refused(lambda: evaluate(run, corpus, "--split", "val"), "has no split val: it has train, test")
    refused(lambda: evaluate(tmp_path / "absent", corpus), "absent is no model folder")
    refused(lambda: main(["evaluate", str(run), str(corpus), str(report)]), "pass --overwrite")
    flags = ["--stimuli", "40", "--voxels", "29", "--image-size", "16"]
    assert main(["simulate", str(tmp_path / "fewer"), *flags]) == 0
    refused(lambda: evaluate(run, tmp_path / "fewer"), "subj01 has 29 voxels in the corpus and 30 in the model")
    assert not out.exists()


def test_a_subject_that_train_lacks_gets_no_baseline(run, corpus, tmp_path, refused):
    splits = load_from_disk(str(corpus))
    splits["train"] = splits["train"].filter(lambda row: row["subject"] == "subj01")
    splits.save_to_disk(str(tmp_path / "corpus"))
    shutil.copy(corpus / "voxels.parquet", tmp_path / "corpus")
    refused(
        lambda: main(["evaluate", str(run), str(tmp_path / "corpus"), str(tmp_path / "out")]),
        "the train stimuli of subj02 number 0, and the baselines need 2",
    )


def test_stimuli_without_repeats_have_no_single_trials_and_no_ceiling(colour_report):
    metrics, arrays = read(colour_report)
    assert metrics["single_trial"] is None and metrics["encoding"]["model"]["ceiling_normalised"] is None
    assert set(metrics["encoding"]["noise_ceiling"].values()) == {None}
    assert metrics["n_trials"] == 8 and metrics["n_stimuli"] == 4
    assert arrays["image"].shape == (8, 18, 24, 3)
    assert arrays["fmri/ann"].shape == (4, 12) and arrays["fmri_predicted/bob"].shape == (4, 7)
    np.testing.assert_allclose(arrays["fmri_predicted/ann"][:, 0], 4, atol=1e-4)  # the constant voxel
    assert np.isfinite(metrics["encoding"]["model"]["voxel_r_mean"])


def test_crossvalidate_holds_every_stimulus_out_once(folds_report, corpus, tmp_path, refused):
    out, flags = folds_report, FOLDS
    metrics, arrays = read(out)
    assert (metrics["n_folds"], metrics["n_stimuli"], metrics["seed"]) == (2, 40, 4)
    assert metrics["n_trials"] == 96
    rows = arrays["subject"] == "subj01"
    assert len(set(arrays["stimulus_id"][rows])) == rows.sum() == 40
    # Units of each fold's own train rows: the fold's responses in raw units, back and forth.
    splits = open_corpus(corpus).splits
    stimuli = [*splits["train"]["stimulus_id"], *splits["test"]["stimulus_id"]]
    subjects = np.array([*splits["train"]["subject"], *splits["test"]["subject"]])
    raw = np.concatenate([np.stack([*splits[name].with_format("numpy")["fmri"]]) for name in ("train", "test")])
    for fold, (seen, held_out) in enumerate(stimulus_folds(stimuli, 2, 4)):
        in_fold = arrays["fold"][rows] == fold
        mine = pd.Series(held_out)[subjects[held_out] == "subj01"].to_numpy()
        of_train = raw[seen[subjects[seen] == "subj01"]]
        for name in arrays["stimulus_id"][rows][in_fold][:3]:
            trials = raw[[row for row in mine if stimuli[row] == name]]
            expected = (trials.mean(0) - of_train.mean(0)) / of_train.std(0)
            place = np.flatnonzero((arrays["stimulus_id"][rows] == name) & in_fold)[0]
            np.testing.assert_allclose(arrays["fmri/subj01"][place], expected, atol=1e-4)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "metrics.json").write_text("of an earlier run")
    assert main(["crossvalidate", str(corpus), str(alone), *flags, "--num-proc", "1", "--overwrite"]) == 0
    assert (alone / "metrics.json").read_text() == (out / "metrics.json").read_text()  # side by side by default
    refused(lambda: main(["crossvalidate", str(corpus), str(out), *flags]), "pass --overwrite")
    refused(lambda: main(["crossvalidate", str(corpus), str(tmp_path / "x"), "--num-proc", "0"]), "at least 1")
    refused(lambda: main(["crossvalidate", str(corpus), str(tmp_path / "x"), "--folds", "1"]), "must be between 2 and")
    assert not (tmp_path / "x").exists()


def test_means_are_over_the_subjects_who_have_a_figure():
    nan = np.array([np.nan])
    found = _mean([{"a": {"r": np.array([0.4]), "s": nan}}, {"a": {"r": nan, "s": nan}}])
    assert found["a"]["r"] == 0.4 and np.isnan(found["a"]["s"])


def test_a_fold_that_leaves_a_subject_nothing_is_refused_before_training():
    rows = Dataset.from_dict({"subject": ["ann"] * 4 + ["bob"] * 2, "stimulus_id": list("abcdab")})
    with pytest.raises(UserError, match="fold 1 of 1 leaves 1 of the stimuli of bob to train on"):
        check_folds(rows, [(np.array([0, 1, 2, 3, 5]), np.array([4, 0]))], "stimulus")


def test_rows_that_no_session_holds_out_are_told_and_a_subject_without_any_is_refused(caplog):
    rows = Dataset.from_dict({"subject": ["ann"] * 4 + ["bob"] * 4, "stimulus_id": list("abcdabcd")})
    train = np.array([2, 3, 6, 7])
    check_folds(rows, [(train, np.array([0, 4]))], "session")
    assert "6 of 8 rows are held out in no fold" in caplog.text
    with pytest.raises(UserError, match="no fold by session holds out rows of bob"):
        check_folds(rows, [(train, np.array([0, 1]))], "session")


def test_images_without_fmri_of_a_held_out_category_are_left_out():
    own = {"category": ["face", "house", None], "stimulus_id": list("abc")}
    held_out = Dataset.from_dict({"category": ["face", "tool"]})
    left = without_groups(Dataset.from_dict(own), held_out, "category")
    assert left["stimulus_id"][:] == ["b", "c"]
    assert len(without_groups(Dataset.from_dict(own), held_out, "session")) == 3


def test_a_damaged_log_of_the_training_costs_the_loss_curves_alone(tmp_path, caplog):
    for text in ("{", "[]", "{}"):
        (tmp_path / "trainer_state.json").write_text(text)
        assert losses_of(tmp_path) == []
    assert caplog.text.count("the report has no loss curves") == 3
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": 1}]}')
    assert losses_of(tmp_path) == [[{"loss": 1}]]


def test_another_unit_than_that_of_the_training_is_told(run, caplog):
    unit = training_of(run / "README.md")["unit"]
    warn_of_units(run, unit)
    assert not caplog.text
    warn_of_units(run, "z-scores of a session")
    assert "'z-scores of a session'" in caplog.text and unit in caplog.text


def test_single_trials_of_a_subject_are_in_all_folds_or_in_none():
    rows = Dataset.from_dict({"subject": ["ann", "ann", "bob", "bob"], "stimulus_id": list("aaab")})
    assert subjects_with_repeats(rows) == {"ann"}


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_report_on_train_says_so(report, tmp_path, split):
    _, arrays = read(report)
    write_report(tmp_path, arrays, [], {"split": split})
    page = (tmp_path / "report.html").read_text()
    assert ("held-out stimuli, " in page) == (split == "test")
    assert ("The model was trained on these stimuli" in page) == (split == "train")


def test_names_of_arrays_tell_their_subject():
    assert owner("fmri/ann") == ("fmri", "ann")
    assert owner("single_trial/fmri/a/b") == ("single_trial/fmri", "a/b")
    assert owner("ridge/fmri_predicted/image") == ("ridge/fmri_predicted", "image")
    assert owner("fmri_mean/latent/fmri") == ("fmri_mean", "latent/fmri")
    for name in ("latent/fmri", "single_trial/latent/fmri", "ridge/reconstruction", "stimulus_id"):
        assert owner(name) == (name, None)


def test_latents_are_compared_within_their_fold():
    images = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)
    latents = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    arrays = {
        "stimulus_id": np.array(list("abcd")),
        "subject": np.array(["s"] * 4),
        "trials": np.ones(4, dtype=int),
        "fold": np.array([0, 0, 1, 1]),
        "image": images,
        **{f"{name}reconstruction": images for name in ("", "ridge/", "mean_image/")},
        **{f"{name}/s": np.random.default_rng(0).normal(size=(4, 3)) for name in ("fmri", "fmri_predicted")},
        "noise_ceiling/s": np.full(3, np.nan),
        "latent/image": latents,
        "latent/fmri": latents[[2, 3, 0, 1]],  # the other fold's are nearer
    }
    arrays["ridge/fmri_predicted/s"] = arrays["fmri/s"]
    figures = score(arrays, draws=10)
    assert figures["latent"]["retrieval_image_top1"] == 1
    del arrays["fold"]
    assert score(arrays, draws=10)["latent"]["retrieval_image_top1"] == 0


def test_folds_of_different_latent_dimensions_are_pooled():
    parts = [
        {"stimulus_id": np.array(["a", "b"]), "latent/image": np.ones((2, 3)), "latent/fmri": np.ones((2, 3))},
        {"stimulus_id": np.array(["c"]), "latent/image": np.full((1, 2), 2.0), "latent/fmri": np.ones((1, 2))},
    ]
    pooled = concatenate(parts)
    assert pooled["stimulus_id"].tolist() == ["a", "b", "c"]
    assert pooled["latent/image"].tolist() == [[1, 1, 1], [1, 1, 1], [2, 2, 0]]


def test_training_and_evaluation_do_not_import_each_other():
    package = ROOT / "visionflow_hf"
    for folder, others in (("evaluation", "training"), ("training", "evaluation")):
        for file in (package / folder).glob("*.py"):
            assert f"visionflow_hf.{others}" not in imports_of(file), file
    assert imports_of(package / "metrics.py") == ""  # both may use it


def imports_of(file) -> str:
    """The lines of a file that import from the package."""
    return "\n".join(
        line for line in file.read_text().splitlines() if re.match(r"\s*(from|import) visionflow_hf", line)
    )


def test_folds_of_grey_and_of_colour_models_are_joined_in_colour():
    grey, colour = {"image": np.ones((2, 4, 5), np.uint8), "fmri/a": np.ones((2, 3))}, np.zeros((1, 4, 5, 3), np.uint8)
    parts = in_colour([grey, {"image": colour, "fmri/a": np.ones((1, 3))}])
    assert [part["image"].shape for part in parts] == [(2, 4, 5, 3), (1, 4, 5, 3)]
    assert parts[0]["image"].all() and parts[0]["fmri/a"].shape == (2, 3)
    assert in_colour([{"image": np.ones((2, 4, 5))}])[0]["image"].shape == (2, 4, 5)
