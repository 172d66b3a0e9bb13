"""Several processes train as one does: the same losses at the same global batch, the same figures at the end."""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from visionflow_hf.cli import main
from visionflow_hf.errors import UserError
from visionflow_hf.processes import place_on_machine
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.train import train

FLAGS = ["--max_steps", "10", "--logging_steps", "1", "--disable_tqdm", "true", "--use_cpu", "true", "--overwrite"]
LAUNCH = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]


def launch(*words, env: dict = os.environ) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, "--dynamo_backend", "no"]
    return subprocess.run(
        [*command, "--main_process_port", "0", "-m", "visionflow_hf.cli", *map(str, words)],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def losses(run) -> list[dict]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if "loss" in name} for entry in history]


def flat(block, path: str = "") -> dict:
    """The numbers of nested dicts and lists, by their path; what has none, as it is."""
    parts = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else None
    if parts is None:
        return {path: block}
    found = {}
    for name, value in parts:
        found |= flat(value, f"{path}.{name}")
    return found


@pytest.mark.parametrize("validation", ["0", "0.2"])
def test_two_processes_train_as_one(corpus, tmp_path, validation):
    one, two = tmp_path / "one", tmp_path / "two"
    flags = [*FLAGS, "--validation_fraction", validation]
    assert main(["train", str(corpus), str(one), *flags, "--per_device_train_batch_size", "8"]) == 0
    done = launch("train", corpus, two, *flags, "--per_device_train_batch_size", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(f"wrote {two}") == 1
    expected, found = losses(one), losses(two)
    assert len(found) == len(expected) >= 10
    for entry, other in zip(expected, found, strict=True):
        assert other == pytest.approx(entry, rel=1e-4)
    figures = []
    for run in (one, two):
        assert main(["evaluate", str(run), str(corpus), str(tmp_path / f"report-{run.name}")]) == 0
        figures.append(flat(json.loads((tmp_path / f"report-{run.name}" / "metrics.json").read_text())))
    assert figures[0].keys() == figures[1].keys()
    for path, value in figures[0].items():
        if isinstance(value, float):  # with four stimuli, intervals and the medians of a region jump
            main_block = path.startswith((".decoding", ".encoding", ".latent"))
            value = pytest.approx(value, rel=1e-4, abs=1e-4 if main_block else 1e-3)
        assert figures[1][path] == value, path


def test_an_error_is_one_line_of_each_process(tmp_path):
    done = launch("train", tmp_path / "nothing", tmp_path / "run", *FLAGS)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors and all("nothing" in line for line in errors) and not (tmp_path / "run").exists()


def test_a_launcher_that_ends_its_processes_lets_them_clean_up(tmp_path, monkeypatch, capsys):
    def train(**flags):
        (tmp_path / "shared").touch()
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            (tmp_path / "shared").unlink()

    monkeypatch.setattr("visionflow_hf.cli.train", train)
    assert main(["train", "corpus", "run"]) == 143
    assert capsys.readouterr().err == "error: terminated\n" and not (tmp_path / "shared").exists()


@pytest.mark.parametrize(
    ("told", "place"),
    [({}, (0, 1)), ({"LOCAL_RANK": "1"}, (0, 1)), ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (1, 2))],
)
def test_a_process_shares_a_machine_where_its_launcher_counts_them(told, place, monkeypatch):
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert place_on_machine() == place


def test_other_commands_do_not_run_twice(corpus, tmp_path, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(lambda: main(["inspect", str(corpus)]), "only `train` shares its work")


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_weights_are_not_cut_up(corpus, tmp_path, monkeypatch, name):
    model_args, args = ModelArguments(), VisionFlowTrainingArguments(output_dir=str(tmp_path / "run"))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match="launch with --multi_gpu"):
        train(corpus, tmp_path / "run", model_args, args)
    assert not (tmp_path / "run").exists()
