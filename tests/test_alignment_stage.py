"""The alignment stage: made-up trials have the noise of real ones, and the MLP learns from them."""

import copy

import numpy as np
import pytest
import torch

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.training.alignment_stage import align, image_posteriors, trial_noise
from visionflow_hf.training.arguments import VisionFlowTrainingArguments


@pytest.fixture
def parts(run, corpus):
    model, processor = load_model(run)
    return model.eval(), processor, open_corpus(corpus).splits["train"]


@pytest.fixture
def args(tmp_path):
    return VisionFlowTrainingArguments(output_dir=str(tmp_path), max_steps=150)


def made_up(model, processor, train, subject=0, seed=7):
    """Means and variances of images' latents, and h of a made-up trial with each."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        images = image_posteriors(model, processor, train, {})
        factor, _ = trial_noise(model, processor, train, {}, processor.subjects[subject])
        fmri = model.latent_to_fmri.voxel_maps[subject](model.latent_to_fmri.read(images.mean))
        linear = model.fmri_to_latent.voxel_maps[subject](fmri)
        noise = torch.randn(len(linear), len(factor), generator=generator) @ factor
    learned = model.config.learned_dim
    return images.mean[:, :learned], images.logvar[:, :learned].exp(), linear + noise


def test_the_noise_behind_the_linear_maps_is_that_of_the_voxels(parts):
    model, processor, train = parts
    factor, most = trial_noise(model, processor, train, {}, "subj01")
    assert most == 1
    drawn = model.latent_to_fmri.noise_logvar[0].exp().sqrt() * torch.randn(
        200_000, 30, generator=torch.Generator().manual_seed(0)
    )
    independent = (drawn @ model.fmri_to_latent.voxel_maps[0].weight.T).var(0).detach()
    ratio = (factor.T @ factor).diagonal().detach() / independent
    assert ratio.min() > 0.65 and ratio.median() < 2  # 0.7 of it is independent, the rest is as the voxels share it


def test_the_mlp_learns_to_read_new_made_up_trials(parts, args):
    model, processor, train = parts
    with torch.no_grad():
        model.fmri_to_latent.head.weight.zero_()
        model.fmri_to_latent.head.bias.zero_()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    latents, variance, linear = made_up(model, processor, train)
    align(model, processor, train, {}, 1.0, args)
    with torch.no_grad():
        posterior = model.fmri_to_latent.posterior(linear)
    learned = latents.shape[1]
    missed = (posterior.mean[:, :learned] - latents).square()
    assert missed.mean() < 0.98 * (linear[:, :learned] - latents).square().mean()
    assert 0.9 < ((missed + variance) / posterior.logvar[:, :learned].exp()).mean() < 1.1
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == {f"fmri_to_latent.{part}.{kind}" for part in ("hidden", "head") for kind in ("weight", "bias")}


def test_a_share_of_the_correction_counts_and_the_variance_knows(parts, args):
    model, processor, train = parts
    half = copy.deepcopy(model)
    align(model, processor, train, {}, 1.0, args)
    align(half, processor, train, {}, 0.25, args)
    assert torch.equal(half.fmri_to_latent.mlp_share, torch.full((2,), 0.25))
    fmri = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    learned = model.config.learned_dim
    with torch.no_grad():
        linear = model.fmri_to_latent.linear(fmri, {0: slice(None)})
        whole, quarter = (one.encode_fmri(fmri, torch.zeros(5, dtype=torch.long)) for one in (model, half))
    expected = linear[:, :learned] + 0.25 * (whole.mean[:, :learned] - linear[:, :learned])
    torch.testing.assert_close(quarter.mean[:, :learned], expected, atol=1e-4, rtol=1e-4)
    assert (quarter.logvar - whole.logvar)[:, :learned].mean() > 0


def test_with_a_frozen_encoder_trials_are_made_of_the_stimuli_alone(parts):
    model, processor, train = parts
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    pixels = processor(images=[train[stimuli.index(name)]["image"] for name in stimuli])["pixel_values"]
    with torch.no_grad():
        width = model.posterior_head.in_features  # as before the wavelet dimensions came
        features = dict(zip(stimuli, model.extract_image_features(pixels)[0][:, :width], strict=True))
        posteriors = image_posteriors(model, processor, train, features)
        torch.testing.assert_close(posteriors.mean, model.encode_image(pixels).mean)
    assert np.isfinite(posteriors.logvar.numpy()).all() and len(posteriors.mean) == len(stimuli)
