"""The simulated cortex that sees photographs: regions, receptive fields, noise ceilings, and what is refused."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from test_encoders import config_of, encoder_of

from visionflow_hf.cli import main
from visionflow_hf.corpus.photographs import (
    CHANNELS_PER_VOXEL,
    THREE_TRIAL_CEILINGS,
    Network,
    Photographs,
    channel_weights,
    field_maps,
    ventral_cortices,
)
from visionflow_hf.corpus.repeats import ceiling_of_average, ncsnr, ncsnr_of_ceiling
from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.corpus.simulate import gabor_energies

NETWORKS = {  # what the config of `test_encoders` is replaced with, where it is
    "resnet": {},
    "vit": {},
    "swin": {},
    "efficientnet": {  # with weights that keep the size of the activations
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "hidden_dim": 320,
        "initializer_range": 0.3,
    },
}


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """150 pictures of 32 x 24 px, blurred noise; the last is grey, and in a folder of its own."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    (folder / "more").mkdir()
    for number in range(150):
        picture = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((32, 24))
        picture.save(folder / f"{number:03d}.png") if number < 149 else picture.convert("L").save(folder / "more/l.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def network_of(tmp_path_factory):
    """The folder of a small network of some family, with random weights and an image processor for 32 px."""
    folders = {}

    def folder(family, **config):
        key = family, str(config)
        if key not in folders:
            torch.manual_seed(0)
            folders[key] = tmp_path_factory.mktemp("network") / f"small-{family}"
            encoder = transformers.AutoModel.from_config(type(config_of(family))(**config)) if config else None
            (encoder or encoder_of(family)).save_pretrained(folders[key])
            sizes = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
            transformers.ViTImageProcessor(**sizes).save_pretrained(folders[key])
        return folders[key]

    return folder


def simulate(out, images, network, *flags):
    return main(["simulate", *map(str, [out, "--images", images, "--network", network, *flags])])


@pytest.mark.parametrize("family", NETWORKS)
def test_every_region_has_voxels_and_the_corpus_says_what_made_them(family, photographs, network_of, tmp_path):
    flags = ["--stimuli", 12, "--voxels", 20, "--image-size", 24, "--repeats", 2]
    assert simulate(tmp_path / "c", photographs, network_of(family, **NETWORKS[family]), *flags) == 0
    corpus = open_corpus(tmp_path / "c")
    assert corpus.unit.startswith("simulated response") and corpus.unit.endswith(f"layers of small-{family}")
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 44, "test": 6}
    for subject in ("subj01", "subj02"):
        assert {names[0] for names in corpus.voxels_of(subject)["roi"]} == {"V1", "V4", "IT"}
        assert (responses_of(corpus.splits["train"], subject).fmri.std(0) > 0).all()


def test_stimuli_are_the_middle_squares_of_the_pictures(photographs, network_of, tmp_path):
    assert simulate(tmp_path / "c", photographs, network_of("vit"), "--image-size", 24, "--voxels", 3) == 0
    splits = open_corpus(tmp_path / "c").splits
    ids = {*splits["train"]["stimulus_id"], *splits["test"]["stimulus_id"]}
    assert len(ids) == 150 and {"000.png", "more/l.png"} < ids
    for name in splits["train"]["stimulus_id"][:5]:
        whole = np.asarray(Image.open(photographs / name))
        assert np.array_equal(np.asarray(images_of(splits["train"], [name])[0]), whole[:, 4:28])


