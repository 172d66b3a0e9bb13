"""How much slower `visionflow train` is beside other busy processes, under given OpenMP settings.

    python benchmarks/shared_cores.py                                  as the command sets them itself
    python benchmarks/shared_cores.py GOMP_SPINCOUNT=300000            libgomp's own default: waiting threads spin
    python benchmarks/shared_cores.py OMP_WAIT_POLICY=passive          waiting threads sleep
    python benchmarks/shared_cores.py OMP_NUM_THREADS=1                no thread waits for another

Each line is one number of busy processes: seconds, and their ratio to the run alone. With n busy processes of one
thread each on c cores, c threads of a fair share take (c + n) / c times as long as alone. Several settings are given in
one call as `OMP_WAIT_POLICY=passive,OMP_NUM_THREADS=1 GOMP_SPINCOUNT=300000`: each word is one environment. They take
turns within each repeat, so that a machine that slows down does so for all of them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

CLEARED = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
BUSY = "while True: sum(range(10_000))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="*", default=[""], metavar="NAME=VALUE,...", help="default: none set")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 4], metavar="N", help="numbers of busy processes")
    parser.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    parser.add_argument("--stimuli", type=int, default=300, help="size of the corpus (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="the median of so many runs (default: %(default)s)")
    args = parser.parse_args()
    if args.busy[0] != 0:
        parser.error("--busy begins with 0, the run that the others are compared with")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        visionflow("simulate", corpus, "--stimuli", args.stimuli, environment="")
        train(corpus, args.steps, "")  # once, so that files are in memory and images in the cache
        print(f"{os.cpu_count()} cores, {args.steps} steps, {args.stimuli} stimuli", flush=True)
        seconds = {}
        for _ in range(args.repeats):
            for busy in args.busy:
                for environment in args.environments:
                    took = beside(busy, corpus, args.steps, environment)
                    seconds.setdefault((environment, busy), []).append(took)
                    print(f"{environment or 'as the command sets it'}, {busy} busy: {took:.1f} s", flush=True)
        print(f"{'environment':40} {'busy':>5} {'seconds':>9} {'ratio':>7}")
        for environment in args.environments:
            alone = median(seconds[environment, 0])
            for busy in args.busy:
                took = median(seconds[environment, busy])
                print(f"{environment or 'as the command sets it':40} {busy:5} {took:9.1f} {took / alone:7.2f}")


def beside(busy: int, corpus: Path, steps: int, environment: str) -> float:
    """Seconds of a training beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        return train(corpus, steps, environment)
    finally:
        for other in others:
            other.kill()
            other.wait()


def train(corpus: Path, steps: int, environment: str) -> float:
    """Seconds of a training, the start of Python included."""
    start = time.perf_counter()
    run = corpus.with_name("run")
    cache = corpus.with_name("cache")
    flags = ["--max_steps", steps, "--overwrite", "--disable_tqdm", "--use_cpu", "--stimulus_cache", cache]
    visionflow("train", corpus, run, *flags, environment=environment)
    return time.perf_counter() - start


def visionflow(*words, environment: str) -> None:
    """Run a command with these variables, of the OpenMP ones no others; its output is shown where it fails."""
    variables = {name: value for name, value in os.environ.items() if name not in CLEARED}
    variables |= dict(part.split("=", 1) for part in environment.split(",") if part)
    command = [sys.executable, "-m", "visionflow_hf.cli", *map(str, words)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
