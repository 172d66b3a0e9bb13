"""Samples in both directions: their shapes, their generator, and whether they are as wide as what is measured."""

import numpy as np
import pytest
import torch

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model


@pytest.fixture(scope="module")
def loaded(run):
    return load_model(run)


def test_sampled_responses(loaded, corpus):
    model, processor = loaded
    row = open_corpus(corpus).splits["test"][0]
    batch = processor(images=[row["image"]] * 2, subject=["subj01", "subj02"])
    drawn = [
        model.predict_fmri(**batch, num_samples=500, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert drawn[0].shape == (2, 500, 30)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    error = (drawn[0].mean(1) - model.predict_fmri(**batch)).abs() / drawn[0].std(1)
    assert error.max() < 5 / 500**0.5


def test_a_subject_with_fewer_voxels_has_no_noise_beyond_them(loaded):
    model, _ = loaded
    std = model.latent_to_fmri.noise_std(torch.zeros(2, 40), {0: torch.tensor([1])})
    assert (std[0] == 0).all() and (std[1, :30] > 0).all() and (std[1, 30:] == 0).all()


def test_sampled_images(loaded):
    model, processor = loaded
    fmri = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    batch = processor(fmri=fmri, subject="subj01")
    images = model.reconstruct_image(**batch, num_samples=4, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 4, 1, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert images.std(1).max() > 0
    again = model.reconstruct_image(**batch, num_samples=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_decoding_averages_over_a_share_of_the_spread(loaded):
    model, processor = loaded
    batch = processor(fmri=np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32), subject="subj01")
    before = model.config.decoding_spread
    model.config.decoding_spread = 0.0
    narrow = model.reconstruct_image(**batch)
    model.config.decoding_spread = 1.0
    wide, again = model.reconstruct_image(**batch), model.reconstruct_image(**batch)
    model.config.decoding_spread = before
    assert torch.equal(wide, again)
    drawn = model.reconstruct_image(**batch, num_samples=2000, generator=torch.Generator().manual_seed(0)).mean(1)
    shift, expected = wide - narrow, drawn - narrow
    assert 0.8 < (shift * expected).sum() / expected.square().sum() < 1.25


def test_nine_tenths_of_what_is_measured_lie_in_the_90_percent_interval(loaded, corpus):
    model, processor = loaded
    test = open_corpus(corpus).splits["test"]
    inside = []
    for row in test:
        batch = processor(images=row["image"], subject=row["subject"])
        samples = model.predict_fmri(**batch, num_samples=400, generator=torch.Generator().manual_seed(0))[0]
        low, high = np.quantile(samples.numpy(), (0.05, 0.95), axis=0)
        inside.append((low <= row["fmri"]) & (row["fmri"] <= high))
    assert 0.85 < np.mean(inside) < 0.95
