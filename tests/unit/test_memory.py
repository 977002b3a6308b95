"""The policy of the C library's allocator in training processes, and devices whose memory is too small."""

import subprocess
import sys

import jax
import pytest

from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.training.memory import room_for

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


def test_where_the_memory_of_devices_is_too_small_the_error_says_what_makes_room():
    full = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."
    with pytest.raises(UserError) as error, room_for(Config()):
        raise jax.errors.JaxRuntimeError(f"{full}\nBuffers: …")
    assert str(error.value) == (
        f"the run does not fit into the memory of its devices ({full}). To make room use train.remat=full "
        "(now none), more train.gradient_accumulation_steps (now 1), a larger mesh.fsdp (now 1) or a smaller "
        "data.global_batch_size."
    )


@pytest.mark.parametrize(
    "error",
    [jax.errors.JaxRuntimeError("UNAVAILABLE: x"), ValueError("RESOURCE_EXHAUSTED: x"), MemoryError()],
)
def test_other_errors_stay_as_they_are(error):
    with pytest.raises(type(error)) as raised, room_for(Config()):
        raise error
    assert raised.value is error
