"""`model.refit`: the fMRI side fitted anew to what gradient descent has made of the image side."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from scipy import optimize
from transformers import Trainer, TrainingArguments

from visionflow_hf import ImageCollator, VisionFlowCollator, VisionFlowTrainer
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowModel, refit
from visionflow_hf.modeling.refit import RefitCallback, rows_to_fit
from visionflow_hf.modeling.ridge import nnls

FITTED = ("fmri_to_latent.to_", "latent_to_fmri.voxel_maps", "linear_head", "linear_decoder")


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(refit, "STEPS", 20)


def parts_of(run, corpus):
    return *load_model(run), load_from_disk(corpus)["train"]


def copied(model):
    return {name: values.clone() for name, values in model.state_dict().items()}


def test_spoilt_maps_are_what_train_fitted_again(run, corpus):
    model, processor, rows = parts_of(run, corpus)
    before = copied(model)
    for name, values in model.state_dict().items():
        if name.startswith((*FITTED, "latent_to_fmri.noise_logvar")):
            values.copy_(torch.randn_like(values) * (values != 0))  # zeros say which inputs the maps read
    state = torch.get_rng_state()
    assert model.train().refit(rows, processor) is model
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())  # a Trainer would add its own to them
    after = model.state_dict()
    for subject in range(2):  # principal components may have another sign: the maps are compared behind them
        for part, shape in (("voxel_maps.{}.weight", 30), ("noise_logvar", None)):
            name = f"latent_to_fmri.{part.format(subject)}"
            assert after[name].isfinite().all() and (shape is None or len(after[name]) == shape)
        name = f"fmri_to_latent.to_learned.{subject}.weight"
        torch.testing.assert_close(after[name], before[name], atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(
        after["latent_to_fmri.noise_logvar"], before["latent_to_fmri.noise_logvar"], atol=1e-2, rtol=1e-2
    )
    kept = [name for name in before if name.startswith(("encoder.", "posterior_head", "image_decoder"))]
    assert kept and all(torch.equal(after[name], before[name]) for name in kept)
    fitted, _ = load_model(run)
    batch = processor(images=rows[:6]["image"], subject="subj01")
    torch.testing.assert_close(model.eval().predict_fmri(**batch), fitted.predict_fmri(**batch), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda rows: rows.remove_columns("stimulus_id"), "no column stimulus_id"),
        (lambda rows: rows.filter(lambda row: row["subject"] == "subj01"), "are of subj01: those of subj01, subj02"),
        (lambda rows: rows.map(lambda row: {"stimulus_id": "a"}), "subj01 has 1 distinct stimulus"),
    ],
)
def test_rows_that_do_not_fit_are_refused(run, corpus, change, told):
    model, processor, rows = parts_of(run, corpus)
    before = copied(model)
    with pytest.raises(ValueError, match=told):
        model.refit(change(rows), processor)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_half_precision_is_refused(run, corpus):
    model, processor, rows = parts_of(run, corpus)
    with pytest.raises(ValueError, match=r"model.float\(\)"):
        model.bfloat16().refit(rows, processor)


def test_the_trainer_evaluates_and_leaves_a_refitted_model(run, corpus, tmp_path, monkeypatch):
    model, processor, rows = parts_of(run, corpus)
    events = []
    forward = VisionFlowModel.forward

    def noted(self, given, its_processor, from_learned):
        assert given is rows and its_processor is processor
        events.append("refit")

    def stepped(self, *args, **kwargs):
        what = "step" if self.training else "evaluation"
        if events[-1:] != ["evaluation"] or what == "step":
            events.append(what)
        return forward(self, *args, **kwargs)

    model.fmri_to_latent.mlp_share.fill_(0.25)
    monkeypatch.setattr(VisionFlowModel, "refit", noted)
    monkeypatch.setattr(VisionFlowModel, "forward", stepped)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        remove_unused_columns=False,
        label_names=["fmri"],
        report_to="none",
        disable_tqdm=True,
    )
    collator, callbacks = VisionFlowCollator(processor), [model.refit_callback()]
    trainer = Trainer(model, arguments, collator, rows, rows.select(range(4)), processor, callbacks=callbacks)
    trainer.train()
    assert events == ["step", "step", "refit", "evaluation", "step", "refit", "evaluation"]  # also of the last step
    assert (model.fmri_to_latent.mlp_share == 0.25).all()  # gradient descent leaves it


def test_non_negative_least_squares_are_those_of_scipy():
    rng = np.random.default_rng(0)
    zeros = 0
    for trial in range(60):
        columns = rng.normal(size=(40, 1 + trial % 9)) + 3 * rng.normal(size=(40, 1))  # much alike, as models are
        targets = columns @ rng.normal(size=columns.shape[1]) + rng.normal(size=40)
        expected, _ = optimize.nnls(columns, targets)
        found = nnls(torch.from_numpy(columns.T @ columns), torch.from_numpy(columns.T @ targets))
        np.testing.assert_allclose(found, expected, atol=1e-7)
        zeros += int((expected == 0).sum())
    assert zeros > 50


def test_a_transform_of_the_rows_does_not_reach_the_fit(corpus, run):
    model, processor = load_model(run)
    rows = load_from_disk(corpus)["train"]
    rows.set_transform(lambda batch: {"image": [None] * len(batch["image"])})
    plain = rows_to_fit(model, rows, processor)
    assert set(plain.column_names) >= {"image", "fmri"} and plain[0]["image"] is not None


@pytest.mark.parametrize("rows", [[{"image": None}], None], ids=["a list", "one subject of two"])
def test_rows_that_cannot_be_refitted_are_refused_before_training(rows, corpus, run, tmp_path):
    model, processor = load_model(run)
    given = load_from_disk(corpus)["train"]
    rows = rows or given.filter(lambda name: name == "subj01", input_columns="subject")
    args = TrainingArguments(tmp_path, max_steps=1, remove_unused_columns=False, use_cpu=True, disable_tqdm=True)
    trainer = Trainer(
        model, args, VisionFlowCollator(processor), rows, processing_class=processor, callbacks=[RefitCallback()]
    )
    with pytest.raises(ValueError, match=r"are of subj01: those of subj01, subj02|the rows are a list"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("reads", [True, False])
def test_z_predicts_voxels_after_tuning_if_it_did_before(run, corpus, tmp_path, monkeypatch, reads):
    model, processor, rows = parts_of(run, corpus)
    told = []
    monkeypatch.setattr(refit, "fit_fmri_side", lambda *given, from_learned: told.append(from_learned))
    for one in model.latent_to_fmri.voxel_maps:
        one.weight.data[:, : model.config.latent_dim] = 0.1 * reads
    model.refit(rows, processor)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_strategy="no", remove_unused_columns=False, report_to="none", use_cpu=True
    )
    collator = VisionFlowCollator(processor)
    Trainer(model, arguments, collator, rows, None, processor, callbacks=[model.refit_callback()]).train()
    model.refit(rows, processor)  # gradient descent has changed all weights: they are no longer those of a fit
    images = ImageCollator(processor, 30)
    VisionFlowTrainer(model, arguments, images, rows, processing_class=processor).train()
    assert told == [reads, reads, False, True]  # from images alone z cannot learn the noise of responses


def test_a_second_training_is_refitted_too(monkeypatch):
    monkeypatch.setattr("visionflow_hf.modeling.refit.rows_to_fit", lambda *given: None)

    class Counting:
        refits = 0

        def refit(self, rows, processor, from_learned):
            self.refits += 1

        def state_dict(self):
            return {}

        def named_modules(self):
            return []

    model, callback = Counting(), RefitCallback(True)
    processor = SimpleNamespace(check_subjects=None)
    state = SimpleNamespace(global_step=5)
    given = {"model": model, "processing_class": processor, "train_dataloader": SimpleNamespace(dataset=None)}
    for _ in range(2):
        callback.on_train_begin(None, state, None, **given)
        callback.on_train_end(None, state, None, **given)
    assert model.refits == 2
