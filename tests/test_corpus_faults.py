"""What a reader of the corpus code found: each test failed once."""

import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Image as DatasetImage
from datasets import Value, load_from_disk
from PIL import Image

from visionflow_hf.cli import main
from visionflow_hf.corpus.files import pictures_in
from visionflow_hf.corpus.images import prepare_images
from visionflow_hf.corpus.merge import merge
from visionflow_hf.corpus.repeats import ceilings_of_test
from visionflow_hf.corpus.schema import last_names, read_corpus, voxel_table, write_corpus, write_splits
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.predictions import owner
from visionflow_hf.folders import new_folder
from visionflow_hf.processes import run


def corpus_of(path, splits, voxels, seed=0):
    """A corpus of 3 voxels; `splits` has (subject, stimuli) for each name."""

    def rows(subject, stimuli):
        for stimulus in stimuli:
            pixels = np.random.default_rng(stimulus).integers(0, 256, (8, 8), dtype=np.uint8)
            fmri = np.random.default_rng([seed, stimulus]).normal(size=3).astype(np.float32)
            yield {
                "image": Image.fromarray(pixels),
                "fmri": fmri,
                "subject": subject,
                "stimulus_id": f"s{stimulus}",
                "repeat": 0,
            }

    write_corpus(path, {name: partial(rows, *part) for name, part in splits.items()}, voxels, unit="z")
    return path


def test_the_fingerprint_of_a_split_is_that_of_its_rows(tmp_path):
    splits = {"train": ("ann", range(6)), "test": ("ann", range(6, 9))}
    one, same, other = (
        load_from_disk(str(corpus_of(tmp_path / name, splits, voxel_table("ann", 3), seed)))["train"]._fingerprint
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one == same != other


def test_merge_refuses_splits_that_it_would_drop(tmp_path):
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, voxel_table("ann", 3))
    splits = load_from_disk(str(one))
    more = {"train": ("ann", [6, 7]), "test": ("ann", [8])}
    splits["val"] = load_from_disk(str(corpus_of(tmp_path / "more", more, voxel_table("ann", 3))))["train"]
    splits.save_to_disk(str(tmp_path / "other"))
    shutil.copy(one / "voxels.parquet", tmp_path / "other")
    with pytest.raises(UserError, match="has a split val: rename it to one of train, validation, test"):
        merge(one, tmp_path / "other", tmp_path / "both", report=print)
    assert not (tmp_path / "both").exists()


def test_merged_noise_ceilings_are_those_of_their_voxels(tmp_path):
    table = voxel_table("ann", 3, noise_ceiling=np.array([0.1, 0.2, 0.3])).iloc[[2, 0, 1]]
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, table)
    other = corpus_of(tmp_path / "other", {"train": ("ann", [6, 7])}, voxel_table("ann", 3))
    merge(one, other, tmp_path / "both", report=print)
    assert read_corpus(tmp_path / "both").voxels_of("ann")["noise_ceiling"].tolist() == [0.1, 0.2, 0.3]


def test_a_subject_without_rows_does_not_stand_in_for_one_that_has_them(tmp_path):
    tables = pd.concat([voxel_table("ann", 3), voxel_table("bob", 5)])
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5])}, tables)
    other = {"train": ("bob", range(4)), "test": ("bob", [4, 5])}
    other = corpus_of(tmp_path / "other", other, voxel_table("bob", 3))
    merge(one, other, tmp_path / "both", report=print)
    assert dict(read_corpus(tmp_path / "both").subjects) == {"ann": 3, "bob": 3}


def test_what_has_come_into_a_folder_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(UserError, match="has been filled meanwhile, and stays as it is: the result is in") as refusal,
        new_folder(tmp_path / "out", marker="m") as folder,
    ):
        (folder / "m").write_text("result")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    kept = str(refusal.value).rpartition("the result is in ")[2]
    assert (Path(kept) / "m").read_text() == "result"


