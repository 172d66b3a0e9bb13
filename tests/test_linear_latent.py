"""The encoding models on Gabor energies, and the latent's linear dimensions that are made of them."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as Reference

from visionflow_hf.corpus.responses import images_of, pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import linear_latent
from visionflow_hf.modeling.alignment import image_latents
from visionflow_hf.modeling.encoding_models import Encoding, stacking_weights
from visionflow_hf.modeling.feature_spaces import ENERGIES, FeatureSpace, LatentSpace, feature_spaces
from visionflow_hf.modeling.gabor_wavelets import GRID, wavelet_maps
from visionflow_hf.modeling.linear_latent import Components, fit_encoding
from visionflow_hf.modeling.ridge import GROUP_PENALTIES, Groups, likelihoods, likely_mean, stack
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.stimuli import Stimuli

EVERY_VOXEL = slice(0, 12)
MODELS = ["colours", "energies", "fields of energies"]


@pytest.fixture(scope="module")
def cells():
    """Maps of 260 images of noise, and 12 voxels: six that read one place each, six that read nothing."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.random((260, 1, 24, 24), dtype=np.float32))
    images = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    energies = wavelet_maps(images).flatten(2)
    maps = energies.numpy()
    places = [GRID * 3 + 3, GRID * 7 + 9, GRID * 5 + 12, GRID * 11 + 4, GRID * 8 + 8, GRID * 12 + 12]
    signal = np.stack([maps[:, 24:48, place] @ rng.random(24) for place in places], axis=1)
    signal = (signal - signal.mean(0)) / signal.std(0)
    fmri = np.concatenate([signal, np.zeros_like(signal)], axis=1) + rng.normal(size=(260, 12))
    maps = FeatureSpace(ENERGIES, energies.transpose(0, 1).half())
    return maps, torch.from_numpy(fmri.astype(np.float32)), torch.from_numpy(signal.astype(np.float32))


def held_out_r(model, cells) -> float:
    maps, fmri, signal = cells
    encoding = Encoding(maps, torch.arange(200), fmri[:200])
    predicted = encoding.models[model](EVERY_VOXEL).fmri[200:]
    return np.mean([np.corrcoef(predicted[:, voxel], signal[200:, voxel])[0, 1] for voxel in range(6)])


def test_fields_find_the_place_that_a_voxel_reads(cells):
    colours, energies, fields = (held_out_r(model, cells) for model in MODELS)
    assert fields > energies + 0.1 and fields > colours + 0.3 and fields > 0.8, (fields, energies, colours)


