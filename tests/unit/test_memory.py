"""The policy of the C library's allocator in training processes."""

import subprocess
import sys

import pytest

# Frees and allocates 64 MiB again and again; prints how many pages the system had to give.
PROGRAM = """
import resource
import numpy as np
from bert_jax.training import memory
memory.ACCELERATORS = ()
memory.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2): np.empty(2**26, np.uint8).fill(1)
before = faults()
for _ in range(4): np.empty(2**26, np.uint8).fill(1)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TOP_PAD_": "0"}, False)])
def test_freed_memory_is_kept_unless_the_user_chose(environment, kept):
    run = [sys.executable, "-c", PROGRAM]
    faults = int(subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout)
    assert (faults < 100) == kept
