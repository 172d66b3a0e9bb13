"""Run tasks in several processes, and find this process's place among those of a launcher."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread

from visionflow_hf.errors import UserError


def run(tasks: list[Callable], num_proc: int) -> Iterator:
    """Yield the results of the tasks in their order, from this process or from `num_proc` new ones.

    New processes show no progress bars and share the cores.

    Raises:
        UserError: `num_proc` is below 1, or a process died.
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
        raise UserError(
            "one of the processes ended unexpectedly, perhaps for lack of memory: try a smaller --num-proc"
        ) from error
    except BaseException:  # also Ctrl-C: what runs would be waited for
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place_on_machine() -> tuple[int, int]:
    """Local rank and local world size, as the launcher states them; 0 and 1 without a launcher."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(os.environ["LOCAL_RANK"]) if processes > 1 else 0, processes


def end_with_parent() -> None:
    """End this process when its parent ends, so that it does not go on writing; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
