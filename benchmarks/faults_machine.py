"""Faults of the machine: full disks, folders that cannot be written, signals, and two commands at once.

As root on Linux, since small and read-only file systems are mounted.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faults_kills import RESULT, SHORT, differences, files_of, half_model, last_line
from forked import After, AtChange, count_changes, poll, run, start
from table import Row

MIB = 2**20
EXPECTED = {"out", "cache", "disk", "file"}


@dataclass
class Command:
    """A command that writes a folder.

    Attributes:
        words: the command line, from the folder that it writes and one for a cache.
        compared: the files of the result that are the same each time.
    """

    name: str
    words: Callable[[Path, Path], list]
    compared: Callable[[Path], list]


def machine_faults(work: Path, tries: int, seed: int = 0) -> Iterator[Row]:
    """Rows of the faults of the machine; `work` has a corpus and a model, as `faults_files.make_model` leaves them.

    Args:
        tries: of each fault and command.
    """
    rng = np.random.default_rng(seed)
    np.savez(
        work / "arrays.npz",
        images=rng.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8),
        fmri=rng.normal(size=(300, 500)).astype(np.float32),
    )
    (work / "sound").mkdir()
    commands, sound = make_commands(work), {}
    for command in commands:
        sound[command.name] = work / "sound" / command.name / "out"
        ended = run(command.words(sound[command.name], sound[command.name].parent / "cache"), work / "log", before=calm)
        if ended.code:
            raise SystemExit(ended.text)
    for fault in (
        full_disk,
        full_temporary_folder,
        read_only,
        below_a_file,
        ended_by_signal,
        two_at_once,
        cache_removed,
    ):
        for command in commands:
            row = Row(f"`{command.name}`: {fault.__doc__.splitlines()[0].rstrip('.')}")
            for number in range(tries):
                folder = work / "machine"
                folder.mkdir()
                problems = fault(command, sound[command.name], folder, work / "log", rng)
                row.add([f"{command.name} {number}: {problem}" for problem in problems])
                shutil.rmtree(folder)
            yield row


def make_commands(work: Path) -> list[Command]:
    arrays = ["--images", "images", "--fmri", "fmri", "--overwrite"]
    scored = ("metrics.json", "figures.json")
    return [
        Command("prepare", lambda out, cache: ["prepare", "arrays", work / "arrays.npz", out, *arrays], files_of),
        Command(
            "train",
            lambda out, cache: [
                *("train", work / "corpus", out, *SHORT, "--stimulus_cache", cache, "--overwrite"),
                *("--resume_from_checkpoint", "auto"),
            ],
            lambda folder: [name for name in RESULT if name != "README.md"],
        ),
        Command(
            "evaluate",
            lambda out, cache: [*("evaluate", work / "model", work / "corpus", out, "--overwrite", "--device", "cpu")],
            lambda folder: [name for name in scored if (folder / name).is_file()],
        ),
    ]


def full_disk(command, sound, folder, log, rng) -> list[str]:
    """disk of the output and the cache full, then room for all."""
    needed = sum(file.stat().st_size for file in sound.parent.rglob("*") if file.is_file())
    with mounted(folder / "disk", int(rng.uniform(0.02, 1.1) * needed)) as disk:
        problems = tried(command, disk / "out", disk / "cache", sound, log)
        subprocess.run(["mount", "-o", f"remount,size={200 * MIB}", disk], check=True)
        return problems + repeated(command, disk / "out", disk / "cache", sound, log)


def full_temporary_folder(command, sound, folder, log, rng) -> list[str]:
    """disk of temporary files full, then room for all."""
    with mounted(folder / "disk", int(rng.uniform(0.001, 0.5) * MIB)) as disk:

        def before():
            calm()
            os.environ["TMPDIR"] = tempfile.tempdir = str(disk)

        problems = tried(command, folder / "out", folder / "cache", sound, log, before)
        problems += [f"{path.name} left among temporary files" for path in disk.iterdir()]
    return problems + repeated(command, folder / "out", folder / "cache", sound, log)


def read_only(command, sound, folder, log, rng) -> list[str]:
    """output on a read-only disk."""
    with mounted(folder / "disk", 200 * MIB) as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        return tried(command, disk / "out", folder / "cache", sound, log, code=2)


def below_a_file(command, sound, folder, log, rng) -> list[str]:
    """output below a path that is a file."""
    (folder / "file").write_text("mine")
    problems = tried(command, folder / "file" / "out", folder / "cache", sound, log, code=2)
    return problems + ([] if (folder / "file").read_text() == "mine" else ["the file was changed"])


def ended_by_signal(command, sound, folder, log, rng) -> list[str]:
    """SIGTERM or Ctrl-C at a random moment, then run again."""
    by, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[rng.integers(2)]
    words, out = command.words(folder / "out", folder / "cache"), folder / "out"
    changes, seconds = count_changes(words, log, folder)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    earlier = not (command.name == "train" and rng.random() < 0.5)
    if not earlier:
        shutil.rmtree(out)
    end = After(rng.uniform(0, seconds)) if rng.random() < 0.5 else AtChange(int(rng.integers(1, changes + 1)), folder)
    ended = run(words, log, end=end, by=by, before=calm)
    problems = []
    if ended.code not in (0, code, -by) or "Traceback" in ended.text:  # minus: not begun yet, or ended already
        problems.append(f"signal {by}: exit code {ended.code}, {ended.text.strip()[-400:]}")
    if earlier and differences(out, sound, command.compared(sound)):
        problems.append(f"signal {by}: neither the earlier nor the new folder is whole")
    if not earlier and out.exists():
        problems += half_model(out, sound)
    return problems + left_in(folder) + repeated(command, out, folder / "cache", sound, log)


def two_at_once(command, sound, folder, log, rng) -> list[str]:
    """two at once to the same folder."""
    words = [str(word) for word in command.words(folder / "out", folder / "cache")]
    from visionflow_hf.cli import main

    logs = [log.with_suffix(f".{number}") for number in range(2)]
    children = []
    for file in logs:
        children.append(start(lambda: main(words), file, before=calm))
        time.sleep(rng.uniform(0, 0.5))
    codes = []
    for child in children:
        while (code := poll(child)) is None:
            time.sleep(0.01)
        codes.append(code)
    problems = []
    for code, file in zip(codes, logs, strict=True):
        text = file.read_text(errors="replace")
        if code not in (0, 2) or "Traceback" in text:
            problems.append(f"exit code {code}, {text.strip()[-400:]}")
    if 0 not in codes:
        problems.append(f"both fail: {last_line(logs[0].read_text())}")
    elif different := differences(folder / "out", sound, command.compared(sound)):
        problems.append(f"{', '.join(different)} differ")
    return problems + left_in(folder) + repeated(command, folder / "out", folder / "cache", sound, log)


def cache_removed(command, sound, folder, log, rng) -> list[str]:
    """cache removed at a random moment of the run, then run again."""
    cache = folder / "cache"
    words = [str(word) for word in command.words(folder / "out", cache)]
    from visionflow_hf.cli import main

    child, began, moment = start(lambda: main(words), log, before=calm), time.monotonic(), rng.uniform(0, 4)
    while (code := poll(child)) is None:
        if moment is not None and time.monotonic() - began > moment:
            shutil.rmtree(cache, ignore_errors=True)
            moment = None
        time.sleep(0.005)
    text, problems = log.read_text(errors="replace"), []
    if code not in (0, 2) or "Traceback" in text:
        problems.append(f"exit code {code}, {text.strip()[-400:]}")
    elif code == 0 and differences(folder / "out", sound, command.compared(sound)):
        problems.append("the result differs")
    return problems + repeated(command, folder / "out", cache, sound, log)


def tried(command, out, cache, sound, log, before=None, code: int | None = None) -> list[str]:
    """Run the command under the fault: a result, or one line and nothing that could be taken for a result."""
    ended = run(command.words(out, cache), log, before=before or calm)
    if not ended.is_one_line or (code is not None and ended.code != code):
        return [f"exit code {ended.code}, {ended.text.strip()[-400:]}"]
    if ended.code == 0:
        different = differences(out, sound, command.compared(sound))
        return [f"{', '.join(different)} differ"] if different else []
    problems = left_in(out.parent) if out.parent.is_dir() else []
    if command.name == "train":
        return problems + (half_model(out, sound) if out.is_dir() else [])
    return problems + (["a folder is left that is no result"] if out.is_dir() else [])


def repeated(command, out, cache, sound, log) -> list[str]:
    """Run it once more, without a fault."""
    ended = run(command.words(out, cache), log, before=calm)
    if ended.code:
        return [f"run again: exit code {ended.code}, {last_line(ended.text)}"]
    different = differences(out, sound, command.compared(sound))
    problems = [f"run again: {', '.join(different)} differ"] if different else []
    return problems + [f"run again: {path.name} is left" for path in out.parent.iterdir() if path.name not in EXPECTED]


def left_in(folder: Path) -> list[str]:
    """What is left that a user does not expect; a checkpoint, from which `train` would go on, is expected."""
    left = [path for path in folder.iterdir() if path.name not in EXPECTED]
    return [f"{path.name} is left" for path in left if not list(path.glob("checkpoint-*"))]


def calm() -> None:
    """Ctrl-C works, also where the benchmark itself runs in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def mounted(folder: Path, size: int):
    """A disk of as many bytes."""
    folder.mkdir()
    size = max(size, 8192)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
