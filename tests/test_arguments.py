"""The flags of `train` and `crossvalidate`: which are taken, which are refused and why, and their defaults."""

import importlib.util
from dataclasses import asdict, fields

import pytest
import torch
import yaml
from transformers import TrainingArguments

from visionflow_hf.cli import main, parse, parser
from visionflow_hf.errors import UserError
from visionflow_hf.modeling import VisionFlowConfig
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training_flags import REFUSED, REFUSED_BY_CROSSVALIDATE, SHOWN, config_words, dataclasses_of, told

TRAIN = ["train", "corpus", "run"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(*flags) -> tuple[ModelArguments, VisionFlowTrainingArguments]:
    parsed = parse([*TRAIN, *map(str, flags)])
    return dataclasses_of(parsed)


@pytest.mark.parametrize("name", REFUSED)
def test_a_flag_without_effect_is_refused_with_the_reason(name, refused, tmp_path):
    refused(lambda: main([*TRAIN, f"--{name}", "true"]), f"^error: --{name} cannot be given: {REFUSED[name][:30]}")
    refused(lambda: main([*TRAIN, f"--{name.replace('_', '-')}=true"]), f"--{name} cannot be given")
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump({name: True}))
    refused(lambda: main([*TRAIN, "--config", "flags.yaml"]), f"--{name} cannot be given")


def test_every_field_is_a_flag_or_refused():
    names = {item.name for part in (ModelArguments, VisionFlowTrainingArguments) for item in fields(part)}
    assert set(REFUSED) <= names
    assert {name for members in SHOWN.values() for name in members} <= names - set(REFUSED)
    parsed = parse(TRAIN)
    assert names - set(REFUSED) <= set(parsed)
    assert {item.name for item in fields(TrainingArguments)} <= set(parsed) | set(REFUSED)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("learning_rate", value) for value in ("nan", "inf", "-0.1")),
        *(("num_train_epochs", "inf"), ("max_steps", "-2"), ("weight_decay", "nan"), ("save_steps", "-1")),
        *(("per_device_train_batch_size", "0"), ("gradient_accumulation_steps", "0"), ("seed", str(2**32))),
        *(("latent_dim", "0"), ("linear_dim", "-1"), ("kl_weight", "nan"), ("bridge_dropout", "1")),
        *(("voxel_dropout", "1.5"), ("validation_fraction", "1"), ("image_size", "-3"), ("adam_beta2", "1")),
        *(("latent_dim", "2001"), ("linear_dim", "2001")),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_touched(name, value, refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()
    refused(lambda: main([*TRAIN, f"--{name}={value}", "--overwrite"]), f"^error: --{name} is {value[:3]}.* expected")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr_scheduler_type", "cosine_with_min_lr"], "no optimizer or learning rate can be made of these flags"),
        (["--optim", "galore_adamw"], "no optimizer or learning rate can be made of these flags"),
        (["--metric_for_best_model", "foo"], "metric_for_best_model is foo"),
        (["--torch_compile_mode", "nope"], "torch_compile_mode is nope"),
    ],
)
def test_flags_of_the_trainer_that_fail_do_so_in_one_line(flags, message, colour_corpus, refused, tmp_path):
    refused(lambda: main(["train", str(colour_corpus), str(tmp_path / "run"), "--max_steps", "2", *flags]), message)
    assert not (tmp_path / "run").exists()


def test_flags_of_the_train_command_alone(corpus, refused, tmp_path):
    flags = ["--push_to_hub", "true"]
    refused(
        lambda: main(["crossvalidate", str(corpus), str(tmp_path / "out"), *flags]), "--push_to_hub cannot be given"
    )


def test_what_a_run_was_told_does_not_replace_another(tmp_path):
    both = dataclasses_of({"overwrite": True, "lr_scheduler_kwargs": {"num_cycles": 2}, "max_steps": 3})
    told_of = told(*both)
    assert "overwrite" not in told_of and told_of["lr_scheduler_kwargs"] == {"num_cycles": 2}
    file = tmp_path / "a.yaml"
    file.write_text("max-steps: 4")
    assert config_words(file) == ["--max_steps=4"]
    file.write_text("")
    assert config_words(file) == []


def test_a_logger_that_cannot_be_used_is_refused_before_training(corpus, refused, tmp_path):
    loggers = ("wandb", "comet_ml", "mlflow", "swanlab", "tensorboard")
    name = next(name for name in loggers if importlib.util.find_spec(name) is None)
    words = ["train", str(corpus), str(tmp_path / "run"), "--max_steps", "2"]
    refused(lambda: main([*words, "--report_to", name]), f"--report_to {name} cannot be used: .*install")
    refused(lambda: main([*words, "--report_to", "wandbb"]), "--report_to is wandbb: one of all, none, .*wandb")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "cuda, native, flags, expected",
    [
        (False, True, {}, (False, False)),  # a CPU, or MPS
        (True, True, {}, (True, False)),
        (True, False, {}, (False, True)),  # T4 and V100, which emulate bfloat16
        (True, True, {"use_cpu": True}, (False, False)),
        (True, True, {"bf16": False}, (False, False)),
        (True, True, {"fp16": True}, (False, True)),
        (True, False, {"fp16": False}, (False, False)),
        (True, False, {"bf16": True}, (True, False)),
        (False, False, {"bf16": True}, (True, False)),
    ],
)
def test_the_default_precision_is_one_that_the_device_computes_in(cuda, native, flags, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)  # which would look for the GPU
    args = VisionFlowTrainingArguments(**flags)
    assert (args.bf16, args.fp16) == expected


