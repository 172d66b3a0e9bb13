"""What large arrays leave behind is used again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from visionflow_hf.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
at_once = int(sys.argv[2])
[np.ones(4_000_000) for _ in range(at_once)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    [np.ones(4_000_000) for _ in range(at_once)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing changes without glibc")
@pytest.mark.parametrize("at_once", [1, 70], ids=["32 MB", "2.2 GB"])  # above 2 GiB, where an int ends
def test_arrays_made_anew_do_not_cost_new_pages(at_once):
    def faults(told: str) -> int:
        command = [sys.executable, "-c", FAULTS, told, str(at_once)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < faults("not") / 10
