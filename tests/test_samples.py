"""Samples in both directions: shapes, reproducibility, and coverage of measured responses."""

import numpy as np
import pytest
import torch
from transformers import ViTConfig

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel


@pytest.fixture(scope="module")
def loaded(run):
    return load_model(run)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


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


def test_a_subject_with_fewer_voxels_has_no_noise_beyond_them():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = ViTConfig(**sizes, image_size=16, patch_size=8)
    subjects = {"subjects": ["a", "b"], "num_voxels": [40, 30]}
    model = VisionFlowModel(VisionFlowConfig(vision_config=vision, image_size=[16, 16], **subjects))
    model.set_noise("a", torch.ones(40))
    model.set_noise("b", torch.ones(30))
    std = model.latent_to_fmri.noise_std(torch.tensor([0, 1]))
    assert (std[0] > 0).all() and (std[1, :30] > 0).all() and (std[1, 30:] == 0).all()


def test_sampled_images(loaded):
    model, processor = loaded
    fmri = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
    batch = processor(fmri=fmri, subject="subj01")
    images = model.reconstruct_image(**batch, num_samples=4, generator=torch.Generator().manual_seed(0))
    assert images.shape == (3, 4, 1, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert images.std(1).max() > 0
    again = model.reconstruct_image(**batch, num_samples=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


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
