"""Time and memory of the three commands on a corpus of NSD's shape, and what all of one subject would take.

    python benchmarks/nsd.py WORK [--shares 0.05 0.125 0.25]

NSD's subj01 has 40 sessions of 750 trials, 10,000 images of 425 px with three trials each, 1,000 of them in test, and
15,724 voxels. A share of it has as many of the sessions and of the images, and all voxels. Each source is written in
NSD's layout (see prepare.py), imported with every image once, trained on with a frozen encoder of random weights, the
first four layers of a ViT-B/16, on images of 112 px, and evaluated. Prints a table and writes WORK/nsd.json.

    peak        the most memory that belongs to the process alone: pages of files that the system may drop are left out
    Trainer     two passes over the images
    fits        from the first line of the log on the fits to the end
    at 1        the last size, times the last growth for each doubling that is left
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import keep, vit_b_16
from prepare import TRIALS, VOXELS, size, write_source

SESSIONS, STIMULI = 40, 10000
FLAGS = ["--image_size", "112", "--freeze_encoder", "true", "--num_train_epochs", "2", "--disable_tqdm", "true"]


def anonymous_memory(process: int) -> int:
    """Bytes of a process that no file stands behind; 0 when it has ended (Linux)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def command(log: Path, *words) -> dict:
    """Seconds and peak memory in GiB of one command, whose messages go to `log`, and when it said that it fits."""
    start, peak, fits = time.perf_counter(), 0, None
    told = [sys.executable, "-m", "visionflow_hf.cli", *map(str, words)]
    with open(log, "wb") as file, subprocess.Popen(told, stdout=file, stderr=file) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            if fits is None and b"fitting the fMRI side" in log.read_bytes():
                fits = time.perf_counter() - start
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{words[0]} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return {"s": time.perf_counter() - start, "peak GiB": peak / 2**30, "fits from": fits}


def measure(work: Path, encoder: Path, share: float) -> dict:
    """The row of one share of a subject."""
    source, corpus, run, report = (work / name for name in ("source", "corpus", "run", "report"))
    stimuli = round(share * STIMULI)
    for folder in (source, corpus, run, report, work / "hf"):  # the last one holds pixels and features
        shutil.rmtree(folder, ignore_errors=True)
    sessions = math.ceil(share * SESSIONS)
    write_source(source, sessions, full=True, stimuli=stimuli)
    prepared = command(work / "prepare.log", "prepare", "nsd", source, corpus, "--stimuli-once")
    shutil.rmtree(source)
    least = size(corpus / "stimuli") + sessions * TRIALS * VOXELS * 4
    trained = command(work / "train.log", "train", corpus, run, "--encoder", encoder, *FLAGS)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    trainer = next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)
    evaluated = command(work / "evaluate.log", "evaluate", run, corpus, report)
    return {
        "share": share,
        "stimuli": stimuli,
        "trials": sessions * TRIALS,
        "corpus / (images and responses once)": size(corpus) / least,
        "prepare, s": prepared["s"],
        "prepare, GiB": prepared["peak GiB"],
        "train, s": trained["s"],
        "Trainer, s": trainer,
        "fits, s": trained["s"] - trained["fits from"],
        "train, GiB": trained["peak GiB"],
        "evaluate, s": evaluated["s"],
        "evaluate, GiB": evaluated["peak GiB"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.125, 0.25])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HOME": str(args.work / "hf"), "HF_HUB_OFFLINE": "1"}
    encoder, rows = vit_b_16(args.work / "vit", layers=4), []
    for share in args.shares:
        rows.append(measure(args.work, encoder, share))
        keep(args.work / "nsd.json", {"rows": rows})
        print(json.dumps(rows[-1]), flush=True)
    print("| | " + " | ".join(f"{row['share']:g}" for row in rows) + " | growth a doubling | at 1 |")
    print("|---" * (len(rows) + 3) + "|")
    for name in rows[0]:
        values = [row[name] for row in rows]
        growth = far = ""
        if len(rows) > 1 and values[-2] and ", " in name:
            a_doubling = (values[-1] / values[-2]) ** (1 / math.log2(rows[-1]["share"] / rows[-2]["share"]))
            growth, far = f"{a_doubling:.2f}", f"{values[-1] * a_doubling ** -math.log2(rows[-1]['share']):,.3g}"
        print(f"| {name} | " + " | ".join(f"{value:,.4g}" for value in values) + f" | {growth} | {far} |")


if __name__ == "__main__":
    main()
