"""The alignment stage: made-up trials have the noise of real ones, and the MLP learns from them."""

import copy

import numpy as np
import pytest
import torch
from visionflow_hf.modeling.latent_gaussian import LatentGaussian
from visionflow_hf.modeling.losses import alignment_loss, contrastive_loss

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.training.alignment_stage import CONTRASTIVE, align, image_posteriors, trial_noise
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.stimuli import Stimuli


@pytest.fixture
def parts(run, corpus):
    model, processor = load_model(run)
    return model.eval(), processor, open_corpus(corpus).splits["train"]


@pytest.fixture
def args(tmp_path):
    return VisionFlowTrainingArguments(output_dir=str(tmp_path), max_steps=150)


def read_of(model, processor, train):
    """What the map to voxels reads of each stimulus, and q(z | image) of these and of images made of them."""
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    with torch.no_grad():
        images = image_posteriors(model, Stimuli(processor, [train]), stimuli)
        return dict(zip(stimuli, model.latent_to_fmri.read(images.mean), strict=False)), images


def made_up(model, processor, train, subject=0, seed=7):
    """Means and variances of images' latents, and h of a made-up trial with each."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    read, images = read_of(model, processor, train)
    with torch.no_grad():
        factor, _ = trial_noise(model, processor, train, read, processor.subjects[subject])
        fmri = model.latent_to_fmri.voxel_maps[subject](model.latent_to_fmri.read(images.mean))
        linear = model.fmri_to_latent.voxel_maps[subject](fmri)
        noise = torch.randn(len(linear), len(factor), generator=generator) @ factor
    learned = model.config.learned_dim
    return images.mean[:, :learned], images.logvar[:, :learned].exp(), linear + noise


def test_the_noise_behind_the_linear_maps_is_that_of_the_voxels(parts):
    model, processor, train = parts
    read, _ = read_of(model, processor, train)
    with torch.no_grad():
        factor, most = trial_noise(model, processor, train, read, "subj01")
    assert most == 1
    drawn = model.latent_to_fmri.noise_logvar[0].exp().sqrt() * torch.randn(
        200_000, 30, generator=torch.Generator().manual_seed(0)
    )
    independent = (drawn @ model.fmri_to_latent.voxel_maps[0].weight.T).var(0).detach()
    ratio = (factor.T @ factor).diagonal().detach() / independent
    assert ratio.min() > 0.65 and ratio.median() < 2  # 0.7 of it is independent, the rest is as the voxels share it


def objective(images, read):
    """What the stage makes small."""
    level = images.mean.mean(0)
    every_row = torch.ones(len(images.mean), dtype=torch.bool)
    contrastive = contrastive_loss(images.mean - level, read.mean - level)
    return alignment_loss(images, read, every_row) + CONTRASTIVE * contrastive


def test_the_mlp_learns_to_read_new_made_up_trials(parts, args):
    model, processor, train = parts
    with torch.no_grad():
        model.fmri_to_latent.head.weight.zero_()
        model.fmri_to_latent.head.bias.zero_()
        model.fmri_to_latent.mlp_share.fill_(1)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    latents, variance, linear = made_up(model, processor, train)
    align(model, processor, train, Stimuli(processor, [train]), 1.0, args)
    with torch.no_grad():
        posterior = model.fmri_to_latent.posterior(linear)
    learned = latents.shape[1]
    images = LatentGaussian(latents, variance.log())
    read = LatentGaussian(posterior.mean[:, :learned], posterior.logvar[:, :learned])
    unread = linear[:, :learned]
    as_wide_as_wrong = ((unread - latents).square() + variance).mean(0).log().expand_as(unread)
    assert objective(images, read) < objective(images, LatentGaussian(unread, as_wide_as_wrong)) - 0.02
    assert 0.9 < (((read.mean - latents).square() + variance) / read.logvar.exp()).mean() < 1.1
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert changed == {f"fmri_to_latent.{part}.{kind}" for part in ("hidden", "head") for kind in ("weight", "bias")}


def test_a_share_of_the_correction_counts_and_the_variance_knows(parts, args):
    model, processor, train = parts
    half = copy.deepcopy(model)
    align(model, processor, train, Stimuli(processor, [train]), 1.0, args)
    align(half, processor, train, Stimuli(processor, [train]), 0.25, args)
    assert torch.equal(half.fmri_to_latent.mlp_share, torch.full((2,), 0.25))
    fmri = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    learned = model.config.learned_dim
    with torch.no_grad():
        linear = model.fmri_to_latent.linear(fmri, {0: slice(None)})
        whole, quarter = (one.encode_fmri(fmri, torch.zeros(5, dtype=torch.long)) for one in (model, half))
    expected = linear[:, :learned] + 0.25 * (whole.mean[:, :learned] - linear[:, :learned])
    torch.testing.assert_close(quarter.mean[:, :learned], expected, atol=1e-4, rtol=1e-4)
    latents, variance, linear = made_up(model, processor, train)
    for one, share in ((model, 1.0), (half, 0.25)):
        with torch.no_grad():
            posterior = one.fmri_to_latent.posterior(linear, share)
        missed = (posterior.mean[:, :learned] - latents).square() + variance
        assert 0.9 < (missed / posterior.logvar[:, :learned].exp()).mean() < 1.1


def test_with_a_frozen_encoder_trials_are_made_of_the_stimuli_alone(parts):
    model, processor, train = parts
    stimuli = list(dict.fromkeys(train["stimulus_id"]))
    pixels = processor(images=[train[stimuli.index(name)]["image"] for name in stimuli])["pixel_values"]
    with torch.no_grad():
        posteriors = image_posteriors(model, Stimuli(processor, [train], model), stimuli)
        torch.testing.assert_close(posteriors.mean, model.encode_image(pixels).mean)
    assert np.isfinite(posteriors.logvar.numpy()).all() and len(posteriors.mean) == len(stimuli)


def test_the_contrastive_loss_against_a_computation_of_its_own():
    rng = np.random.default_rng(0)
    images, fmri = rng.normal(size=(2, 6, 4)).astype("f4")
    cosine = np.array([[i @ f / np.linalg.norm(i) / np.linalg.norm(f) for i in images] for f in fmri]) / 0.2
    which_image = [np.log(np.exp(row).sum()) - row[place] for place, row in enumerate(cosine)]
    which_fmri = [np.log(np.exp(row).sum()) - row[place] for place, row in enumerate(cosine.T)]
    loss = contrastive_loss(torch.tensor(images), torch.tensor(fmri), temperature=0.2)
    assert float(loss) == pytest.approx(np.mean([*which_image, *which_fmri]), rel=1e-5)
    assert contrastive_loss(torch.tensor(images), torch.tensor(images)) < 0.5
    assert contrastive_loss(torch.tensor(images), torch.tensor(images[[1, 0, 2, 3, 4, 5]])) > 1
