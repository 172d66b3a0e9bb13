"""`visionflow app` and `push-space`: what the page shows, against values computed here, and the files of a Space."""

import subprocess
import sys
from importlib.metadata import requires

import numpy as np
import pytest
from conftest import ROOT
from datasets import load_from_disk
from huggingface_hub import RepoCard
from loopback_hub import LoopbackHub, Repository, environment
from packaging.requirements import Requirement

from visionflow_hf import app
from visionflow_hf.app import Demo, decoded_html, encoded_html, scores_of, walk_html
from visionflow_hf.cli import main
from visionflow_hf.errors import UserError


@pytest.fixture(scope="module")
def demo(run, corpus):
    return Demo(run, corpus, device="cpu")


@pytest.fixture(scope="module")
def rows(corpus):
    """The trials of subj01 in test."""
    return [row for row in load_from_disk(str(corpus))["test"] if row["subject"] == "subj01"]


def test_the_stimuli_are_those_of_the_test_split(demo, rows):
    assert set(demo.stimuli_of("subj01")) == {row["stimulus_id"] for row in rows}
    assert demo.subjects == ["subj01", "subj02"]


def test_encoding_is_the_models_in_standard_deviations_of_train(demo, rows):
    response, decoded = demo.encode(rows[0]["image"], "subj01")
    predicted = demo.model.predict_fmri(**demo.processor(images=rows[0]["image"], subject="subj01"))[0].numpy()
    mean, std = demo.processor.fmri_mean["subj01"], demo.processor.fmri_std["subj01"]
    np.testing.assert_allclose(response * std + mean, predicted, atol=1e-4)
    back = demo.model.reconstruct_image(**demo.processor(fmri=predicted, subject="subj01"))[0, 0].numpy()
    np.testing.assert_allclose(decoded / 255, back, atol=0.01)


def test_a_trial_is_the_mean_of_its_repeats(demo, rows):
    stimulus = rows[0]["stimulus_id"]
    fmri = np.mean([row["fmri"] for row in rows if row["stimulus_id"] == stimulus], axis=0)
    decoded = demo.decode_trial(stimulus, "subj01")
    pixels = demo.model.reconstruct_image(**demo.processor(fmri=fmri, subject="subj01"))[0, 0].numpy()
    np.testing.assert_allclose(decoded.reconstruction / 255, pixels, atol=0.01)
    np.testing.assert_array_equal(decoded.shown, np.asarray(rows[0]["image"].convert("L")))
    assert len(decoded.samples) == app.SAMPLES


def test_candidates_are_ranked_by_the_models_likelihood(demo, rows):
    images = {row["stimulus_id"]: row["image"] for row in rows}
    stimulus = rows[0]["stimulus_id"]
    fmri = np.mean([row["fmri"] for row in rows if row["stimulus_id"] == stimulus], axis=0)
    batch = demo.processor(fmri=fmri, images=list(images.values())[:1], subject="subj01")
    pixels = demo.processor(images=list(images.values()), subject="subj01")["pixel_values"]
    likelihood = demo.model.log_likelihood(batch["fmri"], pixels, subject="subj01")[0].numpy()
    expected = dict(zip(images, likelihood - likelihood.max(), strict=True))
    candidates = demo.decode_trial(stimulus, "subj01").candidates
    assert [name for _, name, _ in candidates] == sorted(expected, key=expected.get, reverse=True)[: app.CANDIDATES]
    np.testing.assert_allclose(
        [below for *_, below in candidates], [expected[name] for _, name, _ in candidates], atol=0.01
    )


def test_scores_of_images_that_are_known():
    shown = np.array([[0, 200], [0, 200]], np.uint8)
    others = np.array([[[200, 0], [200, 0]], [[0, 180], [40, 200]]], np.uint8)
    scores = scores_of(np.concatenate([shown[None], others]), 0, shown, others[0], rank=2)
    own_r, ridge_r = np.corrcoef(shown.ravel(), shown.ravel())[0, 1], -1
    chance = np.mean([np.corrcoef(shown.ravel(), one.ravel())[0, 1] for one in others])
    assert scores[0][1:] == (f"{own_r:.2f}", f"{ridge_r:.2f}", f"{chance:.2f}")
    assert scores[1][1:] == ("100%", "0%", "50%")
    assert scores[2][1:] == ("2", "-", "2")


def test_a_walk_begins_and_ends_with_its_images(demo, rows):
    first, second = rows[0]["image"], rows[-1]["image"]
    steps = demo.walk(first, second)
    assert len(steps) == app.STEPS
    for step, image in ((0, first), (-1, second)):
        posterior = demo.model.encode_image(**demo.processor(images=image, subject="subj01"))
        pixels = demo.model.decode(posterior.learned.mean, posterior.linear.mean)[0, 0].detach().numpy()
        np.testing.assert_allclose(steps[step] / 255, pixels, atol=0.01)


