"""What users of transformers expect of a model and its processor, besides what transformers' own tests ask."""

import logging
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import load_from_disk
from transformers import AutoConfig, AutoModel, AutoProcessor, Trainer, TrainingArguments, ViTConfig
from transformers.utils import logging as transformers_logging

from visionflow_hf import ImageCollator, VisionFlowCollator, VisionFlowConfig, VisionFlowModel, VisionFlowProcessor
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import refit

METHODS = {  # and which of pixel_values and fmri it reads
    "forward": ("pixel_values", "fmri"),
    "encode": ("pixel_values", "fmri"),
    "log_likelihood": ("pixel_values", "fmri"),
    "predict_fmri": ("pixel_values",),
    "encode_image": ("pixel_values",),
    "get_image_features": ("pixel_values",),
    "reconstruct_image": ("fmri",),
    "encode_fmri": ("fmri",),
    "get_fmri_features": ("fmri",),
}


@pytest.fixture(scope="module")
def loaded(run):
    model, processor = load_model(run)
    return model.eval(), processor


@pytest.fixture
def batch(loaded, corpus):
    """Three trials of one subject, of images that have black and white pixels."""
    rows = load_from_disk(corpus)["test"].select(range(3))
    assert len(set(rows["subject"])) == 1
    images = [np.where(np.eye(16) > 0, 255, np.asarray(image)).astype(np.uint8) for image in rows["image"]]
    images = [np.where(np.eye(16)[::-1] > 0, 0, image).astype(np.uint8) for image in images]
    return loaded[1](images=images, fmri=rows["fmri"], subject=rows[0]["subject"])


def tensors(result) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return tensors(result.mean) if hasattr(result, "learned") else list(result.values())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_whole_batch_and_passes_gradients_on(loaded, batch, method):
    inputs = dict(batch)
    for name in METHODS[method]:
        inputs[name] = inputs[name].clone().requires_grad_()
    results = [result for result in tensors(getattr(loaded[0], method)(**inputs)) if result.requires_grad]
    sum(result.float().mean() for result in results).backward()
    for name in METHODS[method]:
        gradient = inputs[name].grad
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


@pytest.mark.nightly
@pytest.mark.parametrize("method", METHODS)
def test_no_graph_breaks_with_the_batch_of_a_processor(loaded, batch, method):
    subject = {"subject": "subj01"} if method == "log_likelihood" else {}  # whose covariance it is must not be data
    torch._dynamo.reset()
    explained = torch._dynamo.explain(getattr(loaded[0], method))(**batch, **subject)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_rows_of_all_subjects_in_one_graph_are_those_of_the_model(loaded, batch, monkeypatch):
    model = loaded[0]
    monkeypatch.setattr(model.config, "refine_steps", 0)  # which a graph cannot take
    batch["subject_ids"] = torch.tensor([1, 0, 1])
    for name in ("predict_fmri", "reconstruct_image"):
        torch._dynamo.reset()
        compiled = torch.compile(getattr(model, name), backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(**batch), getattr(model, name)(**batch), atol=1e-5, rtol=0)


def test_without_losses(loaded, batch):
    with_losses, without = loaded[0](**batch), loaded[0](**batch, return_loss=False)
    assert not [name for name in without if name.startswith("loss")]
    assert torch.equal(with_losses.reconstruction, without.reconstruction)


def test_the_embeddings_are_those_of_the_encoder(loaded):
    assert loaded[0].get_input_embeddings() is loaded[0].encoder.get_input_embeddings()


def test_there_is_no_text_to_decode(loaded):
    for decode in (loaded[1].decode, loaded[1].batch_decode):
        with pytest.raises(ValueError, match="no text to decode"):
            decode([1, 2])


def test_auto_classes_know_the_package(run):
    assert type(AutoConfig.from_pretrained(run)) is VisionFlowConfig
    assert type(AutoModel.from_pretrained(run)) is VisionFlowModel
    assert type(AutoProcessor.from_pretrained(run)) is VisionFlowProcessor


