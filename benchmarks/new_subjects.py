"""A new person with 40 trials: a trained model's shared weights against a model from scratch and ridge, over seeds.

    python benchmarks/new_subjects.py WORK [--seeds 0 1 2]

trains one model on the default simulated cortex a seed, and takes it to a person with other voxels who saw 40 other
stimuli once; 100 more, three times each, are the test. Prints a table; figures of one seed: docs/experiments/.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from quality import FIGURES, visionflow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = args.work / "known"
    visionflow("simulate", corpus, "--overwrite")
    found = {"adapted": [], "scratch": [], "ridge": []}
    for seed in args.seeds:
        person = args.work / f"person-{seed}"
        drawn = ["--stimuli", "140", "--subjects", "1", "--test-fraction", "0.7143", "--seed", str(seed + 5)]
        visionflow("simulate", person, *drawn, "--overwrite")
        flags = ["--seed", str(seed), "--overwrite", "--disable_tqdm", "true"]
        old, adapted, scratch = (args.work / f"{name}-{seed}" for name in ("old", "adapted", "scratch"))
        visionflow("train", corpus, old, *flags)
        visionflow("train", person, adapted, "--from-model", old, "--freeze-shared", *flags)
        visionflow("train", person, scratch, *flags)
        for run in (adapted, scratch):
            report = run.with_name(f"report-{run.name}")
            visionflow("evaluate", run, person, report, "--overwrite")
            metrics = json.loads((report / "metrics.json").read_text())
            found[run.name.split("-")[0]].append([metrics[part]["model"][figure] for part, figure in FIGURES])
        found["ridge"].append([metrics[part]["ridge"][figure] for part, figure in FIGURES])
    print("| figure | adapted | from scratch | ridge |\n|---|---|---|---|")
    for at, (_, figure) in enumerate(FIGURES):
        values = [np.array(one)[:, at] for one in found.values()]
        print(f"| {figure} | {' | '.join(f'{one.mean():.3f} ± {one.std(ddof=len(one) > 1):.3f}' for one in values)} |")


if __name__ == "__main__":
    main()
