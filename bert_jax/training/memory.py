"""Sets how the C library gives memory to a training process on CPU."""

import ctypes
import glob
import os

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