def test_an_uploaded_response(demo, rows, tmp_path):
    fmri = np.array([row["fmri"] for row in rows[:2]])
    np.savez(tmp_path / "mine.npz", fmri=fmri)
    decoded = demo.decode_file(tmp_path / "mine.npz", 1, "subj01")
    np.testing.assert_array_equal(decoded.reconstruction, demo.decode(fmri[1], "subj01").reconstruction)
    assert decoded.shown is None and not decoded.scores and decoded.ridge is not None
    with pytest.raises(UserError, match="it has the rows 0 to 1"):
        demo.decode_file(tmp_path / "mine.npz", 2, "subj01")
    np.save(tmp_path / "short.npy", fmri[:, :-1])
    with pytest.raises(UserError, match="29 voxels, subj01 has 30"):
        demo.decode_file(tmp_path / "short.npy", 0, "subj01")


def test_html_of_every_tab(demo, rows):
    stimulus = rows[0]["stimulus_id"]
    html = decoded_html(demo.decode_trial(stimulus, "subj01"))
    assert html.count("<img") == 3 + app.SAMPLES + len(demo.decode_trial(stimulus, "subj01").candidates)
    assert "ridge regression" in html and "chance" in html and stimulus in html
    encoded = encoded_html(demo, rows[0]["image"], "subj01")
    assert "<svg" in encoded and "all voxels (30)" in encoded
    assert walk_html(demo, rows[0]["image"], rows[-1]["image"]).count("<img") == app.STEPS
    assert encoded_html(demo, None, "subj01") == walk_html(demo, None, rows[0]["image"]) == ""


def test_without_a_corpus(run, rows):
    alone = Demo(run, device="cpu")
    decoded = alone.decode(np.array(rows[0]["fmri"]), "subj01")
    assert decoded.ridge is None and not decoded.candidates and alone.stimuli_of("subj01") == []
    assert list(alone.regions("subj01")) == ["all voxels"]
    assert decoded_html(decoded).count("<img") == 1 + app.SAMPLES


def test_a_corpus_of_other_subjects_is_refused(run, colour_corpus):
    with pytest.raises(UserError, match="unknown subject ann: this model knows subj01, subj02"):
        Demo(run, colour_corpus)


def test_without_gradio_one_line_names_the_extra(run, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(lambda: main(["app", str(run)]), r"the app needs gradio: pip install 'visionflow-hf\[app\]'")


def test_the_page_answers(demo):
    pytest.importorskip("gradio")
    made = app.page(demo, "model")
    names = {block.label for block in made.blocks.values() if getattr(block, "label", None)}
    assert {"Subject", "Image", "Encode", "Decode", "Walk", "From", "To"} <= names


@pytest.fixture(scope="module")
def spaces(run, tmp_path_factory):
    """The folders of two Spaces as they were pushed: `own` with the model of a folder, `hub` with one of the Hub."""
    folder = tmp_path_factory.mktemp("spaces")
    code = "import sys; from visionflow_hf.cli import main\n"
    code += "for run, name in (('lab/model', 'lab/hub'), (sys.argv[1], 'lab/own')):"
    code += "\n    assert main(['push-space', run, name, '--corpus', 'lab/corpus']) == 0"
    with LoopbackHub() as hub:
        hub.repositories["models/lab/model"] = Repository(False)
        hub.repositories["datasets/lab/corpus"] = Repository(False)
        hub.repositories["datasets/lab/corpus"].commit({})
        hub.repositories["models/lab/model"].commit({"config.json": (run / "config.json").read_bytes()})
        env = environment(hub, folder / "home", PYTHONPATH=str(ROOT))
        done = subprocess.run([sys.executable, "-c", code, str(run)], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for name in ("own", "hub"):
            for place, data in hub.files(f"lab/{name}", "spaces").items():
                (folder / name / place).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / place).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", ["own", "hub"])
def test_what_a_space_says_of_itself(name, spaces):
    assert (spaces / name / "app.py").read_bytes() == (ROOT / "visionflow_hf" / "app.py").read_bytes()
    card = RepoCard.load(spaces / name / "README.md").data.to_dict()
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and card["datasets"] == ["lab/corpus"]
    assert card.get("models") == {"own": None, "hub": ["lab/model"]}[name]
    assert (spaces / name / "model" / "model.safetensors").is_file() == (name == "own")


def test_a_space_installs_what_the_app_needs(spaces):
    needed = {Requirement(line).name for line in (spaces / "own" / "requirements.txt").read_text().splitlines()}
    known = [Requirement(line) for line in requires("visionflow-hf")]
    assert needed == {one.name for one in known if one.marker is None or one.marker.evaluate({"extra": "app"})}
    assert {"torch", "gradio"} <= needed and "pytest" not in needed


def test_a_space_starts_from_its_own_files(spaces):
    """Everything that app.py imports is among them."""
    code = "import app, sys; demo = app.Demo('model'); print(sys.modules['visionflow_hf'].__file__, *demo.subjects)"
    done = subprocess.run([sys.executable, "-c", code], cwd=spaces / "own", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(spaces / "own" / "visionflow_hf" / "__init__.py"), "subj01", "subj02"]


def test_a_space_takes_no_corpus_of_a_folder(run, corpus, refused):
    command = ["push-space", str(run), "lab/app", "--corpus", str(corpus)]
    refused(lambda: main(command), "is no ORG/NAME on the Hub: push it first with `visionflow push-corpus`")
    command[-1] = "lab/nothing"  # there are neither a folder nor a Hub here
    refused(lambda: main(command), "lab/nothing is no corpus: there is no such folder, and the Hub")
