"""The linear path from latent to pixels, and the rehearsal that says how much of the image it makes."""

import numpy as np
import pytest
import torch
from visionflow_hf.modeling import VisionFlowConfig
from visionflow_hf.modeling.image_decoder import LinearDecoder, blacken
from visionflow_hf.modeling.latent_gaussian import LatentGaussian

from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model, save_model
from visionflow_hf.ridge import fit_ridge
from visionflow_hf.training import rehearsal
from visionflow_hf.training.fit_bridges import fit_bridges
from visionflow_hf.training.linear_path import fit_linear_decoder
from visionflow_hf.training.rehearsal import (
    LINEAR_SHARES,
    MLP_SHARES,
    SPREADS,
    best_shares,
    quality_by_share,
    quality_by_spread,
    read_unseen,
    remaining,
)
from visionflow_hf.training.stimuli import Stimuli

HELD_OFF = (1 / 512, 511 / 512)


@pytest.fixture
def parts(run, corpus):
    model, processor = load_model(run)
    return model.eval(), processor, open_corpus(corpus).splits


def stimuli_of(parts) -> Stimuli:
    _, processor, splits = parts
    return Stimuli(processor, splits.values())


def test_it_makes_the_stimuli_of_train_out_of_their_latents(parts):
    model, processor, splits = parts
    linear = fit_linear_decoder(model, splits["train"], stimuli_of(parts), gain=1.0)
    stimuli = list(dict.fromkeys(splits["train"]["stimulus_id"]))
    pixels = processor(images=images_of(splits["train"], stimuli))["pixel_values"]
    with torch.no_grad():
        made = linear(model.encode_image(pixels).mean)
    assert (made - pixels).square().mean() < 0.05 * pixels.var(0).mean()


def test_it_knows_from_the_wavelet_dimensions_what_the_learned_ones_do_not_tell(parts):
    model, processor, splits = parts
    with torch.no_grad():
        model.posterior_head.weight.zero_()  # the same z for every image
    linear = fit_linear_decoder(model, splits["train"], stimuli_of(parts), gain=1.0)
    stimuli = list(dict.fromkeys(splits["test"]["stimulus_id"]))
    pixels = processor(images=images_of(splits["test"], stimuli))["pixel_values"]
    with torch.no_grad():
        latents = model.encode_image(pixels).mean
        made, shuffled = linear(latents), linear(latents.roll(1, 0))
    assert (made - pixels).square().mean() < 0.8 * (shuffled - pixels).square().mean()


def test_behind_the_map_from_fmri_it_is_ridge_from_fmri_to_pixels(parts):
    model, processor, splits = parts
    gain = fit_bridges(model, processor, splits["train"], stimuli_of(parts))
    linear = fit_linear_decoder(model, splits["train"], stimuli_of(parts), gain)
    subject = processor.subjects[0]
    seen, new = responses_of(splits["train"], subject), responses_of(splits["test"], subject)
    pictures = [
        np.stack([np.asarray(image, np.float32).ravel() / 255 for image in images_of(splits[name], one.stimulus_ids)])
        for name, one in (("train", seen), ("test", new))
    ]
    mean, std = processor.fmri_mean[subject], processor.fmri_std[subject]
    ridge = fit_ridge((seen.fmri - mean) / std, pictures[0], seen.stimulus_ids).predict((new.fmri - mean) / std)
    batch = processor(fmri=new.fmri, subject=subject)
    with torch.no_grad():
        made = linear(model.fmri_to_latent.linear(batch["fmri"], {0: slice(None)})).flatten(1).numpy()
    assert np.corrcoef(made.ravel(), ridge.clip(0, 1).ravel())[0, 1] > 0.9


def test_it_carries_the_image_where_the_decoder_fails(parts):
    model, processor, splits = parts
    with torch.no_grad():
        model.image_decoder.seed.weight.zero_()  # the same image for every latent
    unseen = read_unseen(model, processor, splits["train"], splits["test"], stimuli_of(parts), gain=1.0)
    quality = quality_by_share(unseen)
    assert quality.shape == (len(MLP_SHARES), len(LINEAR_SHARES))
    assert best_shares([unseen]).linear == 1
    assert (quality[:, -1] > quality[:, 0]).all()


def test_the_mlp_counts_where_it_helps_and_not_where_it_harms(parts):
    model, processor, splits = parts
    head = model.fmri_to_latent.head
    with torch.no_grad():
        head.bias[: model.config.learned_dim] = 10.0  # whatever the fMRI, far away from all latents
    assert (
        best_shares([read_unseen(model, processor, splits["train"], splits["test"], stimuli_of(parts), gain=1.0)]).mlp
        == 0
    )
    with torch.no_grad():
        head.bias[: model.config.learned_dim] = -10.0
        for voxel_map in model.fmri_to_latent.voxel_maps:
            voxel_map.bias[: model.config.learned_dim] += 10.0  # which the MLP alone takes back
    assert (
        best_shares([read_unseen(model, processor, splits["train"], splits["test"], stimuli_of(parts), gain=1.0)]).mlp
        == 1
    )


