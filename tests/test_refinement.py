"""Reconstructions that are refined by the likelihood of the response, and means of the likeliest images of a bank."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image

from visionflow_hf import inference
from visionflow_hf.cli import main
from visionflow_hf.evaluation.predictions import to_array
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowConfig, refinement
from visionflow_hf.modeling.refinement import refined


@pytest.fixture(scope="module")
def loaded(run):
    return load_model(run)


@pytest.fixture
def batch(loaded, corpus):
    test = load_from_disk(str(corpus))["test"].select(range(5))
    return loaded[1](fmri=test["fmri"], subject=test["subject"])


def test_steps_raise_the_likelihood_of_each_response(loaded, batch):
    model, _ = loaded
    names = [model.config.subjects[place] for place in batch["subject_ids"].tolist()]

    def likelihoods(images):
        return [
            float(model.log_likelihood(row[None], image[None], subject=name))
            for row, image, name in zip(batch["fmri"], images, names, strict=True)
        ]

    before, after = (likelihoods(model.reconstruct_image(**batch, refine=steps)) for steps in (0, 20))
    assert sum(after) > sum(before)


def test_a_row_does_not_depend_on_its_batch_and_weights_get_no_gradient(loaded, batch):
    model, _ = loaded
    together = model.reconstruct_image(**batch, refine=5)
    alone = {name: values[2:3] for name, values in batch.items()}
    torch.testing.assert_close(model.reconstruct_image(**alone, refine=5), together[2:3], atol=1e-3, rtol=0)
    assert not together.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_in_inference_mode_it_is_the_same(loaded, batch):
    model, _ = loaded
    with torch.inference_mode():
        found = model.reconstruct_image(**{name: values.clone() for name, values in batch.items()}, refine=3)
    torch.testing.assert_close(found.clone(), model.reconstruct_image(**batch, refine=3), atol=1e-5, rtol=0)


def test_many_steps_stay_near_the_posterior_of_the_response(loaded, batch):
    model, _ = loaded
    with torch.no_grad():
        posterior = model.encode_fmri(batch["fmri"], batch["subject_ids"])
    latents = refined(model, posterior, batch["fmri"], batch["subject_ids"], 200)
    both = zip(latents, (posterior.learned, posterior.linear), strict=True)
    far = [((latent - q.mean) / (q.logvar / 2).exp()).square().mean() for latent, q in both]
    assert 0 < max(far) < 1  # in standard deviations


@pytest.fixture
def refining(run, tmp_path):
    """A model that refines by default."""
    folder = shutil.copytree(run, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"refine_steps": 4}))
    return folder


def test_the_steps_of_the_model_are_the_default_everywhere(refining, corpus, tmp_path):
    model, processor = load_model(refining)
    row = load_from_disk(str(corpus))["test"][0]
    batch = processor(fmri=row["fmri"], subject=row["subject"])
    refined_, plain = model.reconstruct_image(**batch, refine=4), model.reconstruct_image(**batch, refine=0)
    assert not torch.equal(refined_, plain)
    torch.testing.assert_close(model.reconstruct_image(**batch), refined_)
    torch.testing.assert_close(model(**batch).reconstruction, refined_)
    np.save(tmp_path / "fmri.npy", np.array([row["fmri"]], dtype=np.float32))
    for flags, pixels in (([], refined_), (["--refine", "0"], plain)):
        words = ["decode", refining, tmp_path / "fmri.npy", "--subject", row["subject"], "--output", tmp_path / "out"]
        assert main([str(word) for word in (*words, *flags, "--overwrite")]) == 0
        (expected,) = processor.post_process_images(pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "0000.png")), np.asarray(expected))


def test_forward_refines_the_rows_with_fmri_alone(refining, corpus):
    model, processor = load_model(refining)
    rows = load_from_disk(str(corpus))["test"].select(range(3))
    batch = processor(images=rows["image"], fmri=rows["fmri"], subject=rows["subject"])
    has_fmri = torch.tensor([True, False, True])
    found = model(**batch, has_fmri=has_fmri)
    expected = model.reconstruct_image(batch["fmri"], batch["subject_ids"])
    torch.testing.assert_close(found.reconstruction[has_fmri], expected[has_fmri], atol=1e-5, rtol=0)
    model.config.refine_steps = 0
    plain = model(**batch, has_fmri=has_fmri)
    torch.testing.assert_close(found.reconstruction[1], plain.reconstruction[1])
    assert torch.equal(found.loss, plain.loss)


def test_gradients_are_those_of_the_mean(refining, corpus):
    model, processor = load_model(refining)
    row = load_from_disk(str(corpus))["test"][0]
    gradients = []
    for steps in (None, 0):
        fmri = torch.tensor(row["fmri"], requires_grad=True)
        batch = processor(fmri=fmri, subject=row["subject"])
        posterior = model.encode_fmri(batch["fmri"], batch["subject_ids"])
        latents = model._refined(posterior, batch["fmri"], batch["subject_ids"], steps)
        sum(latent.sum() for latent in latents).backward()
        gradients.append(fmri.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(refining, corpus, dtype):
    model, processor = load_model(refining)
    row = load_from_disk(str(corpus))["test"][0]
    batch = processor(fmri=row["fmri"], subject=row["subject"])
    whole = model.reconstruct_image(**batch)
    half = model.to(dtype).reconstruct_image(**batch)
    assert half.dtype == dtype and (half.float() - whole).abs().mean() < 0.03


def test_without_a_finite_likelihood_the_mean_stays(loaded, batch, monkeypatch):
    model, _ = loaded
    monkeypatch.setattr(refinement, "log_likelihood", lambda model, images, *_: images.sum() * float("nan"))
    found, plain = (model.reconstruct_image(**batch, refine=steps) for steps in (3, 0))
    torch.testing.assert_close(found, plain)


def test_steps_are_a_number():
    with pytest.raises(ValueError, match="refine_steps is -1: 0 or a number of steps is expected"):
        VisionFlowConfig(refine_steps=-1)


def test_samples_are_not_refined(loaded, batch):
    with pytest.raises(ValueError, match="give one of them"):
        loaded[0].reconstruct_image(**batch, refine=2, num_samples=3)


def test_decode_refines(loaded, run, corpus, tmp_path):
    model, processor = loaded
    row = load_from_disk(str(corpus))["test"][0]
    np.save(tmp_path / "fmri.npy", np.array([row["fmri"]], dtype=np.float32))
    words = ["decode", run, tmp_path / "fmri.npy", "--subject", row["subject"], "--output", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--refine", "3")]) == 0
    batch = processor(fmri=row["fmri"], subject=row["subject"])
    (expected,) = processor.post_process_images(model.reconstruct_image(**batch, refine=3))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "0000.png")), np.asarray(expected))


def test_a_bank_gives_the_mean_of_its_likeliest_images(loaded, run, corpus, tmp_path, monkeypatch):
    model, processor = loaded
    rows = load_from_disk(str(corpus))["test"]
    rows = rows.select([place for place, name in enumerate(rows["subject"]) if name == "subj01"])
    (tmp_path / "bank").mkdir()
    for place, image in enumerate(rows["image"]):
        image.save(tmp_path / "bank" / f"{place}.png")
    np.save(tmp_path / "fmri.npy", np.array(rows["fmri"], dtype=np.float32))
    monkeypatch.setattr(inference, "LIKELIEST", 2)
    words = ["decode", run, tmp_path / "fmri.npy", "--subject", "subj01", "--output", tmp_path / "out"]
    assert main([str(word) for word in (*words, "--image-bank", tmp_path / "bank")]) == 0
    fmri = processor(fmri=rows["fmri"], subject="subj01")
    images = processor(images=rows["image"], subject="subj01")
    scores = model.log_likelihood(**fmri, pixel_values=images["pixel_values"])
    pixels = to_array(list(rows["image"]), processor, tuple(processor.image_size[::-1])).astype(float)
    for place, best in enumerate(scores.topk(2).indices.tolist()):
        made = np.asarray(Image.open(tmp_path / "out" / f"{place:04d}.png"))
        assert np.abs(made - pixels[best].mean(0)).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--refine", "-1"], "--refine is -1: 0 or a number of steps is expected"),
        (["--image-bank", "nowhere"], "nowhere is no folder: a folder of images is expected"),
    ],
)
def test_what_decode_refuses(flags, message, run, tmp_path, refused):
    np.save(tmp_path / "fmri.npy", np.zeros((1, 30), dtype=np.float32))
    words = ["decode", run, tmp_path / "fmri.npy", "--subject", "subj01", "--output", tmp_path / "out", *flags]
    refused(lambda: main([str(word) for word in words]), message)
    assert not (tmp_path / "out").exists()
