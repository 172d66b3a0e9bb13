"""Memory that large arrays leave behind is used again, instead of going back to the system."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have this process keep what it frees; nothing changes but on Linux with glibc.

    glibc maps each large array anew and unmaps it when it is freed, so that a training step on a CPU, which makes the
    same large arrays again and again, spends much of its time on pages that the system has to clear (mallopt(3)).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
