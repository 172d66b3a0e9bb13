"""Dtypes, placement and compilation of both directions, each compared with plain float32."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from transformers import AutoModel

from visionflow_hf.hub import load_model


@pytest.fixture(scope="module")
def reference(run):
    """A model, the inputs of both directions for both subjects, and what it makes of them in float32."""
    model, processor = load_model(run)
    images = [Image.new("L", (16, 16), value) for value in (0, 100, 250)]
    subject = ["subj01", "subj02", "subj01"]
    pixels = processor(images=images, subject=subject)
    predicted = model.predict_fmri(**pixels)
    fmri = processor(fmri=predicted + predicted.std() * torch.randn(3, 30), subject=subject)
    return model, pixels, fmri, predicted, model.reconstruct_image(**fmri)


def load(run, **options):
    return AutoModel.from_pretrained(run, trust_remote_code=True, **options)


def test_bfloat16(run, reference):
    _, pixels, fmri, predicted, reconstructed = reference
    half = load(run, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert (half.predict_fmri(**pixels) - predicted).abs().max() < 0.05 * predicted.std()
    assert (half.reconstruct_image(**fmri) - reconstructed).abs().max() < 0.05
    loss = half.train()(**pixels, fmri=fmri["fmri"]).loss
    loss.backward()
    assert torch.isfinite(loss) and half.latent_to_fmri.voxel_maps[0].weight.grad.dtype == torch.bfloat16


def test_device_map_auto(run, reference):
    _, pixels, fmri, predicted, reconstructed = reference
    model = load(run, device_map="auto")
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    torch.testing.assert_close(model.predict_fmri(**pixels), predicted, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.reconstruct_image(**fmri), reconstructed, atol=1e-6, rtol=0)


def test_weights_that_are_offloaded(run, reference):
    """What is read outside of a module's `forward` is found there, too."""
    plain, pixels, fmri, predicted, _ = reference
    model = cpu_offload(load(run))
    assert model.latent_to_fmri.noise_logvar.device.type == "meta"
    torch.testing.assert_close(model.predict_fmri(**pixels), predicted, atol=1e-5, rtol=0)
    samples = [
        one.predict_fmri(**pixels, num_samples=2, generator=torch.Generator().manual_seed(0)) for one in (plain, model)
    ]
    torch.testing.assert_close(*samples, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.reconstruct_image(**fmri, refine=0), plain.reconstruct_image(**fmri, refine=0))
    for refine in (0, 2):
        assert model.reconstruct_image(**fmri, refine=refine).isfinite().all()
    scores = [one.log_likelihood(fmri["fmri"], pixels["pixel_values"], subject="subj01") for one in (plain, model)]
    torch.testing.assert_close(*scores)


def test_raw_units_stay_in_float32_where_a_batch_is_cast(reference):
    _, pixels, *_ = reference
    cast = copy.copy(pixels).to(torch.bfloat16)
    assert cast["pixel_values"].dtype == torch.bfloat16
    assert cast["fmri_mean"].dtype == cast["fmri_std"].dtype == torch.float32


def test_attention_implementations_agree(run, reference):
    _, pixels, _, predicted, _ = reference
    for name in ("eager", "sdpa"):
        model = load(run, attn_implementation=name)
        assert model.encoder.config._attn_implementation == name
        torch.testing.assert_close(model.predict_fmri(**pixels), predicted, atol=1e-5, rtol=0)


@pytest.mark.nightly
def test_compiled(reference):
    model, pixels, fmri, predicted, _ = reference
    plain = model.reconstruct_image(**fmri, refine=0)  # no gradient steps where a graph is recorded
    torch.testing.assert_close(torch.compile(model.predict_fmri)(**pixels), predicted, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.compile(model.reconstruct_image)(**fmri), plain, atol=1e-4, rtol=0)


class Method(torch.nn.Module):
    """A model's method as a module's `forward`, which `torch.export` asks for."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, inputs, subject_ids):
        return getattr(self.model, self.name)(inputs, subject_ids)


@pytest.mark.parametrize(("name", "key"), [("predict_fmri", "pixel_values"), ("reconstruct_image", "fmri")])
def test_exported_with_a_free_batch_size(reference, name, key, monkeypatch):
    model, pixels, fmri, _, _ = reference
    monkeypatch.setattr(model.config, "refine_steps", 0)  # which a graph cannot take
    inputs = (pixels if key == "pixel_values" else fmri)[key]
    batch = torch.export.Dim("batch")
    ids = torch.tensor([0, 1, 0])
    exported = torch.export.export(Method(model, name), (inputs, ids), dynamic_shapes=({0: batch}, {0: batch}))
    for rows in (slice(None), slice(0, 2)):
        expected = getattr(model, name)(inputs[rows], ids[rows])
        torch.testing.assert_close(exported.module()(inputs[rows], ids[rows]), expected, atol=1e-5, rtol=0)
