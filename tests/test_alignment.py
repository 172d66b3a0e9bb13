"""The alignment stage: simulated trials have the noise of real ones, and the MLP learns from them."""

import pytest
import torch

from visionflow_hf.corpus.responses import images_of, pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.modeling.alignment import SimulatedTrials, align, image_latents
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.stimuli import Stimuli


@pytest.fixture
def parts(run, corpus):
    model, processor = load_model(run)
    pairs = pairs_of(open_corpus(corpus).splits["train"])
    return model.eval(), processor, pairs, Trials(pairs, processor), Stimuli(processor, [pairs])


@torch.no_grad()
def simulated(model, trials, stimuli, subject="subj01"):
    torch.manual_seed(7)
    images = image_latents(model, stimuli, trials.stimuli, 4000)
    return SimulatedTrials(model, trials, subject, images, {name: row for row, name in enumerate(trials.stimuli)})


def test_the_noise_behind_the_linear_maps_is_that_of_the_voxels(parts):
    model, _, _, trials, stimuli = parts
    one = simulated(model, trials, stimuli)
    assert one.most == 1
    std = (model.latent_to_fmri.noise_logvar[0] / 2).exp()
    drawn = std * torch.randn(100_000, 30, generator=torch.Generator().manual_seed(0))
    independent = (drawn @ model.fmri_to_latent.to_learned[0].weight.T).var(0).detach()
    ratio = (one.noise.T @ one.noise).diagonal()[: len(independent)].detach() / independent
    assert ratio.min() > 0.65 and ratio.median() < 2  # 0.7 of it is independent, the rest is as the voxels share it


def test_the_mlp_learns_to_read_new_simulated_trials(parts):
    model, _, _, trials, stimuli = parts
    before = {name: values.clone() for name, values in model.state_dict().items()}
    align(model, trials, stimuli, max_steps=150, seed=0)
    with torch.no_grad():
        posterior, h, v = simulated(model, trials, stimuli).draw(4000)
        read = model.fmri_to_latent.correct(h, v).learned
    missed = (h - posterior.mean).square() + posterior.logvar.exp()
    as_wide_as_wrong = missed.mean(0).log().expand_as(h)
    linear = type(read)(h, as_wide_as_wrong)
    assert posterior.kl_to(read).mean() < posterior.kl_to(linear).mean() - 0.005
    left = (read.mean - posterior.mean).square() + posterior.logvar.exp()
    assert 0.9 < (left / read.logvar.exp()).mean() < 1.1
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == {f"fmri_to_latent.{part}.{kind}" for part in ("hidden", "head") for kind in ("weight", "bias")}


def test_with_a_frozen_encoder_trials_are_made_of_the_stimuli_alone(parts):
    model, processor, pairs, trials, _ = parts
    names = trials.stimuli
    pixels = processor(images=images_of(pairs, names))["pixel_values"]
    with torch.no_grad():
        posterior = image_latents(model, Stimuli(processor, [pairs], model), names, augmented=4000)
        torch.testing.assert_close(posterior.mean, model.encode_image(pixels).mean, atol=1e-5, rtol=1e-5)
    assert torch.isfinite(posterior.logvar).all() and len(posterior.mean) == len(names)
