"""On a GPU: `bash benchmarks/gpu.sh`, or `pytest -m gpu`. Left out of other runs; fails where there is no GPU."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from datasets import load_from_disk
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from visionflow_hf.cli import main
from visionflow_hf.training.arguments import VisionFlowTrainingArguments

pytestmark = pytest.mark.gpu
FLAGS = ["--max_steps", "5", "--logging_steps", "1", "--disable_tqdm", "true"]


@pytest.fixture(scope="module", autouse=True)
def cuda():
    assert torch.cuda.is_available(), "these tests need a GPU"


@pytest.fixture(scope="module")
def rows(corpus):
    return load_from_disk(str(corpus))["test"]


@pytest.fixture(scope="module")
def loaded(run):
    return AutoModel.from_pretrained(run, trust_remote_code=True), AutoProcessor.from_pretrained(
        run, trust_remote_code=True
    )


def figures(report) -> list[float]:
    found = json.loads((report / "metrics.json").read_text())
    return [found["decoding"]["model"]["mse"], found["encoding"]["model"]["voxel_r_mean"]]


def test_evaluate_gives_the_figures_of_the_cpu(run, corpus, tmp_path):
    for device in ("cuda", "cpu"):
        assert main(["evaluate", str(run), str(corpus), str(tmp_path / device), "--device", device]) == 0
    assert figures(tmp_path / "cuda") == pytest.approx(figures(tmp_path / "cpu"), rel=2e-2)


def test_encode_and_decode_give_the_results_of_the_cpu(run, rows, tmp_path):
    rows[0]["image"].save(tmp_path / "image.png")
    np.save(tmp_path / "fmri.npy", np.array([rows[0]["fmri"]], dtype=np.float32))
    subject, made, fmri = rows[0]["subject"], [], []
    for device in ("cuda", "cpu"):
        end = ["--subject", subject, "--device", device, "--output"]
        output = tmp_path / device
        assert main(["encode", str(run), str(tmp_path / "image.png"), *end, f"{output}.npz"]) == 0
        assert main(["decode", str(run), str(tmp_path / "fmri.npy"), *end, str(output)]) == 0
        fmri.append(np.load(f"{output}.npz")["fmri"])
        made.append(np.asarray(Image.open(output / "0000.png"), dtype=np.float32))
    np.testing.assert_allclose(*fmri, atol=2e-2 * np.abs(fmri[1]).max())
    np.testing.assert_allclose(*made, atol=8)  # of 255


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_round_trip_in_each_dtype(loaded, rows, dtype):
    model, processor = loaded
    batch = processor(images=rows[:4]["image"], subject=rows[0]["subject"])
    expected = model.to("cpu", torch.float32).predict_fmri(**batch)
    model.to("cuda", dtype)
    found = model.predict_fmri(**batch.to("cuda"))
    spread = expected.std()
    assert (found.float().cpu() - expected).abs().max() < (0.02 if dtype == torch.float32 else 0.3) * spread
    back = model.reconstruct_image(**processor(fmri=found, subject=rows[0]["subject"]).to("cuda"))
    assert torch.isfinite(back).all() and len(processor.post_process_images(back)) == 4
    model.to("cpu", torch.float32)


def test_pipelines(run, rows):
    encode = pipeline("image-to-fmri", model=str(run), trust_remote_code=True, device="cuda")
    decode = pipeline("fmri-to-image", model=str(run), trust_remote_code=True, device="cuda")
    responses = encode(rows[:3]["image"], subject=rows[0]["subject"])
    assert len(responses) == 3
    assert len(decode([np.asarray(one) for one in rows[:3]["fmri"]], subject=rows[0]["subject"])) == 3


@pytest.mark.parametrize("flags", [[], ["--bf16", "true"], ["--fp16", "true"], ["--torch_compile", "true"]])
def test_train(corpus, tmp_path, flags):
    assert main(["train", str(corpus), str(tmp_path / "run"), *FLAGS, *flags]) == 0
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 5 and np.isfinite(losses).all()
    assert main(["evaluate", str(tmp_path / "run"), str(corpus), str(tmp_path / "report")]) == 0


def test_without_bfloat16_training_is_in_float16(corpus, tmp_path, monkeypatch):
    """T4 and V100 emulate it, many times slower."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 0))
    args = VisionFlowTrainingArguments(str(tmp_path))
    assert (args.fp16, args.bf16) == (True, False)
    assert main(["train", str(corpus), str(tmp_path / "run"), *FLAGS]) == 0


def test_two_processes_on_one_gpu(corpus, tmp_path):
    """Both have the local rank 0: `accelerate launch` and torchrun give each process a GPU of its own."""
    words = ["train", str(corpus), str(tmp_path / "run"), *FLAGS, "--ddp_backend", "gloo"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "visionflow_hf.cli", *words],
            cwd=ROOT,
            env=os.environ | place | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [one.communicate(timeout=150)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    assert [one.returncode for one in started] == [0, 0], "\n".join(text[-2000:] for text in said)
    assert main(["evaluate", str(tmp_path / "run"), str(corpus), str(tmp_path / "report")]) == 0
