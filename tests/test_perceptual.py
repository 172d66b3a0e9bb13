"""The perceptual suite: its networks as published, what they are shown, its formulas, and what is said without them."""

import json
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import correlation as correlation_distance
from torch import nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel

from visionflow_hf import crossvalidate
from visionflow_hf.cli import main
from visionflow_hf.evaluation import evaluate, perceptual
from visionflow_hf.evaluation.perceptual import NETWORKS, Network, features, perceptual_figures, to_pixels

RNG = np.random.default_rng(0)
QUIET = tqdm(disable=True)


def small(figures) -> Network:
    """A network of random weights that ends in an operation in place."""

    def load():
        torch.manual_seed(len(figures))
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.ReLU(inplace=True))

    return Network("small", load, 12, dict.fromkeys(figures, "1"))


SMALL = (small(("alexnet2", "alexnet5")), small(("inception",)), small(("clip", "efficientnet", "swav")))


@pytest.fixture
def small_networks(monkeypatch):
    monkeypatch.setattr(perceptual, "NETWORKS", SMALL)


def test_layers_sizes_and_normalisation_are_those_of_the_field():
    shown = {tuple(network.layers.items()): network.size for network in NETWORKS}
    assert shown == {
        (("alexnet2", "features.4"), ("alexnet5", "features.11")): 256,
        (("inception", "avgpool"),): 342,
        (("clip", "visual_projection"),): 224,
        (("efficientnet", "avgpool"),): 255,
        (("swav", "avgpool"),): 224,
    }
    for network in NETWORKS:
        ours = "clip" in network.layers
        assert network.mean == ((0.48145466, 0.4578275, 0.40821073) if ours else (0.485, 0.456, 0.406))
        assert network.std == ((0.26862954, 0.26130258, 0.27577711) if ours else (0.229, 0.224, 0.225))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_network_sees_all_of_an_image_at_its_size_and_scale(network):
    images = RNG.integers(0, 256, (2, 400, 400, 3), dtype=np.uint8)
    images[:, :, :2] = 255  # the left border
    pixels = to_pixels(images, network)
    assert pixels.shape == (2, 3, network.size, network.size)
    back = pixels.movedim(1, -1).numpy() * network.std + network.mean
    for image, seen in zip(images, back, strict=True):
        expected = Image.fromarray(image).resize((network.size, network.size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(seen * 255, np.asarray(expected), atol=1.1)  # Pillow rounds twice
    white = (1 - np.array(network.mean)) / network.std
    np.testing.assert_allclose(to_pixels(np.full((1, 9, 9), 255, np.uint8), network)[0, :, 0, 0], white, rtol=1e-5)


def test_grey_images_become_rgb_and_others_square():
    grey = RNG.integers(0, 256, (2, 10, 16), dtype=np.uint8)
    pixels = to_pixels(grey, SMALL[0])
    assert pixels.shape == (2, 3, 12, 12)
    assert torch.equal(pixels, to_pixels(np.repeat(grey[..., None], 3, axis=3), SMALL[0]))


def test_features_are_a_layers_output_in_the_order_of_the_images():
    images = RNG.integers(0, 256, (70, 12, 12), dtype=np.uint8)
    network = SMALL[0]
    module = network.load().eval()
    found = features(module, network, images, QUIET)
    with torch.no_grad():
        expected = module[:2](to_pixels(images, network)).flatten(1)
    assert (expected < 0).any()  # so that the operation in place would show
    assert list(found) == ["alexnet2", "alexnet5"]
    for values in found.values():
        np.testing.assert_allclose(values, expected, atol=1e-6)
    assert torch.equal(module(torch.ones(1, 3, 12, 12)), module(torch.ones(1, 3, 12, 12)))  # and no hook stays


def test_clip_gives_the_image_embedding(tmp_path, monkeypatch):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 224, "patch_size": 56}
    text = sizes | {"vocab_size": 50, "max_position_embeddings": 8}
    whole = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).eval()
    whole.save_pretrained(tmp_path)  # both sides, as in the published checkpoint
    monkeypatch.setattr(perceptual, "CLIP", str(tmp_path))
    images = RNG.integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    network = NETWORKS[2]
    found = features(network.load().eval(), network, images, QUIET)["clip"]
    with torch.no_grad():
        vision_side = whole.vision_model(to_pixels(images, network)).pooler_output
        np.testing.assert_allclose(found, whole.visual_projection(vision_side), atol=1e-5)


