"""The linear decoder, and the shares of it and of the MLP that held-out stimuli choose."""

import numpy as np
import pytest
import torch

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import images_of, pairs_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model, save_model
from visionflow_hf.modeling import VisionFlowConfig
from visionflow_hf.modeling.image_decoder import LinearDecoder, blend
from visionflow_hf.modeling.linear_decoder import fit_linear_decoders
from visionflow_hf.modeling.ridge import fit_ridge
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.stimuli import Stimuli
from visionflow_hf.training import decoding
from visionflow_hf.training import train as train_module
from visionflow_hf.training.decoding import choose_decoding

HELD_OFF = (1 / 512, 511 / 512)


@pytest.fixture
def parts(run, corpus):
    model, processor = load_model(run)
    splits = {name: pairs_of(split) for name, split in open_corpus(corpus).splits.items()}
    trials = {name: Trials(split, processor) for name, split in splits.items()}
    return model.eval(), processor, splits, trials, Stimuli(processor, splits.values())


def pixels_of(processor, split, names) -> torch.Tensor:
    return processor(images=images_of(split, names))["pixel_values"]


def sizes(model) -> int:
    return model.config.latent_dim + model.config.linear_dim


def test_it_reads_the_image_from_the_dimensions_that_fmri_predicts(parts):
    model, processor, splits, trials, stimuli = parts
    errors = torch.full((sizes(model),), 1e6)  # far above any variance
    errors[: model.config.latent_dim] = 0
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, errors)
    assert (
        model.linear_decoder.from_linear.weight.abs().max()
        < 1e-4 * model.linear_decoder.from_learned.weight.abs().max()
    )
    pixels = pixels_of(processor, splits["train"], trials["train"].stimuli)
    assert (decoded(model, pixels) - pixels).square().mean() < 0.2 * pixels.var(0).mean()


def decoded(model, pixels) -> torch.Tensor:
    with torch.no_grad():
        posterior = model.encode_image(pixels)
        return model.linear_decoder(posterior.learned.mean, posterior.linear.mean)


def test_it_makes_the_train_stimuli_out_of_their_latents(parts):
    model, processor, splits, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    pixels = pixels_of(processor, splits["train"], trials["train"].stimuli)
    assert (decoded(model, pixels) - pixels).square().mean() < 0.05 * pixels.var(0).mean()


def test_it_knows_from_the_linear_dimensions_what_the_learned_ones_do_not_tell(parts):
    model, processor, splits, trials, stimuli = parts
    with torch.no_grad():
        model.posterior_head.weight.zero_()  # the same z for every image
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    pixels = pixels_of(processor, splits["test"], trials["test"].stimuli)
    made = decoded(model, pixels)
    assert (made - pixels).square().mean() < 0.8 * (made.roll(1, 0) - pixels).square().mean()


def test_after_the_map_from_fmri_it_is_ridge_from_fmri_to_pixels(parts):
    model, processor, splits, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    names = trials["train"].stimulus_ids("subj01")
    targets = pixels_of(processor, splits["train"], names).flatten(1)
    new = responses_of(splits["test"], "subj01").fmri
    batch = processor(fmri=new, subject="subj01")
    ridge = fit_ridge(trials["train"].fmri("subj01"), targets, names).predict(batch["fmri"])
    with torch.no_grad():
        h, v = model.fmri_to_latent.voxels_to_latent(batch["fmri"], batch["subject_ids"])
        made = model.linear_decoder(h, v).flatten(1).numpy()
    assert np.corrcoef(made.ravel(), ridge.clamp(0, 1).numpy().ravel())[0, 1] > 0.9


def test_it_carries_the_image_where_the_decoder_fails(parts):
    model, _, _, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    with torch.no_grad():
        model.image_decoder.seed.weight.zero_()  # the same image for every latent
    assert choose_decoding(model, trials["test"], stimuli, seed=0)[1] >= 0.5


