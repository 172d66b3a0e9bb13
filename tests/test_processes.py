"""Several processes share the Trainer's steps, and one of them finishes the model."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import distributed
from torch.multiprocessing import start_processes

from visionflow_hf.cli import main
from visionflow_hf.corpus.responses import pairs_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.errors import UserError
from visionflow_hf.hub import load_model
from visionflow_hf.modeling import VisionFlowModel
from visionflow_hf.modeling.refit import RowImages, fit_fmri_side
from visionflow_hf.modeling.shared_fit import Processes
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.processes import place_on_machine
from visionflow_hf.training.arguments import ModelArguments, VisionFlowTrainingArguments
from visionflow_hf.training.train import train

FLAGS = [
    "--max_steps",
    "10",
    "--logging_steps",
    "1",
    "--disable_tqdm",
    "true",
    "--use_cpu",
    "true",
    "--overwrite",
    "--linear_dim",
    "0",
]
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


def log(run) -> list[dict]:
    return json.loads((run / "trainer_state.json").read_text())["log_history"]


@pytest.mark.parametrize("validation", [pytest.param("0", marks=pytest.mark.nightly), "0.2"])
def test_two_processes_share_the_steps_and_leave_one_model(corpus, tmp_path, validation):
    flags = [*FLAGS, "--validation_fraction", validation]
    done = launch("train", corpus, tmp_path / "two", *flags, "--per_device_train_batch_size", "4")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count(f"wrote {tmp_path / 'two'}") == 1
    assert main(["train", str(corpus), str(tmp_path / "one"), *flags, "--per_device_train_batch_size", "8"]) == 0
    one, two = ([entry for entry in log(tmp_path / name) if "loss" in entry] for name in ("one", "two"))
    assert [entry["epoch"] for entry in two] == [entry["epoch"] for entry in one]  # the same rows a step
    assert two[-1]["loss_image"] == pytest.approx(one[-1]["loss_image"], rel=0.3)  # other noise
    test = open_corpus(corpus).splits["test"]
    for subject in ("subj01", "subj02"):
        rows = test.select(np.flatnonzero(np.array(test["subject"]) == subject))
        one, two = (voxel_r(*load_model(tmp_path / name), rows, subject) for name in ("one", "two"))
        assert two == pytest.approx(one, abs=0.1)


def voxel_r(model, processor, rows, subject) -> float:
    """The correlation of predicted and measured responses, the mean over voxels."""
    with torch.no_grad():
        predicted = model.predict_fmri(**processor(images=list(rows["image"]), subject=subject)).numpy()
    measured = np.array(rows["fmri"])
    return np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(predicted.T, measured.T, strict=True)])


def fitted(run, corpus) -> VisionFlowModel:
    """The model in `run`, fitted anew."""
    model, processor = load_model(run)
    pairs = pairs_of(open_corpus(corpus).splits["train"])
    fit_fmri_side(model, Trials(pairs, processor), RowImages(pairs, processor), 1, 0, shared=True)
    return model


def fit_a_share(rank: int, run, corpus, folder) -> None:
    """The same in one of two processes; it writes its maps, then those that it has taken over from the first one."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = fitted(run, corpus)
    torch.save(model.state_dict(), folder / f"{rank}.pt")
    Processes(shared=True).take_over(model.state_dict().values(), 0)
    torch.save(model.state_dict(), folder / f"{rank}.all.pt")


def test_processes_share_the_fits_of_subjects(run, corpus, tmp_path):
    start_processes(fit_a_share, (run, corpus, tmp_path), 2, start_method="spawn")
    alone, (first, second) = fitted(run, corpus).state_dict(), (torch.load(tmp_path / f"{n}.pt") for n in range(2))
    images = torch.rand(20, *load_model(run)[0].config.image_size)[:, None]
    predicted = []
    for weights in (alone, first, second):
        model, _ = load_model(run)
        model.load_state_dict(weights)
        with torch.no_grad():
            of_subjects = [model.predict_fmri(images, torch.full((20,), place)) for place in (0, 1)]
            fmri = of_subjects[0] + 0.5
            learned, linear = model.fmri_to_latent.voxels_to_latent(fmri, torch.zeros(20, dtype=torch.long))
            both = model.log_likelihood(fmri[:3], images, subject=model.config.subjects[0])
            decoded = model.linear_decoder(learned, linear)
        predicted.append([*of_subjects, learned, both / both.abs().max(), decoded])
    for name, weight in torch.load(tmp_path / "1.all.pt").items():
        assert torch.equal(weight, first[name])
    for one in predicted[1:]:
        for got, expected in zip(one, predicted[0], strict=True):
            torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.nightly
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
def test_weights_are_not_divided_among_processes(corpus, tmp_path, monkeypatch, name):
    model_args, args = ModelArguments(), VisionFlowTrainingArguments(output_dir=str(tmp_path / "run"))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match="launch with --multi_gpu"):
        train(corpus, tmp_path / "run", model_args, args)
    assert not (tmp_path / "run").exists()