@pytest.mark.parametrize("model", MODELS)
def test_a_block_of_voxels_has_the_maps_that_it_has_among_all(model, cells):
    maps, fmri, _ = cells
    encoding = Encoding(maps, torch.arange(60), fmri[:60])
    whole, part = encoding.models[model](EVERY_VOXEL), encoding.models[model](slice(4, 7))
    torch.testing.assert_close(part.fmri, whole.fmri[:, 4:7], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(part.times(torch.eye(3)), whole.times(torch.eye(12))[:, 4:7], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("space", ["cells", "layer"])
def test_predictions_are_those_of_the_linear_maps(space, request):
    maps, fmri, _ = request.getfixturevalue(space)
    everything = maps.values.double().transpose(0, 1).flatten(1)
    for model in Encoding(maps, torch.arange(60), fmri[:60]).models.values():
        found = model(EVERY_VOXEL)
        weights = found.times(torch.eye(12))
        weights = maps.of_scores(weights).flatten(0, 1) if found.of_scores else weights
        expected = everything @ weights.double()
        left = found.fmri - expected
        torch.testing.assert_close(left, left.mean(0).expand_as(left), atol=2e-3, rtol=0)  # the intercept


def test_the_ridge_from_energies_is_that_of_scikit_learn(cells):
    """It is fitted to principal components, whose products come channel by channel."""
    maps, fmri, _ = cells
    rows = torch.arange(0, 120, 2)
    encoding = Encoding(maps, rows, fmri[rows])
    features = maps.values[:, rows].double().transpose(0, 1).flatten(1).numpy()
    expected = Reference(alpha=encoding.penalties[ENERGIES]).fit(features, fmri[rows].numpy())
    everything = maps.values.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(encoding.ridge(EVERY_VOXEL).fmri, expected.predict(everything.numpy()), atol=2e-2)


@pytest.fixture(scope="module")
def layer():
    """A layer of 200 channels of different sizes, and 12 voxels: six that read five of them around one place each."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(8, 260, 7, 7)) * np.geomspace(0.01, 100, 8)[:, None, None, None]
    values = np.einsum("kc,knij->cnij", rng.normal(size=(8, 200)), values) + 0.1 * rng.normal(size=(200, 260, 7, 7))
    values = np.abs(values).reshape(200, 260, 49)
    standard = values / values.std((1, 2), keepdims=True)
    rows, columns = np.divmod(np.arange(49), 7)
    signal = []
    for place in (8, 16, 24, 30, 32, 40):
        near = np.exp(-((rows - rows[place]) ** 2 + (columns - columns[place]) ** 2) / 2)
        signal.append(np.einsum("c,cnp,p->n", rng.random(5), standard[:5], near))
    signal = np.stack(signal)
    signal = ((signal.T - signal.mean(1)) / signal.std(1)).astype(np.float32)
    fmri = np.concatenate([signal, np.zeros_like(signal)], axis=1) + rng.normal(size=(260, 12)).astype(np.float32)
    space = FeatureSpace("layer 3", torch.from_numpy(values.astype(np.float32)).half())
    return space, torch.from_numpy(fmri), torch.from_numpy(signal)


def test_fields_find_the_place_that_a_voxel_reads_in_a_layer(layer):
    space, fmri, signal = layer
    assert space.read.shape == (128, 260, 49)
    torch.testing.assert_close(space.values.float().std((1, 2)), torch.ones(200), atol=1e-2, rtol=0)
    encoding = Encoding(space, torch.arange(200), fmri[:200])
    assert list(encoding.models) == ["layer 3", "fields of layer 3"]
    whole, fields = (
        np.mean([np.corrcoef(predicted[:, voxel], signal[200:, voxel])[0, 1] for voxel in range(6)])
        for predicted in (one(EVERY_VOXEL).fmri[200:] for one in encoding.models.values())
    )
    assert fields > whole + 0.1 and fields > 0.5, (fields, whole)


def test_weights_go_to_the_space_that_voxels_read(cells, layer):
    maps, _, _ = cells
    space, fmri, _ = layer
    encodings = [Encoding(one, torch.arange(260), fmri[:, :6]) for one in (maps, space)]
    found = [stacking_weights(encodings, seed)[0] for seed in range(4)]
    assert all(weights["fields of layer 3"] > 0.5 for weights in found)
    assert np.mean([sum(weights[name] for name in MODELS) for weights in found]) < 0.3  # noise, by chance more in one


def test_weights_go_to_what_predicts_held_out_stimuli(cells):
    maps, fmri, _ = cells
    weights, of_ridges, left = stacking_weights([Encoding(maps, torch.arange(260), fmri[:, :6])], seed=0)
    assert len(of_ridges) == 1 and 0.5 < of_ridges[0] < 1.5
    assert list(weights) == MODELS
    assert weights["fields of energies"] > 0.7 and left < 0.8
    of_noise, _, left = stacking_weights([Encoding(maps, torch.arange(260), fmri[:, 6:])], seed=0)
    assert sum(of_noise.values()) <= 1
    assert left > 0.9


def test_stacking_is_least_squares_without_negative_weights():
    generator = torch.Generator().manual_seed(0)
    good, bad = torch.randn(2, 50, 3, generator=generator)
    torch.testing.assert_close(stack([good, bad], 0.7 * good - 0.5 * bad)[1], torch.tensor(0.0))
    torch.testing.assert_close(stack([good, bad], 0.7 * good + 0.5 * bad), torch.tensor([0.7, 0.5]), atol=0.01, rtol=0)


@pytest.mark.parametrize("channels", [5, 40])
def test_the_likely_mean_is_a_mean_of_ridges_of_scikit_learn(channels):
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(1, 2, (3, 30, channels)).astype(np.float32))
    targets = torch.from_numpy(rng.normal(size=(30, 4)).astype(np.float32)) + features[1, :, :1]
    found = list(likely_mean([Groups(lambda: features[:2]), Groups(lambda: features[2:])], targets))
    errors, whole = np.zeros((3, len(GROUP_PENALTIES), 4)), {}
    for field in range(3):
        x, y = features[field].double().numpy(), targets.double().numpy()
        for at, penalty in enumerate(GROUP_PENALTIES):
            alpha = penalty * 30 * x.var(0).mean()
            whole[field, at] = Reference(alpha=alpha).fit(x, y)
            centred = x - x.mean(0)
            hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(channels), centred.T) + 1 / 30
            errors[field, at] = np.square(y - hat @ y).mean(0) / (1 - np.trace(hat) / 30) ** 2
    share = likelihoods(torch.from_numpy(errors), 30).numpy()
    np.testing.assert_allclose(share.sum((0, 1)), 1)
    expected = sum(share[key][:, None] * ridge.coef_ for key, ridge in whole.items() if key[0] == 1)
    weights = torch.cat(
        [one.weights if one is not None else torch.zeros(n, channels, 4) for one, n in zip(found, (2, 1), strict=True)]
    )
    np.testing.assert_allclose(weights[1].T, expected, atol=2e-3)


def test_likelihoods_add_up_and_favour_the_best():
    errors = torch.tensor([[[10.0, 5.0]], [[12.0, 5.0]], [[30.0, 5.0]]])
    share = likelihoods(errors, samples=20)
    torch.testing.assert_close(share.sum((0, 1)), torch.ones(2))
    expected = torch.tensor([1, math.exp(-2), 0]) / (1 + math.exp(-2))
    torch.testing.assert_close(share[:, 0, 0], expected)


@pytest.mark.parametrize("most", [200, 4])
def test_components_of_blocks_are_those_of_all_at_once(cells, most, monkeypatch):
    maps, fmri, _ = cells
    encoding = Encoding(maps, torch.arange(260), fmri)
    monkeypatch.setattr(linear_latent, "BLOCK", 5)
    components = Components([maps], most)
    components.add("subj01", [encoding], {"colours": 0.0, "energies": 0.5, "fields of energies": 0.5})
    predicted = sum(0.5 * one(EVERY_VOXEL).fmri for one in (encoding.ridge, encoding.fields))
    predicted = predicted - predicted.mean(0)
    readout = torch.cat([one for _, one, _ in components.readouts], dim=1)
    assert components.scores.shape[1] == min(most, 12)
    sizes = torch.linalg.svdvals(predicted)[: min(most, 12)] / 12**0.5
    torch.testing.assert_close(components.scores.norm(dim=0), sizes, rtol=0.02, atol=0.02)
    if most == 200:
        torch.testing.assert_close(components.scores @ readout, predicted, atol=5e-3, rtol=0)
    energies = maps.values.float().transpose(0, 1).flatten(1)
    head = components.heads[0] + maps.of_scores(components.score_heads[0]).flatten(0, 1)
    scores = (energies - energies.mean(0)) @ head
    torch.testing.assert_close(scores, components.scores, atol=0.05, rtol=0)


@pytest.fixture
def small(run, corpus):
    """A trained model, its trials and stimuli."""
    model, processor = load_model(run)
    pairs = pairs_of(open_corpus(corpus).splits["train"])
    trials, stimuli = Trials(pairs, processor), Stimuli(processor, [pairs])
    return model.eval(), processor, pairs, trials, stimuli


def predictions(model, processor, pairs, subject) -> torch.Tensor:
    names = list(dict.fromkeys(pairs["stimulus_id"]))
    batch = processor(images=images_of(pairs, names), subject=subject)
    with torch.no_grad():
        return model.predict_fmri(batch["pixel_values"], batch["subject_ids"])


def test_the_model_predicts_the_weighted_sum(small, monkeypatch):
    model, processor, pairs, trials, stimuli = small
    sums = {}
    for weights in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.25, 0.75, 0.0]):
        named = dict(zip(MODELS, weights, strict=True))
        monkeypatch.setattr(linear_latent, "stacking_weights", lambda *_, named=named: (dict(named), [1.0], 0.5))
        fit_encoding(model, trials, stimuli, seed=0)
        sums[tuple(weights)] = predictions(model, processor, pairs, "subj02")
    colours, energies, both = sums.values()
    torch.testing.assert_close(both, 0.25 * colours + 0.75 * energies, atol=2e-3, rtol=0)
    own = trials.some_stimuli("subj02", 100, 0)
    (maps,) = feature_spaces(model, stimuli, own)
    encoding = Encoding(maps, torch.arange(len(own)), trials.mean_responses("subj02", own))
    expected = encoding.ridge(slice(0, 30)).fmri
    torch.testing.assert_close(energies, expected, atol=5e-3, rtol=0)


def test_voxels_are_not_read_from_the_learned_dimensions(small):
    """Trained by the Trainer, they hold the noise of the train split's responses."""
    model, _, _, trials, stimuli = small
    fit_encoding(model, trials, stimuli, seed=0)
    for voxel_map in model.latent_to_fmri.voxel_maps:
        learned, linear = voxel_map.weight.split(
            [voxel_map.in_features - model.config.linear_dim, model.config.linear_dim], 1
        )
        assert learned.abs().max() == 0 < linear.abs().max()


def test_the_learned_dimensions_predict_voxels_where_no_gradient_of_fmri_has_reached_them(small, monkeypatch):
    model, processor, pairs, trials, stimuli = small
    named = dict.fromkeys(MODELS, 0.0) | {"latent": 0.5}
    monkeypatch.setattr(linear_latent, "stacking_weights", lambda *_: (named, [0.0, 1.0], 0.5))
    fit_encoding(model, trials, stimuli, seed=0, from_learned=True)
    predicted = predictions(model, processor, pairs, "subj02")
    names = list(dict.fromkeys(pairs["stimulus_id"]))
    z, fmri = image_latents(model, stimuli, names).learned.mean, trials.mean_responses("subj02", names)
    encoding = Encoding(LatentSpace(z), torch.arange(len(names)), fmri)
    assert list(encoding.models) == ["latent"]
    expected = Reference(encoding.penalties["latent"]).fit(z, fmri).predict(z)
    expected = (torch.from_numpy(expected).float() + fmri.mean(0)) / 2
    torch.testing.assert_close(predicted, expected, atol=5e-3, rtol=0)


def test_a_weight_goes_to_the_learned_dimensions_that_voxels_respond_to(cells):
    maps, _, _ = cells
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(260, 8, generator=generator), torch.randn(260, 12, generator=generator)
    fmri = z @ torch.randn(8, 12, generator=generator) / 8**0.5 + noise
    rows = torch.arange(200)
    encodings = [Encoding(space, rows, fmri[:200]) for space in (maps, LatentSpace(z))]
    weights, of_ridges, left = stacking_weights(encodings, 0)
    assert weights["latent"] > 0.8 and sum(weights.values()) < 1.2 and of_ridges[1] > 0.8 and left > 0.9


def test_ridge_from_the_energies_alone_predicts_the_voxels_of_few_stimuli(small):
    model, processor, pairs, trials, stimuli = small
    few = trials.without(set(trials.stimuli[5:]))
    fit_encoding(model, few, stimuli, seed=0)
    (maps,) = feature_spaces(model, stimuli, few.stimuli)
    own = few.some_stimuli("subj02", 100, 0)
    rows = torch.tensor([few.stimuli.index(name) for name in own])
    encoding = Encoding(maps, rows, few.mean_responses("subj02", own))
    assert stacking_weights([encoding], 0) == ({"colours": 0, "energies": 1, "fields of energies": 0}, [1.0], 1)
    shown = [name for name in dict.fromkeys(pairs["stimulus_id"]) if name in few.stimuli]
    predicted = predictions(model, processor, pairs, "subj02")[: len(shown)]
    found = {name: predicted[row] for row, name in enumerate(dict.fromkeys(pairs["stimulus_id"])) if row < len(shown)}
    assert list(found) == shown == few.stimuli
    torch.testing.assert_close(predicted, encoding.ridge(slice(0, 30)).fmri, atol=5e-3, rtol=0)


def test_responses_are_read_once(small, monkeypatch):
    _, processor, pairs, _, _ = small
    from visionflow_hf.modeling import trials as module

    reads, read = [], module.responses_of

    def watched(rows):
        reads.extend(dict.fromkeys(rows["subject"]))
        return read(rows)

    monkeypatch.setattr(module, "responses_of", watched)
    trials = Trials(pairs, processor)
    fewer = trials.without(trials.stimuli[:3])
    for subject in trials.subjects * 2:
        assert len(trials.fmri(subject)) == len(trials.stimulus_ids(subject))
        assert len(fewer.fmri(subject)) == len(fewer.stimulus_ids(subject)) < len(trials.fmri(subject))
    assert reads == trials.subjects


def test_a_subject_with_few_voxels_is_predicted_beside_one_with_many(cells):
    maps, fmri, signal = cells
    many = torch.cat([torch.roll(maps.values[24:48].float(), shift, 2)[:, :, 100] for shift in range(12)]).T
    many = torch.cat([many] * 4, dim=1) + torch.randn(260, 4 * len(many.T), generator=torch.Generator().manual_seed(0))
    found = []
    for others in ([], [many - many.mean(0)]):
        components = Components([maps], 6)
        for place, responses in enumerate([*others, fmri[:, :6]]):
            encoding = Encoding(maps, torch.arange(260), responses)
            components.add(f"s{place}", [encoding], {"colours": 0.0, "energies": 0.0, "fields of energies": 1.0})
        _, readout, mean = components.readouts[-1]
        predicted = components.scores @ readout + mean
        found.append(np.mean([np.corrcoef(predicted[:, voxel], signal[:, voxel])[0, 1] for voxel in range(6)]))
    assert found[0] > 0.8 and found[1] > 0.6, found


def test_the_stimuli_are_drawn_for_all_subjects_at_once(monkeypatch):
    class Known:
        def __init__(self, seen: dict[str, list[str]]):
            self.seen, self.subjects = seen, list(seen)
            self.stimuli = list(dict.fromkeys(name for own in seen.values() for name in own))

        def stimulus_ids(self, name):
            return 2 * self.seen[name]

        def some_stimuli(self, name, most, seed):
            return self.seen[name][:most]

    monkeypatch.setattr(linear_latent, "MOST_STIMULI", 30)
    same = [f"i{number}" for number in range(30)]
    chosen = linear_latent.choose_stimuli(Known({"ann": same, "bob": same}), seed=0)
    assert chosen == {"ann": same, "bob": same}  # not half of them
    alone = [f"b{number}" for number in range(10)]
    chosen = linear_latent.choose_stimuli(Known({"ann": [f"a{number}" for number in range(500)], "bob": alone}), seed=0)
    assert len(chosen["bob"]) == 10 and 25 <= len(chosen["ann"]) <= 30
    assert set(chosen["bob"]) == set(alone)


@pytest.mark.parametrize("repeats", [1, 8])
def test_the_noise_is_that_of_single_trials(cells, repeats):
    """However many repeats there are: the claimed variance is the error of new trials."""
    maps, _, signal = cells
    rng = np.random.default_rng(2)

    class Trialled:
        subjects, stimuli = ["ann"], [f"i{number}" for number in range(200)]
        trials = 0.5 * signal[:200, None] + torch.from_numpy(rng.normal(size=(200, repeats, 6)).astype(np.float32))

        def stimulus_ids(self, _name):
            return self.stimuli

        def some_stimuli(self, _name, _most, _seed):
            return self.stimuli

        def mean_responses(self, _name, _own):
            return self.trials.mean(1)

        def squared_errors(self, _name, _own, predicted):
            return (self.trials - predicted[:, None]).square().mean((0, 1))

    class Config:
        linear_dim, subjects = 6, ["ann"]

    class Model:
        config, device, noise = Config, torch.device("cpu"), {}

        def set_noise(self, name, variance):
            self.noise[name] = variance

    model, found = Model(), []
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        own = FeatureSpace(ENERGIES, maps.values[:, :200])
        patched.setattr(linear_latent, "feature_spaces", lambda *_: [own])
        patched.setattr(Components, "put_head", lambda self, _model: found.append(self) or {})
        fit_encoding(model, Trialled(), None, seed=0)
    encoding = Encoding(FeatureSpace(ENERGIES, maps.values), torch.arange(200), Trialled.trials.mean(1))
    weights, _, _ = stacking_weights([encoding], 0)
    predicted = sum(t * encoding.models[name](slice(0, 6)).fmri for name, t in weights.items())
    predicted = predicted + (1 - sum(weights.values())) * Trialled.trials.mean((0, 1))
    error = 1 + (0.5 * signal - predicted)[200:].square().mean()
    assert model.noise["ann"].mean() == pytest.approx(float(error), rel=0.12)