def test_photographs_are_64_px_where_nobody_says(photographs, network_of, tmp_path):
    assert simulate(tmp_path / "c", photographs, network_of("vit"), "--stimuli", 4, "--voxels", 3) == 0
    assert open_corpus(tmp_path / "c").splits["train"][0]["image"].size == (64, 64)
    large = Photographs(photographs, 3, 100, np.random.default_rng(0))
    assert large[0].size == (100, 100) and large.luminance.shape == (3, 64, 64)
    expected = np.asarray(large[0].convert("L").resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(large.luminance[0], expected)


def test_the_ceiling_is_the_one_that_repeats_reveal(photographs, network_of, tmp_path):
    flags = ["--voxels", 60, "--subjects", 1, "--image-size", 16, "--repeats", 12]
    assert simulate(tmp_path / "c", photographs, network_of("resnet"), *flags) == 0
    corpus = open_corpus(tmp_path / "c")
    trials = responses_of(corpus.splits["train"], "subj01")
    estimated = ceiling_of_average(ncsnr(trials.fmri, trials.stimulus_ids), np.ones(1))
    table = corpus.voxels_of("subj01")["noise_ceiling"].to_numpy()
    np.testing.assert_allclose(estimated, table, atol=0.1)
    assert abs(estimated - table).mean() < 0.03 < table.std()


def test_ceilings_are_distributed_as_in_nsd(photographs, network_of):
    rng = np.random.default_rng(0)
    (one,) = ventral_cortices(Photographs(photographs, 4, 16, rng), Network(network_of("vit"), 16), 1, 1500, rng)
    of_three = ceiling_of_average(ncsnr_of_ceiling(one.noise_ceiling), [3])
    for area, median in THREE_TRIAL_CEILINGS.items():
        own = one.roi == area
        assert abs(np.median(of_three[own]) - median) < 0.04
        assert 0.4 < np.log(ncsnr_of_ceiling(one.noise_ceiling[own])).std() < 0.6


def test_fields_grow_from_v1_to_it(network_of, tmp_path):
    """How far apart the places of a small bright square are that change a voxel's response."""
    places = [(row, column) for row in range(4, 64, 8) for column in range(4, 64, 8)]
    for number, (row, column) in enumerate([(-9, -9), *places]):
        image = np.full((64, 64, 3), 90, np.uint8)
        image[max(row - 3, 0) : max(row + 3, 0), max(column - 3, 0) : max(column + 3, 0)] = 255
        Image.fromarray(image).save(tmp_path / f"{number:02d}.png")
    rng = np.random.default_rng(0)
    shown = Photographs(tmp_path, None, 64, rng)
    # two stages, and cells of 4 and 8 px: what a voxel pools over is wider than what a cell sees
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    network = Network(network_of("resnet", **stages), 64)
    (one,) = ventral_cortices(shown, network, 1, 150, rng)
    order = np.argsort(shown.ids)
    change = np.abs(one.signal[order[1:]] - one.signal[order[0]])
    share = change**2 / (change**2).sum(0)
    where = np.array(places) / 64
    spread = np.sqrt(share.T @ (where**2).sum(1) - ((share.T @ where) ** 2).sum(1))
    v1, v4, it = (spread[one.roi == area].mean() for area in ("V1", "V4", "IT"))
    assert 1.5 * v1 < v4 and 1.1 * v4 < it


def test_a_field_of_a_layer_lies_where_the_one_of_an_image_does():
    x, y, sigma = (np.array(values) for values in ([0.3, -0.3], [0.2, -0.1], [0.06, 0.06]))
    fields = field_maps(x, y, sigma, (10, 20))
    torch.testing.assert_close(fields.sum((1, 2)), torch.ones(2))
    assert [np.unravel_index(one.argmax(), (10, 20)) for one in fields.numpy()] in (
        [(2, 15), (5, 3)],
        [(2, 16), (5, 4)],
    )
    spots = np.zeros((200, 60, 60), np.uint8)
    for number, spot in enumerate(spots):
        row, column = divmod(number, 20)
        spot[6 * row : 6 * row + 6, 3 * column : 3 * column + 3] = 255
    seen = gabor_energies(spots, x, y, sigma, np.random.default_rng(0))
    for responses, row, column in zip(seen.T, (2.5, 5.5), (15.5, 3.5), strict=True):
        centre = (responses**2 @ np.array([divmod(number, 20) for number in range(200)])) / (responses**2).sum()
        np.testing.assert_allclose(centre, [row, column], atol=1)


def test_it_reads_the_late_layer_and_nothing_else(photographs, network_of):
    """On images of the network's own size its voxels are linear in the last stage, one cell of 32 channels."""
    rng = np.random.default_rng(0)
    shown = Photographs(photographs, 100, 32, rng)
    (one,) = ventral_cortices(shown, Network(network_of("resnet"), 32), 1, 30, rng)
    encoder = transformers.AutoModel.from_pretrained(network_of("resnet")).eval()
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in shown]) / 255
    pixels = torch.tensor((pixels - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        states = encoder(pixels, output_hidden_states=True).hidden_states[-1]
    assert states.shape == (100, 32, 1, 1)
    features = np.c_[states.double().numpy()[:, :, 0, 0], np.ones(100)]
    left = one.signal - features @ np.linalg.lstsq(features, one.signal, rcond=None)[0]
    assert (left.std(0)[one.roi == "IT"] < 1e-3).all() and (left.std(0)[one.roi != "IT"] > 0.2).all()
    np.testing.assert_allclose(one.signal.std(0), 1)
    np.testing.assert_allclose(one.signal.mean(0), 0, atol=1e-9)


def test_a_voxel_weights_some_channels_that_change():
    scale = torch.ones(100)
    scale[:50], scale[10:20] = 4, 0
    weights = channel_weights(scale, 400, np.random.default_rng(0)).numpy()
    assert ((weights != 0).sum(1) == CHANNELS_PER_VOXEL).all() and not weights[:, 10:20].any()
    drawn = weights * scale.numpy()
    assert abs(drawn[drawn != 0].std() - 1) < 0.05 and abs(drawn[drawn != 0].mean()) < 0.05
    assert len({tuple(np.flatnonzero(one)) for one in weights}) == 400


def test_one_seed_gives_one_corpus(photographs, network_of, tmp_path):
    fmri, ids = {}, {}
    for name, seed in (("one", 4), ("same", 4), ("other", 5)):
        flags = ["--stimuli", 12, "--voxels", 9, "--image-size", 16, "--seed", seed]
        assert simulate(tmp_path / name, photographs, network_of("resnet"), *flags) == 0
        trials = responses_of(open_corpus(tmp_path / name).splits["train"], "subj02")
        fmri[name], ids[name] = trials.fmri, trials.stimulus_ids
    assert ids["one"] == ids["same"] != ids["other"] and len(set(ids["one"])) == 11
    assert np.array_equal(fmri["one"], fmri["same"]) and not np.array_equal(fmri["one"], fmri["other"])


def test_a_picture_that_looks_like_another_is_left_out(photographs, network_of, tmp_path, capsys):
    (tmp_path / "twins").mkdir()
    for number in range(8):
        Image.open(photographs / f"{number % 6:03d}.png").save(tmp_path / "twins" / f"{number}.bmp")
    flags = ["--image-size", 16, "--voxels", 5]
    assert simulate(tmp_path / "c", tmp_path / "twins", network_of("resnet"), *flags) == 0
    assert "left out 2 of the pictures" in capsys.readouterr().out
    splits = open_corpus(tmp_path / "c").splits
    assert len({*splits["train"]["stimulus_id"], *splits["test"]["stimulus_id"]}) == 6


def test_a_network_of_grey_images(photographs, network_of, tmp_path):
    config = {"num_channels": 1, "hidden_size": 24, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    network = network_of("vit", **config)
    assert simulate(tmp_path / "c", photographs, network, "--stimuli", 5, "--voxels", 9, "--image-size", 16) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "PICTURES"], "--images needs --network"),
        (["--network", "NETWORK"], "--network needs --images"),
        (["--images", "nowhere", "--network", "NETWORK"], "nowhere is no folder"),
        (["--images", "EMPTY", "--network", "NETWORK"], "empty has no images"),
        (["--images", "BROKEN", "--network", "NETWORK"], "broken.png cannot be read as an image"),
        (["--images", "PICTURES", "--network", "nowhere"], "no encoder nowhere"),
        (["--images", "PICTURES", "--network", "NO_LAYERS"], "has 1 layer with a feature map: V4 and IT need one each"),
        (
            ["--images", "PICTURES", "--network", "VANISHING", "--stimuli", "9"],
            "small-efficientnet sees the same in all",
        ),
        (["--images", "PICTURES", "--network", "NETWORK", "--stimuli", "151"], "distinct pictures, 150: at least 151"),
        (["--images", "PICTURES", "--network", "NETWORK", "--stimuli", "1"], "stimuli is 1: at least 2"),
        (["--images", "PICTURES", "--network", "NETWORK", "--image-size", "4"], "image size is 4: at least 8"),
    ],
)
def test_what_cannot_be_simulated(flags, message, photographs, network_of, tmp_path, refused):
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "BROKEN")}
    for place in places.values():
        place.mkdir()
    (places["BROKEN"] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    places |= {"PICTURES": photographs, "NETWORK": network_of("resnet"), "VANISHING": network_of("efficientnet")}
    places["NO_LAYERS"] = network_of("vit", num_hidden_layers=0, hidden_size=32, image_size=32, patch_size=8)
    words = [str(places.get(word, word)) for word in flags]
    refused(lambda: main(["simulate", str(tmp_path / "out"), *words]), message)
    assert not (tmp_path / "out").exists()


def test_the_digits_of_a_seed_are_those_of_all_versions(tmp_path):
    """Corpora of earlier versions can be made again: values of 0.1.0."""
    assert main(["simulate", str(tmp_path / "c"), "--stimuli", "12", "--voxels", "5", "--image-size", "8"]) == 0
    corpus = open_corpus(tmp_path / "c")
    assert corpus.unit == "simulated response, 1 = one standard deviation of the noise-free signal over the stimuli"
    trials = responses_of(corpus.splits["train"], "subj02")
    assert trials.stimulus_ids[0] == "digit-00000"
    expected = [0.17708614, 1.45185983, 0.06206936, -1.81987083, -1.88137126]
    np.testing.assert_allclose(trials.fmri[0], expected, atol=1e-6)
    trials = responses_of(corpus.splits["test"], "subj01")
    assert trials.stimulus_ids == ["digit-00010"] * 3
    expected = [-0.29696825, -1.41706061, -0.10622218, 1.52733040, 1.84796226]
    np.testing.assert_allclose(trials.fmri[-1], expected, atol=1e-6)
    assert np.asarray(corpus.splits["test"][0]["image"], np.int64).sum() == 5451
    voxels = corpus.voxels_of("subj02")
    assert [names[0] for names in voxels["roi"]] == ["V2", "V3", "V3", "V1", "V3"]
    expected = [0.20280052, 0.46349362, 0.37057589, 0.19990604, 0.46822303]
    np.testing.assert_allclose(voxels["noise_ceiling"], expected, atol=1e-7)
