"""Training: its stages and losses, one seed one result, resuming, the encoder, and what it refuses."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from datasets import DatasetDict, load_from_disk
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, ViTConfig, ViTImageProcessor, ViTModel

from visionflow_hf import VisionFlowModel, VisionFlowProcessor
from visionflow_hf.checkpoints import find_checkpoint
from visionflow_hf.cli import main, parse
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.folders import alone
from visionflow_hf.modeling.augmentation import augment
from visionflow_hf.modeling.sizes import bridge_width, small_vit
from visionflow_hf.training import train as train_module
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.build import build_model, build_processor
from visionflow_hf.training.trainer import ImageTrainer
from visionflow_hf.training_flags import dataclasses_of, told

SHORT = ["--max_steps", "20", "--warmup_steps", "1", "--disable_tqdm", "true", "--linear_dim", "0"]
VALIDATED = ["--validation_fraction", "0.1"]


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """What `train` below leaves without further flags."""
    path = tmp_path_factory.mktemp("run") / "model"
    assert train(corpus, path) == 0
    return path


def train(corpus, run, *flags) -> int:
    return main(["train", str(corpus), str(run), *SHORT, *VALIDATED, *map(str, flags)])


def weights(run):
    return load_file(run / "model.safetensors")


def assert_equal_weights(one, other, but=()):
    one, other = weights(one), weights(other)
    names = {name for name in one.keys() | other.keys() if not name.startswith(tuple(but))}
    assert names <= one.keys() & other.keys()
    assert {name for name in names if not torch.equal(one[name], other[name])} == set()


def log(run):
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


FITTED = ("linear_", "embedding_decoder.", "fmri_to_latent.", "latent_to_fmri.")  # when the Trainer has ended


def test_losses_are_logged_by_name(run):
    train_logs = {entry["step"]: entry for entry in log(run) if "loss" in entry}
    assert max(train_logs) == 20
    for entry in train_logs.values():
        assert {name for name in entry if name.startswith("loss_")} == {"loss_image", "loss_kl"}
    config = VisionFlowModel.from_pretrained(run).config
    last = train_logs[20]
    total = config.image_weight * last["loss_image"] + config.kl_weight * last["loss_kl"]
    assert last["loss"] == pytest.approx(total, rel=1e-3)
    assert sum("eval_loss" in entry for entry in log(run)) == 10


def test_the_best_checkpoint_is_kept(run):
    validations = {entry["step"]: entry["eval_loss"] for entry in log(run) if "eval_loss" in entry}
    best = run / f"checkpoint-{min(validations, key=validations.get)}"
    assert best.is_dir() and len(list(run.glob("checkpoint-*"))) <= 2
    assert_equal_weights(run, best, but=FITTED)


def test_one_seed_gives_one_result(corpus, run, tmp_path):
    assert train(corpus, tmp_path / "again") == 0
    assert_equal_weights(run, tmp_path / "again")
    assert train(corpus, tmp_path / "other", "--seed", 1, "--max_steps", 2) == 0
    assert not torch.equal(
        weights(run)["image_decoder.seed.weight"], weights(tmp_path / "other")["image_decoder.seed.weight"]
    )


@pytest.mark.parametrize(
    ("asked", "steps", "expected"),
    [(0.05, 1000, 50), (0.05, 60, 10), (0.05, 10, 3), (0.05, 1, 1), (0.5, 60, 30), (2, 60, 2), (0, 60, 0)],
)
def test_a_share_of_the_steps_warms_up_for_ten_or_nearly_a_third(tmp_path, asked, steps, expected):
    args = VisionFlowTrainingArguments(output_dir=str(tmp_path), warmup_steps=asked)
    assert args.get_warmup_steps(steps) == expected


@pytest.mark.parametrize("step", [6, 16])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(corpus, run, tmp_path, step, monkeypatch):
    interrupted = tmp_path / "run"
    assert train(corpus, interrupted, "--save_total_limit", 20) == 0
    for checkpoint in interrupted.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    (interrupted / "model.safetensors").unlink()
    kept = max(int(checkpoint.name.split("-")[1]) for checkpoint in interrupted.glob("checkpoint-*"))
    taken, step_of = [], ImageTrainer.training_step
    monkeypatch.setattr(ImageTrainer, "training_step", lambda *given: taken.append(1) or step_of(*given))
    assert train(corpus, interrupted, "--save_total_limit", 20, "--resume_from_checkpoint", "auto") == 0
    assert_equal_weights(run, interrupted)
    assert 0 < kept <= step and len(taken) == 20 - kept


@pytest.mark.parametrize("validated", [[], ["--validation_fraction", "0"]])
def test_a_run_that_is_resumed_at_its_end_takes_no_further_step(corpus, tmp_path, validated):
    ended = tmp_path / "run"
    flags = [*validated, "--lr_scheduler_type", "constant", "--per_device_train_batch_size", "7"]  # ends within a pass
    assert train(corpus, ended, *flags, "--max_steps", 4) == 0
    before, card = weights(ended), (ended / "README.md").read_text()
    for _ in range(2):
        (ended / "config.json").unlink()  # as if it had been killed before the model was written
        assert train(corpus, ended, *flags, "--max_steps", 4, "--resume_from_checkpoint", "auto") == 0
        assert all(torch.equal(values, before[name]) for name, values in weights(ended).items())
        assert (ended / "README.md").read_text() == card


def test_auto_begins_a_run_anew_that_was_killed_before_its_first_checkpoint(corpus, tmp_path, monkeypatch, refused):
    killed = tmp_path / "run"
    killed.mkdir()
    (killed / "arguments.yaml").write_text("max_steps: 2\n")
    (killed / "checkpoint-1").mkdir()

    def begun(splits, run, model_args, training_args, checkpoint, seen):
        assert checkpoint is None
        train_module.begin(run, model_args, training_args)
        assert {path.name for path in run.iterdir()} == {"arguments.yaml"}
        raise UserError("it has begun")

    monkeypatch.setattr(train_module, "train_on", begun)
    refused(lambda: train(corpus, killed), "exists and is not empty")
    refused(lambda: train(corpus, killed, "--resume_from_checkpoint", "auto"), "it has begun")
    (killed / "other").mkdir(parents=True)
    refused(lambda: train(corpus, killed, "--resume_from_checkpoint", "auto"), "exists and is not empty")


def test_nothing_is_validated_where_no_subject_can_spare_a_stimulus():
    trials = SimpleNamespace(stimuli=["a", "b"], subjects=["subj01"], stimulus_ids=lambda name: ["a", "b", "b"])
    args = SimpleNamespace(validation_fraction=0.5, seed=0)
    assert train_module.choose_held_out(trials, args) == (set(), False)


def test_a_folder_with_a_config_holds_a_whole_model(corpus, tmp_path, monkeypatch):
    """The card is the last file that is made; whatever fails before leaves no part of a model."""

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visionflow_hf.hub.make_card", full_disk)
    flags = ["--max_steps", 2, "--save_steps", 1]
    assert train(corpus, tmp_path / "run", *flags) == 2
    left = {path.name for path in (tmp_path / "run").iterdir()}
    begun = {"arguments.yaml", "train_images.txt", "trainer_state.json"}
    assert left == begun | {"checkpoint-1", "checkpoint-2"}  # to resume from
    monkeypatch.undo()
    assert train(corpus, tmp_path / "run", *flags, "--resume_from_checkpoint", "auto") == 0
    assert train(corpus, tmp_path / "run", *flags, "--overwrite") == 0
    assert f'name, revision = "{tmp_path / "run"}"' in (tmp_path / "run" / "README.md").read_text()


def test_validation_is_as_often_as_checkpoints(tmp_path):
    args = VisionFlowTrainingArguments(output_dir=str(tmp_path), save_steps=5)
    assert args.eval_steps == 5 and args.load_best_model_at_end


def test_resuming_from_nothing_begins_anew(corpus, run, tmp_path, refused):
    assert train(corpus, tmp_path / "run", "--resume_from_checkpoint", "auto") == 0
    assert_equal_weights(run, tmp_path / "run")
    nowhere = tmp_path / "checkpoint-7"
    refused(
        lambda: train(corpus, tmp_path / "x", "--resume_from_checkpoint", nowhere),
        "checkpoint-7 is no whole checkpoint",
    )


def test_a_config_file_whose_flags_the_command_line_overrides(corpus, tmp_path, refused):
    config = tmp_path / "flags.yaml"
    config.write_text(yaml.safe_dump({"latent_dim": 24, "learning_rate": 1e-3, "kl_weight": 0.5}))
    assert train(corpus, tmp_path / "run", "--config", config, "--kl_weight", 0.25) == 0
    told = yaml.safe_load((tmp_path / "run" / "arguments.yaml").read_text())
    assert (told["latent_dim"], told["learning_rate"], told["kl_weight"]) == (24, 1e-3, 0.25)
    model = VisionFlowModel.from_pretrained(tmp_path / "run")
    assert (model.config.latent_dim, model.config.kl_weight) == (24, 0.25)
    config.write_text("latent_dims: 24\n")
    refused(lambda: train(corpus, tmp_path / "x", "--config", config), "unknown flags latent_dims")
    config.write_text("- a list\n")
    refused(lambda: train(corpus, tmp_path / "x", "--config", config), "holds list")
    refused(lambda: train(corpus, tmp_path / "x", "--config", tmp_path / "absent.yaml"), "cannot be read")
    assert not (tmp_path / "x").exists()


def test_what_a_run_was_told_is_a_config_file_that_tells_the_same(tmp_path):
    flags = ["--lr_scheduler_type", "linear", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    flags += ["--learning_rate", "1e-3", "--latent_dim", "24", "--use_cpu", "true"]
    found = told(*dataclasses_of(parse(["train", "corpus", "run", *flags])))
    assert (found["lr_scheduler_type"], found["eval_strategy"], found["latent_dim"]) == ("linear", "epoch", 24)
    config = tmp_path / "arguments.yaml"
    config.write_text(yaml.safe_dump(found))
    assert told(*dataclasses_of(parse(["train", "corpus", "run", "--config", str(config)]))) == found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A pretrained ViT of 16 px with the normalisation of its own image processor."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(7)
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config).save_pretrained(folder)
    processor = ViTImageProcessor(size=[16, 16], image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    processor.save_pretrained(folder)
    return folder


def encoder_weights(folder_or_model):
    if isinstance(folder_or_model, VisionFlowModel):
        return folder_or_model.encoder.state_dict()
    return ViTModel.from_pretrained(folder_or_model).state_dict()


def test_a_pretrained_encoder_is_kept_bit_for_bit(corpus, encoder, tmp_path):
    assert train(corpus, tmp_path / "run", "--encoder", encoder) == 0
    model = VisionFlowModel.from_pretrained(tmp_path / "run")
    source = encoder_weights(encoder)
    assert source.keys() == encoder_weights(model).keys()
    assert all(torch.equal(values, encoder_weights(model)[name]) for name, values in source.items())
    assert model.config.image_mean == [0.4, 0.5, 0.6] and model.config.image_std == [0.2, 0.3, 0.4]
    assert f"| image encoder | {encoder.name} |" in (tmp_path / "run" / "README.md").read_text()
    assert not any(str(encoder) in file.read_text() for file in (tmp_path / "run").glob("*.json"))


def test_an_encoder_may_learn_with_checkpointed_gradients(corpus, encoder, tmp_path):
    flags = ["--freeze_encoder", "false", "--gradient_checkpointing", "true", "--gradient_accumulation_steps", 2]
    assert train(corpus, tmp_path / "run", "--encoder", encoder, *flags) == 0
    changed = [
        name
        for name, values in encoder_weights(encoder).items()
        if not torch.equal(values, encoder_weights(VisionFlowModel.from_pretrained(tmp_path / "run"))[name])
    ]
    assert any("layer" in name for name in changed)


def test_vit_b_16_ends_up_bit_for_bit_in_the_composite(tmp_path, colour_corpus):
    torch.manual_seed(0)
    source = ViTModel(ViTConfig())
    source.save_pretrained(tmp_path / "vit")
    rows = open_corpus(colour_corpus).splits["train"]
    processor = build_processor(rows, image_size=224)
    model = build_model(processor, ModelArguments(encoder=str(tmp_path / "vit")), rows)
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) > 85e6
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    expected, found = source.state_dict(), model.encoder.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    assert processor.image_size == [168, 224]  # the longer side; 18 x 24 px in the corpus
    with torch.no_grad():
        out = model.eval()(**processor(images=np.zeros((18, 24, 3), np.uint8), fmri=np.ones(12), subject="ann"))
    assert out.reconstruction.shape == (1, 3, 168, 224)


def test_encoders_that_cannot_be_used(corpus, tmp_path, refused):
    missing = tmp_path / "nothing"
    refused(lambda: train(corpus, tmp_path / "run", "--encoder", missing), "no encoder .*nothing.* --encoder scratch")
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, pad_token_id=0
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    refused(lambda: train(corpus, tmp_path / "run", "--encoder", tmp_path / "bert"), "a vision model .* is needed")
    assert not (tmp_path / "run").exists()


def test_without_network_the_default_encoder_is_named_in_the_error(tmp_path, refused):
    corpus = tmp_path / "corpus"
    flags = ["--stimuli", "6", "--voxels", "4", "--subjects", "1", "--image-size", "64"]
    assert main(["simulate", str(corpus), *flags]) == 0
    refused(
        lambda: train(corpus, tmp_path / "run"), "no encoder google/vit-base-patch16-224-in21k .* --encoder scratch"
    )


def test_colour_subjects_of_different_sizes_and_a_constant_voxel(colour_corpus, tmp_path, caplog):
    assert train(colour_corpus, tmp_path / "run") == 0
    assert "ann: 1 of 12 voxels are constant" in caplog.text
    processor = VisionFlowProcessor.from_pretrained(tmp_path / "run")
    model = VisionFlowModel.from_pretrained(tmp_path / "run")
    assert processor.subjects == ["ann", "bob"] and model.config.num_voxels == [12, 7]
    assert processor(fmri=np.full(7, 4.0), subject="bob")["fmri"][0, 0] == 0
    image = np.zeros((18, 24, 3), np.uint8)
    predicted = model.predict_fmri(**processor(images=image, subject="bob"))
    assert predicted.shape == (1, 7) and predicted[0, 0] == pytest.approx(4, abs=1e-4)
    assert model.reconstruct_image(**processor(fmri=np.ones(12), subject="ann")).shape == (1, 3, 18, 24)


def test_the_corpus_s_own_validation_split_is_used(colour_corpus, tmp_path):
    splits = load_from_disk(str(colour_corpus))
    held_out = np.isin(splits["train"]["stimulus_id"], ["s14", "s15"])
    DatasetDict(
        train=splits["train"].select(np.flatnonzero(~held_out)),
        validation=splits["train"].select(np.flatnonzero(held_out)),
        test=splits["test"],
    ).save_to_disk(str(tmp_path / "corpus"))
    shutil.copy(colour_corpus / "voxels.parquet", tmp_path / "corpus")
    assert train(tmp_path / "corpus", tmp_path / "run", "--report_to", "none") == 0
    assert sum("eval_loss" in entry for entry in log(tmp_path / "run")) == 10


def test_few_stimuli_are_all_trained_on_and_the_last_step_is_kept(corpus, tmp_path):
    assert main(["train", str(corpus), str(tmp_path / "run"), *SHORT]) == 0
    assert not any("eval_loss" in entry for entry in log(tmp_path / "run"))


def test_bf16_trains(corpus, tmp_path):
    assert train(corpus, tmp_path / "run", "--bf16", "true", "--use_cpu", "true", "--max_steps", 6) == 0
    assert all(np.isfinite(entry["loss"]) for entry in log(tmp_path / "run") if "loss" in entry)


@pytest.mark.parametrize("flags", [["--from_model", "RUN"], []])
def test_a_run_that_fails_leaves_the_model_that_it_was_to_replace(corpus, run, tmp_path, monkeypatch, flags):
    copy = shutil.copytree(run, tmp_path / "run")
    before = weights(copy)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "fit_fmri_side", fail)
    flags = [str(copy) if flag == "RUN" else flag for flag in flags]
    unsaved = ["--save_strategy", "no", "--load_best_model_at_end", "false"]
    assert train(corpus, copy, "--overwrite", "true", *unsaved, *flags) == 130
    assert all(torch.equal(values, before[name]) for name, values in weights(copy).items())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_where_the_earlier_model_has_checkpoints_nothing_is_left_beside_it_either(corpus, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    assert train(corpus, tmp_path / "run") == 0
    assert find_checkpoint([tmp_path / "run"], "auto")
    monkeypatch.setattr(train_module, "fit_fmri_side", stop)
    again = ["--overwrite", "true", "--resume_from_checkpoint", "auto", "--save_strategy", "no"]
    assert train(corpus, tmp_path / "run", *again, "--load_best_model_at_end", "false") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_auto_takes_no_checkpoint_of_a_run_on_other_images_or_with_another_seed(corpus, tmp_path, refused):
    out, auto = tmp_path / "run", ["--resume_from_checkpoint", "auto"]
    assert train(corpus, out) == 0
    refused(lambda: train(corpus, out, *auto, "--seed", 1), "exists and is not empty: pass --overwrite")
    flags = ["--stimuli", "20", "--voxels", "30", "--image-size", "16", "--seed", "5"]
    assert main(["simulate", str(tmp_path / "other"), *flags]) == 0
    refused(lambda: train(tmp_path / "other", out, *auto), "exists and is not empty: pass --overwrite")
    assert train(corpus, out, *auto) == 0  # the same run again


def test_a_loss_that_is_not_finite_ends_the_run_at_the_last_good_checkpoint(corpus, tmp_path, monkeypatch, refused):
    forward, seen = VisionFlowModel.forward, []

    def spoiled(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if self.training:
            seen.append(outputs.loss_image.detach())
            if len(seen) == 6:
                outputs.loss = outputs.loss * float("nan")
        return outputs

    monkeypatch.setattr(VisionFlowModel, "forward", spoiled)
    out, flags = tmp_path / "run", ["--save_steps", "4"]
    names = r"with 8 stimuli \(.+, .+\): earlier checkpoints are kept"
    flags += ["--per_device_train_batch_size", "8", "--load_best_model_at_end", "false"]
    refused(lambda: train(corpus, out, *flags), rf"the loss is nan in step 6 \(loss_image 0.*, loss_kl .*\), {names}")
    assert not (out / "config.json").exists()
    assert find_checkpoint([out], "auto") == str(out / "checkpoint-4")


def test_a_gradient_that_is_not_finite_ends_the_run_before_its_step(corpus, tmp_path, monkeypatch, refused):
    forward, seen = VisionFlowModel.forward, []

    def spoiled(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if self.training:
            seen.append(None)
            if len(seen) == 4:
                outputs.loss = outputs.loss + (0 * outputs.loss).sqrt()  # 0, with a slope of infinity
        return outputs

    monkeypatch.setattr(VisionFlowModel, "forward", spoiled)
    flags = ["--save_steps", "3", "--load_best_model_at_end", "false"]
    told = r"a gradient is not finite in step 4 \(loss 0\..*\), with .*: earlier checkpoints are kept"
    refused(lambda: train(corpus, tmp_path / "run", *flags), told)
    saved = find_checkpoint([tmp_path / "run"], "auto")
    assert saved == str(tmp_path / "run" / "checkpoint-3")
    assert all(values.isfinite().all() for values in load_file(f"{saved}/model.safetensors").values())


def test_a_run_that_another_command_writes_is_left_alone(corpus, tmp_path, refused):
    with alone(tmp_path / "run"):
        refused(lambda: train(corpus, tmp_path / "run"), "another command is writing .*run: wait until it ends")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_replaced_only_on_request(corpus, run, tmp_path, refused):
    copy = shutil.copytree(run, tmp_path / "run")
    refused(lambda: train(corpus, copy), "exists and is not empty: pass --overwrite")
    assert train(corpus, copy, "--overwrite", "true", "--seed", 3) == 0
    assert yaml.safe_load((copy / "arguments.yaml").read_text())["seed"] == 3
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    refused(lambda: train(corpus, tmp_path / "home", "--overwrite", "true"), "delete it yourself")
    assert (tmp_path / "home" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rat", "1"], "unrecognized arguments: --learning_rat"),
        (["--latent_dim", "many"], "invalid int value: 'many'"),
        (["--lr_scheduler_type", "zigzag"], "zigzag"),
    ],
)
def test_flags_that_do_not_exist(corpus, tmp_path, refused, flags, message):
    refused(lambda: train(corpus, tmp_path / "run", *flags), message)
    assert not (tmp_path / "run").exists()


def test_a_missing_corpus(tmp_path, refused):
    refused(lambda: train(tmp_path / "absent", tmp_path / "run"), "absent is no corpus")
    assert not (tmp_path / "run").exists()


def test_sizes_follow_the_corpus():
    assert bridge_width([400, 400]) == 1024 and bridge_width([200_000] * 2) == 128
    for size in ([8, 8], [28, 28], [32, 32], [50, 63]):
        config = small_vit(size, 1)
        assert config.image_size[0] % config.patch_size == 0 and config.image_size[0] >= max(size)
        assert 7 <= config.image_size[0] // config.patch_size <= 9


def test_images_are_composed_of_two_only_where_stimuli_are_few():
    plain = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 1, 12, 12)  # each of one grey: moving leaves it
    torch.testing.assert_close(augment(plain, distinct=50), plain)
    torch.manual_seed(0)
    composed = augment(plain, distinct=49)
    torch.testing.assert_close(composed[:4], plain[:4])
    assert (composed[4:] - plain[4:]).abs().amax((1, 2, 3)).gt(0.01).sum() >= 2
    assert composed.min() >= 0.1 - 1e-6 and composed.max() <= 0.9 + 1e-6


@pytest.mark.parametrize(
    ("file", "size", "message"),
    [
        ("trainer_state.json", None, "trainer_state.json"),
        ("trainer_state.json", 100, "trainer_state.json"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors", 1000, "model.safetensors"),
        ("optimizer.pt", 1000, "optimizer.pt is cut short"),
        ("rng_state.pth", 1000, "rng_state.pth is cut short"),
        ("scheduler.pt", None, r"no scheduler.pt"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(run, tmp_path, caplog, file, size, message):
    """The fixture's run has the last two checkpoints."""
    before, last = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))[-2:]
    for checkpoint in (before, last):
        shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    assert find_checkpoint([tmp_path], "auto") == str(tmp_path / last.name)
    broken = tmp_path / last.name / file
    broken.unlink() if size is None else os.truncate(broken, size)
    assert find_checkpoint([tmp_path], "auto") == str(tmp_path / before.name)
    assert f"{last.name} is passed over, since it is not whole: {message}" in caplog.text
    with pytest.raises(UserError, match=f"{last.name} is no whole checkpoint .{message}"):
        find_checkpoint([], str(tmp_path / last.name))
    shutil.rmtree(tmp_path / before.name)
    assert find_checkpoint([tmp_path], "auto") is None
