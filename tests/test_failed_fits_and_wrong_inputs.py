"""Fits that fail leave the model as it was, and inputs that do not fit it are refused in words."""

import copy

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from visionflow_hf import VisionFlowConfig
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import modeling_visionflow
from visionflow_hf.modeling.ridge import eigh, fit_ridge
from visionflow_hf.modeling.vision_encoder import token_grid


@pytest.fixture
def loaded(run):
    return load_model(run)


def batch_of(processor, subject: str = "subj01", rows: int = 2, **more) -> dict:
    voxels = len(processor.fmri_mean[subject])
    images = [np.full((16, 16), 40 * row, np.uint8) for row in range(rows)]
    return processor(images=images, fmri=np.ones((rows, voxels), np.float32), subject=subject, **more)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_features_that_are_mostly_constant(share):
    rng = np.random.default_rng(0)
    for seed in range(6):
        features = torch.from_numpy(rng.normal(size=(160, 120))).float()
        features[:, rng.random(120) < share] = 0
        targets = features @ torch.from_numpy(rng.normal(size=(120, 3))).float()
        ridge = fit_ridge(features, targets, [row // 2 for row in range(160)])
        assert torch.nn.functional.mse_loss(ridge.predict(features), targets) < 0.05 * targets.var(), seed


def test_eigenvectors_where_float32_fails(monkeypatch):
    products = torch.from_numpy(np.cov(np.random.default_rng(0).normal(size=(6, 50)))).float()
    whole = torch.linalg.eigh

    def fails(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return whole(matrix)

    expected = eigh(products)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    values, vectors = eigh(products)
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close(values, expected[0], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(
        torch.linalg,
        "eigh",
        lambda matrix: [part * (torch.nan if matrix.dtype == torch.float32 else 1) for part in whole(matrix)],
    )
    torch.testing.assert_close(eigh(products)[0], expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["subj01", "ann"])
def test_a_fit_that_fails_leaves_model_and_processor_as_they_were(loaded, monkeypatch, name):
    model, processor = loaded
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    table, means = model.voxels, copy.deepcopy(processor.fmri_mean)

    def fails(*given, **named):
        raise RuntimeError("no convergence")

    monkeypatch.setattr(modeling_visionflow, "fit_maps", fails)
    images = [np.full((16, 16), 12 * row, np.uint8) for row in range(20)]
    with pytest.raises(RuntimeError, match="no convergence"):
        model.fit_subject(name, images=images, fmri=np.random.default_rng(0).normal(size=(20, 9)), processor=processor)
    assert model.config.to_dict() == config and model.voxels is table
    after = model.state_dict()
    assert after.keys() == weights.keys() and all(torch.equal(after[key], weights[key]) for key in weights)
    assert list(processor.fmri_mean) == list(means) and processor.subjects == model.config.subjects
    monkeypatch.undo()
    model.fit_subject(name, images=images, fmri=np.random.default_rng(0).normal(size=(20, 9)), processor=processor)
    assert model.config.num_voxels[model.config.subjects.index(name)] == 9
    processor.check_subjects(model.config)


def test_responses_of_another_subject_are_refused_everywhere(loaded):
    model, processor = loaded
    batch = batch_of(processor)
    model.add_subject("wide", model.config.num_voxels[0] + 5)
    pixels, fmri, ids = batch["pixel_values"], batch["fmri"], torch.zeros(2, dtype=torch.long)
    voxels = model.config.num_voxels[0]
    wide = torch.cat([fmri[:, :voxels], torch.ones(2, 3)], 1)
    short = fmri[:, : voxels - 2]
    for call in (
        lambda: model(pixels, short, ids),
        lambda: model.encode(pixels, short, ids),
        lambda: model.encode_fmri(short, ids),
        lambda: model.reconstruct_image(short, ids),
        lambda: model.log_likelihood(short, pixels, subject="subj01"),
    ):
        with pytest.raises(ValueError, match=f"voxels a row, subj01 has {voxels}"):
            call()
    with pytest.raises(ValueError, match=f"fmri is not zero beyond the {voxels} voxels of subj01"):
        model.log_likelihood(wide, pixels, subject="subj01")
    padded = torch.cat([fmri[:, :voxels], torch.zeros(2, 3)], 1)
    torch.testing.assert_close(model.encode_fmri(padded, ids).mean, model.encode_fmri(fmri, ids).mean)


def test_the_batch_of_the_other_direction_is_named(loaded):
    model, processor = loaded
    batch = processor(fmri=np.ones((2, model.config.num_voxels[0]), np.float32), subject="subj01")
    for method in (model.predict_fmri, model.embed_image):
        with pytest.raises(ValueError, match="pixel_values is None"):
            method(**batch)


def test_no_rows_give_no_images_with_gradient_steps_too(loaded):
    model, processor = loaded
    fmri = batch_of(processor)["fmri"][:0]
    assert model.reconstruct_image(fmri, torch.zeros(0, dtype=torch.long), refine=3).shape == (0, 1, 16, 16)


def test_stimuli_as_a_tensor_group_repeats(loaded, monkeypatch):
    model, processor = loaded
    seen = []
    monkeypatch.setattr(modeling_visionflow, "enough", lambda name, stimulus_ids: seen.extend(stimulus_ids))
    monkeypatch.setattr(modeling_visionflow, "fit_maps", lambda *given: None)
    images = [np.full((16, 16), 12 * row, np.uint8) for row in range(12)]
    fmri = np.random.default_rng(0).normal(size=(12, 4))
    model.fit_subject("ann", images, fmri, stimulus_ids=torch.arange(6).repeat(2), processor=processor)
    assert len(set(seen)) == 6


def test_hidden_states_come_on_request_alone(loaded):
    model, processor = loaded
    batch = batch_of(processor)
    assert model(**batch).hidden_states is None
    assert model(**batch, output_hidden_states=True).hidden_states is not None
    model.config.output_hidden_states = True
    assert model(**batch).hidden_states is not None


def test_a_latent_that_no_ridge_can_be_judged_by():
    with pytest.raises(ValueError, match=r"latent_dim is 2500, linear_dim .*: at most 2000"):
        VisionFlowConfig(latent_dim=2500)


def test_float64_as_the_default_of_torch(loaded):
    model, processor = loaded
    batch = batch_of(processor)
    expected = model.predict_fmri(**batch)
    torch.set_default_dtype(torch.float64)
    try:
        found = model.predict_fmri(**batch)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, check_dtype=False)


def test_a_fit_in_inference_mode_leaves_weights_that_take_gradients(loaded, corpus):
    model, processor = loaded
    rows = load_from_disk(str(corpus))["train"].filter(lambda row: row["subject"] == "subj01").select(range(30))
    with torch.inference_mode():
        model.fit_subject("ann", rows["image"][:], np.array(rows["fmri"][:]), processor=processor)
    fmri = processor(fmri=np.array(rows["fmri"][:2]), subject="ann")
    images = model.reconstruct_image(**fmri, refine=2)
    assert images.isfinite().all()
    model.train()
    model(**processor(images=rows["image"][:2], fmri=np.array(rows["fmri"][:2]), subject="ann")).loss.backward()


def test_registers_that_only_maps_tell_of():
    class Config:
        model_type = "timm_wrapper"

    maps = [torch.zeros(1, 16, 14, 14)]
    assert token_grid(Config(), maps, 14 * 14 + 5, 224, 224) == (14, 14, 5)