def test_what_is_not_given_is_the_default_of_the_config_and_help_says_so():
    helps = {item.name: item.metadata["help"] for item in fields(ModelArguments)}
    names = {"bridge_dropout", "voxel_dropout", "decoder_channels", "linear_dim"}
    names |= {"image_weight", "kl_weight", "alignment_weight", "fmri_weight"}
    for name in names:  # None leaves it to the config; tests/test_conventions.py compares that of a trained model
        assert getattr(ModelArguments(), name) is None
        assert helps[name].endswith(f"Default: {getattr(VisionFlowConfig(), name)}.")


def test_a_config_file_is_overridden_by_the_command_line(tmp_path):
    values = {"latent_dim": 24, "learning_rate": "1e-3", "bf16": None, "overwrite": True, "freeze_encoder": False}
    values |= {"max_steps": -1, "lr_scheduler_kwargs": {"num_cycles": 2}, "feature_layers": [3, -1]}
    (tmp_path / "flags.yaml").write_text(yaml.safe_dump(values, sort_keys=False))  # the list last, before CORPUS
    parsed = parse(["train", "--config", "flags.yaml", "corpus", "run", "--latent_dim", "12"])
    assert (parsed["corpus"], parsed["run"]) == ("corpus", "run")
    model_args, training_args = dataclasses_of(parsed)
    assert (model_args.latent_dim, model_args.freeze_encoder, model_args.feature_layers) == (12, False, [3, -1])
    assert (training_args.learning_rate, training_args.overwrite, training_args.max_steps) == (1e-3, True, -1)
    assert training_args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert asdict(model_args) == asdict(
        arguments("--latent_dim", 12, "--freeze_encoder=no", "--feature_layers", 3, -1)[0]
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("latent_dims: 24", "unknown flags latent_dims: see `visionflow train --help-all`"),
        ("- a list", "holds list"),
        ("a: [", "cannot be read"),
        ("max_steps: many", "argument --max_steps.*invalid int value: 'many'"),
        ("learning_rate: .nan", "--learning_rate is nan"),
        ("lr_scheduler_type: none such", "none such"),
    ],
)
def test_a_config_file_that_cannot_be_used_is_refused(text, message, tmp_path, refused):
    (tmp_path / "flags.yaml").write_text(text)
    refused(lambda: main([*TRAIN, "--config", "flags.yaml"]), message)
    refused(lambda: main([*TRAIN, "--config", "absent.yaml"]), "absent.yaml cannot be read")


def test_a_switch_needs_no_value():
    model_args, training_args = arguments("--freeze_encoder", "--bf16", "--use-cpu", "--no_load_best_model_at_end")
    assert (model_args.freeze_encoder, training_args.bf16) == (True, True)
    assert (training_args.use_cpu, training_args.load_best_model_at_end) == (True, False)


@pytest.mark.parametrize("command", ["train", "crossvalidate"])
def test_help_shows_what_matters_and_help_all_the_rest(command, capsys):
    texts = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main([command, flag])
        assert ended.value.code == 0
        texts[flag] = capsys.readouterr().out
    refused = REFUSED if command == "train" else REFUSED_BY_CROSSVALIDATE
    shown = [name for members in SHOWN.values() for name in members if name not in refused]
    assert ("Hugging Face Hub:" in texts["--help"]) == (command == "train")
    for name in shown:
        assert all(text.count(f"  --{name} ") == 1 for text in texts.values()), name
    for item in fields(VisionFlowTrainingArguments):
        assert (f"  --{item.name} " in texts["--help"]) == (item.name in shown), item.name
        assert (f"  --{item.name} " in texts["--help-all"]) == (item.name not in refused), item.name
    assert "(default: 0.002)" in texts["--help"] and "--max-steps" not in texts["--help"]


def test_the_defaults_are_those_of_the_dataclasses():
    model_args, training_args = arguments()
    assert model_args == ModelArguments()
    assert training_args.to_dict() == VisionFlowTrainingArguments().to_dict()


def test_the_python_interface_refuses_numbers_too():
    with pytest.raises(UserError, match="--learning_rate is nan"):
        VisionFlowTrainingArguments(learning_rate=float("nan"))
    with pytest.raises(UserError, match="--voxel_dropout is 1"):
        ModelArguments(voxel_dropout=1)


def test_the_tree_has_these_flags_only_for_the_command_asked_for():
    assert "--learning_rate" not in parser().format_help()
