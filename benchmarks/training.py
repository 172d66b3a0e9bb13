"""Training time of whole runs, against the forerunner's loop on the same data.

    python benchmarks/training.py WORK [--images 86] [--voxels 39548]

Random pictures of 224 px, a ViT-B/16 of random weights and fMRI of 39,548 vertices; prints a table and writes
WORK/training.json.

    forerunner     a step of the notebook's loop (see forerunner.py): rows as Python lists, pictures decoded and resized
                   one by one, all of ViT-B/16 in float32, Adam, batches of 16
    features       `visionflow train` of one step with an empty cache, less the same with a full one: the encoder's pass
    an epoch       eight epochs of `visionflow train`, encoder frozen, less two, over six: with all that grows with them
    the fits       `visionflow train` of one step, encoder frozen, all features at hand
    fine-tuning    the same difference as for an epoch, of two epochs and one, with --freeze_encoder false
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import keep, random_corpus, vit_b_16
from forerunner import BATCH, LEARNING_RATE, Forerunner, as_pixels, standardise
from tqdm import tqdm

from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.pretrained import load_vision_model
from visionflow_hf.training.build import build_processor


def time_forerunner(vit: Path, corpus: Path, steps: int = 4) -> float:
    """Seconds an image of the forerunner's loop, the median after one step to warm up."""
    torch.manual_seed(0)
    rows = open_corpus(corpus).splits["train"]
    processor, device = build_processor(rows), torch.device("cpu")
    model = Forerunner(load_vision_model(str(vit)), {"subj01": len(processor.fmri_mean["subj01"])}).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    ends = []
    for step in tqdm(range(steps + 1), desc="forerunner", unit="step"):
        batch = rows[[row % len(rows) for row in range(step * BATCH, (step + 1) * BATCH)]]
        fmri = standardise(np.array(batch["fmri"], dtype=np.float32), processor, "subj01", device)
        loss = model.loss(as_pixels(batch["image"], device), {"subj01": (list(range(BATCH)), fmri)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends))) / BATCH


def time_train(corpus: Path, run: Path, cache: Path, *flags: str) -> float:
    """Seconds of one `visionflow train`, in a process of its own."""
    words = ["visionflow", "train", str(corpus), str(run), "--overwrite", "--stimulus_cache", str(cache), *flags]
    start = time.perf_counter()
    subprocess.run([*words, "--disable_tqdm", "true", "--save_strategy", "no"], check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=86)
    parser.add_argument("--voxels", type=int, default=39548)
    told = parser.parse_args()
    work = told.work
    work.mkdir(parents=True, exist_ok=True)
    corpus = random_corpus(work / "corpus", told.images, told.voxels)
    vit = vit_b_16(work / "vit")
    cache, run = work / "cache", work / "run"
    shutil.rmtree(cache, ignore_errors=True)

    def train(*flags: str) -> float:
        return time_train(corpus, run, cache, "--encoder", str(vit), *flags)

    seconds = {"forerunner": time_forerunner(vit, corpus)}
    first, again = train("--max_steps", "1"), train("--max_steps", "1")
    seconds["features"] = (first - again) / told.images
    seconds["the fits"] = again / told.images
    epochs = [train("--num_train_epochs", number) for number in ("2", "8")]
    seconds["an epoch"] = (epochs[1] - epochs[0]) / 6 / told.images
    learning = [train("--num_train_epochs", number, "--freeze_encoder", "false") for number in ("1", "2")]
    seconds["fine-tuning"] = (learning[1] - learning[0]) / told.images
    keep(work / "training.json", {"images": told.images, "voxels": told.voxels, "seconds an image": seconds})
    print("| | s an image | images/s, forerunner = 1 |\n|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name} | {spent:.4f} | {seconds['forerunner'] / spent:.1f} |")


if __name__ == "__main__":
    main()
