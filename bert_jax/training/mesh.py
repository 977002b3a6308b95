"""Makes the device mesh, and shards states and batches over it."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.partition import AXES, ROWS, path_name, rule_of
from bert_jax.training.config import MeshConfig

BATCH = P(ROWS)
CONSTANTS = ("ns_coeffs",)  # arrays of an optimizer's state that belong to no parameter


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of Auto axes `data`, `fsdp`, `tensor` over `devices` (default: all).

    Only the data-centre network connects slices, so the slices are the outer part of `data`.

    Raises:
        UserError: when the sizes do not fit the devices or their slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = count_slices(devices)
    if shape[0] % slices:
        raise UserError(
            f"mesh.data={shape[0]} is not divisible by the {slices} slices; parameters are split only inside "
            f"a slice, so mesh.fsdp × mesh.tensor must divide its {len(devices) // slices} devices."
        )
    # On TPU the order of the devices decides which of them communicate; `mesh_utils` orders them.
    if slices > 1:
        inner = (shape[0] // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def count_slices(devices: list[jax.Device]) -> int:
    """Counts the TPU slices of the devices; 1 on other platforms, where `slice_index` has other meanings."""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}) or 1


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Returns the number of devices along each axis, with -1 resolved.

    Raises:
        UserError: when the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    described = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{described}: sizes must be positive, and at most one may be -1 (the rest).")
    known = math.prod(size for size in sizes if size != -1)
    if devices % known or (-1 not in sizes and known != devices):
        raise UserError(f"{described} do not fit {devices} devices; their product must be that number.")
    return tuple(devices // known if size == -1 else size for size in sizes)


def check_model(shape: Mapping[str, int], model: ModelConfig) -> None:
    """Raises UserError unless the mesh axes, {axis: size}, divide the dimensions that they split."""
    tensor, both = shape["tensor"], shape["fsdp"] * shape["tensor"]
    for name, size, axes, parts in (
        ("num_attention_heads", model.num_attention_heads, "mesh.tensor", tensor),
        ("num_key_value_heads", model.key_value_heads, "mesh.tensor", tensor),
        ("intermediate_size", model.intermediate_size, "mesh.tensor", tensor),
        ("hidden_size", model.hidden_size, "mesh.fsdp × mesh.tensor", both),
    ):
        if size % parts:
            raise UserError(
                f"model.{name}={size} is not divisible by {axes}={parts}; use sizes that "
                "divide it, and mesh.data for the rest of the devices."
            )


def shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Returns the sharding of every array of a state: parameters and optimizer state.

    Args:
        tree: arrays or ShapeDtypeStructs; an optimizer's subtree shaped like the parameters ends in their
            paths and so follows their rules. Scalars and `CONSTANTS` are replicated.

    Raises:
        UserError: for an array without a rule, see `rule_of`.
    """

    def of_leaf(path, leaf):
        name = path_name(path)
        replicated = leaf.ndim == 0 or name.endswith(CONSTANTS)
        return NamedSharding(mesh, P() if replicated else rule_of(name).axes)

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


def check_batch(mesh: Mesh, global_batch_size: int, accumulation_steps: int) -> None:
    """Raises UserError unless every device gets the same whole number of rows in every micro-batch."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if global_batch_size % (shards * accumulation_steps):
        raise UserError(
            f"data.global_batch_size={global_batch_size} is not divisible by {shards} devices "
            f"(mesh.data × mesh.fsdp) × train.gradient_accumulation_steps={accumulation_steps}; "
            f"use a multiple of {shards * accumulation_steps}."
        )


def process_rows(mesh: Mesh, global_batch_size: int) -> np.ndarray:
    """Returns the rows of the global batch on this process's devices: int [rows], ascending."""
    mapping = NamedSharding(mesh, BATCH).addressable_devices_indices_map((global_batch_size,))
    rows = [np.arange(global_batch_size)[index] for index in mapping.values()]
    return np.unique(np.concatenate(rows))


def to_global(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes the global batch, sharded by rows, from this process's rows of it."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
