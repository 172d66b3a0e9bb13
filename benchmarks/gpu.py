"""VisionFlow on a GPU: what works there, and how fast it is.

    python benchmarks/gpu.py WORK [--seconds 420] [--small]

Each part is a process of its own and may fail: its error is printed, and the script goes on. Prints a table and
writes WORK/gpu.json. A model of real dimensions (ViT-B/16 of random weights, 224 px, 39,548 vertices) and noise as
data: nothing here depends on what was learned.

    ceilings      a copy on the device (bytes read and written), and matrix products
    directions    the encoder's feature pass and both directions
    fine-tuning   of everything in bf16, with its share of the FLOP/s of a matrix product (forward and backward as
                  torch counts them), also compiled, also with weights in channels-last order
    ridge         in kernel form on the device in float32, beside numpy in float64 on two threads
    fits          all closed-form fits of `train` on the device, and at last on two threads of the processor
    commands      simulate, train, evaluate on a simulated corpus, train also with --use_cpu
    epochs        two `visionflow train` runs of 224 px and 39,548 vertices, encoder frozen, of 2 and 8 epochs
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import machine, random_corpus, vit_b_16
from datasets import load_from_disk
from torch.utils.flop_counter import FlopCounterMode

from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel
from visionflow_hf.modeling.refit import fit_fmri_side
from visionflow_hf.modeling.trials import Trials
from visionflow_hf.stimuli import Stimuli
from visionflow_hf.training.arguments import ModelArguments
from visionflow_hf.training.build import build_model, build_processor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(call, repeats: int = 5, warmup: int = 2) -> float:
    """The median of some calls."""
    for _ in range(warmup):
        call()
    spent = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        spent.append(time.perf_counter() - start)
    return float(np.median(spent))


def ceilings(work: Path, small: bool) -> dict:
    size = 256 if small else 8192
    found = {}
    buffer = torch.empty(size * size * 8, dtype=torch.float32, device=DEVICE).normal_()
    target = torch.empty_like(buffer)
    found["copy, TB/s"] = 2 * buffer.nbytes / seconds(lambda: target.copy_(buffer)) / 1e12
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        one, other = torch.randn(2, size, size, device=DEVICE).to(dtype)
        spent = seconds(lambda one=one, other=other: one @ other)
        found[f"{dtype}".removeprefix("torch.") + ", TFLOP/s"] = 2 * size**3 / spent / 1e12
    return found


def command(*words: str) -> float:
    """Seconds of one command in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "visionflow_hf.cli", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:1])} ended with {done.returncode}: {done.stderr[-1500:]}")
    return time.perf_counter() - start


def commands(work: Path, small: bool) -> dict:
    corpus, run = str(work / "simulated"), str(work / "model")
    size = ["--stimuli", "60"] if small else []
    steps = ["--max_steps", "20"] if small else []
    found = {"simulate": command("simulate", corpus, "--overwrite", *size)}
    found["train"] = command("train", corpus, run, "--overwrite", *steps)
    if not small:
        found["train --use_cpu true"] = command(
            "train", corpus, str(work / "cpu"), "--overwrite", "--use_cpu", "true", "--max_steps", "200"
        )
        found["train, 200 steps"] = command("train", corpus, str(work / "gpu"), "--overwrite", "--max_steps", "200")
    found["evaluate"] = command("evaluate", run, corpus, str(work / "report"), "--overwrite")
    metrics = json.loads((work / "report" / "metrics.json").read_text())
    found["pixcorr"] = metrics["decoding"]["model"]["pixcorr"]
    found["ceiling_normalised"] = metrics["encoding"]["model"]["ceiling_normalised"]
    return found


def network_and_batch(small: bool, images: int):
    """A model of random weights, and a batch on the device for its `forward`."""
    voxels = 500 if small else 39548
    torch.manual_seed(0)
    tiny = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    side = 32 if small else 224
    config = VisionFlowConfig(
        vision_config=tiny if small else None,
        image_size=[side, side],
        subjects=["subj01"],
        num_voxels=[voxels],
        bridge_hidden_size=512,
    )
    batch = {
        "pixel_values": torch.rand(images, 3, side, side, device=DEVICE),
        "fmri": torch.randn(images, voxels, device=DEVICE),
        "subject_ids": torch.zeros(images, dtype=torch.long, device=DEVICE),
    }
    return VisionFlowModel(config).to(DEVICE), batch


