"""Both directions against ridge on the same split, from the product's own commands without flags, over several seeds.

    python benchmarks/quality.py WORK [--data FOLDER] [--seeds 0 1 2]

leaves corpora, models and reports in WORK and prints the table of benchmarks/quality.md. FOLDER holds the recordings
that cannot be redistributed (digit69/digit69_28x28.mat); without it only the simulated corpora are measured.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

DIGIT69 = (
    "--images stimTrn --fmri fmriTrn --test-images stimTest --test-fmri fmriTest --image-shape 28 28 --column-major"
)
FIGURES = (
    ("decoding", "pixcorr"),
    ("decoding", "ssim"),
    ("decoding", "two_way"),
    ("decoding", "mse"),
    ("encoding", "voxel_r_mean"),
    ("encoding", "ceiling_normalised"),
)


def visionflow(*words: str | Path) -> None:
    subprocess.run(["visionflow", *map(str, words)], check=True, stdout=sys.stderr)  # standard output is for the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    corpora = {
        "simulated cortex, 600 stimuli, 2 subjects": ["simulate"],
        "simulated cortex, 100 stimuli, 1 subject": ["simulate", "--stimuli", "100", "--subjects", "1", "--seed", "5"],
    }
    if args.data:
        corpora["digit69, standard split"] = ["prepare", "arrays", args.data / "digit69/digit69_28x28.mat"]
    print("| data | figure | model | ridge | mean image |\n|---|---|---|---|---|")
    for number, (name, command) in enumerate(corpora.items()):
        corpus = args.work / f"corpus{number}"
        flags = DIGIT69.split() if command[0] == "prepare" else []
        place = 1 if command[0] == "simulate" else 3
        visionflow(*command[:place], corpus, *command[place:], *flags, "--overwrite")
        reports = []
        for seed in args.seeds:
            run, report = args.work / f"run{number}-{seed}", args.work / f"report{number}-{seed}"
            visionflow("train", corpus, run, "--seed", seed, "--overwrite", "--disable_tqdm", "true")
            visionflow("evaluate", run, corpus, report, "--overwrite")
            reports.append(json.loads((report / "metrics.json").read_text()))
        for direction, figure in FIGURES:
            values = [report[direction]["model"][figure] for report in reports]
            if None in values:  # no repeats, no ceiling
                continue
            baselines = [reports[0][direction].get(method, {}).get(figure) for method in ("ridge", "mean_image")]
            cells = ["-" if value is None else f"{value:.3f}" for value in baselines]
            spread = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{values[0]:.3f}"
            print(f"| {name} (n = {reports[0]['n_stimuli']}) | {figure} | {spread} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