def test_warnings_obey_the_verbosity_of_transformers(colour_corpus, caplog):
    rows = load_from_disk(colour_corpus)["train"]
    before = transformers_logging.get_verbosity()
    try:
        for verbosity, shown in ((logging.ERROR, False), (logging.WARNING, True)):
            transformers_logging.set_verbosity(verbosity)
            caplog.clear()
            VisionFlowProcessor.from_dataset(rows)
            assert ("voxels are constant" in caplog.text) == shown
    finally:
        transformers_logging.set_verbosity(before)


def test_the_config_of_a_dataset_is_the_one_that_train_chooses(run, corpus):
    rows = load_from_disk(corpus)["train"]
    config = VisionFlowConfig.for_dataset(rows, VisionFlowProcessor.from_dataset(rows))
    trained = AutoConfig.from_pretrained(run).to_dict()
    written = {"_name_or_path", "architectures", "auto_map", "dtype"}  # by saving
    written |= {"linear_share", "refine_steps", "brightness"}  # by training
    assert {name: value for name, value in config.to_dict().items() if trained.get(name) != value}.keys() <= written


def test_a_config_with_settings_of_ones_own(corpus):
    rows = load_from_disk(corpus)["train"].select(range(7)).remove_columns("stimulus_id")
    processor = VisionFlowProcessor.from_dataset(rows)
    vision = ViTConfig(image_size=16, patch_size=4, num_hidden_layers=10, hidden_size=12, num_attention_heads=2)
    config = VisionFlowConfig.for_dataset(rows, processor, vision_config=vision, kl_weight=0.5)
    assert (config.linear_dim, config.latent_dim, config.kl_weight) == (7, 256, 0.5)
    assert config.vision_config.num_hidden_layers == 10 and len(config.linear_layers) > 1
    assert VisionFlowConfig.for_dataset(rows, processor, linear_dim=0).linear_dim == 0


def test_batches_are_as_wide_as_the_largest_subject(colour_corpus):
    rows = load_from_disk(colour_corpus)["train"]
    processor = VisionFlowProcessor.from_dataset(rows)
    bob = rows.filter(lambda name: name == "bob", input_columns="subject")
    alone = {"image": bob[0]["image"], "fmri": None, "subject": None}
    batch = VisionFlowCollator(processor)([bob[0], alone, bob[1] | {"image": None}])
    assert set(batch) == {"pixel_values", "fmri", "subject_ids", "has_image", "has_fmri"}
    assert batch["fmri"].shape == (3, 12) and not batch["fmri"][:, 7:].any()
    mean, std = processor.fmri_mean["bob"], processor.fmri_std["bob"]
    np.testing.assert_allclose(batch["fmri"][0, :7], (np.array(bob[0]["fmri"]) - mean) / std, atol=1e-5)
    assert batch["subject_ids"].tolist() == [1, -1, 1]
    assert batch["has_image"].tolist() == [True, True, False] and batch["has_fmri"].tolist() == [True, False, True]
    model = VisionFlowModel(VisionFlowConfig.for_dataset(rows, processor))
    assert model(**batch).loss.isfinite()
    assert VisionFlowCollator(processor)([alone])["fmri"].tolist() == [[0] * 12]
    for one in ([bob[0], alone], [alone]):  # as the card collates them
        images, fmri, subjects = ([row[name] for row in one] for name in ("image", "fmri", "subject"))
        for training in (True, False):
            made = model.train(training)(**processor(images=images, fmri=fmri, subject=subjects))
            assert made.loss.isfinite() and made.reconstruction.isfinite().all()
    with pytest.raises(ValueError, match="a row has fMRI but no subject"):
        VisionFlowCollator(processor)([bob[0], bob[1] | {"subject": None}])
    with pytest.raises(ValueError, match=r"no image, subject, only fmri: .* remove_unused_columns=False"):
        VisionFlowCollator(processor)([{"fmri": bob[0]["fmri"]}])


