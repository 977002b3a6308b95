"""Names of the mesh axes, and where activations lie on them.

`data` and `fsdp` split the rows of a batch, `tensor` splits heads, feed-forward and vocabulary. How
parameters are stored is the table in `bert_jax.training.mesh`.
"""

import jax
from jax.sharding import PartitionSpec as P

AXES = DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = (DATA, FSDP)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Has the compiler lay the dimensions of `x` along these mesh axes; without a mesh nothing happens."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh in use; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]
