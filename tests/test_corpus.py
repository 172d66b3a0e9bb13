"""The corpus: splits without leakage, repeats and ceilings, the simulated cortex, and the checks of every reader."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, List, Value, concatenate_datasets, load_from_disk
from PIL import Image
from sklearn.model_selection import KFold

from visionflow_hf.cli import main
from visionflow_hf.corpus import shards
from visionflow_hf.corpus.checks import check_trainable
from visionflow_hf.corpus.inspect import summarise
from visionflow_hf.corpus.repeats import average_repeats, ceiling_of_average, ncsnr, ncsnr_of_ceiling, number_repeats
from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import FEATURES, open_corpus, voxel_table, write_corpus
from visionflow_hf.corpus.splits import draw_test, place, split_stimuli, stimulus_folds
from visionflow_hf.errors import UserError
from visionflow_hf.folders import new_folder
from visionflow_hf.images import open_image


def test_folds_are_those_of_kfold_where_every_stimulus_has_one_row():
    ids = [f"s{i}" for i in range(17)]
    ours = list(stimulus_folds(ids, 5, seed=3))
    reference = list(KFold(5, shuffle=True, random_state=3).split(ids))
    for (train, test), (their_train, their_test) in zip(ours, reference, strict=True):
        assert np.array_equal(train, their_train) and np.array_equal(test, their_test)


def test_folds_keep_repeats_together_and_hold_every_row_out_once():
    ids = np.array(["a", "b", "c", "d", "a", "b", "a", "c"])
    held_out = []
    for train, test in stimulus_folds(ids, 3, seed=0):
        assert not set(ids[train]) & set(ids[test])
        assert sorted([*train, *test]) == list(range(8))
        held_out += test.tolist()
    assert sorted(held_out) == list(range(8))


@pytest.mark.parametrize("folds", [1, 5])
def test_folds_that_cannot_be_made_are_refused(folds):
    with pytest.raises(UserError, match="between 2 and 4"):
        list(stimulus_folds(["a", "b", "c", "d"], folds, seed=0))


@pytest.mark.parametrize("folds", [1, 2, 10])
def test_one_stimulus_has_no_folds_whatever_their_number(folds):
    with pytest.raises(UserError, match=r"1 distinct stimulus .* needs at least 2") as caught:
        list(stimulus_folds(["a", "a"], folds, seed=0))
    assert "--folds" not in str(caught.value) and "between" not in str(caught.value)


def test_a_stimulus_is_drawn_whatever_the_others_are():
    names = [f"s{number}" for number in range(1000)]
    test = draw_test(names, 0.1, seed=0)
    assert 70 < len(test) < 130  # the binomial distribution's standard deviation is 9.5
    assert draw_test(names[300:800], 0.1, seed=0) == test & set(names[300:800])
    assert draw_test(names * 2, 0.1, seed=0) == test < draw_test(names, 0.2, seed=0)
    assert len(draw_test(names, 0.1, seed=1) & test) < 30
    # these values must stay, or corpora of today and of tomorrow could not be merged
    assert sorted(draw_test(names[:50], 0.1, seed=0)) == ["s15", "s23", "s30", "s37"]


def test_a_small_draw_has_a_stimulus_on_each_side_and_says_so(capsys):
    for fraction, number in ((0.001, 1), (0.999, 3)):
        said = []
        assert len(draw_test(["a", "b", "c", "d"], fraction, seed=0, report=said.append)) == number
        assert len(said) == 1 and "one was moved there" in said[0]
    nearest = min("abcd", key=lambda name: place(name, 0))
    assert draw_test("abcd", 0.001, seed=0) == {nearest}
    with pytest.raises(UserError, match="1 distinct stimulus"):
        draw_test(["a", "a"], 0.1, seed=0)
    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(UserError, match="between 0 and 1"):
            draw_test("abcd", fraction, seed=0)


def test_a_split_has_at_least_one_stimulus_on_each_side():
    assert len(split_stimuli(["a", "b", "a"], 0.01, seed=0)) == 1
    assert len(split_stimuli(["a", "b", "a"], 0.99, seed=0)) == 1
    with pytest.raises(UserError, match="1 distinct stimulus"):
        split_stimuli(["a", "a"], 0.1, seed=0)


def test_repeats_are_numbered_and_averaged():
    assert number_repeats(["a", "b", "a", "a"]) == [0, 0, 1, 2]
    means, distinct, counts = average_repeats(np.array([[1.0], [5.0], [3.0]], np.float32), ["a", "b", "a"])
    assert means.tolist() == [[2.0], [5.0]] and distinct == ["a", "b"] and counts.tolist() == [2, 1]
    assert means.dtype == np.float32


def test_ncsnr_by_hand():
    # stimuli a (1, 3) and b (5, 9): noise variances 2 and 8, mean 5; means 2 and 7, variance 12.5, minus 5 / 2
    fmri = np.array([[1.0, 4.0], [3.0, 4.0], [5.0, 4.0], [9.0, 4.0], [100.0, 4.0]])
    ratio = ncsnr(fmri, ["a", "a", "b", "b", "once"])
    np.testing.assert_allclose(ratio, [np.sqrt(10 / 5), 0])
    assert ncsnr(fmri, ["a", "a", "b", "c", "d"]) is None


def test_the_ceiling_of_mixed_repeats_is_the_published_formula():
    ratio, once, twice, thrice = 0.8, 5, 3, 2
    published = ratio**2 / (ratio**2 + (once / 1 + twice / 2 + thrice / 3) / (once + twice + thrice))
    counts = np.repeat([1, 2, 3], [once, twice, thrice])
    np.testing.assert_allclose(ceiling_of_average(np.array([ratio]), counts), published)
    np.testing.assert_allclose(ceiling_of_average(ncsnr_of_ceiling(np.array([0.3])), np.ones(4)), 0.3)


def test_the_simulated_ceiling_is_the_one_that_repeats_reveal(tmp_path):
    flags = ["--stimuli", "300", "--voxels", "20", "--subjects", "1", "--image-size", "16", "--repeats", "12"]
    assert main(["simulate", str(tmp_path / "c"), *flags]) == 0
    corpus = open_corpus(tmp_path / "c")
    trials = responses_of(corpus.splits["train"], "subj01")
    estimated = ceiling_of_average(ncsnr(trials.fmri, trials.stimulus_ids), np.ones(1))
    np.testing.assert_allclose(estimated, corpus.voxels_of("subj01")["noise_ceiling"], atol=0.06)


def test_simulate_keeps_its_promises(corpus):
    opened = open_corpus(corpus)
    assert opened.subjects == {"subj01": 30, "subj02": 30}
    assert {name: len(rows) for name, rows in opened.splits.items()} == {"train": 72, "test": 24}
    assert opened.splits["train"].features == FEATURES
    assert not set(opened.splits["train"]["stimulus_id"]) & set(opened.splits["test"]["stimulus_id"])
    assert sorted(set(opened.splits["test"]["repeat"])) == [0, 1, 2]
    pictures = images_of(opened.splits["train"], opened.splits["train"]["stimulus_id"][:36])
    assert len({picture.tobytes() for picture in pictures}) == 36 and {picture.size for picture in pictures} == {
        (16, 16)
    }
    ceilings = opened.voxels["noise_ceiling"]
    assert ceilings.between(0.05, 0.5).all() and set(opened.voxels["roi"].map(lambda names: names[0])) == {
        "V1",
        "V2",
        "V3",
    }


def test_one_seed_gives_one_simulated_corpus(tmp_path):
    fmri = {}
    for name, seed in (("one", 4), ("same", 4), ("other", 5)):
        flags = ["--stimuli", "12", "--voxels", "5", "--image-size", "8", "--seed", str(seed)]
        assert main(["simulate", str(tmp_path / name), *flags]) == 0
        fmri[name] = responses_of(open_corpus(tmp_path / name).splits["train"], "subj02").fmri
    assert np.array_equal(fmri["one"], fmri["same"]) and not np.array_equal(fmri["one"], fmri["other"])


def test_more_digits_than_scikit_learn_has_are_still_distinct():
    from visionflow_hf.corpus.simulate import digit_images

    images = digit_images(2000, 8, np.random.default_rng(0))
    assert len({image.tobytes() for image in images}) > 1990


def test_responses_and_images_come_in_the_order_of_the_split(colour_corpus):
    rows = load_from_disk(str(colour_corpus))["train"]
    bob = responses_of(rows, "bob")
    expected = [(row["stimulus_id"], row["fmri"]) for row in rows if row["subject"] == "bob"]
    assert bob.stimulus_ids == [stimulus for stimulus, _ in expected]
    np.testing.assert_array_equal(bob.fmri, np.array([fmri for _, fmri in expected], np.float32))
    shuffled = rows.select([5, 3, 20])
    assert responses_of(shuffled, "ann").stimulus_ids == ["s5", "s3"]
    picture = images_of(rows, ["s7"])[0]
    assert np.array_equal(np.asarray(picture), np.asarray(rows[7]["image"]))


def test_a_long_split_is_several_shards_of_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_BYTES", 100)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    rng = np.random.default_rng(0)
    rows = [
        {
            "image": Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8)) if number % 3 else None,
            "fmri": rng.normal(size=5).astype(np.float32) if number % 5 else None,
            "subject": "ann",
            "stimulus_id": f"s{number}",
            "repeat": number,
        }
        for number in range(40)
    ]
    splits = {"train": lambda: iter(rows[:37]), "test": lambda: iter(rows[37:])}
    write_corpus(tmp_path / "c", splits, voxel_table("ann", 5), unit="arbitrary")
    files = sorted(file.name for file in (tmp_path / "c" / "train").glob("*.arrow"))
    assert len(files) > 3 and files[0] == f"data-00000-of-{len(files):05d}.arrow"
    written = load_from_disk(str(tmp_path / "c"))
    assert written["train"].features == FEATURES and written["train"].info.description == "arbitrary"
    for row, expected in zip([*written["train"], *written["test"]], rows, strict=True):
        assert row["stimulus_id"] == expected["stimulus_id"] and row["repeat"] == expected["repeat"]
        assert (row["image"] is None) == (expected["image"] is None)
        assert row["image"] is None or row["image"].tobytes() == expected["image"].tobytes()
        assert row["fmri"] == (None if expected["fmri"] is None else expected["fmri"].tolist())


def rewritten(source, target, **splits):
    """A copy of a corpus with some splits replaced, written without our checks."""
    everything = {**load_from_disk(str(source)), **splits}
    DatasetDict({name: rows for name, rows in everything.items() if rows is not None}).save_to_disk(str(target))
    pd.read_parquet(source / "voxels.parquet").to_parquet(target / "voxels.parquet")
    return target


def test_a_corpus_that_breaks_a_rule_is_refused(colour_corpus, tmp_path):
    train, test = (load_from_disk(str(colour_corpus))[name] for name in ("train", "test"))
    leaking = test.map(lambda row: {"stimulus_id": "s3" if row["stimulus_id"] == "s17" else row["stimulus_id"]})
    short = train.map(lambda row, i: {"fmri": row["fmri"][:5] if i == 4 else row["fmri"]}, with_indices=True)
    nan = train.map(
        lambda row, i: {"fmri": [float("nan"), *row["fmri"][1:]] if i == 4 else row["fmri"]}, with_indices=True
    )
    for number, (splits, message) in enumerate(
        [
            ({"test": leaking}, r"1 stimulus \(s3\) in both train and test"),
            ({"train": short}, "row 4 of split train has 5 voxels, ann has 12 elsewhere"),
            ({"train": nan}, r"split train has 1 NaN or infinite values in 1 voxel \(0\)"),
            ({"train": train.remove_columns("subject")}, "lacks subject"),
            ({"test": None}, "train and test are needed"),
            ({"test": test.select([])}, "cannot be read"),
            ({"train": train.select([3, 3, 19])}, "train has 1 distinct stimulus .* need at least 2"),
        ]
    ):
        with pytest.raises(UserError, match=message):
            open_corpus(rewritten(colour_corpus, tmp_path / str(number), **splits))
    with pytest.raises(UserError, match="is no corpus"):
        open_corpus(tmp_path / "absent")


def test_inspect_counts_what_is_there(corpus, colour_corpus, capsys):
    summary = summarise(corpus)
    assert summary["splits"]["test"] == {
        "trials": 24,
        "pairs": 24,
        "images_alone": 0,
        "fmri_alone": 0,
        "stimuli": 4,
        "trials_per_stimulus": [3, 3],
        "image_sizes": ["16 x 16"],
    }
    assert summary["subjects"]["subj01"]["voxels"] == 30
    assert sum(summary["subjects"]["subj01"]["rois"].values()) == 30
    capsys.readouterr()
    assert main(["inspect", str(colour_corpus), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["subjects"]["bob"]["constant_voxels"] == 1
    assert any("bob has 1 constant voxels" in warning for warning in printed["warnings"])
    assert main(["inspect", str(corpus)]) == 0
    assert "V1" in capsys.readouterr().out


def test_inspect_gives_the_figures_of_the_responses(corpus):
    summary = summarise(corpus)
    opened = open_corpus(corpus)
    for subject, said in summary["subjects"].items():
        fmri = responses_of(opened.splits["train"], subject).fmri.astype(np.float64)
        assert said["mean"] == pytest.approx(fmri.mean(), rel=1e-6)
        assert said["std"] == pytest.approx(fmri.std(0).mean(), rel=1e-6)
        assert said["trials"] == {"train": 36, "test": 12} and said["train_pairs"] == 36
        assert said["noise_ceiling_median"] == pytest.approx(np.median(opened.voxels_of(subject)["noise_ceiling"]))
        assert (said["missing_values"], said["constant_voxels"], said["noise_ceiling_known"]) == (0, 0, 30)
    assert (summary["problems"], summary["warnings"]) == ([], [])


def test_inspect_shows_the_page_of_a_corpus_that_breaks_a_rule(colour_corpus, tmp_path, capsys):
    train = load_from_disk(str(colour_corpus))["train"]
    broken = train.map(
        lambda row, i: {"fmri": [float("nan"), float("inf"), *row["fmri"][2:]] if i in (4, 6) else row["fmri"]},
        with_indices=True,
    )
    short = train.map(lambda row, i: {"fmri": row["fmri"][:5] if i == 20 else row["fmri"]}, with_indices=True)
    for number, (splits, problem, missing) in enumerate(
        [
            ({"train": broken}, "split train has 4 NaN or infinite values in 2 voxels (0, 1)", 4),
            ({"train": short}, "row 20 of split train has 5 voxels, bob has 7 elsewhere", 0),
        ]
    ):
        path = rewritten(colour_corpus, tmp_path / str(number), **splits)
        (path / "voxels.parquet").unlink()
        capsys.readouterr()
        assert main(["inspect", str(path), "--json"]) == 2
        captured = capsys.readouterr()
        page = json.loads(captured.out)
        assert page["problems"][0].startswith(problem) and "no voxels.parquet" in page["problems"][1]
        assert captured.err.splitlines()[-1].startswith(f"error: corpus {path}: {problem}")
        assert captured.err.rstrip().endswith("(and 1 more, printed above)")
        assert page["splits"]["test"]["trials"] == 8 and page["subjects"]["ann"]["missing_values"] == missing
        assert page["subjects"]["bob"]["mean"] == pytest.approx(
            summarise(colour_corpus)["subjects"]["bob"]["mean"], 0.1
        )
    untested = rewritten(colour_corpus, tmp_path / "untested", test=None)
    assert main(["inspect", str(untested)]) == 0
    assert "warning: the splits are train: train and test are needed" in capsys.readouterr().out


def test_every_warning_names_its_remedy(colour_corpus, tmp_path):
    warnings = "\n".join(summarise(colour_corpus)["warnings"])
    for part in (
        "ann has 1 constant voxels in train: they are standardised to 0; or drop them",
        "bob has no noise ceiling, so that figures are not normalised by it: import the trials of repeated stimuli",
    ):
        assert part in warnings
    train = load_from_disk(str(colour_corpus))["train"]
    resized = train.map(
        lambda row, i: {"image": row["image"].resize((9, 9)) if row["stimulus_id"] == "s3" else row["image"]},
        with_indices=True,
    )
    summary = summarise(rewritten(colour_corpus, tmp_path / "sizes", train=resized))
    assert summary["splits"]["train"]["image_sizes"] == ["18 x 24", "9 x 9"]
    assert any("train has images of 2 sizes" in warning and "crop them" in warning for warning in summary["warnings"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), new_folder(target, marker="m") as folder:
        (folder / "m").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_folder(target, marker="m") as folder:
        (folder / "m").touch()
    with pytest.raises(UserError, match="--overwrite"), new_folder(target, marker="m"):
        pass
    with new_folder(target, overwrite=True, marker="m") as folder:
        (folder / "new").touch()
    assert [file.name for file in target.iterdir()] == ["new"] and [file.name for file in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UserError, match="holds no m"), new_folder(target, overwrite=True, marker="m"):
        pass


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.drop(columns="noise_ceiling"), "voxels.parquet lacks noise_ceiling"),
        (lambda table: table.drop(columns="roi"), "voxels.parquet lacks roi"),
        (lambda table: table.drop(columns="subject"), "voxels.parquet lacks subject"),
        (lambda table: table.assign(noise_ceiling="high"), "noise_ceiling of voxels.parquet has the type"),
        (lambda table: table.assign(roi="V1"), "a roi that is no list of names"),
        (lambda table: table.assign(roi=4), "a roi that is no list of names"),
        (lambda table: table.assign(voxel=[[0]] * len(table)), "voxel of voxels.parquet has the type object"),
        (lambda table: table.assign(roi=[[b"V1"]] * len(table)), "a roi that is no list of names"),
        (lambda table: table[3:], "voxels.parquet has 9 voxels of ann, the responses have 12"),
    ],
)
def test_inspect_shows_the_page_of_a_corpus_with_a_bad_voxel_table(colour_corpus, tmp_path, capsys, change, problem):
    path = rewritten(colour_corpus, tmp_path / "c")
    change(pd.read_parquet(path / "voxels.parquet")).to_parquet(path / "voxels.parquet")
    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    page = json.loads(captured.out)
    assert len(page["problems"]) == 1 and problem in page["problems"][0]
    assert page["subjects"]["ann"]["voxels"] == 12 and page["subjects"]["ann"]["noise_ceiling_known"] == 0
    assert captured.err.splitlines()[-1].startswith(f"error: corpus {path}: {page['problems'][0]}")
    with pytest.raises(UserError, match=problem):
        open_corpus(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(colour_corpus, tmp_path, refused):
    path = rewritten(colour_corpus, tmp_path / "c")
    (file,) = (path / "train").glob("*.arrow")
    file.unlink()
    os.mkfifo(file)
    refused(lambda: main(["inspect", str(path)]), f"{file} is no file: is corpus {path} whole")
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(UserError, match=r"image\.png is a pipe: an image file is expected"):
        open_image(tmp_path / "image.png")


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("dataset_dict.json", '{"splits": []}', "has no splits"),
        ("train/state.json", "[" * 100_000, "cannot be read .*recursion"),
        ("train/dataset_info.json", '{"features": {"image": {"dtype": "int32", "_type": "Value"}}}', "cannot be read"),
    ],
)
def test_damaged_files_of_a_corpus(colour_corpus, tmp_path, refused, file, content, told):
    path = rewritten(colour_corpus, tmp_path / "c")
    (path / file).write_text(content)
    refused(lambda: main(["inspect", str(path)]), f"corpus {path} {told}")


def test_a_format_that_was_saved_with_the_rows_hides_no_column(colour_corpus, tmp_path):
    path = tmp_path / "c"
    load_from_disk(str(colour_corpus)).with_format("numpy", columns=["fmri"]).save_to_disk(str(path))
    shutil.copy(colour_corpus / "voxels.parquet", path / "voxels.parquet")
    assert summarise(path)["problems"] == [] and open_corpus(path).subjects == {"ann": 12, "bob": 7}


def test_text_that_is_no_utf8(colour_corpus, tmp_path, refused):
    path = rewritten(colour_corpus, tmp_path / "c")
    (file,) = (path / "train").glob("*.arrow")
    name = load_from_disk(str(colour_corpus))["train"][0]["stimulus_id"].encode()
    file.write_bytes(file.read_bytes().replace(name, b"\x84" * len(name)))
    refused(lambda: main(["inspect", str(path)]), f"corpus {path} cannot be read .*UTF8")


def test_a_voxel_table_may_leave_everything_open(colour_corpus, tmp_path):
    path = rewritten(colour_corpus, tmp_path / "c")
    table = pd.read_parquet(path / "voxels.parquet").assign(noise_ceiling=None, roi=None)
    table.drop(columns=["x", "y", "z"]).to_parquet(path / "voxels.parquet")
    opened = open_corpus(path)
    assert opened.subjects == {"ann": 12, "bob": 7}
    assert set(map(tuple, opened.voxels["roi"])) == {()} and opened.voxels[["x", "y", "z"]].isna().all(axis=None)
    assert summarise(path)["problems"] == []


@pytest.mark.parametrize("ceiling", [-0.1, 30.0])
def test_noise_ceilings_are_shares(colour_corpus, tmp_path, refused, ceiling):
    path = rewritten(colour_corpus, tmp_path / "c")
    pd.read_parquet(path / "voxels.parquet").assign(noise_ceiling=ceiling).to_parquet(path / "voxels.parquet")
    refused(lambda: main(["inspect", str(path)]), f"noise_ceiling of voxels.parquet is {ceiling:g} in a voxel")


@pytest.mark.parametrize(
    ("column", "feature", "value"),
    [("subject", Value("int64"), 1), ("stimulus_id", Value("int64"), 1), ("fmri", List(Value("string")), ["0.5"])],
)
def test_columns_of_another_type_are_refused_in_one_line(colour_corpus, tmp_path, refused, column, feature, value):
    features = FEATURES.copy()
    features[column] = feature
    splits = {
        name: rows.map(lambda row: {column: value}, features=features)
        for name, rows in load_from_disk(str(colour_corpus)).items()
    }
    path = rewritten(colour_corpus, tmp_path / "c", **splits)
    refused(lambda: main(["inspect", str(path)]), f"split train of .* has {column} of type .*: text is expected in")


def arrays_of(path, subject: str, some: slice) -> str:
    """A corpus of one subject who saw some of 40 images."""
    rng = np.random.default_rng(0)
    images, names = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.array([f"nsd{number}" for number in range(40)])
    fmri = rng.normal(size=(len(images[some]), 6))
    np.savez(path / f"{subject}.npz", i=images[some], f=fmri, n=names[some])
    keys = ["--images", "i", "--fmri", "f", "--stimulus-ids", "n", "--subject", subject]
    assert main(["prepare", "arrays", str(path / f"{subject}.npz"), str(path / subject), *keys]) == 0
    return str(path / subject)


def test_subjects_who_saw_some_of_the_same_images_are_merged(tmp_path):
    one, two = arrays_of(tmp_path, "s1", slice(0, 30)), arrays_of(tmp_path, "s2", slice(10, 40))
    assert main(["merge", one, two, str(tmp_path / "both")]) == 0
    merged = open_corpus(tmp_path / "both")
    assert merged.subjects == {"s1": 6, "s2": 6}
    for subject in ("s1", "s2"):
        alone = open_corpus(tmp_path / subject).splits["test"]["stimulus_id"]
        test = merged.splits["test"]
        assert {row["stimulus_id"] for row in test if row["subject"] == subject} == set(alone)


def test_merged_corpora_keep_categories_and_sessions(tmp_path):
    one, two = arrays_of(tmp_path, "s1", slice(0, 30)), arrays_of(tmp_path, "s2", slice(10, 40))
    labelled = load_from_disk(one).map(
        lambda row, index: {"session": f"day {index % 4}", "category": row["stimulus_id"][:4]}, with_indices=True
    )
    labelled.save_to_disk(str(tmp_path / "labelled"))
    pd.read_parquet(tmp_path / "s1" / "voxels.parquet").to_parquet(tmp_path / "labelled" / "voxels.parquet")
    days = {(row["stimulus_id"], row["session"]) for split in labelled.values() for row in split}
    for number, (first, flags) in enumerate([(two, []), (two, ["--test-fraction", "0.2", "--seed", "1"])]):
        out = str(tmp_path / f"out{number}")
        assert main(["merge", first, str(tmp_path / "labelled"), out, *flags]) == 0
        rows = pd.concat([split.remove_columns("image").to_pandas() for split in load_from_disk(out).values()])
        of_one, of_two = (rows[rows["subject"] == subject] for subject in ("s1", "s2"))
        assert len(of_one) == len(of_two) == 30 and of_two["session"].isna().all() and of_two["category"].isna().all()
        assert set(zip(of_one["stimulus_id"], of_one["session"], strict=True)) == days
        assert (of_one["category"] == of_one["stimulus_id"].str[:4]).all()
    del labelled["test"]
    labelled.save_to_disk(str(tmp_path / "no test"))
    pd.read_parquet(tmp_path / "s1" / "voxels.parquet").to_parquet(tmp_path / "no test" / "voxels.parquet")
    assert main(["merge", two, str(tmp_path / "no test"), str(tmp_path / "out2")]) == 0
    merged = load_from_disk(str(tmp_path / "out2"))
    assert merged["test"].features == merged["train"].features  # one split alone would be another table on the Hub
    assert set(merged["test"]["session"]) == {None} and len(set(merged["train"]["session"])) == 5


def test_merged_corpora_may_have_other_types(tmp_path):
    one, two = arrays_of(tmp_path, "s1", slice(0, 30)), arrays_of(tmp_path, "s2", slice(10, 40))
    wide = load_from_disk(one).cast_column("fmri", List(Value("float64"))).cast_column("repeat", Value("int64"))
    wide.save_to_disk(str(tmp_path / "wide"))
    pd.read_parquet(tmp_path / "s1" / "voxels.parquet").to_parquet(tmp_path / "wide" / "voxels.parquet")
    assert main(["merge", str(tmp_path / "wide"), two, str(tmp_path / "out")]) == 0
    merged = load_from_disk(str(tmp_path / "out"))["train"]
    assert merged.features == FEATURES and merged[0]["fmri"] == load_from_disk(one)["train"][0]["fmri"]


def test_older_corpora_are_merged_with_a_new_test_split(tmp_path, refused, capsys):
    one, two = arrays_of(tmp_path, "s1", slice(0, 30)), arrays_of(tmp_path, "s2", slice(10, 40))
    before = load_from_disk(one)
    rows = concatenate_datasets([before["train"], before["test"]])
    test = [name == "nsd15" for name in rows["stimulus_id"]]  # as an earlier version may have drawn it
    older = {
        "train": rows.select([i for i, yes in enumerate(test) if not yes]),
        "test": rows.select([test.index(True)]),
    }
    alone = older["train"].select([0]).map(lambda row: {"image": None, "stimulus_id": "nsd15"}, features=FEATURES)
    older["train"] = concatenate_datasets([older["train"], alone])
    path = tmp_path / "older"
    DatasetDict(older).save_to_disk(str(path))
    pd.read_parquet(tmp_path / "s1" / "voxels.parquet").to_parquet(path / "voxels.parquet")
    with pytest.raises(UserError, match="in both"):  # its row without an image has a name of test
        open_corpus(path)
    older["train"] = older["train"].select(range(29))
    DatasetDict(older).save_to_disk(str(tmp_path / "old"))
    pd.read_parquet(tmp_path / "s1" / "voxels.parquet").to_parquet(tmp_path / "old" / "voxels.parquet")
    refused(lambda: main(["merge", str(tmp_path / "old"), two, str(tmp_path / "no")]), "--test-fraction 0.1")
    flags = ["--test-fraction", "0.2", "--seed", "1"]
    assert main(["merge", str(tmp_path / "old"), two, str(tmp_path / "both"), *flags]) == 0
    merged = open_corpus(tmp_path / "both")
    assert {name: len(rows) for name, rows in merged.splits.items()}["train"] + len(merged.splits["test"]) == 60
    assert set(merged.splits["test"]["subject"]) == {"s1", "s2"}
    again = tmp_path / "again"
    assert main(["merge", two, str(tmp_path / "old"), str(again), *flags]) == 0
    assert set(open_corpus(again).splits["test"]["stimulus_id"]) == set(merged.splits["test"]["stimulus_id"])


def test_rows_of_a_new_test_stimulus_that_are_no_pair_are_left_out(tmp_path, capsys):
    one = arrays_of(tmp_path, "s1", slice(0, 30))
    (tmp_path / "pictures").mkdir()
    for row in load_from_disk(one)["test"]:
        row["image"].save(tmp_path / "pictures" / f"{row['stimulus_id']}.png")
    number = len(load_from_disk(one)["test"])
    assert main(["prepare", "images", str(tmp_path / "pictures"), str(tmp_path / "images")]) == 0
    capsys.readouterr()
    assert main(["merge", one, str(tmp_path / "images"), str(tmp_path / "both"), "--test-fraction", "0.1"]) == 0
    assert f"{number} rows of test stimuli without image or fMRI: left out" in capsys.readouterr().out
    assert {name: len(rows) for name, rows in open_corpus(tmp_path / "both").splits.items()} == {
        "train": 30 - number,
        "test": number,
    }


def test_a_validation_split_needs_pairs(corpus):
    splits = load_from_disk(str(corpus))
    splits["validation"] = splits["test"].select([])
    assert "validation has no pair of image and fMRI" in check_trainable(splits)[0]
    splits["validation"] = splits["test"]
    assert check_trainable(splits) == []
