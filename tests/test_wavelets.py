"""Gabor-wavelet maps, the encoding models on them, and the latent dimensions that these add to a trained model."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from visionflow_hf.modeling.gabor_wavelets import (
    CYCLES,
    GRID,
    ORIENTATIONS,
    SIZES,
    WAVELETS,
    wavelet_channels,
    wavelet_maps,
)

from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.ridge import fit_ridge_to_products
from visionflow_hf.training import add_wavelets as adding
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.encoding_models import Fields, Pixels, Wavelets, empty_map, trust
from visionflow_hf.training.field_ridges import PENALTIES, FieldRidges, shares
from visionflow_hf.training.principal_components import PrincipalComponents
from visionflow_hf.training.stimuli import Stimuli
from visionflow_hf.training.stimulus_maps import StimulusMaps
from visionflow_hf.training.train import train_on


def test_energies_are_those_of_the_formula():
    """One wavelet after the other, written out in two dimensions, on an image that is not square."""
    image = torch.rand(1, 1, 20, 32, generator=torch.Generator().manual_seed(0))
    maps = wavelet_maps(image)
    assert maps.shape == (1, wavelet_channels(1), GRID, GRID)
    for size, cycles, orientation, row, column in ((0, 2, 5, 0, 0), (2, 1, 3, 5, 9), (4, 0, 0, 15, 7)):
        down = ((np.arange(20) + 0.5) / 20 - (row + 0.5) / GRID)[:, None]
        across = ((np.arange(32) + 0.5) / 32 - (column + 0.5) / GRID)[None]
        sigma, angle = SIZES[size], orientation * math.pi / ORIENTATIONS
        envelope = np.exp(-(down**2 + across**2) / (2 * sigma**2))
        envelope /= np.linalg.norm(envelope)
        wave = np.exp(2j * math.pi * CYCLES[cycles] / sigma * (across * math.cos(angle) + down * math.sin(angle)))
        gabor = envelope * wave
        gabor -= envelope * gabor.sum() / envelope.sum()
        channel = (size * len(CYCLES) + cycles) * ORIENTATIONS + orientation
        expected = abs((gabor * image[0, 0].numpy()).sum())
        assert maps[0, channel, row, column] == pytest.approx(expected, abs=1e-5)


def test_a_blank_image_has_no_energy_and_its_colour():
    maps = wavelet_maps(torch.tensor([0.2, 0.5, 0.9])[None, :, None, None].expand(1, 3, 90, 70))
    assert maps[:, :WAVELETS].max() < 1e-4
    torch.testing.assert_close(maps[0, WAVELETS:, 3, 4], torch.tensor([0.2, 0.5, 0.9]))


class Pictures:
    """Pixels by name."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def pixel_values(self, names: list[str]) -> torch.Tensor:
        return self.images[[int(name[1:]) for name in names]]


