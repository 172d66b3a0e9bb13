"""What can be tested of GPUs without one: precision, replicas, several GPUs in one process."""

import pytest
import torch
from datasets import load_from_disk
from transformers import PreTrainedModel, ViTConfig

from visionflow_hf import VisionFlowConfig, VisionFlowModel
from visionflow_hf.cli import main
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import pipeline_visionflow, refit
from visionflow_hf.modeling.precision import without_tf32
from visionflow_hf.training.arguments import VisionFlowTrainingArguments
from visionflow_hf.training.trainer import ImageTrainer

SHORT = ["--max_steps", "2", "--disable_tqdm", "true", "--linear_dim", "0"]


def test_one_of_several_gpus_is_used(tmp_path):
    args = VisionFlowTrainingArguments(str(tmp_path))
    assert args.device is not None and args.n_gpu <= 1
    args._n_gpu = 2  # as where two are seen
    assert args.n_gpu == 1 and args.train_batch_size == 32


def test_replicas_add_no_hooks_to_the_layers_of_the_encoder():
    """`nn.DataParallel` makes new ones for each step, whose modules share the hooks of the model's."""
    size = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    vision = ViTConfig(image_size=16, patch_size=8, num_channels=1, **size)
    config = VisionFlowConfig(
        vision_config=vision, image_size=16, num_channels=1, latent_dim=4, linear_dim=3, linear_layers=[1], subjects=[]
    )
    model = VisionFlowModel(config).eval()
    pixels = torch.rand(2, 1, 16, 16)
    for _ in range(3):
        replica = model._replicate_for_data_parallel()
        replica._modules = dict(model._modules)
        encoder = model.encoder._replicate_for_data_parallel()
        encoder._modules = dict(model.encoder._modules)
        replica._modules["encoder"] = encoder
        replica.extract_image_features(pixels)
    expected = VisionFlowModel(config).eval()
    expected.load_state_dict(model.state_dict())
    expected.extract_image_features(pixels)
    hooks, alone = ([len(one._forward_hooks) for one in each.encoder.modules()] for each in (model, expected))
    assert hooks == alone and any(alone)
    torch.testing.assert_close(model.extract_image_features(pixels)[0], expected.extract_image_features(pixels)[0])


def test_both_image_stages_compute_in_bfloat16(corpus, tmp_path, monkeypatch):
    seen = []
    loss_of = ImageTrainer.compute_loss

    def watched(self, *given, **more):
        seen.append(1)
        return loss_of(self, *given, **more)

    inside = []
    decode = VisionFlowModel.encode_image

    def within(self, *given, **more):
        inside.append((self.training, torch.is_autocast_enabled("cpu")))
        return decode(self, *given, **more)

    monkeypatch.setattr(ImageTrainer, "compute_loss", watched)
    monkeypatch.setattr(VisionFlowModel, "encode_image", within)
    assert main(["train", str(corpus), str(tmp_path / "run"), *SHORT, "--bf16", "true"]) == 0
    trained = [autocast for training, autocast in inside if training]
    assert len(trained) == len(seen) == 4 and all(trained)
    assert not any(autocast for training, autocast in inside if not training)  # the fits


def test_fits_are_without_tf32(run, corpus, monkeypatch):
    matmul = torch.backends.cuda.matmul
    name = "fp32_precision" if hasattr(matmul, "fp32_precision") else "allow_tf32"
    before, found = getattr(matmul, name), []
    monkeypatch.setattr(refit, "fit_encoding", lambda *_: found.append(getattr(matmul, name)) or exit_now())

    def exit_now():
        raise InterruptedError

    model, processor = load_model(run)
    with pytest.raises(InterruptedError):
        model.refit(load_from_disk(str(corpus))["train"], processor)
    assert found == ["ieee" if name == "fp32_precision" else False] and getattr(matmul, name) == before
    with without_tf32():
        assert getattr(matmul, name) == found[0]
    assert getattr(matmul, name) == before


def test_likelihoods_and_energies_are_exact_under_autocast(run, corpus):
    model, processor = load_model(run)
    rows = load_from_disk(str(corpus))["test"]
    subject = rows[0]["subject"]
    rows = rows.select([row for row, name in enumerate(rows["subject"]) if name == subject][:6])
    batch = processor(images=rows["image"], fmri=rows["fmri"], subject=subject)
    fmri, predicted = batch["fmri"], torch.randn(6, batch["fmri"].shape[1])
    place = model.config.subjects.index(subject)
    with torch.no_grad():
        expected = model.latent_to_fmri.log_likelihood(fmri, predicted, place)
        with torch.autocast("cpu", torch.bfloat16):
            found = model.latent_to_fmri.log_likelihood(fmri, predicted, place)
    torch.testing.assert_close(found, expected)


def test_a_pipeline_stays_on_the_device_of_the_model(run, monkeypatch):
    model, processor = load_model(run)
    monkeypatch.setattr(pipeline_visionflow, "ImageToFmriPipeline", lambda **given: given)
    assert model.pipeline("image-to-fmri", processor)["device"] == model.device
    model.hf_device_map = {"encoder": 0}
    assert model.pipeline("image-to-fmri", processor)["device"] is None


def test_a_model_fills_one_gpu_after_the_other(run, monkeypatch):
    asked = []

    def loaded(cls, *given, **options):
        asked.append(options.get("device_map"))
        raise InterruptedError

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(loaded))
    for device_map in ("auto", "balanced", {"": "cpu"}, None):
        with pytest.raises(InterruptedError):
            VisionFlowModel.from_pretrained(run, device_map=device_map)
    assert asked == ["sequential", "sequential", {"": "cpu"}, None]
