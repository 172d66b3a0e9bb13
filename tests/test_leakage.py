"""A stimulus in two splits, by name or by pixels: named, refused, and recorded where it is allowed."""

import io
import json
import shutil

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_from_disk
from PIL import Image as PILImage

from visionflow_hf import crossvalidate as crossvalidation
from visionflow_hf.cli import main
from visionflow_hf.corpus.leakage import picture, second_names
from visionflow_hf.corpus.schema import FEATURES, open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.evaluation.evaluate import evaluate

SHORT = ["--max_steps", "4", "--disable_tqdm", "true", "--linear_dim", "0"]


def encoded(image: PILImage.Image, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **{"format": "PNG", **how})
    return buffer.getvalue()


def with_row(source, target, split: str, **values):
    """A copy of a corpus with one row more in a split."""
    splits = load_from_disk(str(source))
    row = splits[split].cast_column("image", Image(decode=False))[0] | values
    splits[split] = concatenate_datasets([splits[split], Dataset.from_list([row], features=FEATURES)])
    DatasetDict(splits).save_to_disk(str(target))
    shutil.copy(source / "voxels.parquet", target)
    return target


@pytest.fixture(scope="module")
def by_pixels(corpus, tmp_path_factory):
    """A corpus whose test has an image of train under another name and in another file: as RGB, hardly compressed."""
    seen = load_from_disk(str(corpus))["train"][7]
    image = {"bytes": encoded(seen["image"].convert("RGB"), compress_level=1), "path": None}
    target = tmp_path_factory.mktemp("leaking") / "pixels"
    return with_row(corpus, target, "test", image=image, stimulus_id="twin"), f"{seen['stimulus_id']} = twin"


@pytest.fixture(scope="module")
def by_name(corpus, tmp_path_factory):
    seen = load_from_disk(str(corpus))["train"].cast_column("image", Image(decode=False))[7]
    same = {name: seen[name] for name in ("image", "stimulus_id")}
    return with_row(corpus, tmp_path_factory.mktemp("leaking") / "name", "test", **same, repeat=1), seen["stimulus_id"]


@pytest.mark.parametrize("kind", ["by_pixels", "by_name"])
def test_train_evaluate_and_inspect_refuse_and_name_them(kind, request, run, tmp_path, refused, capsys):
    path, names = request.getfixturevalue(kind)
    line = rf"1 stimulus \({names}( \(same pixels\))?\) in both train and test: .* --allow-leakage"
    refused(lambda: main(["train", str(path), str(tmp_path / "run"), *SHORT]), line)
    refused(lambda: main(["evaluate", str(run), str(path), str(tmp_path / "report")]), line)
    refused(lambda: main(["push-corpus", str(path), "lab/leaking"]), line)
    assert list(tmp_path.iterdir()) == []
    assert main(["inspect", str(path)]) == 2
    page = capsys.readouterr().out
    assert "subj02" in page and f"problem: 1 stimulus ({names}" in page
    assert main(["inspect", str(path), "--json"]) == 2
    assert names in json.loads(capsys.readouterr().out)["leakage"]
    assert main(["inspect", str(path), "--allow-leakage"]) == 0
    assert f"warning: 1 stimulus ({names}" in capsys.readouterr().out


def test_what_is_allowed_is_recorded(by_pixels, tmp_path):
    path, names = by_pixels
    run, report = tmp_path / "run", tmp_path / "report"
    assert main(["train", str(path), str(run), *SHORT, "--allow-leakage"]) == 0
    assert f"**Leakage.** The corpus has 1 stimulus ({names} (same pixels)) in both" in (run / "README.md").read_text()
    assert main(["evaluate", str(run), str(path), str(report), "--allow-leakage"]) == 0
    assert json.loads((report / "metrics.json").read_text())["leakage"].startswith(f"1 stimulus ({names}")


def test_a_report_names_what_leaks_into_its_own_split(run, corpus, tmp_path):
    splits = load_from_disk(str(corpus))
    splits["validation"] = splits["train"].select(range(4))
    splits.save_to_disk(str(tmp_path / "corpus"))
    shutil.copy(corpus / "voxels.parquet", tmp_path / "corpus")
    run = shutil.copytree(run, tmp_path / "run")  # its card gets the results
    for split in ("validation", "test"):
        flags = ["--split", split, "--allow-leakage"]
        assert main(["evaluate", str(run), str(tmp_path / "corpus"), str(tmp_path / split), *flags]) == 0
        told = json.loads((tmp_path / split / "metrics.json").read_text()).get("leakage", "")
        assert ("in both train and validation" in told) == (split == "validation")