@pytest.fixture(scope="module")
def cells():
    """Maps of 260 images of noise, and 12 voxels: six that read one place each, six that read nothing."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((260, 1, 24, 24), dtype=np.float32))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    maps = wavelet_maps(images).flatten(2).numpy()
    places = [GRID * 3 + 3, GRID * 7 + 9, GRID * 5 + 12, GRID * 11 + 4, GRID * 8 + 8, GRID * 12 + 12]
    signal = np.stack([maps[:, 24:48, place] @ rng.random(24) for place in places], axis=1)
    signal = (signal - signal.mean(0)) / signal.std(0)
    fmri = np.concatenate([signal, np.zeros_like(signal)], axis=1) + rng.normal(size=(260, 12))
    names = [f"s{row}" for row in range(260)]
    return StimulusMaps(Pictures(images), names, num_channels=1), fmri.astype(np.float32), signal, names


def linear_of(model, maps, rows, fmri, names, voxels=slice(None), share=1.0) -> tuple[np.ndarray, np.ndarray]:
    weights, intercept = empty_map(maps, fmri[0, voxels].size)
    model(maps, rows, fmri, [names[row] for row in rows]).add_to(weights, intercept, voxels, share)
    return weights, intercept


def held_out_r(model, cells) -> np.ndarray:
    maps, fmri, signal, names = cells
    weights, intercept = linear_of(model, maps, np.arange(200), fmri[:200], names)
    predicted = maps.predict(weights, range(200, 260)) + intercept
    return np.array([np.corrcoef(predicted[:, voxel], signal[200:, voxel])[0, 1] for voxel in range(6)])


def test_fields_find_the_place_that_a_voxel_reads(cells):
    fields, wavelets, pixels = (held_out_r(model, cells).mean() for model in (Fields, Wavelets, Pixels))
    assert fields > wavelets + 0.1 and fields > pixels + 0.3 and fields > 0.8, (fields, wavelets, pixels)


@pytest.mark.parametrize("model", [Pixels, Wavelets, Fields])
def test_a_block_of_voxels_is_a_share_of_the_whole(model, cells):
    maps, fmri, _, names = cells
    rows = np.arange(60)
    whole, constant = linear_of(model, maps, rows, fmri[:60], names)
    part, part_constant = linear_of(model, maps, rows, fmri[:60], names, slice(4, 7), 0.5)
    np.testing.assert_allclose(part, 0.5 * whole[..., 4:7], atol=1e-5)
    np.testing.assert_allclose(part_constant, 0.5 * constant[4:7], rtol=1e-4, atol=1e-5)


def test_the_ridge_from_wavelets_is_that_of_scikit_learn_with_repeats(cells):
    """Its kernel is made channel by channel, and a stimulus that was repeated has several rows."""
    maps, fmri, _, names = cells
    rows = np.repeat(np.arange(30), 2)
    features = np.float64(maps.values[:, rows]).swapaxes(0, 1).reshape(60, -1)
    ridge = fit_ridge_to_products(maps.products[np.ix_(rows, rows)], fmri[:60], [names[row] for row in rows])
    expected = Ridge(alpha=float(np.max(ridge.best_alphas_))).fit(features, fmri[:60])
    weights, intercept = linear_of(Wavelets, maps, rows, fmri[:60], names)
    np.testing.assert_allclose(weights.reshape(-1, 12).T, expected.coef_, atol=1e-3 * np.abs(expected.coef_).max())
    np.testing.assert_allclose(intercept, expected.intercept_, atol=1e-3)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said(monkeypatch):
    said = r"has no room for 1 MB of wavelet maps \(No space left on device\): make room, or"
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(UserError, match=said):
        monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
        StimulusMaps(Pictures(torch.rand(10, 1, 8, 8)), [f"s{row}" for row in range(10)], num_channels=1)


@pytest.mark.parametrize("most", [40, 6])
def test_components_of_blocks_are_those_of_all_at_once(most):
    """30 samples of rank 6 and little else; where `most` leaves the rest out, what it leaves out is little."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 50)).astype(np.float32)
    linear = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 70)) + 0.01 * rng.normal(size=(50, 70))
    linear = linear.astype(np.float32)
    components = PrincipalComponents(30, 50, most)
    for block in (slice(0, 20), slice(20, 65), slice(65, 70)):
        components.add(features @ linear[:, block] + 3, linear[:, block])
    predicted = features @ linear
    predicted -= predicted.mean(0)
    readout = np.concatenate(components.readouts, axis=1)
    kept = components.scores.shape[1]
    assert kept == min(most, 30)
    sizes = np.linalg.svd(predicted, compute_uv=False)[:kept]
    np.testing.assert_allclose(np.linalg.norm(components.scores, axis=0), sizes, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(readout @ readout.T, np.eye(kept), atol=1e-4)
    np.testing.assert_allclose(components.scores @ readout, predicted, atol=1e-3 if most == 40 else 0.5)
    np.testing.assert_allclose((features - features.mean(0)) @ components.head, components.scores, atol=1e-2)


def test_trust_goes_to_what_predicts_new_stimuli(cells):
    maps, fmri, signal, names = cells
    rows = np.arange(260)
    noise = np.random.default_rng(1).normal(size=(260, 40)).astype(np.float32)
    (latent, *_, fields), left = trust(maps, rows, noise, fmri[:, :6], names, seed=0)
    assert latent < 0.1 and fields > 0.7 and left < 0.8
    (latent, *others), left_of_signal = trust(maps, rows, signal.astype(np.float32), fmri[:, :6], names, 0)
    assert latent > max(others) and left_of_signal > 0.9
    of_noise, _ = trust(maps, rows, noise, fmri[:, 6:], names, seed=0)
    assert of_noise.sum() < 0.5  # nothing predicts them: little is trusted


@pytest.mark.parametrize("channels", [5, 40])
def test_field_ridges_are_those_of_scikit_learn(channels):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(1, 2, (3, 30, channels)).astype(np.float32), rng.normal(size=(30, 4))
    new, wanted = rng.normal(1, 2, (3, 7, channels)).astype(np.float32), rng.normal(size=(7, 4))
    ridges = FieldRidges(features, targets)
    errors, share = ridges.errors(new, wanted), rng.random((3, len(PENALTIES), 4))
    linear, constant = ridges.mean_over_penalties(share)
    for field in range(3):
        expected = 0
        for at, penalty in enumerate(PENALTIES):
            ridge = Ridge(alpha=penalty * 30 * features[field].var(0).mean()).fit(features[field], targets)
            np.testing.assert_allclose(errors[field, at], np.square(ridge.predict(new[field]) - wanted).sum(0), 1e-3)
            expected = expected + share[field, at] * ridge.predict(new[field])
        np.testing.assert_allclose(new[field] @ linear[field] + constant[field], expected, 1e-3, 1e-4)


def test_shares_add_up_and_favour_the_best():
    errors = np.array([[[10.0, 5.0]], [[12.0, 5.0]], [[30.0, 5.0]]])
    share = shares(errors, rows=20)
    np.testing.assert_allclose(share.sum((0, 1)), 1)
    np.testing.assert_allclose(share[:, 0, 0], np.array([1, math.exp(-2), 0]) / (1 + math.exp(-2)))
    np.testing.assert_allclose(share[:, 0, 1], 1 / 3)


@pytest.fixture(scope="module")
def small(corpus, tmp_path_factory):
    """A model without wavelet dimensions, and what `add_wavelets` needs beside it."""
    splits = open_corpus(corpus).splits
    arguments = VisionFlowTrainingArguments(max_steps=6, disable_tqdm=True)
    trained = train_on(splits, tmp_path_factory.mktemp("run") / "run", ModelArguments(wavelet_dim=0), arguments)
    return trained.model, trained.processor, splits["train"]


def test_a_grown_model_predicts_the_trusted_sum_and_reconstructs_as_before(small, monkeypatch):
    model, processor, train = small
    monkeypatch.setattr(adding, "trust", lambda *_: (np.array([0.25, 0.75, 0.0, 0.0]), 0.5))
    larger = adding.add_wavelets(model, processor, train, Stimuli(processor, [train]), wavelet_dim=200, seed=0)
    added = larger.config.wavelet_dim
    assert 0 < added <= 36 and larger.config.latent_dim == model.config.latent_dim + added
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    batch = processor(images=images_of(train, stimuli), subject="subj02")
    trials = responses_of(train, "subj02")
    fmri = (trials.fmri - processor.fmri_mean["subj02"]) / processor.fmri_std["subj02"]
    maps = StimulusMaps(Stimuli(processor, [train]), stimuli, model.config.num_channels)
    rows = [stimuli.index(one) for one in trials.stimulus_ids]
    weights, intercept = linear_of(Pixels, maps, rows, fmri, stimuli)
    pixels = maps.predict(weights) + intercept
    plain = {name: batch[name] for name in ("pixel_values", "subject_ids")}
    expected = 0.25 * model.predict_fmri(**plain).numpy() + 0.75 * pixels
    np.testing.assert_allclose(larger.predict_fmri(**plain).numpy(), expected, atol=2e-4)

    inputs = processor(fmri=trials.fmri[:5], subject="subj02")
    torch.testing.assert_close(larger.reconstruct_image(**inputs), model.reconstruct_image(**inputs))
    codes = larger.encode_image(batch["pixel_values"]).mean[:, -added:]
    torch.testing.assert_close(codes.square().mean(0), torch.ones(added), atol=1e-2, rtol=0)


def test_where_nothing_is_added(small, monkeypatch):
    model, processor, train = small
    assert adding.add_wavelets(model, processor, train, Stimuli(processor, [train]), wavelet_dim=0, seed=0) is model
    few = train.select([row for row, name in enumerate(train["stimulus_id"]) if name in set(train["stimulus_id"][:5])])
    assert adding.add_wavelets(model, processor, few, Stimuli(processor, [train]), wavelet_dim=8, seed=0) is model
    for nothing in ([1.0, 0.0, 0.0, 0.0], [0.0] * 4):
        monkeypatch.setattr(adding, "trust", lambda *_, weights=nothing: (np.array(weights), 1.0))
        assert adding.add_wavelets(model, processor, train, Stimuli(processor, [train]), wavelet_dim=8, seed=0) is model


def test_where_one_subject_is_trusted_and_another_is_not(small, monkeypatch):
    model, processor, train = small
    weights = iter([np.array([0.0, 0.0, 1.0, 0.0]), np.zeros(4)])
    monkeypatch.setattr(adding, "trust", lambda *_: (next(weights), 1.0))
    larger = adding.add_wavelets(model, processor, train, Stimuli(processor, [train]), wavelet_dim=200, seed=0)
    pixels = processor(images=images_of(train, train["stimulus_id"][:5]))["pixel_values"]
    for subject, equal in ((0, False), (1, True)):
        before, after = (one.predict_fmri(pixels, torch.full((5,), subject)) for one in (model, larger))
        assert torch.allclose(before, after, atol=1e-4) == equal