def test_images_in_hidden_folders_are_no_stimuli(tmp_path):
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)
    assert [file.name for file in pictures_in(tmp_path / "images")] == ["a.png"]
    prepare_images(tmp_path / "images", tmp_path / "corpus", report=print)
    assert load_from_disk(str(tmp_path / "corpus"))["train"]["stimulus_id"][:] == ["a.png"]


def failing() -> None:
    raise UserError("no")


def test_processes_that_still_work_are_ended_with_an_error():
    began = time.monotonic()
    with pytest.raises(UserError, match="no"):
        list(run([failing, partial(time.sleep, 60)], 2))
    assert time.monotonic() - began < 50


def test_merge_refuses_trials_that_are_in_both_corpora(tmp_path):
    first, again = {"train": ("ann", range(6)), "test": ("ann", [6, 7])}, {"train": ("ann", [1, 2, 8])}
    one = corpus_of(tmp_path / "one", first, voxel_table("ann", 3))
    other = corpus_of(tmp_path / "other", again, voxel_table("ann", 3))
    with pytest.raises(UserError, match="2 trials of ann are in both"):
        merge(one, other, tmp_path / "both")
    repeated = corpus_of(tmp_path / "repeated", again, voxel_table("ann", 3), seed=1)
    merge(one, repeated, tmp_path / "both")
    train = load_from_disk(str(tmp_path / "both"))["train"]
    assert sorted(zip(train["stimulus_id"], train["repeat"], strict=True))[1:4] == [("s1", 0), ("s1", 1), ("s2", 0)]


def test_merge_refuses_z_scores_beside_another_unit_of_one_subject(tmp_path):
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(6))}, voxel_table("ann", 3))
    for subject in ("ann", "bob"):
        path = corpus_of(tmp_path / subject, {"train": (subject, range(6, 12))}, voxel_table(subject, 3), seed=1)
        splits = load_from_disk(str(path))
        splits["train"].info.description = "standard deviation of the voxel within the session"
        splits.save_to_disk(str(tmp_path / f"z {subject}"))
        shutil.copy(path / "voxels.parquet", tmp_path / f"z {subject}")
    with pytest.raises(UserError, match=r"ann is in both, once in the unit 'z' .* --zscore-sessions, or none"):
        merge(one, tmp_path / "z ann", tmp_path / "both")
    merge(one, tmp_path / "z bob", tmp_path / "both")


@pytest.mark.parametrize(("licenses", "kept"), [(("cc0-1.0", "cc0-1.0"), "cc0-1.0"), (("cc0-1.0", ""), "")])
def test_a_merged_corpus_has_the_licence_that_both_have(tmp_path, licenses, kept):
    said = []
    for subject, license in zip(("ann", "bob"), licenses, strict=True):
        path = corpus_of(tmp_path / f"{subject} made", {"train": (subject, range(6))}, voxel_table(subject, 3))
        splits = load_from_disk(str(path))
        splits["train"].info.license = license
        splits.save_to_disk(str(tmp_path / subject))
        shutil.copy(path / "voxels.parquet", tmp_path / subject)
    merge(tmp_path / "ann", tmp_path / "bob", tmp_path / "both", report=said.append)
    assert read_corpus(tmp_path / "both").license == kept
    assert any("licences differ" in line for line in said) == (not kept)


def test_ceilings_of_averages_stay_those_of_test_in_a_merged_corpus(tmp_path):
    tables = []
    for share, test in ((1.0, 0.1), (0.5, 0.3)):
        ratio = np.array([0.1, 0.5, 2.0])
        tables.append(voxel_table("ann", 3, noise_ceiling=ratio / (ratio + share)))
        tables[-1].attrs["repeats"] = {"ann": {"corpus": share, "test": test}}
    tables[0].loc[2, "noise_ceiling"] = np.nan  # taken from the other one, as a ceiling of as many trials
    one = corpus_of(tmp_path / "one", {"train": ("ann", range(4)), "test": ("ann", [4, 5, 6])}, tables[0])
    other = corpus_of(tmp_path / "other", {"train": ("ann", range(7, 10)), "test": ("ann", [10])}, tables[1])
    merge(one, other, tmp_path / "both")
    voxels = read_corpus(tmp_path / "both").voxels
    np.testing.assert_allclose(voxels["noise_ceiling"], ratio / (ratio + 1.0))
    assert voxels.attrs["repeats"] == {"ann": {"corpus": 1.0, "test": pytest.approx(0.15)}}
    np.testing.assert_allclose(ceilings_of_test(voxels)["noise_ceiling"], ratio / (ratio + 0.15))
    merge(one, other, tmp_path / "drawn", test_fraction=0.3)
    assert read_corpus(tmp_path / "drawn").voxels.attrs["repeats"] == {"ann": {"corpus": 1.0, "test": 1.0}}