def test_decoding_spreads_where_the_latent_is_uncertain(parts):
    model, processor, splits = parts
    unseen = read_unseen(model, processor, splits["train"], splits["test"], stimuli_of(parts), gain=1.0)
    mean, push = unseen.posteriors[0].mean, 3.0
    unseen.posteriors[0] = LatentGaussian(mean, torch.full_like(mean, -20.0))  # certain: any mean is the same image
    certain = quality_by_spread(unseen, SPREADS, 0, 0.0)[:, 0]
    assert certain == pytest.approx(np.full(len(SPREADS), certain[0]), abs=1e-3)
    unseen.posteriors[0] = LatentGaussian(mean, torch.full_like(mean, 2 * np.log(push)))
    model.config.decoding_spread = 1.0
    unseen.images = rehearsal.as_array(model.decode_mean(unseen.posteriors[0]).detach())
    assert quality_by_spread(unseen, SPREADS, 0, 0.0)[:, 0].argmax() == len(SPREADS) - 1


@pytest.mark.parametrize("haze, chosen", [(0.02, 0.02), (0.0, 0.0)])
def test_a_haze_is_taken_from_black_and_what_is_dim_is_left(parts, monkeypatch, haze, chosen):
    model, processor, splits = parts
    unseen = read_unseen(model, processor, splits["train"], splits["test"], stimuli_of(parts), gain=1.0)
    dim = 0.01 * (np.random.default_rng(0).random(unseen.images.shape) > 0.5)
    unseen.images = np.where(unseen.images > 0.5, unseen.images, dim * (haze == 0)).astype(np.float32)
    hazy = torch.from_numpy(np.maximum(unseen.images, haze)).reshape(len(dim), *dim.shape[1:], -1).permute(0, 3, 1, 2)
    monkeypatch.setattr(model, "decode_mean", lambda _: hazy)
    assert best_shares([unseen]).black_point == chosen


def test_what_is_no_brighter_than_the_black_point_is_black(parts):
    image = torch.tensor([[0.0, 0.01, 0.02, 0.51, 1.0]])
    torch.testing.assert_close(blacken(image, 0.02), torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0]]))
    torch.testing.assert_close(blacken(image, 0.0), image)
    model, processor, splits = parts
    inputs = processor(fmri=responses_of(splits["test"], "subj01").fmri[:3], subject="subj01")
    for spread in (0.0, 0.5):
        model.config.decoding_spread, model.config.black_point = spread, 0.0
        plain = model.reconstruct_image(**inputs)
        point = model.config.black_point = float(plain.median())
        torch.testing.assert_close(model.reconstruct_image(**inputs), blacken(plain, point))


def test_the_mlp_takes_its_share_of_the_gain_back():
    assert (remaining(1.4, 0.0), remaining(1.4, 0.5), remaining(1.4, 1.0)) == (1.4, 1.2, 1.0)


def test_the_share_is_saved_with_the_model_and_blends_the_two(parts, tmp_path):
    model, processor, splits = parts
    model.linear_decoder = fit_linear_decoder(model, splits["train"], stimuli_of(parts), gain=1.0)
    model.config.linear_share = 0.25
    save_model(model, processor, tmp_path / "saved", facts(model))
    again, _ = load_model(tmp_path / "saved")
    latent = torch.randn(2, model.config.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        odds = [
            (p / (1 - p)).log() for p in (again.image_decoder(latent), again.linear_decoder(latent).clamp(*HELD_OFF))
        ]
        torch.testing.assert_close(again.decode(latent), (0.75 * odds[0] + 0.25 * odds[1]).sigmoid())
        torch.testing.assert_close(again.linear_decoder(latent), model.linear_decoder(latent))


def facts(model) -> dict:
    return {"encoder": "vit", "unit": None, "n_stimuli": 1, "n_trials": 1, "steps": 1, "seed": 0}


def test_large_images_are_enlarged_from_32_px():
    config = VisionFlowConfig(image_size=[96, 64], latent_dim=5)
    linear = LinearDecoder(config)
    assert linear.pixels.out_features == 3 * 32 * 21
    image = linear(torch.randn(2, 5))
    assert image.shape == (2, 3, 96, 64) and image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("name", ["linear_share", "decoding_spread"])
def test_a_share_is_a_share(name):
    with pytest.raises(ValueError, match=rf"{name} is 1\.5: a share from 0 to 1 is expected"):
        VisionFlowConfig(**{name: 1.5})


def test_not_all_is_black():
    with pytest.raises(ValueError, match=r"black_point is 1\.0: from 0 to less than 1 is expected"):
        VisionFlowConfig(black_point=1.0)


def test_a_rehearsal_keeps_stimuli_from_the_image_side_which_then_learns_from_all(corpus, tmp_path, monkeypatch):
    from test_training import SHORT

    from visionflow_hf.cli import main
    from visionflow_hf.training import train

    asked, begun, run_trainer = [], [], train.run_trainer

    def encoder_of(model) -> torch.Tensor:
        return torch.cat([weights.detach().flatten() for weights in model.encoder.parameters()])

    def watched(model, processor, seen, unseen, *more):
        asked.append((set(seen["stimulus_id"]), set(unseen["stimulus_id"]), encoder_of(model)))
        return read_unseen(model, processor, seen, unseen, *more)

    def watched_run(model, processor, fitted, *more):
        begun.append((set(fitted["stimulus_id"]), encoder_of(model)))
        return run_trainer(model, processor, fitted, *more)

    monkeypatch.setattr(rehearsal, "read_unseen", watched)
    monkeypatch.setattr(train, "run_trainer", watched_run)
    assert main(["train", str(corpus), str(tmp_path / "run"), *SHORT]) == 0
    assert asked and all(not seen & unseen for seen, unseen, _ in asked)
    stimuli = set(open_corpus(corpus).splits["train"]["stimulus_id"])
    assert all(seen | unseen == stimuli for seen, unseen, _ in asked)
    ((fitted, weights),) = begun
    assert fitted == stimuli and torch.equal(weights, asked[-1][2])
