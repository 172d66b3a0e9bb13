"""`reconstruct_embedding`: the embedding of the image encoder, from fMRI."""

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from visionflow_hf.evaluation.scores import score
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel
from visionflow_hf.modeling.vision_encoder import layer_maps

WIDTH = 12


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vision = {"model_type": "vit", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"intermediate_size": 24, "image_size": 16, "patch_size": 8, "num_channels": 3}
    config = VisionFlowConfig(
        vision_config=vision,
        image_size=[16, 16],
        num_channels=3,
        subjects=["s"],
        num_voxels=[9],
        feature_layers=[1, -1],
    )
    return VisionFlowModel(config).eval()


def test_the_embedding_of_an_image_is_the_class_token_of_the_last_layer(model):
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.config.image_mean, model.config.image_std))
    (layer,), _ = layer_maps(model.encoder, (images - mean) / std, [-1])
    torch.testing.assert_close(model.embed_image(images), layer.summary)
    features, _ = model.extract_image_features(images)
    torch.testing.assert_close(model.embed_image(image_features=features), layer.summary)


def test_it_is_linear_in_the_latent_and_takes_the_processors_batch(model):
    torch.nn.init.normal_(model.fmri_to_latent.to_learned[0].weight)
    weight = torch.randn_like(model.embedding_decoder.weight)
    model.embedding_decoder.weight.copy_(weight)
    model.embedding_decoder.bias.fill_(2)
    fmri = torch.randn(4, 9, requires_grad=True)
    made = model.reconstruct_embedding(fmri=fmri, fmri_mean=torch.zeros(4, 9), has_fmri=torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(made, model.get_fmri_features(fmri) @ weight.T + 2)
    assert torch.autograd.grad(made.sum(), fmri)[0].abs().max() > 0


def test_training_fits_it(run, corpus):
    model, processor = load_model(run)
    rows = load_from_disk(corpus)["train"]
    batch = processor(images=rows["image"], return_tensors="pt")
    with torch.no_grad():
        measured, latent = model.embed_image(**batch), model.get_image_features(**batch).pooler_output
        made = model.embedding_decoder(latent)
    left = (made - measured).square().sum() / (measured - measured.mean(0)).square().sum()
    assert left < 0.5  # of images that it was fitted to


def test_scores_are_about_the_mean_and_within_a_fold():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 5))
    means = images.reshape(2, 3, 5).mean(1).repeat(3, 0)  # of the folds
    common = 100 * np.ones((6, 5))
    arrays = {
        "stimulus_id": np.array(list("abcdef")),
        "subject": np.array(["s"] * 6),
        "fold": np.array([0, 0, 0, 1, 1, 1]),
        "trials": np.ones(6),
        "image": rng.integers(0, 255, (6, 8, 8), dtype=np.uint8),
        "reconstruction": rng.integers(0, 255, (6, 8, 8), dtype=np.uint8),
        "fmri/s": rng.normal(size=(6, 4)),
        "fmri_predicted/s": rng.normal(size=(6, 4)),
        "noise_ceiling/s": np.full(4, np.nan),
        "latent/image": images,
        "latent/fmri": images,
        "embedding/image": images + common,
        "embedding/fmri": means + 3 * (images - means) + common,
        "ridge/embedding/fmri": (images + common)[[1, 2, 0, 4, 5, 3]],
    }
    block = score(arrays, draws=2)["embedding"]
    assert block["model"]["cosine"] == pytest.approx(1)
    assert block["model"]["retrieval_image_top1"] == block["model"]["two_way"] == 1
    assert block["ridge"]["retrieval_image_top1"] == 0
    assert block["ridge"]["cosine"] < 0.5  # without the mean it would be .99 and more