def test_test_stimuli_of_another_corpus_that_the_model_was_trained_on_are_told(run, corpus, tmp_path, caplog):
    splits = load_from_disk(str(corpus))
    swapped = tmp_path / "swapped"  # as a test split that was drawn anew
    DatasetDict(train=splits["test"], test=splits["train"]).save_to_disk(str(swapped))
    shutil.copy(corpus / "voxels.parquet", swapped)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    metrics = evaluate(folder, swapped, tmp_path / "out")
    stimuli = len(set(splits["train"]["stimulus_id"]))
    assert metrics["leakage"].startswith(f"{stimuli} stimuli (") and "the model was trained on" in metrics["leakage"]
    assert "how well it fits them" in caplog.text


def test_one_name_for_two_images_is_refused_although_leakage_is_allowed(corpus, run, tmp_path, refused):
    name = load_from_disk(str(corpus))["train"][7]["stimulus_id"]
    path = with_row(corpus, tmp_path / "corpus", "test", stimulus_id=name, repeat=1)
    line = rf"1 stimulus \({name}\) with two images"
    for words in (
        ["train", str(path), str(tmp_path / "run"), *SHORT],
        ["evaluate", str(run), str(path), str(tmp_path / "out")],
    ):
        refused(lambda words=words: main([*words, "--allow-leakage"]), line)


def test_nothing_is_said_where_there_is_none(run, report):
    assert "Leakage" not in (run / "README.md").read_text()
    assert "leakage" not in json.loads((report / "metrics.json").read_text())


def test_an_image_with_two_names_is_one_stimulus(corpus, tmp_path, caplog):
    row = load_from_disk(str(corpus))["train"][3]
    image = {"bytes": encoded(row["image"], compress_level=0), "path": None}
    path = with_row(corpus, tmp_path / "twice", "train", image=image, stimulus_id="again")
    opened = open_corpus(path)
    assert "again" not in opened.splits["train"]["stimulus_id"]
    assert opened.splits["train"][-1]["stimulus_id"] == row["stimulus_id"]
    assert opened.splits["train"].features == FEATURES
    assert f"1 image ({row['stimulus_id']} = again) of train with two names" in caplog.text


def test_folds_hold_both_names_of_an_image_out(by_pixels, tmp_path, monkeypatch):
    path, names = by_pixels
    first, _ = names.split(" = ")
    folds = []

    def no_training(splits, *args, **kwargs):
        folds.append(splits["train"]["stimulus_id"])
        raise UserError("enough")

    monkeypatch.setattr(crossvalidation, "train_on", no_training)
    flags = ["--folds", "2", "--num-proc", "1"]
    for seed in range(4):
        assert main(["crossvalidate", str(path), str(tmp_path / "out"), *flags, "--seed", str(seed)]) == 2
    shown = [list(fold).count(first) for fold in folds]
    assert len(folds) == 4 and all("twin" not in fold for fold in folds)
    assert set(shown) <= {0, 3} and 3 in shown  # two subjects' trials of it, and the one under the other name


def test_pixels_are_compared_as_a_model_sees_them():
    rng = np.random.default_rng(0)
    grey = PILImage.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8))
    same = [encoded(grey), encoded(grey, compress_level=0), encoded(grey.convert("RGB")), encoded(grey, format="BMP")]
    assert len({picture(one, "here").pixels for one in same}) == 1
    changed = np.array(grey)
    changed[5, 7] ^= 1
    tall = PILImage.fromarray(np.asarray(grey).reshape(8, 6))
    deep = [PILImage.fromarray(np.full((6, 8), level, np.uint16)) for level in (1000, 1400)]
    alike = PILImage.fromarray(np.full((6, 8), 1001, np.uint16))  # 1000 and 1001 of 65535 are both 4 of 255
    assert picture(encoded(alike), "here") == picture(encoded(deep[0]), "here")
    others = [encoded(one) for one in (PILImage.fromarray(changed), tall, *deep)]
    assert len({picture(one, "here").pixels for one in [*others, same[0]]}) == 5


def test_second_names_point_at_the_first():
    a, b = (picture(encoded(PILImage.new("L", (2, 2), grey)), "here") for grey in (1, 2))
    assert second_names({"one": a, "two": b, "three": a, "four": a}) == {"three": "one", "four": "one"}


def test_an_image_that_cannot_be_read_is_named(corpus, tmp_path, refused, capsys):
    whole = encoded(PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)))
    image = {"bytes": whole[: len(whole) // 2], "path": None}
    path = with_row(corpus, tmp_path / "broken", "test", image=image, stimulus_id="broken")
    refused(lambda: main(["train", str(path), str(tmp_path / "run"), *SHORT]), "row 24 of split test cannot be read")
    assert main(["inspect", str(path)]) == 2
    assert "subj01" in capsys.readouterr().out
