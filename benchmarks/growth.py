"""How time and memory of `visionflow train` grow with the images and with the voxels.

    python benchmarks/growth.py WORK [--images 256] [--voxels 4000 16000 64000] [--epochs 2]

Random pictures of 64 px and a small ViT with frozen weights. Each row is a `visionflow train` of its own, from an empty
cache, with so many passes over its rows; prints a table and writes WORK/growth.json.

    images      1, 4 and 16 times as many, with 1,000 voxels
    voxels      so many, with the fewest images
    peak        the most memory that belongs to the process alone: pages of files that the system may drop are left out
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import keep, random_corpus
from transformers import ViTConfig, ViTModel

SIDE = 64


def small_vit(folder: Path) -> Path:
    torch.manual_seed(0)
    size = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    ViTModel(ViTConfig(image_size=SIDE, patch_size=8, **size), add_pooling_layer=False).save_pretrained(folder)
    return folder


def anonymous_memory(process: int) -> int:
    """Bytes of a process that no file stands behind; 0 when it has ended (Linux)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def train(corpus: Path, run: Path, encoder: Path, epochs: int) -> dict:
    """Seconds of a whole `visionflow train`, and its peak memory in MiB."""
    cache = run.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    words = ["train", corpus, run, "--encoder", encoder, "--num_train_epochs", epochs, "--stimulus_cache", cache]
    words += ["--validation_fraction", "0.1", "--disable_tqdm", "true", "--overwrite"]
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-m", "visionflow_hf.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"HF_HUB_OFFLINE": "1"}) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    trainer = next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)
    return {"seconds": time.perf_counter() - start, "seconds of the Trainer": trainer, "peak MiB": peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--voxels", type=int, nargs="*", default=[4000, 16_000, 64_000])
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    encoder, found = small_vit(args.work / "vit"), []
    sizes = [(args.images * times, 1000) for times in (1, 4, 16)]
    sizes += [(args.images, voxels) for voxels in args.voxels]
    print("| images | voxels | s | of these the Trainer's | peak MiB |\n|---|---|---|---|---|")
    for images, voxels in sizes:
        corpus = random_corpus(args.work / "corpus", images, voxels, SIDE)
        row = train(corpus, args.work / "run", encoder, args.epochs)
        found.append({"images": images, "voxels": voxels, **row})
        print(f"| {images:,} | {voxels:,} | {' | '.join(f'{value:,.0f}' for value in row.values())} |", flush=True)
    keep(args.work / "growth.json", {"epochs": args.epochs, "rows": found})


if __name__ == "__main__":
    main()
