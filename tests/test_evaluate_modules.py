"""The `evaluate` modules in metrics/: loaded by path without a network, equal to the functions and to hand counts."""

import doctest
import os
import re
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import yaml
from conftest import ROOT

from visionflow_hf import metrics

FOLDERS = sorted(path for path in (ROOT / "metrics").iterdir() if path.is_dir())
RNG = np.random.default_rng(0)
IMAGES = RNG.random((5, 8, 6, 3))
RECONSTRUCTIONS = 0.5 * IMAGES + 0.5 * RNG.random(IMAGES.shape)
MEASURED = RNG.normal(100, 3, (6, 4))
PREDICTED = MEASURED + RNG.normal(0, 4, MEASURED.shape)
CEILING = np.array([0.3, 0.9, np.nan, 0.0])


def load(name):
    return evaluate.load(str(ROOT / "metrics" / name))


def test_all_load_by_path_with_an_empty_cache_and_no_network(tmp_path):
    lines = "import evaluate\nfor name in NAMES:\n    module = evaluate.load(f'metrics/{name}')\n"
    lines += "    assert module.name == name and module.description and module.citation and module.inputs_description"
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    env |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    lines = lines.replace("NAMES", str([folder.name for folder in FOLDERS]))
    result = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    assert len(FOLDERS) == 7


def test_they_give_the_figures_of_the_functions():
    images = {"predictions": RECONSTRUCTIONS, "references": IMAGES}
    r = metrics.cross_correlation(IMAGES, RECONSTRUCTIONS)
    assert load("pixcorr").compute(**images) == {"pixcorr": pytest.approx(np.diag(r).mean())}
    assert load("ssim_reconstruction").compute(**images) == {
        "ssim": pytest.approx(metrics.ssim(IMAGES, RECONSTRUCTIONS).mean())
    }
    assert load("two_way_identification").compute(**images) == {"two_way": metrics.two_way(r)[0]}
    responses = {"predictions": PREDICTED, "references": MEASURED}
    voxel_r = metrics.voxel_correlation(MEASURED, PREDICTED)
    assert load("voxel_correlation").compute(**responses) == {
        "voxel_r_mean": pytest.approx(voxel_r.mean()),
        "voxel_r_median": pytest.approx(np.median(voxel_r)),
        "voxel_r": pytest.approx(voxel_r[0]),
    }
    assert load("pattern_correlation").compute(**responses) == {
        "pattern_r": pytest.approx(metrics.pattern_correlation(MEASURED, PREDICTED).mean())
    }
    assert load("ceiling_normalised").compute(**responses, noise_ceiling=CEILING) == {
        "ceiling_normalised": pytest.approx(metrics.ceiling_normalised(voxel_r, CEILING)[0]),
        "n_voxels": 2,
    }
    similarity = metrics.cosine_similarity(MEASURED - 100, PREDICTED - 100)
    assert load("retrieval").compute(predictions=PREDICTED - 100, references=MEASURED - 100, k=2) == {
        "prediction_ranks_references": metrics.top_k(similarity, 2)[0],
        "reference_ranks_predictions": metrics.top_k(similarity.T, 2)[0],
    }


def test_retrieval_is_named_by_what_ranks_what():
    references, predictions = np.eye(3), np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0.8, 0, 0.1]])
    # all predictions look most like the first reference; among the predictions, each reference finds its own
    result = load("retrieval").compute(predictions=predictions, references=references)
    assert result == {
        "prediction_ranks_references": pytest.approx(1 / 3),
        "reference_ranks_predictions": pytest.approx(1.0),
    }


def test_grey_images_and_bytes_are_taken():
    grey = (IMAGES[..., 0] * 255).astype(np.uint8)
    assert load("pixcorr").compute(predictions=grey, references=255 - grey)["pixcorr"] == pytest.approx(-1)
    assert load("two_way_identification").compute(predictions=grey, references=grey)["two_way"] == 1


@pytest.mark.parametrize(
    ("name", "predictions", "references", "more", "message"),
    [
        ("pixcorr", IMAGES[:, :4], IMAGES, {}, r"predictions of shape \(5, 4, 6, 3\) and references of shape \(5, 8"),
        ("pixcorr", IMAGES[:4], IMAGES, {}, "Mismatch in the number of predictions .4. and references .5."),
        ("pixcorr", MEASURED, MEASURED, {}, "don't match the expected format"),
        ("pixcorr", [[[1.0, 2.0]], [[1.0]]], [[[1.0, 2.0]], [[1.0]]], {}, "predictions have different shapes among"),
        ("pixcorr", IMAGES * np.nan, IMAGES, {}, "predictions have NaN or infinite values"),
        ("ssim_reconstruction", IMAGES * 255, IMAGES * 255, {}, "scale pixels to 0..1"),
        (
            "ssim_reconstruction",
            IMAGES[..., :2],
            IMAGES[..., :2],
            {},
            r"give \(height, width\) or \(height, width, 3\)",
        ),
        ("ssim_reconstruction", IMAGES[:, :2], IMAGES[:, :2], {}, "the window needs 3 px"),
        ("two_way_identification", MEASURED[:1], MEASURED[:1], {}, "1 items, and this metric needs at least 2"),
        ("retrieval", MEASURED, MEASURED, {"k": 7}, "give a number from 1 to the number of items, 6"),
        ("retrieval", IMAGES, IMAGES, {}, "don't match the expected format"),
        ("voxel_correlation", MEASURED[:, :3], MEASURED, {}, r"shape \(6, 3\) and references of shape \(6, 4\)"),
        ("pattern_correlation", MEASURED[:, :1], MEASURED[:, :1], {}, "a pattern needs at least 2"),
        ("ceiling_normalised", MEASURED, MEASURED, {"noise_ceiling": [0.5]}, "for 4 voxels: give one number a voxel"),
        ("ceiling_normalised", MEASURED, MEASURED, {"noise_ceiling": [5, 5, 90, 9]}, "give shares of variance, 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(name, predictions, references, more, message):
    with pytest.raises(ValueError, match=message):
        load(name).compute(predictions=predictions, references=references, **more)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_is_whole_and_its_example_gives_what_it_shows(folder, monkeypatch):
    card = (folder / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["title"] and head["sdk"] == "gradio" and {"evaluate", "metric"} <= set(head["tags"])
    headings = re.findall(r"^#+ (.*)", text, flags=re.MULTILINE)
    assert headings[1:] == [
        "Metric description",
        "How to use",
        "Inputs",
        "Output values",
        "Examples",
        "Limitations and bias",
        "Citation",
    ]
    monkeypatch.chdir(ROOT)
    example = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    test = doctest.DocTestParser().get_doctest(example, {}, folder.name, str(folder), 0)
    assert len(test.examples) >= 4
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_card_names_what_the_module_takes_and_gives(folder):
    card = (folder / "README.md").read_text()
    module = load(folder.name)
    names = re.findall(r"^    (\w[\w, ]*):", module.inputs_description, flags=re.MULTILINE)
    for name in ", ".join(names).split(", "):
        assert f"**{name}**" in card, name
    assert module.citation.strip() in card