def recomputed(arrays, subject, prefix):
    """The figures of one subject by scipy and numpy."""
    rows = arrays["subject"] == subject
    figures = {}
    for network in SMALL:
        module = network.load().eval()
        seen, made = (
            features(module, network, arrays[name][rows], QUIET) for name in ("image", f"{prefix}reconstruction")
        )
        for name in network.layers:
            n = rows.sum()
            r = np.corrcoef(seen[name], made[name])[:n, n:]
            wins = [r[i, j] < r[j, j] for j in range(n) for i in range(n) if i != j]
            distances = [correlation_distance(a, b) for a, b in zip(seen[name], made[name], strict=True)]
            figures[name] = np.mean(distances) if name in ("efficientnet", "swav") else np.mean(wins)
    return figures


def test_evaluate_adds_the_figures_of_the_model_and_ridge(run, corpus, tmp_path, small_networks, capsys):
    out = tmp_path / "out"
    assert main(["evaluate", str(run), str(corpus), str(out), "--perceptual"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    with np.load(out / "predictions.npz") as file:
        arrays = dict(file)
    for decoder, prefix in (("model", ""), ("ridge", "ridge/")):
        expected = {subject: recomputed(arrays, subject, prefix) for subject in ("subj01", "subj02")}
        assert set(expected["subj01"]) == set(perceptual.FIGURES)
        for name in perceptual.FIGURES:
            for subject, figures in expected.items():
                found = metrics["subjects"][subject]["decoding"][decoder][name]
                assert found == pytest.approx(figures[name], abs=1e-6)
            mean = np.mean([figures[name] for figures in expected.values()])
            assert metrics["decoding"][decoder][name] == pytest.approx(mean, abs=1e-6)
            low, high = metrics["intervals"][f"decoding.{decoder}.{name}"]
            assert 0 <= low <= metrics["decoding"][decoder][name] + 1e-9 and high <= 2
            assert high <= 1 or name in perceptual.DISTANCE
    assert "alexnet2" not in metrics["decoding"]["mean_image"]
    assert "swav" in capsys.readouterr().out


def test_crossvalidate_takes_the_flag(report, run, corpus, tmp_path, small_networks, monkeypatch):
    with np.load(report / "predictions.npz") as file:
        arrays = dict(file)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    folds = iter("ab")

    def run_fold(*_args):  # what a model makes of other stimuli in either fold, without training it
        return arrays | {"stimulus_id": np.char.add(arrays["stimulus_id"], next(folds))}, history

    monkeypatch.setattr(crossvalidate, "run_fold", run_fold)
    out = tmp_path / "out"
    flags = ["--folds", "2", "--num-proc", "1", "--disable_tqdm", "true", "--perceptual"]
    assert main(["crossvalidate", str(corpus), str(out), *flags]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["n_stimuli"] == 8
    with np.load(out / "predictions.npz") as file:
        expected = np.mean([recomputed(file, subject, "")["alexnet5"] for subject in ("subj01", "subj02")])
    assert metrics["decoding"]["model"]["alexnet5"] == pytest.approx(expected, abs=1e-6)


def test_a_network_that_tells_nothing_identifies_nothing(monkeypatch):
    class Blind(nn.Conv2d):
        def forward(self, pixels):
            return torch.ones(len(pixels), 5)

    blind = Network("blind", lambda: nn.Sequential(Blind(3, 1, 1)), 8, {"clip": "0", "swav": "0"})
    monkeypatch.setattr(perceptual, "NETWORKS", (blind,))
    images = RNG.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    arrays = {"stimulus_id": np.array(list("abc")), "subject": np.array(["s"] * 3), "image": images}
    arrays |= {"reconstruction": images, "ridge/reconstruction": images[::-1]}
    figures = perceptual_figures(arrays, np.ones((1, 3)), torch.device("cpu"))["s"]["model"]
    assert figures["clip"].tolist() == [0] and figures["swav"].tolist() == [1]  # ties fail


def test_a_bootstrap_draw_counts_rows_as_often_as_drawn(small_networks):
    ids, weights = np.array(list("abcde")), np.array([[2, 0, 1, 3, 1]])
    images, made = RNG.integers(0, 256, (2, 5, 12, 12, 3), dtype=np.uint8)
    arrays = {"stimulus_id": ids, "image": images, "reconstruction": made, "ridge/reconstruction": images}
    drawn = perceptual_figures(arrays | {"subject": np.array(["s"] * 5)}, weights, torch.device("cpu"))["s"]
    place = np.repeat(np.arange(5), weights[0])
    written_out = {name: values[place] for name, values in arrays.items()} | {"subject": np.array(["s"] * 7)}
    expected = perceptual_figures(written_out, np.ones((1, 7)), torch.device("cpu"))["s"]
    for decoder in ("model", "ridge"):
        for name in perceptual.FIGURES:
            np.testing.assert_allclose(drawn[decoder][name], expected[decoder][name], atol=1e-6)


@pytest.fixture
def too_late(monkeypatch):
    """Nothing long may begin before it is known that the networks are there."""

    def fail(*_args):
        raise AssertionError("predictions were made first")

    monkeypatch.setattr(evaluate, "predict", fail)


def test_without_torchvision_one_line_says_how_to_get_it(run, corpus, tmp_path, too_late, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    out = tmp_path / "out"
    message = r"--perceptual needs torchvision.*, which is not installed: pip install 'visionflow-hf\[perceptual\]'"
    refused(lambda: main(["evaluate", str(run), str(corpus), str(out), "--perceptual"]), message)
    refused(lambda: main(["crossvalidate", str(corpus), str(out), "--perceptual"]), message)
    assert not out.exists() and not list(tmp_path.iterdir())


def test_without_weights_one_line_says_where_they_go(run, corpus, tmp_path, too_late, refused, monkeypatch):
    out = tmp_path / "out"

    def evaluate_with(*networks):
        monkeypatch.setattr(perceptual, "NETWORKS", networks)
        return main(["evaluate", str(run), str(corpus), str(out), "--perceptual"])

    refused(
        lambda: evaluate_with(NETWORKS[2]),
        "no weights of openai/clip-vit.*: run `hf download openai/clip",
    )

    def no_network(*_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    swav = Network("SwAV", lambda: perceptual.download(perceptual.SWAV), 224, {"swav": "avgpool"})
    place = "no route to host.*: download them with network access to .*/torch/hub/checkpoints"
    refused(lambda: evaluate_with(swav), f"no weights from https://dl.fbaipublicfiles.com/.*{place}")
    for spoiled in (b"", b"<html>not found</html>"):
        (tmp_path / "torch" / "hub" / "checkpoints" / "swav_800ep_pretrain.pth.tar").write_bytes(spoiled)
        refused(
            lambda: evaluate_with(swav),
            "no weights from https://.*: download them with network access",
        )
    assert not out.exists()


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (NETWORKS[0], {"alexnet2": 192 * 31 * 31, "alexnet5": 256 * 15 * 15}),
        (NETWORKS[1], {"inception": 2048}),
        (NETWORKS[3], {"efficientnet": 1280}),
        (NETWORKS[4], {"swav": 2048}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_torchvisions_networks_take_their_weights_and_give_those_layers(network, sizes, tmp_path, monkeypatch):
    """With weights of chance, which lie where torch.hub keeps the published ones."""
    models = pytest.importorskip("torchvision.models", reason="torchvision belongs to the extra `perceptual`")
    from torchvision.models.feature_extraction import create_feature_extractor
    from torchvision.transforms import v2

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    if network.name.startswith("SwAV"):
        published = models.resnet50()
        weights = {f"module.{name}": values for name, values in published.state_dict().items() if name[:3] != "fc."}
        weights["module.prototypes.weight"] = torch.ones(3, 128)
        file = perceptual.SWAV
    else:
        name, version = network.load.args
        published = models.get_model(name, **network.load.keywords)
        weights, file = published.state_dict(), models.get_model_weights(name)[version].url
    torch.save(weights, checkpoints / file.rsplit("/", 1)[1])
    images = RNG.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = features(network.load().eval(), network, images, QUIET)
    assert {name: values.shape for name, values in found.items()} == {name: (2, size) for name, size in sizes.items()}
    published = create_feature_extractor(published.eval(), list(network.layers.values()))
    shown = v2.Compose([v2.Resize(network.size), v2.Normalize(network.mean, network.std)])
    with torch.no_grad():
        expected = published(shown(torch.from_numpy(images).movedim(-1, 1) / 255))
    for figure, layer in network.layers.items():
        np.testing.assert_allclose(found[figure], expected[layer].flatten(1), rtol=1e-3, atol=1e-5)
