"""Time and peak memory of `visionflow evaluate` on one subject with 1,000 test stimuli of three trials each.

    python benchmarks/evaluate.py WORK [--sessions 16]

A session has 750 trials of 15,724 voxels, three of each image of 425 px; sixteen are 9,000 trials in train and 3,000 in
test. The source is that of prepare.py, imported by `prepare nsd --stimuli-once`. The model has random weights and the
first four layers of a ViT-B/16, images of 112 px: what it predicts is nonsense, and takes as long as any other.
"""

import argparse
import os
import shutil
from pathlib import Path

from common import keep, vit_b_16
from datasets import load_from_disk
from nsd import command
from prepare import TRIALS, write_source
from transformers import AutoConfig

from visionflow_hf.hub import save_model
from visionflow_hf.modeling import VisionFlowConfig, VisionFlowModel, VisionFlowProcessor

TEST = 1000  # stimuli


def untrained(corpus: Path, encoder: Path, folder: Path) -> None:
    """A model for the subject of a corpus."""
    rows = load_from_disk(corpus)["train"]
    processor = VisionFlowProcessor.from_dataset(rows, image_size=112)
    vision = AutoConfig.from_pretrained(encoder)
    model = VisionFlowModel(VisionFlowConfig.for_dataset(rows, processor, vision_config=vision))
    stimuli = len(set(rows["stimulus_id"]))
    facts = {"encoder": "vit", "unit": None, "n_stimuli": stimuli, "n_trials": len(rows), "steps": 0, "seed": 0}
    save_model(model, processor, folder, facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sessions", type=int, default=16, help="(default: %(default)s)")
    args = parser.parse_args()
    source, corpus, run, report = (args.work / name for name in ("source", "corpus", "run", "report"))
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HOME": str(args.work / "hf"), "HF_HUB_OFFLINE": "1"}
    if not corpus.exists():
        stimuli = args.sessions * TRIALS // 3
        write_source(source, args.sessions, full=True, stimuli=stimuli, one_in=stimuli // TEST)
        command(args.work / "prepare.log", "prepare", "nsd", source, corpus, "--stimuli-once")
        shutil.rmtree(source)
    if not run.exists():
        untrained(corpus, vit_b_16(args.work / "vit", layers=4), run)
    shutil.rmtree(report, ignore_errors=True)
    splits = load_from_disk(corpus)
    found = {"train trials": len(splits["train"]), "test trials": len(splits["test"])}
    found |= command(args.work / "evaluate.log", "evaluate", run, corpus, report)
    keep(args.work / "evaluate.json", found)
    print("| train trials | test trials | s | peak GiB |\n|---|---|---|---|")
    print(f"| {found['train trials']} | {found['test trials']} | {found['s']:.0f} | {found['peak GiB']:.2f} |")


if __name__ == "__main__":
    main()
