"""Runs that are resumed, flags that contradict each other, and failures of memory and paths, each in one line."""

import errno
import json

import pytest
import torch
import yaml
from datasets import DatasetDict

from visionflow_hf import cli
from visionflow_hf.cli import main
from visionflow_hf.corpus.schema import read_corpus, read_splits, save_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.training import train as train_module
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.train import complete
from visionflow_hf.training.trainer import ImageBatches
from visionflow_hf.training_flags import config_words, told

FLAGS = ["--max_steps", "4", "--save_steps", "2", "--linear_dim", "0", "--disable_tqdm", "true"]
AUTO = ["--resume_from_checkpoint", "auto"]


def train(corpus, out, *flags) -> int:
    return main([str(word) for word in ("train", corpus, out, *FLAGS, *flags)])


@pytest.fixture
def interrupted(corpus, tmp_path, monkeypatch):
    """The folder of a run that was interrupted after its image stages."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "save_model", stop)
        assert train(corpus, tmp_path / "run") == 130
    assert (tmp_path / "run" / "checkpoint-4").is_dir()
    return tmp_path / "run"


def test_an_interrupted_run_goes_on_with_its_own_images_and_flags_alone(corpus, interrupted, tmp_path, refused):
    for flags, what in ((("--seed", 7), "seed"), (("--latent_dim", 5), "latent_dim"), (("--optim", "sgd"), "optim")):
        refused(lambda flags=flags: train(corpus, interrupted, *AUTO, *flags), f"unfinished run with another --{what}")
    simulated = ["--stimuli", "20", "--voxels", "30", "--image-size", "16", "--seed", "5"]
    assert main(["simulate", str(tmp_path / "other"), *simulated]) == 0
    refused(lambda: train(tmp_path / "other", interrupted, *AUTO), "unfinished run with other train images")
    assert (interrupted / "checkpoint-4").is_dir()
    assert train(corpus, interrupted, *AUTO, "--max_steps", 6) == 0  # as many steps as one likes


def test_a_finished_run_is_not_replaced_by_another_one_without_overwrite(corpus, interrupted, tmp_path, refused):
    assert train(corpus, interrupted, *AUTO) == 0
    config = (interrupted / "config.json").read_text()
    refused(lambda: train(corpus, interrupted, *AUTO, "--kl_weight", 5), "exists and is not empty: pass --overwrite")
    checkpoint = interrupted / "checkpoint-4"
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("mine")
    refused(lambda: train(corpus, home, "--resume_from_checkpoint", checkpoint), "exists and is not empty")
    assert [file.name for file in home.iterdir()] == ["thesis.txt"]
    assert train(corpus, tmp_path / "new", "--resume_from_checkpoint", checkpoint) == 0
    assert (interrupted / "config.json").read_text() == config


def test_a_damaged_record_of_a_run(corpus, interrupted, refused):
    (interrupted / "arguments.yaml").write_text("a: [")
    refused(lambda: train(corpus, interrupted, *AUTO), "unfinished run with a damaged arguments.yaml")
    assert train(corpus, interrupted, *AUTO, "--overwrite") == 0


def test_a_run_that_was_killed_as_it_began(corpus, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "arguments.yaml").write_text("")
    assert train(corpus, tmp_path / "run", *AUTO) == 0


def test_folds_on_what_a_model_has_seen_say_so(run, corpus, tmp_path, caplog):
    words = ["crossvalidate", corpus, tmp_path / "out", "--from_model", run, "--freeze_shared", "--folds", 2]
    assert main([*map(str, words), "--num-proc", "1", "--disable_tqdm", "true"]) == 0
    leakage = json.loads((tmp_path / "out" / "metrics.json").read_text())["leakage"]
    assert "of the folds among the images that the model was trained on" in leakage and leakage in caplog.text


def arguments(tmp_path, **flags) -> VisionFlowTrainingArguments:
    return VisionFlowTrainingArguments(output_dir=str(tmp_path), **flags)


@pytest.mark.parametrize("name", ["loss", "loss_image", "eval_loss_kl"])
def test_the_best_checkpoint_has_the_least_loss(tmp_path, name):
    assert arguments(tmp_path, metric_for_best_model=name).greater_is_better is False


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"save_strategy": "best", "eval_strategy": "no"}, "--save_strategy best needs validation"),
        ({"save_strategy": "best", "load_best_model_at_end": False}, "--save_strategy best needs validation"),
        ({"dataloader_persistent_workers": True}, "--dataloader_persistent_workers is for workers"),
        ({"fp16": True, "use_cpu": True}, "--fp16 true needs a GPU"),
    ],
)
def test_flags_that_contradict_each_other(tmp_path, flags, line):
    with pytest.raises(UserError, match=line):
        arguments(tmp_path, **flags)


@pytest.mark.parametrize("flags", [{"lr_scheduler_type": "reduce_lr_on_plateau"}, {"save_strategy": "best"}])
def test_what_follows_the_validation_loss_needs_one(tmp_path, flags):
    complete(arguments(tmp_path, **flags), tmp_path, 100, validated=True)
    with pytest.raises(UserError, match=r"validation loss, and no stimuli are held out: give --validation_fraction"):
        complete(arguments(tmp_path, **flags), tmp_path, 100, validated=False)


@pytest.mark.parametrize(
    ("flags", "stimuli", "steps"),
    [
        ({}, 100, 750),
        ({}, 32 * 80, 800),
        ({}, 10**6, 30_000),
        ({"per_device_train_batch_size": 8}, 800, 1000),
        ({"gradient_accumulation_steps": 2}, 32 * 200, 1000),
        ({"num_train_epochs": 3}, 100, 12),
        ({"max_steps": 7}, 10**6, 7),
    ],
)
def test_the_number_of_steps_follows_the_stimuli(tmp_path, flags, stimuli, steps):
    assert complete(arguments(tmp_path, **flags), tmp_path, stimuli, validated=True).max_steps == steps


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_bfloat16_alone_computes_on_the_cpu(tmp_path):
    assert arguments(tmp_path, bf16=True).use_cpu


def test_what_is_told_of_a_run_is_plain_yaml(tmp_path):
    yaml.safe_dump(told(ModelArguments(), arguments(tmp_path, debug="underflow_overflow")))


def test_no_in_a_yaml_file(tmp_path):
    (tmp_path / "flags.yaml").write_text("save_strategy: no\neval_strategy: off\n")
    assert config_words(tmp_path / "flags.yaml") == ["--save_strategy=no", "--eval_strategy=no"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory is full: CUDA out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory is full: DefaultCPUAllocator"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: Permission denied"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "y"), "y: File name too long"),
        (OSError(errno.ENOSPC, "No space left on device", "z"), "z: No space left on device"),
    ],
)
def test_memory_disk_and_paths_in_one_line(monkeypatch, capsys, error, line):
    def fails(**_):
        raise error

    monkeypatch.setattr(cli, "parse", lambda argv: {"run_command": fails})
    assert main(["inspect"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


def test_other_errors_of_torch_are_no_full_memory(monkeypatch):
    def fails(**_):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(cli, "parse", lambda argv: {"run_command": fails})
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["inspect"])


def test_images_without_fmri_follow_from_the_rows_of_a_batch():
    class Names:
        def pixel_values(self, names):
            return torch.zeros(len(names))

        def image_features(self, names, with_linear):
            return None

    batches = ImageBatches(Names(), list("abcdefgh"), [f"u{number}" for number in range(50)])
    first = batches.__getitems__([0, 3, 1, 2])["stimulus_ids"]
    torch.manual_seed(5)
    assert (
        batches.__getitems__([0, 3, 1, 2])["stimulus_ids"]
        == first
        != batches.__getitems__([1, 3, 0, 2])["stimulus_ids"]
    )


def test_a_checkpoint_of_other_images_or_voxels(corpus, interrupted, tmp_path, refused):
    checkpoint = interrupted / "checkpoint-4"
    simulated = ["--stimuli", "20", "--voxels", "30", "--image-size", "16", "--seed", "5"]
    assert main(["simulate", str(tmp_path / "other"), *simulated]) == 0
    words = ["--resume_from_checkpoint", checkpoint]
    refused(
        lambda: train(tmp_path / "other", tmp_path / "new", *words), "trained on other images than the train images"
    )

    splits = read_splits(corpus)
    fewer = {name: split.map(lambda row: {"fmri": row["fmri"][:-1]}) for name, split in splits.items()}
    voxels = read_corpus(corpus).voxels
    fewer_voxels = voxels[voxels["voxel"] < voxels.groupby("subject")["voxel"].transform("max")]
    (tmp_path / "fewer").mkdir()
    save_corpus(tmp_path / "fewer", DatasetDict(fewer), fewer_voxels, unit="z")
    kept = [file.read_bytes() for file in sorted(checkpoint.glob("*.safetensors"))]
    refused(lambda: train(tmp_path / "fewer", interrupted, *AUTO), "of shape .* and this model of shape .*: the voxels")
    assert [file.read_bytes() for file in sorted(checkpoint.glob("*.safetensors"))] == kept


def test_files_of_others_in_an_unfinished_run_stay(corpus, tmp_path):
    (tmp_path / "run" / "notes").mkdir(parents=True)
    (tmp_path / "run" / "notes" / "thesis.txt").write_text("mine")
    (tmp_path / "run" / "arguments.yaml").touch()  # killed as it began
    assert train(corpus, tmp_path / "run", *AUTO, "--no_such_flag") == 2
    assert train(corpus, tmp_path / "run", *AUTO, "--encoder", tmp_path / "none") == 2
    (tmp_path / "run" / "checkpoint-4.txt").touch()
    assert train(corpus, tmp_path / "run", *AUTO) == 0
    assert (tmp_path / "run" / "checkpoint-4.txt").is_file()
    assert (tmp_path / "run" / "notes" / "thesis.txt").read_text() == "mine"


def test_what_failed_before_it_began_leaves_the_folder_and_a_path_from_elsewhere_begins_it(
    corpus, interrupted, tmp_path
):
    run, words = tmp_path / "other", ["--overwrite", "--resume_from_checkpoint", interrupted / "checkpoint-4"]
    run.mkdir()
    for name in ("arguments.yaml", "notes.txt"):
        (run / name).write_text("kl_weight: 5.0")
    assert train(corpus, run, *words, "--encoder", tmp_path / "none") == 2
    assert sorted(file.name for file in run.iterdir()) == ["arguments.yaml", "notes.txt"]
    assert train(corpus, run, *words) == 0
    assert not (run / "notes.txt").exists() and "kl_weight: 5.0" not in (run / "arguments.yaml").read_text()


def test_files_of_others_in_a_finished_run_stay(corpus, interrupted):
    assert train(corpus, interrupted, *AUTO) == 0
    (interrupted / "notes").mkdir()
    (interrupted / "notes" / "thesis.txt").write_text("mine")
    weights = (interrupted / "model.safetensors").read_bytes()
    assert train(corpus, interrupted, *AUTO) == 0
    assert (interrupted / "notes" / "thesis.txt").read_text() == "mine"
    assert (interrupted / "model.safetensors").read_bytes() == weights
    assert train(corpus, interrupted, "--overwrite") == 0
    assert not (interrupted / "notes").exists()