def test_the_mlp_counts_where_it_helps_and_not_where_it_harms(parts):
    model, _, _, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    bias, dim = model.fmri_to_latent.head.bias, model.config.latent_dim
    with torch.no_grad():
        model.fmri_to_latent.head.weight[:dim] = 0
        bias[:dim] = 10.0  # whatever the fMRI, far away from all latents
    assert choose_decoding(model, trials["test"], stimuli, seed=0)[0] == 0
    with torch.no_grad():
        bias[:dim] = -10.0
        for voxel_map in model.fmri_to_latent.to_learned:
            voxel_map.bias += 10.0  # which the MLP alone takes back
    assert choose_decoding(model, trials["test"], stimuli, seed=0)[0] == 1


def test_gradient_steps_are_taken_unless_they_harm(parts, monkeypatch):
    model, _, _, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    before, asked = decoding.refined, []
    known = {name: trials["test"].some_stimuli(name, 64, 0) for name in trials["test"].subjects}

    def to_the_truth(model, posterior, fmri, subject_ids, steps):
        asked.append(len(fmri))
        names = []
        for place, response in zip(subject_ids.tolist(), fmri, strict=True):  # found by the response itself
            subject = model.config.subjects[place]
            own = trials["test"].mean_responses(subject, known[subject])
            names.append(known[subject][int((own - response[: own.shape[1]]).square().sum(1).argmin())])
        latent = model.encode_image(stimuli.pixel_values(names))
        return latent.learned.mean, latent.linear.mean

    def nowhere(model, posterior, fmri, subject_ids, steps):
        return posterior.learned.mean, posterior.linear.mean

    def away(model, posterior, fmri, subject_ids, steps):
        return -posterior.learned.mean, -posterior.linear.mean

    monkeypatch.setattr(decoding, "AT_ONCE", 3)
    for steps, way in ((0, away), (decoding.REFINE_STEPS, nowhere), (decoding.REFINE_STEPS, to_the_truth)):
        monkeypatch.setattr(decoding, "refined", way)
        assert choose_decoding(model, trials["test"], stimuli, seed=0)[2] == steps
    assert max(asked) == 3 and sum(asked) == sum(map(len, known.values())) and model.config.linear_share == 0
    model.config.linear_layers = [1]  # of a pretrained encoder
    monkeypatch.setattr(decoding, "refined", before)
    assert choose_decoding(model, trials["test"], stimuli, seed=0)[2] == 0


@pytest.mark.parametrize(("times", "chosen"), [(1.0, 1.0), (0.92, 0.9), (1.1, 1.0)])
def test_reconstructions_that_are_too_bright_are_dimmed(parts, monkeypatch, times, chosen):
    model, processor, splits, trials, _ = parts
    stimuli = Stimuli(processor, splits.values())
    bright = stimuli.pixel_values

    def decoded_from(learned, linear):
        names = [name for subject in trials["test"].subjects for name in trials["test"].some_stimuli(subject, 64, 0)]
        return bright(names)[: len(learned)] * 0.5

    monkeypatch.setattr(stimuli, "pixel_values", lambda names: bright(names) * 0.5 * times)
    monkeypatch.setattr(model, "decode", decoded_from)
    model.config.linear_layers = [1]  # no gradient steps
    monkeypatch.setattr(decoding, "AT_ONCE", 1000)
    assert choose_decoding(model, trials["test"], stimuli, seed=0)[3] == chosen


def test_brightness_dims_every_decoded_image(parts):
    model, processor, splits, _, _ = parts
    model.config.brightness = 1.0
    batch = processor(fmri=responses_of(splits["test"], "subj01").fmri[:2], subject="subj01")
    with torch.no_grad():
        before = model.reconstruct_image(**batch, refine=0)
        model.config.brightness = 0.5
        torch.testing.assert_close(model.reconstruct_image(**batch, refine=0), before * 0.5)
    for brightness in (0, 1.1):
        with pytest.raises(ValueError, match=f"brightness is {brightness}: a number above 0, and at most 1"):
            VisionFlowConfig(brightness=brightness)


