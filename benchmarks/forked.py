"""Commands in forks of one process that has imported them, so that each costs no start of torch.

    run(["train", corpus, run], log)                                    how the command ended
    run(words, log, end=After(0.7))                                     killed after 0.7 s
    run(words, log, end=AtChange(30, folder), by=signal.SIGTERM)        ended before the 30th change of a file in folder

A process that is killed cannot clean up: what then lies in the folder is what a real one leaves.
"""

import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOST_SECONDS = 300


@dataclass
class After:
    """A moment by the clock, in seconds from the start of the command."""

    seconds: float


@dataclass
class AtChange:
    """The moment before the change of this number, from 1, of what lies in a folder: made, opened, renamed, removed."""

    number: int
    folder: Path


@dataclass
class Ended:
    """How a command ended: its exit code, or minus the number of the signal; what it said; how long it took."""

    code: int
    text: str
    seconds: float

    @property
    def is_one_line(self) -> bool:
        """Whether it ended as commands do: well, or with exit code 2 and one line `error: ...`, and no traceback."""
        errors = [line for line in self.text.splitlines() if line.startswith("error: ")]
        return "Traceback" not in self.text and (self.code == 0 or (self.code == 2 and len(errors) == 1))


def run(words: list, log: Path, **how) -> Ended:
    """Run one command of `visionflow`; see `fork` for the rest."""
    from visionflow_hf.cli import main

    return fork(lambda: main([str(word) for word in words]), log, **how)


def fork(
    task: Callable[[], int],
    log: Path,
    *,
    end: After | AtChange | None = None,
    by: int = signal.SIGKILL,
    before: Callable[[], None] | None = None,
    most_seconds: float = MOST_SECONDS,
) -> Ended:
    """Run a function that returns an exit code in a fork.

    Args:
        log: file for what it prints.
        end: when it is sent the signal `by`, unless it has ended.
        before: called in the fork first, to bring a fault about.
        most_seconds: then it is killed.
    """
    started = time.monotonic()
    child = start(task, log, end, by, before)
    moment = started + end.seconds if isinstance(end, After) else None
    status = None
    while status is None:
        now = time.monotonic()
        if moment is not None and now >= moment:
            os.kill(child, by)
            moment = None
        if now >= started + most_seconds:
            os.kill(child, signal.SIGKILL)
        status = poll(child)
        time.sleep(0.002)
    return Ended(status, log.read_text(errors="replace"), time.monotonic() - started)


def start(
    task: Callable[[], int],
    log: Path,
    end: AtChange | None = None,
    by: int = signal.SIGKILL,
    before: Callable[[], None] | None = None,
) -> int:
    """Begin the same; returns the number of the process, for `poll`."""
    gc.freeze()  # what is imported need not be looked through in each fork
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if isinstance(end, AtChange):
            watch(end.folder, lambda number: number == end.number and os.kill(os.getpid(), by))
        if before is not None:
            before()
        code = task()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def poll(child: int) -> int | None:
    """The exit code of a process, or minus the number of its signal; None while it runs."""
    ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def watch(folder: Path, tell: Callable[[int], object]) -> None:
    """Call `tell` with its number before each change of what lies in a folder, as far as Python makes it."""
    seen, prefix = 0, str(folder)

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        paths = [str(arg) for arg in args[:2] if isinstance(arg, (str, os.PathLike))] if changes else []
        if any(path.startswith(prefix) for path in paths):
            seen += 1
            tell(seen)

    sys.addaudithook(hook)


def count_changes(words: list, log: Path, folder: Path) -> tuple[int, float]:
    """How many changes an uninterrupted command makes in a folder, and how many seconds it takes."""
    counted = log.with_suffix(".count")

    def before() -> None:
        file = os.open(counted, os.O_CREAT | os.O_WRONLY, 0o644)
        watch(folder, lambda number: os.pwrite(file, f"{number:9d}".encode(), 0))

    ended = run(words, log, before=before)
    if ended.code:
        raise SystemExit(f"{' '.join(map(str, words))} failed: {ended.text}")
    return int(counted.read_text()), ended.seconds