def test_copies_of_an_image_are_repeats_of_one_stimulus(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for stimulus in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        for trial in range(2):
            picture.save(tmp_path / "images" / f"run{trial}_{stimulus:02d}.png")
    names = [f"run{trial}_{stimulus:02d}.png" for trial in range(2) for stimulus in range(12)]
    pd.DataFrame({"image": names, "subject": "ann"}).to_csv(tmp_path / "t.csv", index=False)
    np.save(tmp_path / "b.npy", rng.normal(size=(24, 5)))
    flags = ["--images-folder", tmp_path / "images", "--betas", tmp_path / "b.npy", "--average-repeats"]
    assert main([str(word) for word in ("prepare", "table", tmp_path / "t.csv", tmp_path / "out", *flags)]) == 0
    said = capsys.readouterr().out
    assert "with the pixels of another one" in said and "noise ceiling from repeats of 12 stimuli" in said
    corpus = read_corpus(tmp_path / "out")
    assert sum(len(rows) for rows in corpus.splits.values()) == 12
    assert np.isfinite(corpus.voxels["noise_ceiling"]).all()


def test_a_subject_without_a_trial_in_train_is_refused_and_one_without_test_told(tmp_path, capsys, refused):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for stimulus in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{stimulus}.png")
    kinds = ["face", "house", "tool"]
    rows = [("ann", stimulus) for stimulus in range(12)] + [("bob", stimulus) for stimulus in range(0, 12, 3)]
    table = {"image": [f"{s}.png" for _, s in rows], "subject": [subject for subject, _ in rows]}
    pd.DataFrame(table | {"kind": [kinds[s % 3] for _, s in rows]}).to_csv(tmp_path / "t.csv", index=False)
    for subject, trials in (("ann", 12), ("bob", 4)):
        np.save(tmp_path / f"{subject}.npy", rng.normal(size=(trials, 5)))
    flags = ["--images-folder", tmp_path / "images", "--betas", tmp_path / "{subject}.npy"]
    flags += ["--split-by", "category", "--category-column", "kind", "--test-fraction", "0.3"]
    ends = set()
    for seed in range(6):
        words = ["prepare", "table", tmp_path / "t.csv", tmp_path / f"out{seed}", *flags, "--seed", seed]
        code, said = main(list(map(str, words))), capsys.readouterr()
        ends.add(code)
        if code:
            assert "bob would have no trial in train" in said.err
        else:
            assert "bob has no trial in test" in said.out
    assert ends == {0, 2}


def saved_as(corpus, path, change):
    """The corpus with its splits changed, and its voxel table."""
    splits = load_from_disk(str(corpus))
    for name in splits:
        splits[name] = change(name, splits[name])
    splits.save_to_disk(str(path))
    shutil.copy(corpus / "voxels.parquet", path)
    return path


def of_other_types(name, rows):
    """Whole numbers of test have 64 bits, and images of all splits stay encoded."""
    rows = rows.cast_column("image", DatasetImage(decode=False))
    return rows.cast_column("repeat", Value("int64")) if name == "test" else rows


def test_splits_of_other_types_are_put_together(tmp_path, refused):
    splits = {"train": ("ann", range(8)), "test": ("ann", range(8, 12))}
    corpus = corpus_of(tmp_path / "corpus", splits, voxel_table("ann", 3))
    other = saved_as(corpus, tmp_path / "other", of_other_types)
    words = ["crossvalidate", str(other), str(tmp_path / "out"), "--folds", "99"]
    refused(lambda: main(words), "must be between 2 and")  # which is asked when the rows are together
    bob = {"train": ("bob", range(8)), "test": ("bob", range(8, 12))}
    second = saved_as(corpus_of(tmp_path / "bob", bob, voxel_table("bob", 3)), tmp_path / "second", of_other_types)
    assert main(["merge", str(other), str(second), str(tmp_path / "merged"), "--test-fraction", "0.25"]) == 0
    assert len(read_corpus(tmp_path / "merged").splits["test"]) == 6


def test_a_subject_with_one_stimulus_is_refused_before_training(tmp_path, refused):
    ann = {"train": ("ann", range(8)), "validation": ("ann", [8, 9]), "test": ("ann", [10, 11])}
    bob = {"train": ("bob", [0]), "test": ("bob", [10])}
    for name, splits in (("ann", ann), ("bob", bob)):
        corpus_of(tmp_path / name, splits, voxel_table(name, 3))
    assert main(["merge", *(str(tmp_path / name) for name in ("ann", "bob", "both"))]) == 0
    words = ["train", str(tmp_path / "both"), str(tmp_path / "run"), "--max_steps", "1"]
    refused(lambda: main(words), "bob has 1 distinct stimulus")
    assert not (tmp_path / "run").exists()


def test_a_subject_without_voxels_is_refused(tmp_path, refused):
    splits = {"train": ("ann", range(8)), "test": ("ann", [8, 9])}
    corpus = corpus_of(tmp_path / "corpus", splits, voxel_table("ann", 3))
    empty = saved_as(corpus, tmp_path / "empty", lambda _, rows: rows.map(lambda row: {"fmri": []}))
    voxel_table("ann", 0).to_parquet(empty / "voxels.parquet")
    refused(lambda: main(["inspect", str(empty)]), "the responses of ann have no voxels")


def test_a_corpus_shows_no_files_beside_it(tmp_path, refused):
    Image.new("L", (8, 8), 5).save(tmp_path / "private.png")
    shown = {"bytes": None, "path": str(tmp_path / "private.png")}
    rows = [
        {"image": shown, "fmri": [0.0, 1.0, row], "subject": "ann", "stimulus_id": f"s{row}", "repeat": 0}
        for row in range(4)
    ]
    (tmp_path / "corpus").mkdir()
    write_splits(tmp_path / "corpus", {"train": lambda: iter(rows)}, voxel_table("ann", 3), "z")
    refused(lambda: main(["inspect", str(tmp_path / "corpus")]), "names image files and has no folder stimuli")
    (tmp_path / "corpus" / "stimuli").mkdir()
    refused(lambda: main(["inspect", str(tmp_path / "corpus")]), "private.png is gone")


@pytest.mark.parametrize("file", ["/x.png", "../x.png", "a/../../x.png", "/a/b/x.png", "stimuli/b/x.png", "x.png"])
def test_the_path_of_an_image_leads_downwards(file):
    names = last_names(file)
    assert names[-1] == "x.png" and len(names) <= 2 and not {"..", "/"} & set(names)


@pytest.mark.parametrize("subject", ["fmri/ann", "log_likelihood/ann", "a/roi/b", "roi"])
@pytest.mark.parametrize("kind", ["fmri", "ridge/fmri_predicted", "roi", "noise_ceiling", "single_trial/fmri"])
def test_subjects_may_bear_the_names_of_arrays(kind, subject):
    assert owner(f"{kind}/{subject}") == (kind, subject)


def test_a_subject_needs_a_name(tmp_path, refused):
    write = corpus_of(tmp_path / "one", {"train": ("", range(4)), "test": ("", [4, 5])}, voxel_table("", 3))
    refused(lambda: main(["inspect", str(write)]), "without a name: give fMRI its subject")