def test_quality_is_of_each_image():
    images = np.random.default_rng(0).random((3, 24, 24)).astype(np.float32)
    made = images.copy()
    made[1] = images[1].mean()
    found = decoding.quality(images, made)
    assert found[0] == pytest.approx(2, abs=1e-5) and found[2] == pytest.approx(2, abs=1e-5) and found[1] < 1.1


def test_the_share_is_saved_with_the_model_and_blends_the_two(parts, tmp_path):
    model, processor, _, trials, stimuli = parts
    fit_linear_decoders(model, trials["train"].stimuli, stimuli, torch.zeros(sizes(model)))
    model.config.linear_share, model.config.brightness = 0.25, 0.9
    facts = {"encoder": "vit", "unit": None, "n_stimuli": 1, "n_trials": 1, "steps": 1, "seed": 0}
    save_model(model, processor, tmp_path / "saved", facts)
    again, _ = load_model(tmp_path / "saved")
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, model.config.latent_dim, generator=generator)
    w = torch.randn(2, model.config.linear_dim, generator=generator)
    with torch.no_grad():
        both = again.image_decoder(z).clamp(*HELD_OFF), again.linear_decoder(z, w).clamp(*HELD_OFF)
        odds = [(p / (1 - p)).log() for p in both]
        torch.testing.assert_close(again.decode(z, w), 0.9 * (0.75 * odds[0] + 0.25 * odds[1]).sigmoid())
        torch.testing.assert_close(again.linear_decoder(z, w), model.linear_decoder(z, w))
        torch.testing.assert_close(blend(*both, 0.0), both[0])


def test_large_images_are_enlarged_from_32_px():
    config = VisionFlowConfig(image_size=[96, 64], latent_dim=5, linear_dim=2)
    linear = LinearDecoder(config)
    assert linear.from_learned.out_features == 3 * 32 * 21
    image = linear(torch.randn(2, 5), torch.randn(2, 2))
    assert image.shape == (2, 3, 96, 64) and image.min() >= 0 and image.max() <= 1


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match=r"linear_share is 1\.5: a share from 0 to 1 is expected"):
        VisionFlowConfig(linear_share=1.5)


def test_shares_are_chosen_on_stimuli_that_the_image_side_has_not_seen_yet(corpus, tmp_path, monkeypatch):
    asked, trained = [], []
    run_trainer, choose = train_module.run_trainer, train_module.choose_decoding

    def watched_run(model, processor, batches, *more):
        trained.append(set(batches.stimulus_ids))
        return run_trainer(model, processor, batches, *more)

    def watched_choice(model, held_out, *more):
        asked.append(set(held_out.stimuli))
        return choose(model, held_out, *more)

    monkeypatch.setattr(train_module, "run_trainer", watched_run)
    monkeypatch.setattr(train_module, "choose_decoding", watched_choice)
    flags = ["--max_steps", "4", "--warmup_steps", "1", "--disable_tqdm", "true", "--linear_dim", "0"]
    assert main(["train", str(corpus), str(tmp_path / "run"), *flags]) == 0
    everything = set(open_corpus(corpus).splits["train"]["stimulus_id"])
    assert len(asked) == 1 and len(trained) == 2
    assert len(asked[0]) >= 7 and trained[0] == everything - asked[0] and trained[1] == everything


@pytest.mark.parametrize(("few", "anew"), [(50, True), (2, False)])
def test_with_few_stimuli_the_second_image_stage_begins_anew(corpus, tmp_path, monkeypatch, few, anew):
    begun, run_trainer = [], train_module.run_trainer

    def watched_run(model, *more):
        begun.append(model.image_decoder.seed.weight.detach().clone())
        return run_trainer(model, *more)

    monkeypatch.setattr(train_module, "run_trainer", watched_run)
    monkeypatch.setattr(train_module, "FEW_STIMULI", few)
    flags = ["--max_steps", "4", "--warmup_steps", "1", "--disable_tqdm", "true", "--linear_dim", "0"]
    assert main(["train", str(corpus), str(tmp_path / "run"), *flags]) == 0
    assert len(begun) == 2 and torch.equal(*begun) == anew
