"""Images without fMRI and fMRI without images: imported, merged, trained on, and kept out of where pairs are needed."""

import json
import shutil

import numpy as np
import pytest
from datasets import DatasetDict, Image, concatenate_datasets, load_from_disk
from PIL import Image as PILImage
from transformers import ViTConfig, ViTModel

from visionflow_hf import VisionFlowModel, VisionFlowProcessor
from visionflow_hf import crossvalidate as crossvalidation
from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import images_alone, pairs_of, responses_of, unpaired_of
from visionflow_hf.corpus.schema import FEATURES, open_corpus, read_corpus
from visionflow_hf.training import train as training
from visionflow_hf.training.trainer import ImageBatches

LONG = ["--max_steps", "5", "--disable_tqdm", "true"]
SHORT = [*LONG, "--linear_dim", "0"]
VALIDATED = ["--validation_fraction", "0.1"]
PICTURES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of 16 px, some in a folder below, some JPEG, beside a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below").mkdir()
    for number, pixels in enumerate(np.random.default_rng(5).integers(0, 256, (PICTURES, 16, 16), dtype=np.uint8)):
        name = f"below/{number}.jpg" if number % 3 == 0 else f"{number}.png"
        PILImage.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("where they are from")
    return folder


@pytest.fixture(scope="module")
def pictures(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "pictures"
    assert main(["prepare", "images", str(folder), str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def merged(corpus, pictures, tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "merged"
    assert main(["merge", str(corpus), str(pictures), str(path)]) == 0
    return path


def write(path, source, **splits):
    """A corpus with other splits, written without our checks."""
    DatasetDict(splits).save_to_disk(str(path))
    shutil.copy(source / "voxels.parquet", path)
    return path


def test_pictures_are_kept_as_the_files_that_they_are(folder, pictures, tmp_path, capsys):
    assert main(["prepare", "images", str(folder), str(tmp_path / "again")]) == 0
    assert "left out 1 files that are no images: 1 kind (.txt)" in capsys.readouterr().out
    rows = load_from_disk(str(pictures))["train"].cast_column("image", Image(decode=False))
    assert sorted(rows["stimulus_id"]) == rows["stimulus_id"][:] and len(rows) == PICTURES
    for row in rows:
        assert row["image"]["bytes"] == (folder / row["stimulus_id"]).read_bytes()
        assert row["fmri"] is None and row["subject"] is None
    capsys.readouterr()
    assert main(["inspect", str(pictures), "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert page["splits"]["train"]["images_alone"] == PICTURES and page["subjects"] == {} and page["problems"] == []
    assert "train has no pair of image and fMRI" in page["warnings"][0]


def test_folders_that_cannot_be_imported(folder, tmp_path, refused):
    out = tmp_path / "out"
    refused(lambda: main(["prepare", "images", str(tmp_path / "absent"), str(out)]), "there is no folder")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    refused(lambda: main(["prepare", "images", str(tmp_path / "texts"), str(out)]), "has no image in it")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    refused(lambda: main(["prepare", "images", str(broken), str(out)]), r"4\.png cannot be read as an image")
    assert not out.exists() and not (tmp_path / ".out.partial").exists()


def test_what_is_merged(corpus, pictures, merged):
    one, other, both = (read_corpus(path) for path in (corpus, pictures, merged))
    assert both.subjects == one.subjects and both.unit == one.unit
    assert both.voxels.equals(one.voxels)
    assert {name: len(rows) for name, rows in both.splits.items()} == {"train": 72 + PICTURES, "test": 24}
    assert pairs_of(both.splits["train"])[:] == one.splits["train"][:]
    assert images_alone(both.splits["train"])[:] == other.splits["train"][:]
    assert unpaired_of(both.splits["test"]).num_rows == 0


def test_repeats_count_on_and_subjects_are_joined(corpus, colour_corpus, tmp_path, refused):
    rows = load_from_disk(str(corpus))["train"]
    again = rows.select([0, 1, 1]).map(
        lambda row: row | {"fmri": [value + 1 for value in row["fmri"]]}, features=FEATURES
    )
    alone = write(tmp_path / "more", corpus, train=again)
    assert main(["merge", str(corpus), str(alone), str(tmp_path / "out")]) == 0
    merged = load_from_disk(str(tmp_path / "out"))["train"]
    assert merged["repeat"][-3:] == [1, 1, 1] and merged[-1]["fmri"] == again[2]["fmri"]
    assert main(["merge", str(corpus), str(colour_corpus), str(tmp_path / "joined")]) == 0
    joined = read_corpus(tmp_path / "joined")
    assert joined.subjects == {"ann": 12, "bob": 7, "subj01": 30, "subj02": 30}
    assert joined.unit.startswith("simulated response") and joined.unit.endswith("; arbitrary (ann, bob)")
    short = rows.map(lambda row: {"fmri": row["fmri"][:9]}, features=FEATURES).filter(
        lambda row: row["subject"] == "subj01"
    )
    other = write(tmp_path / "short", corpus, train=short)
    table = read_corpus(corpus).voxels
    table[(table["subject"] == "subj01") & (table["voxel"] < 9)].to_parquet(other / "voxels.parquet")
    refused(
        lambda: main(["merge", str(corpus), str(other), str(tmp_path / "x")]), "subj01 has 30 voxels in .* and 9 in"
    )


def test_what_would_leak_or_be_two_images_is_not_merged(corpus, folder, tmp_path, refused):
    test = load_from_disk(str(corpus))["test"]
    leaking = shutil.copytree(folder, tmp_path / "leaking")
    test[0]["image"].save(leaking / "secret.bmp")
    assert main(["prepare", "images", str(leaking), str(tmp_path / "pictures")]) == 0
    message = rf"merged there would be 1 stimulus \(secret.bmp = {test[0]['stimulus_id']} \(same pixels\)\) in both"
    refused(lambda: main(["merge", str(corpus), str(tmp_path / "pictures"), str(tmp_path / "out")]), message)
    row = load_from_disk(str(corpus))["train"].select([0])
    named = row.map(lambda one: {"image": test[3]["image"]}, features=FEATURES)
    other = write(tmp_path / "named", corpus, train=named)
    message = rf"1 stimulus \({row[0]['stimulus_id']}\) with two images"
    refused(lambda: main(["merge", str(corpus), str(other), str(tmp_path / "out")]), message)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def watched(monkeypatch):
    """What the image stage is given and sees of each step, and the stimuli that the fMRI side is fitted to."""
    seen = {"batches": [], "drawn": set(), "fitted": [], "alone": [], "unpaired": [], "validation": set()}
    forward, read = VisionFlowModel.forward, ImageBatches.__getitems__
    run, fit = training.run_trainer, training.fit_fmri_side

    def watch_forward(self, pixel_values=None, **inputs):
        if self.training:
            seen["batches"].append(len(pixel_values))
        return forward(self, pixel_values=pixel_values, **inputs)

    def watch_read(self, rows):
        batch = read(self, rows)
        seen["drawn"] |= set(self.unpaired)
        seen["given"] = len(rows)
        return batch

    def watch_run(model, processor, batches, validation, *more):
        seen["unpaired"].append(set(batches.unpaired))
        seen["validation"] = set() if validation is None else set(validation.stimulus_ids)
        return run(model, processor, batches, validation, *more)

    def watch_fit(model, trials, *more, **named):
        seen["fitted"].append(set(trials.stimuli))
        seen["alone"].append(set(more[-1]))
        return fit(model, trials, *more, **named)

    monkeypatch.setattr(VisionFlowModel, "forward", watch_forward)
    monkeypatch.setattr(ImageBatches, "__getitems__", watch_read)
    monkeypatch.setattr(training, "run_trainer", watch_run)
    monkeypatch.setattr(training, "fit_fmri_side", watch_fit)
    return seen


def test_images_alone_feed_the_image_stage_the_mlp_and_the_linear_decoders(merged, corpus, run, tmp_path, watched):
    assert main(["train", str(merged), str(tmp_path / "run"), *LONG, *VALIDATED]) == 0
    names = set(read_corpus(merged).splits["train"]["stimulus_id"]) - set(
        open_corpus(corpus).splits["train"]["stimulus_id"]
    )
    assert watched["batches"] == [2 * 32] * 5  # 16 stimuli, 16 images without fMRI, and augmented copies of both
    assert watched["drawn"] == names and len(names) == PICTURES
    assert watched["unpaired"] == [names] and not any(names & fitted for fitted in watched["fitted"])
    assert watched["alone"] == [names] * len(watched["fitted"])
    ours, theirs = (VisionFlowProcessor.from_pretrained(path) for path in (tmp_path / "run", run))
    for subject in theirs.subjects:
        np.testing.assert_array_equal(ours.fmri_mean[subject], theirs.fmri_mean[subject])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "36 distinct stimuli in 72 trials, and 12 images\nwithout fMRI; 5 steps" in card
    assert main(["evaluate", str(tmp_path / "run"), str(merged), str(tmp_path / "report")]) == 0


def test_both_image_stages_have_them_and_one_seed_gives_one_result(merged, tmp_path, watched):
    for name in ("one", "same"):
        assert main(["train", str(merged), str(tmp_path / name), *SHORT]) == 0
    one, same = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same"))
    assert one == same
    assert len(watched["unpaired"]) == 4 and all(len(names) == PICTURES for names in watched["unpaired"])


def test_the_image_of_a_held_out_stimulus_is_held_out_alone_too(corpus, tmp_path, watched):
    """Every stimulus is there once more without fMRI, under another name and in another file."""
    splits = load_from_disk(str(corpus))
    first = splits["train"].select(range(36))
    copies = first.map(
        lambda row: {
            "image": row["image"].convert("RGB"),
            "fmri": None,
            "subject": None,
            "stimulus_id": "x" + row["stimulus_id"],
        },
        features=FEATURES,
    )
    path = write(tmp_path / "c", corpus, train=concatenate_datasets([splits["train"], copies]), test=splits["test"])
    assert main(["train", str(path), str(tmp_path / "run"), *SHORT, *VALIDATED]) == 0
    assert len(watched["validation"]) == 4
    assert not any(images & watched["validation"] for images in watched["unpaired"])


def test_a_frozen_encoder_reads_them_once(merged, tmp_path, watched):
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config).save_pretrained(tmp_path / "encoder")
    flags = [*SHORT, *VALIDATED, "--encoder", str(tmp_path / "encoder")]
    assert main(["train", str(merged), str(tmp_path / "run"), *flags]) == 0
    assert watched["batches"] == [32] * 5  # no augmented copies


def test_fmri_alone_counts_for_mean_and_standard_deviation(corpus, tmp_path, watched):
    splits = load_from_disk(str(corpus))
    rest = (
        splits["train"]
        .select(range(5))
        .map(
            lambda row: {"image": None, "stimulus_id": None, "fmri": [value + 9 for value in row["fmri"]]},
            features=FEATURES,
        )
    )
    train = concatenate_datasets([rest, splits["train"]])
    path = write(tmp_path / "c", corpus, train=train, test=splits["test"])
    assert main(["train", str(path), str(tmp_path / "run"), *SHORT]) == 0
    processor = VisionFlowProcessor.from_pretrained(tmp_path / "run")
    everything = np.concatenate([np.array(rest["fmri"]), responses_of(splits["train"], "subj01").fmri])
    np.testing.assert_allclose(processor.fmri_mean["subj01"], everything.mean(0), atol=1e-5)
    np.testing.assert_allclose(processor.fmri_std["subj01"], everything.std(0), atol=1e-5)
    assert watched["fitted"] and watched["drawn"] == set()


def test_fmri_alone_is_imported_and_merged(corpus, tmp_path, refused):
    more = np.random.default_rng(2).normal(4, 2, (6, 30))
    np.savez(
        tmp_path / "rest.npz", fmri=more, names=["a", "b", "a", "c", "d", "a"], images=np.zeros((6, 4, 4), np.uint8)
    )
    import_rest = ["prepare", "arrays", str(tmp_path / "rest.npz"), str(tmp_path / "rest"), "--fmri", "fmri"]
    assert main([*import_rest, "--subject", "subj02"]) == 0
    rows = read_corpus(tmp_path / "rest").splits["train"]
    np.testing.assert_allclose(responses_of(rows, "subj02").fmri, more, rtol=1e-6)
    assert set(rows["stimulus_id"]) == set(rows["image"]) == {None} and set(rows["repeat"]) == {0}
    assert main([*import_rest, "--subject", "subj02", "--stimulus-ids", "names", "--overwrite"]) == 0
    rows = read_corpus(tmp_path / "rest").splits["train"]
    assert list(zip(rows["stimulus_id"], rows["repeat"], strict=True))[-3:] == [("c", 0), ("d", 0), ("a", 2)]
    assert main(["merge", str(corpus), str(tmp_path / "rest"), str(tmp_path / "both")]) == 0
    merged = open_corpus(tmp_path / "both")
    assert len(unpaired_of(merged.splits["train"])) == 6 and merged.subjects == read_corpus(corpus).subjects
    refused(lambda: main([*import_rest, "--average-repeats", "--overwrite"]), "without --images all is train")
    refused(lambda: main(["train", str(tmp_path / "rest"), str(tmp_path / "run")]), "train has no pair")


def test_a_subject_without_a_pair_is_left_out(corpus, tmp_path, capsys):
    splits = load_from_disk(str(corpus))
    alone = splits["train"].map(
        lambda row: {"image": None if row["subject"] == "subj02" else row["image"]}, features=FEATURES
    )
    test = splits["test"].filter(lambda row: row["subject"] == "subj01")
    path = write(tmp_path / "c", corpus, train=alone, test=test)
    assert main(["train", str(path), str(tmp_path / "run"), *SHORT, *VALIDATED]) == 0
    assert VisionFlowModel.from_pretrained(tmp_path / "run").config.subjects == ["subj01"]
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    assert "subj02 has no pair in train" in capsys.readouterr().out


def test_rows_that_cannot_be_used(corpus, pictures, tmp_path, refused):
    splits = load_from_disk(str(corpus))

    def train(number: int, **changed):
        path = write(tmp_path / str(number), corpus, **{**splits, **changed})
        return lambda: main(["train", str(path), str(tmp_path / "run"), *SHORT])

    def lacking(split: str, rows: int, **values):
        change = lambda row, index: values if index < rows else {}  # noqa: E731
        return {split: splits[split].map(change, with_indices=True, features=FEATURES)}

    refused(
        lambda: main(["train", str(pictures), str(tmp_path / "run"), *SHORT]), "train has no pair of image and fMRI"
    )
    for number, (change, message) in enumerate(
        [
            (lacking("test", 2, fmri=None), "split test has 2 of 24 rows without fMRI: only train may"),
            (lacking("test", 3, image=None), "split test has 3 of 24 rows without an image"),
            (
                lacking("train", 2, image=None, fmri=None),
                r"split train has 2 rows \(0, 1\) with neither image nor fMRI",
            ),
            (lacking("train", 1, subject=None), r"split train has 1 row \(0\) without a name"),
            (lacking("train", 1, stimulus_id=None), r"split train has 1 row \(0\) without a name"),
            (lacking("train", 72, fmri=None), "train has no pair of image and fMRI"),
        ]
    ):
        refused(train(number, **change), message)
    assert not (tmp_path / "run").exists()


def test_folds_train_on_them(merged, tmp_path, monkeypatch):
    trained_on = []

    def watched(splits, *given, train_on=crossvalidation.train_on, **more):
        trained_on.append(len(images_alone(splits["train"])))
        return train_on(splits, *given, **more)

    monkeypatch.setattr(crossvalidation, "train_on", watched)
    assert main(["crossvalidate", str(merged), str(tmp_path / "out"), "--folds", "2", "--num-proc", "1", *SHORT]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_stimuli"] == 40 and metrics["n_trials"] == 96 and trained_on == [12, 12]
