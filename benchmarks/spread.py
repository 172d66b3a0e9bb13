"""How many of the measured voxel values lie in the intervals that sampled responses span, trial by trial.

    python benchmarks/spread.py RUN CORPUS [--split test] [--samples 1000]

prints, for each subject, the share of values within the 50, 80, 90 and 95 % intervals.
"""

import argparse

import numpy as np
import torch

from visionflow_hf.corpus.responses import images_of, responses_of
from visionflow_hf.corpus.schema import open_corpus
from visionflow_hf.hub import load_model

INTERVALS = (50, 80, 90, 95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("corpus")
    parser.add_argument("--split", default="test")
    parser.add_argument("--samples", type=int, default=1000)
    args = parser.parse_args()
    model, processor = load_model(args.run)
    split = open_corpus(args.corpus).splits[args.split]
    print("| subject | trials | " + " | ".join(f"{interval} %" for interval in INTERVALS) + " |\n" + "|---" * 6 + "|")
    for subject in sorted(set(split["subject"])):
        trials = responses_of(split, subject)
        inside = {interval: [] for interval in INTERVALS}
        for stimulus, measured in zip(trials.stimulus_ids, trials.fmri, strict=True):
            batch = processor(images=images_of(split, [stimulus]), subject=subject)
            drawn = model.predict_fmri(**batch, num_samples=args.samples, generator=torch.Generator().manual_seed(0))
            for interval in INTERVALS:
                tail = (100 - interval) / 2
                low, high = np.percentile(drawn[0].numpy(), (tail, 100 - tail), axis=0)
                inside[interval].append(np.mean((low <= measured) & (measured <= high)))
        shares = " | ".join(f"{np.mean(values):.3f}" for values in inside.values())
        print(f"| {subject} | {len(trials.fmri)} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
