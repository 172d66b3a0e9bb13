"""Several processes side by side: tasks that new ones work off, and which one of a launcher's this is."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread

from visionflow_hf.errors import UserError


def run(tasks: list[Callable], num_proc: int) -> Iterator:
    """The results of the tasks, in their order, made by this process or by several new ones.

    New ones show no progress bars, and have the cores among them.

    Raises:
        UserError: fewer processes than one, or one of them died.
    """
    if num_proc < 1:
        raise UserError(f"--num-proc is {num_proc}: at least 1 is needed")
    num_proc = min(num_proc, len(tasks))
    if num_proc < 2:
        for task in tasks:
            yield task()
        return
    context = get_context("spawn")  # a fork would copy the locks of the libraries' threads
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=end_with_parent)
    before = dict(os.environ)
    try:
        os.environ["TQDM_DISABLE"] = "1"
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // num_proc)))
        try:
            futures = [pool.submit(task) for task in tasks]  # which starts the processes
        finally:
            os.environ.clear()
            os.environ.update(before)
        for future in futures:
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError("one of the processes died: out of memory? Try a smaller --num-proc") from error
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place_on_machine() -> tuple[int, int]:
    """Which of its machine's processes this is, counted from 0, and how many they are, as their launcher says; 0 and 1
    where none does."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(os.environ["LOCAL_RANK"]) if processes > 1 else 0, processes


def end_with_parent() -> None:
    """A process whose parent was killed must not go on writing."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
