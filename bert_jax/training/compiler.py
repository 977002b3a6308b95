"""What the compiler is asked for on the devices of a mesh."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

log = logging.getLogger("bert_jax")
# On TPU, reductions of gradients run beside the products of the backward pass. Without a limit they are
# joined to one, for which nothing is left to run beside.
OVERLAP = {
    "xla_enable_async_all_reduce": True,
    "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
    "xla_jf_crs_combiner_threshold_in_bytes": 4 << 20,
}


@functools.cache
def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """Returns the options of the training step for `jax.jit`; none where there is nothing to overlap."""
    return accepted(OVERLAP, mesh) if mesh.size > 1 and mesh.devices.flat[0].platform == "tpu" else {}


def accepted(options: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns the options if the compiler knows all of them; else none, with a line in the log.

    Their names are not part of JAX: another version of the compiler may have other ones.
    """
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P()))
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(number).compile()
    except jax.errors.JaxRuntimeError as error:
        reason, *_ = str(error).split("\n")
        log.warning("training without the compiler options %s: %s", ", ".join(options), reason)
        return {}
    return options