def test_compute_metrics_gets_one_array_of_images_and_one_of_fmri(loaded, corpus, tmp_path):
    model, processor = loaded
    rows = load_from_disk(corpus)["test"]
    seen = []

    def compute_metrics(evaluated):
        seen.append(evaluated)
        return {"r": float(np.corrcoef(evaluated.predictions[1].ravel(), evaluated.label_ids[1].ravel())[0, 1])}

    args = TrainingArguments(
        tmp_path, remove_unused_columns=False, label_names=["pixel_values", "fmri"], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, args, VisionFlowCollator(processor), eval_dataset=rows, compute_metrics=compute_metrics)
    metrics = trainer.evaluate()
    (reconstructions, predicted), (images, fmri) = seen[0].predictions, seen[0].label_ids
    assert reconstructions.shape == images.shape == (24, 1, 16, 16) and predicted.shape == fmri.shape == (24, 30)
    batches = [list(rows.select(range(start, start + 8))) for start in range(0, 24, 8)]  # as the Trainer's: rounding
    with torch.no_grad():  # differs with the size of a batch, and gradient steps enlarge it
        expected = [model(**VisionFlowCollator(processor)(batch)) for batch in batches]
    np.testing.assert_allclose(reconstructions, torch.cat([one.reconstruction for one in expected]), atol=1e-5)
    np.testing.assert_allclose(predicted, torch.cat([one.fmri for one in expected]), atol=1e-5)
    assert metrics["eval_r"] > 0.1
    args = TrainingArguments(tmp_path, remove_unused_columns=False, use_cpu=True, disable_tqdm=True)
    plain = Trainer(model, args, VisionFlowCollator(processor), eval_dataset=rows).evaluate()
    assert plain["eval_loss"] == pytest.approx(metrics["eval_loss"])  # also where no labels are named


def test_augmented_images_alone_are_what_a_model_is_trained_on_from_scratch(loaded, corpus):
    some, processor = list(load_from_disk(corpus)["train"].select(range(3))), loaded[1]
    torch.manual_seed(0)
    batch = ImageCollator(processor, distinct=100)([*some, some[0] | {"image": None, "fmri": [0.0]}])
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape == (6, 1, 16, 16)
    first, second = batch["pixel_values"].split(3)
    own = processor(images=[row["image"] for row in some])["pixel_values"]
    assert not torch.equal(first, second) and not torch.equal(first, own)
    assert first.min() >= 0 and first.max() <= 1
    many = ImageCollator(processor, distinct=300)(some)["pixel_values"]
    torch.testing.assert_close(many[:3], own)  # of many, each comes as it is and as one copy
    assert many.shape == (6, 1, 16, 16) and not torch.equal(many[3:], own)


def test_the_lines_of_the_docs_train_a_model_with_a_card(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(refit, "STEPS", 5)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(corpus, tmp_path / "corpus")
    text = (ROOT / "docs" / "training.md").read_text()
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ImageCollator" in block]
    exec(lines.replace("max_steps=1500", "max_steps=2, use_cpu=True, report_to=[]"), {})
    model, _ = load_model(tmp_path / "model_from_scratch")
    assert model.config.subjects == ["subj01", "subj02"]
    assert "VisionFlow" in (tmp_path / "model_from_scratch" / "README.md").read_text()


def test_the_example_trains_a_model_folder(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(refit, "STEPS", 20)
    monkeypatch.setattr(sys, "argv", ["train.py", str(corpus), str(tmp_path / "model"), "--max_steps", "2"])
    runpy.run_path(str(ROOT / "scripts" / "train.py"), run_name="__main__")
    model, processor = load_model(tmp_path / "model")
    row = load_from_disk(corpus)["test"][0]
    assert model.predict_fmri(**processor(images=row["image"], subject=row["subject"])).shape == (1, 30)
