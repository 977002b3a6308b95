"""The memory of a training process: how the C library gives it on CPU, and what makes room on devices."""

import contextlib
import ctypes
import glob
import os
from collections.abc import Iterator

import jax

from bert_jax.errors import UserError, out_of_memory
from bert_jax.training.config import RunConfig

ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidiactl", "/dev/kfd")
# Parameters of mallopt(3), from malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Has glibc keep the memory that a step frees for the next one; call it before JAX makes its threads.

    XLA allocates the temporary arrays of every step anew. By default such large blocks go back to the system,
    which clears them again page by page. Does nothing on a host of accelerators, with another C library, and
    where the user's environment sets glibc's policy.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or any(glob.glob(pattern) for pattern in ACCELERATORS):
        return
    try:
        os.confstr("CS_GNU_LIBC_VERSION")  # an error with another C library
        mallopt = ctypes.CDLL(None).mallopt
    except (ValueError, OSError, AttributeError):
        return
    for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
        mallopt(parameter, value)


@contextlib.contextmanager
def room_for(config: RunConfig) -> Iterator[None]:
    """Raises UserError with what makes room where the devices' memory is too small for the block's work.

    The same would happen again after a restart, which launchers would otherwise try for ever.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
        train = config.train
        raise UserError(
            f"the run does not fit into the memory of its devices ({str(error).splitlines()[0]}). To make "
            f"room use train.remat=full (now {train.remat}), more train.gradient_accumulation_steps (now "
            f"{train.gradient_accumulation_steps}), a larger mesh.fsdp (now {config.mesh.fsdp}) or a smaller "
            "data.global_batch_size."
        ) from error
