"""What survives which fault: whole commands and all readers, and one table.

    python benchmarks/faults.py WORK [--parts kills files hub machine] [--kills 50] [--mutations 2000] [--tries 8]

    kills      SIGKILL of `train` and `prepare` at random moments; checkpoints cut short
    files      fuzzing of every reader
    hub        faults of the Hub, on the loopback interface
    machine    full and read-only disks, signals, two commands at once; as root, which may mount

Prints a line for each problem, and writes WORK/faults.md, the table of docs/reliability.md. Linux; CPU.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork
os.environ.setdefault("HF_HUB_OFFLINE", "1")
PARTS = ("kills", "files", "hub", "machine")
IMPORTED = (  # in this process once, for all forks
    *("cli", "inference", "training.train", "training_flags", "evaluation.evaluate"),
    *(f"corpus.{name}" for name in ("algonauts23", "arrays", "bids", "bold5000", "god", "images", "inspect")),
    *(f"corpus.{name}" for name in ("laion_fmri", "merge", "mosaic", "nsd", "simulate", "table", "things", "tvsd")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kills", type=int, default=50, help="of train; of prepare 20 at least")
    parser.add_argument("--mutations", type=int, default=2000, help="of the files of each reader")
    parser.add_argument(
        "--tries", type=int, default=8, help="of each fault of the Hub and the machine, and each command"
    )
    parser.add_argument("--readers", nargs="+", default=("",), metavar="TEXT", help="those with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True)
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    from loopback_hub import LoopbackHub

    with LoopbackHub() as args.hub:  # the environment is read when huggingface_hub is imported
        os.environ |= {"HF_HOME": str(args.work / "home"), "HF_ENDPOINT": args.hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        for name in IMPORTED:
            import_module(f"visionflow_hf.{name}")
        measure(args)


def measure(args) -> None:
    from table import written

    rows = []
    for part in args.parts:
        for row in {"kills": kills, "files": files, "hub": hub, "machine": machine}[part](args):
            print(f"{row.fault}: {row.survived} of {row.tried}", *row.problems, sep="\n    ", flush=True)
            rows.append(row)
            (args.work / "faults.md").write_text(written(rows) + "\n")
    print(written(rows))


def kills(args):
    """Rows of processes that are killed."""
    import faults_kills

    yield faults_kills.kills_in_prepare(args.work, max(20, args.kills // 3), args.seed)
    yield from faults_kills.kills_in_training(args.work, args.kills, args.seed)


def files(args):
    """Rows of spoiled files."""
    import faults_files

    faults_files.make_model(args.work)
    for reader in faults_files.readers(args.work):
        if any(text in reader.name for text in args.readers):
            yield faults_files.fuzz(reader, args.work / "fuzz", args.mutations, args.seed)


def hub(args):
    """Rows of faults of the Hub."""
    import faults_files
    import faults_hub

    faults_files.make_model(args.work)
    yield from faults_hub.hub_faults(
        args.hub, args.work, args.work / "model", args.work / "corpus", args.tries, args.seed
    )


def machine(args):
    """Rows of faults of the machine."""
    import faults_files
    import faults_machine

    faults_files.make_model(args.work)
    yield from faults_machine.machine_faults(args.work, args.tries, args.seed)


if __name__ == "__main__":
    main()