def directions(work: Path, small: bool) -> dict:
    images = 4 if small else 64
    network, batch = network_and_batch(small, images)
    pixels, fmri, ids = batch.values()
    network.eval()
    found = {}
    with torch.no_grad():
        for name, dtype in (("float32", None), ("bf16", torch.bfloat16)):
            with torch.autocast(DEVICE.type, dtype=dtype, enabled=dtype is not None):
                found[f"features, {name}, images/s"] = images / seconds(lambda: network.extract_image_features(pixels))
                found[f"predict_fmri, {name}, images/s"] = images / seconds(lambda: network.predict_fmri(pixels, ids))
                found[f"reconstruct_image, {name}, images/s"] = images / seconds(
                    lambda: network.reconstruct_image(fmri, ids)
                )
        found["predict_fmri, batch 1, ms"] = 1e3 * seconds(lambda: network.predict_fmri(pixels[:1], ids[:1]))
        found["reconstruct_image, batch 1, ms"] = 1e3 * seconds(lambda: network.reconstruct_image(fmri[:1], ids[:1]))
    return found


def fine_tuning(work: Path, small: bool, images: int = 64, compiled: bool = False, channels_last: bool = False) -> dict:
    network, batch = network_and_batch(small, 4 if small else images)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    trained = torch.compile(network.train()) if compiled else network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step(module=trained):
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            loss = module(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    size = 256 if small else 8192
    one, other = torch.randn(2, size, size, device=DEVICE).to(torch.bfloat16)
    peak = 2 * size**3 / seconds(lambda: one @ other)
    with FlopCounterMode(display=False) as counter:
        step(network)
    spent = seconds(step, 10, 3)
    flops, images = counter.get_total_flops(), len(batch["fmri"])
    found = {"images/s": images / spent, "GFLOP an image": flops / images / 1e9}
    found["share of the matrix product's FLOP/s"] = flops / spent / peak
    if DEVICE.type == "cuda":
        found["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def epochs(work: Path, small: bool) -> dict:
    images, voxels = (24, 500) if small else (512, 39548)
    vit = vit_b_16(work / "vit")
    corpus = random_corpus(work / "corpus", images, voxels)
    found = {}
    for number in (2, 8):
        flags = ["--encoder", str(vit), "--num_train_epochs", str(number), "--stimulus_cache", str(work / "cache")]
        found[f"train, {number} epochs, s"] = command("train", str(corpus), str(work / "run"), "--overwrite", *flags)
    epoch = (found["train, 8 epochs, s"] - found["train, 2 epochs, s"]) / 6
    found["a cached epoch, images/s"] = images / epoch
    return found


def ridge(features, targets, penalties, solve, eye):
    """Kernel ridge for several penalties from one eigendecomposition, and predictions of the same rows."""
    kernel = features @ features.T
    values, vectors = solve(kernel)
    turned = vectors.T @ targets
    return [features.T @ (vectors @ (turned / (values + penalty)[:, None])) for penalty in penalties]


def fits(work: Path, small: bool, device: torch.device = DEVICE) -> dict:
    torch.set_num_threads(2)
    images, voxels = (24, 300) if small else (512, 15724)
    rows = load_from_disk(str(random_corpus(work / "fits", images, voxels)))["train"]
    processor = build_processor(rows)
    told = ModelArguments(encoder=str(vit_b_16(work / "vit")), freeze_encoder=True)
    model = build_model(processor, told, rows).to(DEVICE)
    found, trials = {}, Trials(rows, processor)
    start = time.perf_counter()
    stimuli = Stimuli(processor, [rows], model, work / "cache")
    found["pictures and features, s"] = time.perf_counter() - start
    model.to(device)
    for run in ("first", "second"):
        synchronize()
        start = time.perf_counter()
        fit_fmri_side(model, trials, stimuli, 1, 0)
        synchronize()
        found[f"{images} images, {voxels} voxels, {run} time, s"] = time.perf_counter() - start
    return found


def one_ridge(work: Path, small: bool) -> dict:
    rows, dims, voxels = (500, 800, 1000) if small else (9000, 9408, 15724)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, dims, generator=generator)
    targets = features[:, :64] @ torch.randn(64, voxels, generator=generator) + torch.randn(
        rows, voxels, generator=generator
    )
    penalties = (1e2, 1e3, 1e4)
    found = {}
    on_device = features.to(DEVICE), targets.to(DEVICE)
    call = lambda: ridge(*on_device, penalties, torch.linalg.eigh, torch.eye)  # noqa: E731
    found["ridge, float32 on the device, s"] = seconds(call, 2, 1)
    fast = call()
    if DEVICE.type == "cuda":
        found["ridge, peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    few = slice(0, 200)
    double = ridge(on_device[0].double(), on_device[1][:, few].double(), penalties, torch.linalg.eigh, torch.eye)
    for penalty, one, other in zip(penalties, fast, double, strict=True):
        error = (one[:, few].double() - other).norm() / other.norm()
        found[f"ridge, float32 against float64, penalty {penalty:g}"] = error.item()
    share = 1 if small else 3
    part = rows // share, dims // share, voxels // share
    code = (
        "import os, time, numpy as np\n"
        f"x=np.random.standard_normal(({part[0]},{part[1]}),).astype('f4');"
        f"y=np.random.standard_normal(({part[0]},{part[2]})).astype('f4')\n"
        "s=time.perf_counter();k=x@x.T;w,v=np.linalg.eigh(k);t=v.T@y\n"
        "[x.T@(v@(t/(w+p)[:,None])) for p in (1e2,1e3,1e4)]\n"
        "print(time.perf_counter()-s)"
    )
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | threads)
    found[f"ridge, a {share}rd of each size, numpy on 2 threads, s"] = float(done.stdout or "nan")
    return found


PARTS = {
    "ceilings": ceilings,
    "directions": directions,
    "fits": fits,
    "fine-tuning in bf16, 64 images": fine_tuning,
    "fine-tuning in bf16, 256 images": partial(fine_tuning, images=256),
    "fine-tuning in bf16, 256 images, channels last": partial(fine_tuning, images=256, channels_last=True),
    "fine-tuning in bf16, 256 images, compiled": partial(fine_tuning, images=256, compiled=True),
    "fine-tuning in bf16, 512 images, compiled": partial(fine_tuning, images=512, compiled=True),
    "fine-tuning in bf16, 512 images, compiled, channels last": partial(
        fine_tuning, images=512, compiled=True, channels_last=True
    ),
    "epochs": epochs,
    "commands": commands,
    "ridge": one_ridge,
    "fits on two threads of the processor": partial(fits, device=torch.device("cpu")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, default=420, help="no part begins later than this")
    parser.add_argument("--small", action="store_true", help="sizes of a dry run")
    parser.add_argument("--part", choices=PARTS, help="one part alone, in this process")
    told = parser.parse_args()
    told.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HOME", str(told.work / "hf"))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if told.part:
        print(json.dumps(PARTS[told.part](told.work, told.small)))
        return
    found, start = {"machine": machine()}, time.perf_counter()
    for part in PARTS:  # each in a process of its own: after an error of CUDA nothing more works in one
        began = time.perf_counter()
        left = told.seconds - (began - start)
        if left < 0:
            print(f"## {part}: no time left", flush=True)
            continue
        words = [sys.executable, __file__, str(told.work), "--part", part, *["--small"] * told.small]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:  # once more, so that the error names its place
            blocking = os.environ | {"CUDA_LAUNCH_BLOCKING": "1"}
            again = subprocess.run(words, capture_output=True, text=True, env=blocking)
            found[part] = {"failed": done.stderr[-3000:], "failed again": again.stderr[-3000:]}
        else:
            found[part] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"## {part}, {time.perf_counter() - began:.0f} s", flush=True)
        for name, value in found[part].items():
            print(f"| {name} | {value:.4g} |" if isinstance(value, float) else f"| {name} | {value} |", flush=True)
        (told.work / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
