"""Time and peak memory of everything in `visionflow evaluate` but the model's own forward passes.

    python benchmarks/evaluate.py WORK [--stimuli 1000] [--repeats 3] [--voxels 15724] [--image-size 112]

writes predictions of that size (one subject; RGB; model, ridge, nearest neighbour and mean image; averages and single
trials), then has a fresh process score them and write the report, and prints a line of benchmarks/evaluate.md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

ROIS = ("V1", "V2", "V3", "hV4", "OFA", "FFA", "EBA", "PPA", "OPA", "RSC")


def write_predictions(path: Path, stimuli: int, repeats: int, voxels: int, side: int) -> None:
    """Random images and responses, and predictions that are partly right."""
    rng = np.random.default_rng(0)
    trials = stimuli * repeats
    coarse = rng.random((stimuli, 8, 8, 3)).astype(np.float32)

    def pictures(noise: float, row: np.ndarray) -> np.ndarray:
        near = coarse[row] * (1 - noise) + rng.random((len(row), 8, 8, 3), dtype=np.float32) * noise
        small = (near * 255).astype(np.uint8)
        return small.repeat(side // 8, 1).repeat(side // 8, 2)

    def responses(noise: float, row: np.ndarray) -> np.ndarray:
        return signal[row] + noise * rng.standard_normal((len(row), voxels), dtype=np.float32)

    once, each = np.arange(stimuli), np.repeat(np.arange(stimuli), repeats)
    signal = rng.standard_normal((stimuli, voxels), dtype=np.float32)
    latents = rng.standard_normal((stimuli, 256), dtype=np.float32)
    arrays = {
        "stimulus_id": np.array([f"stimulus {index}" for index in once]),
        "subject": np.array(["subj01"] * stimuli),
        "trials": np.full(stimuli, repeats),
        "image": pictures(0, once),
        "round_trip/reconstruction": pictures(0.5, once),
        "mean_image/reconstruction": np.repeat(pictures(1, once[:1]), stimuli, 0),
        "fmri_mean/subj01": np.zeros(voxels, np.float32),
        "fmri_std/subj01": np.ones(voxels, np.float32),
        "noise_ceiling/subj01": rng.random(voxels),
        "roi/subj01": np.array([ROIS[voxel % len(ROIS)] for voxel in range(voxels)]),
        "latent/image": latents,
        "single_trial/row": each,
    }
    for prefix, rows in (("", once), ("single_trial/", each)):
        arrays[f"{prefix}fmri/subj01"] = responses(1, rows)
        arrays[f"{prefix}latent/fmri"] = latents[rows] + rng.standard_normal((len(rows), 256), dtype=np.float32)
        for baseline, noise in (("", 0.5), ("ridge/", 0.6), ("nearest/", 0.7)):
            arrays[f"{prefix}{baseline}reconstruction"] = pictures(noise, rows)
            if not prefix:
                arrays[f"{baseline}fmri_predicted/subj01"] = responses(2, rows)
    assert len(arrays["single_trial/row"]) == trials
    np.savez(path, **arrays)


def measure(predictions: Path, out: Path) -> None:
    """Score, write the report, and print seconds and peak memory as JSON; run in a process of its own."""
    from visionflow_hf.evaluation.report import write_report

    with np.load(predictions) as file:
        arrays = dict(file)
    start = time.perf_counter()
    out.mkdir(exist_ok=True)
    write_report(out, arrays, [], {"split": "test"})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--stimuli", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--voxels", type=int, default=15724)
    parser.add_argument("--image-size", type=int, default=112, help="px, a multiple of 8")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    predictions = args.work / "predictions.npz"
    if args.measure:
        return measure(predictions, args.work / "report")
    args.work.mkdir(parents=True, exist_ok=True)
    write_predictions(predictions, args.stimuli, args.repeats, args.voxels, args.image_size)
    done = subprocess.run(
        [sys.executable, __file__, str(args.work), "--measure"], stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    found |= vars(args) | {"work": None, "measure": None, "cores": os.cpu_count(), "machine": platform.machine()}
    found |= {"python": platform.python_version(), "numpy": np.__version__, "date": date.today().isoformat()}
    (args.work / "evaluate.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}, indent=2))
    print("| stimuli | repeats | voxels | image px | s | peak MiB |\n|---|---|---|---|---|---|")
    print(
        f"| {args.stimuli} | {args.repeats} | {args.voxels} | {args.image_size} "
        f"| {found['seconds']:.0f} | {found['peak_mib']:.0f} |"
    )


if __name__ == "__main__":
    main()
