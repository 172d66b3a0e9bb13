"""Which image was it: the likelihood of responses, `visionflow identify`, and the figures in the report."""

import csv
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from PIL import Image
from scipy.stats import multivariate_normal
from transformers import AutoModel

from visionflow_hf.cli import main
from visionflow_hf.evaluation.scores import likelihood_of_images
from visionflow_hf.hub import load_model
from visionflow_hf.modeling.fmri_bridges import SHARED_NOISE, LatentToFmri


@pytest.fixture(scope="module")
def loaded(run):
    return load_model(run)


@pytest.fixture
def rows(corpus):
    test = load_from_disk(str(corpus))["test"]
    return test.select([row for row, subject in enumerate(test["subject"]) if subject == "subj02"])


def test_the_likelihood_is_that_of_a_normal_distribution(loaded, rows):
    model, processor = loaded
    fmri = processor(fmri=[row["fmri"] for row in rows][:5], subject="subj02")
    images = processor(images=rows[:4]["image"], subject="subj02")
    found = model.log_likelihood(fmri["fmri"], images["pixel_values"], subject="subj02")
    assert torch.equal(found, model.log_likelihood(**fmri, pixel_values=images["pixel_values"]))
    factors = model.latent_to_fmri.voxel_maps[1].noise_factors.double().numpy()
    variance = model.latent_to_fmri.noise_logvar[1, :30].detach().double().exp().numpy()
    assert np.abs(factors).max() > 0
    shared = factors.T @ factors
    np.testing.assert_array_less(np.diag(shared), SHARED_NOISE * variance * 1.001)
    cov = shared + np.diag(variance - np.diag(shared))
    mean = model.predict_fmri(images["pixel_values"], images["subject_ids"]).double().numpy()
    expected = [multivariate_normal.logpdf(fmri["fmri"].double().numpy(), one, cov) for one in mean]
    np.testing.assert_allclose(found.numpy(), np.transpose(expected), rtol=1e-4, atol=1e-3)


def test_noise_that_voxels_share_is_taken_from_errors(loaded, run):
    model = AutoModel.from_pretrained(run, trust_remote_code=True)
    generator = torch.Generator().manual_seed(0)
    shape = torch.randn(2, 30, generator=generator)
    errors = torch.randn(500, 2, generator=generator) @ shape + 0.1 * torch.randn(500, 30, generator=generator)
    model.latent_to_fmri.set_shared_noise(0, errors)
    factors = model.latent_to_fmri.voxel_maps[0].noise_factors
    std = (model.latent_to_fmri.noise_logvar[0, :30] / 2).exp()
    expected = SHARED_NOISE * torch.from_numpy(np.corrcoef(errors.T.numpy())).float() * std[:, None] * std
    torch.testing.assert_close(factors.T @ factors, expected.detach(), atol=0.05, rtol=0)


def test_noise_may_be_independent():
    sizes = {"latent_dim": 4, "bridge_hidden_size": 3, "linear_dim": 2, "num_voxels": [30, 20]}
    bridge = LatentToFmri(SimpleNamespace(**sizes, bridge_dropout=0.0, noise_rank=0))
    bridge.noise_logvar.data.uniform_(-2, 2)
    bridge.set_shared_noise(1, torch.randn(50, 20))
    fmri, predicted = torch.randn(3, 20), torch.randn(4, 20)
    independent = torch.distributions.Normal(predicted, (bridge.noise_logvar[1, :20] / 2).exp())
    expected = independent.log_prob(fmri[:, None]).sum(-1)
    torch.testing.assert_close(bridge.log_likelihood(fmri, predicted, 1), expected, atol=1e-3, rtol=1e-4)


def test_errors_of_the_caller(loaded, rows):
    model, processor = loaded
    pixels = processor(images=rows[:2]["image"], subject="subj02")["pixel_values"]
    fmri = torch.zeros(2, 30)
    with pytest.raises(ValueError, match="unknown subject carl"):
        model.log_likelihood(fmri, pixels, subject="carl")
    with pytest.raises(ValueError, match=r"fmri has shape \(30,\)"):
        model.log_likelihood(fmri[0], pixels, subject="subj01")
    with pytest.raises(ValueError, match="fmri has 7 voxels a row, subj01 has 30"):
        model.log_likelihood(fmri[:, :7], pixels, subject="subj01")
    gaps = torch.tensor([False, True])
    with pytest.raises(ValueError, match="row 0 of the batch has no image"):
        model.log_likelihood(fmri, pixels, subject="subj01", has_image=gaps)
    with pytest.raises(ValueError, match="row 0 of the batch has no fMRI"):
        model.log_likelihood(fmri, pixels, subject="subj01", has_fmri=gaps)
    with pytest.raises(ValueError, match="row 0 of the batch has no image"):
        model.embed_image(pixels, has_image=gaps)
    with pytest.raises(ValueError, match="responses of 2 subjects"):
        model.log_likelihood(fmri, pixels, torch.tensor([0, 1]))


