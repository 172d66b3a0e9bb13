"""Four small corpora, three seeds, one table: what a change of the model or of training gains or costs.

    python benchmarks/panel.py WORK [--data FOLDER] [--seeds 0 1 2] [--only NAME ...] [-- flags of `visionflow train`]

    sim600    simulated cortex, 600 stimuli and 2 subjects: its own test split
    few       simulated cortex, 20 stimuli, each 6 times, 1 subject: five folds
    digit69   the 90 train stimuli of digit69: five folds; needs --data
    v4        1,200 photographs and 89 neurons of a macaque's V4, 100 steps: five folds; needs --data

A mechanism of training stays only where taking it out costs more than the spread over seeds on two of them. Reports and
WORK/panel.json are kept; a run that is there already is not repeated.
"""

import argparse
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

FIGURES = (
    ("decoding", "pixcorr"),
    ("decoding", "ssim"),
    ("decoding", "two_way"),
    ("decoding", "mse"),
    ("encoding", "voxel_r_mean"),
    ("encoding", "voxel_r_median"),
    ("encoding", "ceiling_normalised"),
)
FOLDS = ["--folds", "5"]
SIMULATED = {
    "sim600": [],
    "few": ["--stimuli", "20", "--subjects", "1", "--repeats", "6", "--test-repeats", "6", "--seed", "3"],
}


def visionflow(*words: str | Path) -> None:
    subprocess.run(["visionflow", *map(str, words)], check=True, stdout=sys.stderr)  # standard output is for the table


def prepare(name: str, corpus: Path, data: Path | None) -> None:
    """Write one of the four corpora."""
    if name in SIMULATED:
        visionflow("simulate", corpus, *SIMULATED[name])
    elif name == "digit69":
        source = data / "digit69" / "digit69_28x28.mat"
        flags = ["--images", "stimTrn", "--fmri", "fmriTrn", "--image-shape", "28", "28", "--column-major"]
        visionflow("prepare", "arrays", source, corpus, *flags)
    else:
        with zipfile.ZipFile(data / "v4_201025" / "images.zip") as archive:
            files = sorted(file for file in archive.namelist() if file.endswith(".jpg"))
            images = np.stack([np.asarray(Image.open(io.BytesIO(archive.read(file))).convert("RGB")) for file in files])
        arrays = corpus.with_suffix(".npz")
        np.savez(arrays, images=images, fmri=np.load(data / "v4_201025" / "responses.npy").T.astype(np.float32))
        visionflow("prepare", "arrays", arrays, corpus, "--images", "images", "--fmri", "fmri")


def report(name: str, seed: int, corpus: Path, work: Path, flags: list[str]) -> dict:
    """The figures of one run, which is made where it is not there yet."""
    out = work / f"report-{name}-{seed}"
    if not (out / "metrics.json").is_file():
        flags = ["--seed", str(seed), "--disable_tqdm", "true", *flags]
        if name == "sim600":
            run = work / f"run-{name}-{seed}"
            visionflow("train", corpus, run, *flags, "--overwrite")
            visionflow("evaluate", run, corpus, out, "--overwrite")
        else:
            short = ["--encoder", "scratch", "--max_steps", "100"] if name == "v4" else []
            visionflow("crossvalidate", corpus, out, *FOLDS, *short, *flags, "--overwrite")
    return json.loads((out / "metrics.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--data", type=Path, help="folder with digit69/ and v4_201025/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*SIMULATED, "digit69", "v4"])
    words = sys.argv[1:]
    own, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    args = parser.parse_args(own)
    args.work.mkdir(parents=True, exist_ok=True)
    names = args.only or [*SIMULATED, *(["digit69", "v4"] if args.data else [])]
    found = {}
    print("| corpus | figure | model, mean ± standard deviation over seeds | ridge |\n|---|---|---|---|")
    for name in names:
        corpus = args.work / name
        if not corpus.is_dir():
            prepare(name, corpus, args.data)
        reports = [report(name, seed, corpus, args.work, flags) for seed in args.seeds]
        for direction, figure in FIGURES:
            values = [one[direction]["model"].get(figure) for one in reports]
            if None in values:  # no repeats, no ceiling
                continue
            ridge = np.mean([one[direction]["ridge"][figure] for one in reports])
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            found[f"{name} {figure}"] = {"model": values, "ridge": float(ridge)}
            print(f"| {name} | {figure} | {np.mean(values):.4f}{spread} | {ridge:.4f} |", flush=True)
    (args.work / "panel.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
