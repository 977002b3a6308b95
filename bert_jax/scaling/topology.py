"""TPU topologies by name, from the TPU compiler, without a TPU."""

import importlib.util
import os
import re
from importlib import metadata
from typing import Any, NamedTuple

import jax
import psutil

from bert_jax.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """Rates and sizes for estimates; whether a program fits is up to the compiler."""

    hbm: int  # bytes that a program may use on a device, from the compiler's message when they are exceeded
    clock: float  # Hz of the cores: peak rate / operations of the matrix units per cycle
    link: float  # bytes a second to other chips of the slice, over all links; from Cloud TPU's documentation


# By `jax.Device.device_kind`. Of v4 and TPU7x a device is one of a chip's two cores.
CHIPS = {
    "TPU v4": Chip(int(15.25 * GIB), 1.05e9, 300e9 / 2),
    "TPU v5 lite": Chip(int(15.75 * GIB), 1.5e9, 200e9),
    "TPU v5": Chip(int(95.74 * GIB), 1.75e9, 600e9),
    "TPU v6 lite": Chip(int(31.25 * GIB), 1.75e9, 448e9),
    "TPU7x": Chip(int(94.75 * GIB), 2.2e9, 600e9),
}
EXAMPLES = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:16x16"


def topology_devices(name: str, slices: int = 1) -> list[jax.Device]:
    """Returns the devices of a topology such as v5e:4x4, to compile for; `local` are this machine's.

    Raises:
        UserError: if libtpu is missing, has another version than JAX requires, or does not know the topology.
    """
    if name == "local":
        if slices > 1:
            raise UserError(f"--slices={slices} is for TPUs; leave it out with --topology=local.")
        return jax.devices()
    _check_libtpu()
    # Without these libtpu looks for a TPU for minutes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # several plans may run at once
    jax.config.update("jax_platforms", "cpu")  # without it JAX looks for a TPU too
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, num_slices=slices)
    except Exception as error:  # libtpu raises several types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--topology={name}: the TPU compiler does not support it ({reason}); names look like {EXAMPLES}."
        ) from None
    devices: list[Any] = list(topology.devices)
    if (kind := devices[0].device_kind) not in CHIPS:
        raise UserError(f"--topology={name}: there are no rates of {kind} to plan with; take {EXAMPLES}.")
    return devices


def capacity(device: Any) -> int:
    """Returns the bytes that a program may use on a device."""
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind].hbm
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or psutil.virtual_memory().total


def _check_libtpu() -> None:
    wanted = _wanted_libtpu()
    remedy = "install the version that JAX requires: pip install 'bert_jax[tpu-aot]'"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology needs the TPU compiler, libtpu (no TPU); {remedy}, or use make plan.")
    found = metadata.version("libtpu")
    if wanted and not found.startswith(wanted):
        raise UserError(
            f"libtpu {found} is installed, but JAX {jax.__version__} requires {wanted}.*; {remedy}."
        )


def _wanted_libtpu() -> str:
    """Returns the start of the libtpu version that JAX's extra `tpu` requires; "" if it requires none."""
    for requirement in metadata.requires("jax") or ():
        if match := re.match(r"libtpu\s*==\s*([\d.]+?)\.?\*.*extra == ['\"]tpu['\"]", requirement):
            return match[1]
    return ""