def test_gradients_reach_images(loaded):
    model, _ = loaded
    pixels = torch.rand(2, 1, 16, 16, requires_grad=True)
    model.log_likelihood(torch.zeros(3, 30), pixels, subject="subj01").sum().backward()
    assert pixels.grad.abs().max() > 0
    assert not model.log_likelihood(torch.zeros(3, 30), pixels.detach(), subject="subj01").requires_grad


def test_identify_ranks_the_images_of_a_folder(run, loaded, rows, tmp_path, monkeypatch):
    model, processor = loaded
    (tmp_path / "images" / "more").mkdir(parents=True)
    for number, row in enumerate(rows.select(range(4))):
        row["image"].save(tmp_path / "images" / ("more" if number else "") / f"{number}.png")
    os.rename(tmp_path / "images/more/3.png", os.fsencode(tmp_path) + b"/images/more/\xe9.png")  # no UTF-8
    fmri = np.array([row["fmri"] for row in rows.select(range(3))], np.float32)
    np.savez(tmp_path / "fmri.npz", fmri=fmri)
    words = ["identify", run, tmp_path / "fmri.npz", "--subject", "subj02", "--candidates", tmp_path / "images"]
    assert main([*map(str, words), "--top", "3", "--output", str(tmp_path / "out.csv")]) == 0
    found = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", errors="surrogateescape")))
    assert [(int(line["response"]), int(line["rank"])) for line in found] == [
        (r, k) for r in range(3) for k in (1, 2, 3)
    ]
    pixels = processor(images=rows[:4]["image"], subject="subj02")["pixel_values"]
    scores = model.log_likelihood(processor(fmri=fmri, subject="subj02")["fmri"], pixels, subject="subj02").numpy()
    names = ["0.png", "more/1.png", "more/2.png", os.fsdecode(b"more/\xe9.png")]
    for line in found:
        score = scores[int(line["response"]), names.index(line["candidate"])]
        assert float(line["log_likelihood"]) == pytest.approx(score, abs=1e-2)
        assert (scores[int(line["response"])] > score + 1e-2).sum() <= int(line["rank"]) - 1

    def encode(*_):
        raise AssertionError("the candidates are encoded again")

    monkeypatch.setattr("visionflow_hf.modeling.modeling_visionflow.VisionFlowModel.encode_image", encode)
    assert main([*map(str, words), "--top", "3", "--output", str(tmp_path / "again.csv")]) == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()
    Image.new("L", (16, 16)).save(tmp_path / "images" / "0.png")  # another picture of the same name
    with pytest.raises(AssertionError, match="encoded again"):
        main([*map(str, words), "--top", "3", "--output", str(tmp_path / "other.csv")])


def test_identify_refuses(run, rows, tmp_path, refused):
    np.save(tmp_path / "fmri.npy", np.zeros((1, 30), np.float32))
    np.save(tmp_path / "short.npy", np.zeros((1, 7), np.float32))
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    rows[0]["image"].save(tmp_path / "images" / "0.png")

    def identify(file="fmri.npy", candidates="images", subject="subj01", output="out.csv", top="5"):
        words = ["identify", run, tmp_path / file, "--subject", subject, "--candidates", tmp_path / candidates]
        return main([*map(str, words), "--top", top, "--output", str(tmp_path / output)])

    refused(lambda: identify(candidates="nowhere"), "is no folder")
    refused(lambda: identify(candidates="empty"), "has no images")
    refused(lambda: identify(file="short.npy"), "has 7 voxels, subj01 has 30")
    np.save(tmp_path / "far.npy", np.full((1, 30), 1e30, np.float32))
    refused(lambda: identify(file="far.npy"), "the likelihood of response 0 is no finite number")
    refused(lambda: identify(subject="carl"), "unknown subject carl")
    refused(lambda: identify(output="no/out.csv"), "is no folder")
    refused(lambda: identify(top="0"), "at least 1")
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    refused(identify, "1.png")
    assert not (tmp_path / "out.csv").exists()


def test_the_report_says_which_image_it_was(report):
    found = json.loads((report / "metrics.json").read_text())["identification"]
    arrays = np.load(report / "predictions.npz")
    n = len(arrays["log_likelihood/subj01"])
    assert set(found) == {"likelihood", "latent", "reconstruction"}
    assert found["likelihood"]["n_candidates"] == n
    right = []
    for subject in ("subj01", "subj02"):
        scores = arrays[f"log_likelihood/{subject}"]
        right.append(np.mean(scores.argmax(1) == np.arange(n)))
    assert found["likelihood"]["top1"] == pytest.approx(np.mean(right))


def test_a_fold_is_compared_with_its_own_images(folds_report):
    arrays = np.load(folds_report / "predictions.npz")
    rows = arrays["subject"] == "subj01"
    table = likelihood_of_images(arrays["log_likelihood/subj01"], arrays["fold"][rows], np.arange(len(rows)))
    same = arrays["fold"][rows][:, None] == arrays["fold"][rows]
    assert np.array_equal(np.isfinite(table), same)
    found = json.loads((folds_report / "metrics.json").read_text())["identification"]
    assert found["likelihood"]["n_candidates"] == pytest.approx(same.sum(0).mean())
    assert 0 < found["likelihood"]["two_way"] <= 1
