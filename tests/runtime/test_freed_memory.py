"""Freed memory stays with the process until it is returned."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from fastdb.runtime.memory import keep_freed_memory, return_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        np.full(8 << 20, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
keep_freed_memory()
faults()
kept = faults()
return_freed_memory()
returned = faults()
print(fresh, kept, returned)
assert kept < fresh / 100 and returned > 100 * max(kept, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own allocator")
def test_the_pages_of_freed_blocks_are_reused_until_they_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr)
