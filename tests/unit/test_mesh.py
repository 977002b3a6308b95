from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from bert_jax.errors import UserError
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import (
    BATCH,
    check_batch,
    check_model,
    make_mesh,
    process_rows,
    shardings,
    to_global,
)
from tests.tiny import MODEL, Training, mesh_of


@pytest.fixture(scope="module")
def abstract():
    return Training(mesh_of()).abstract


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_shardings_of_a_state(abstract, axes):
    """Optimizer state lies as the parameters do, scalars lie everywhere, axes divide dimensions."""
    mesh = mesh_of(**axes)
    result = shardings(mesh, abstract)
    adam = next(part for part in result.opt_state if hasattr(part, "mu"))
    assert adam.mu == adam.nu == result.params
    assert result.step.spec == adam.count.spec == PartitionSpec()
    for sharding, leaf in zip(jax.tree.leaves(result), jax.tree.leaves(abstract), strict=True):
        sharding.shard_shape(leaf.shape)  # raises where an axis does not divide a dimension
    layers = result.params["encoder"]["layers"]
    assert layers["attention"]["query"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert layers["output"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["output_norm"]["scale"].spec == PartitionSpec()


def test_unknown_parameter_is_an_error_naming_it():
    tree = {"encoder": {"adapter": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}}}
    with pytest.raises(UserError, match="encoder/adapter/kernel matches 0 rules"):
        shardings(mesh_of(), tree)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((8, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 2, 4), (1, 2, 4)),
        ((8, -1, 1), (8, 1, 1)),
    ],
    ids=str,
)
def test_make_mesh(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), "do not fit 8 devices"),
        ((-1, 3, 1), "do not fit 8 devices"),
        ((2, 2, 1), "do not fit 8 devices"),
        ((16, 1, 1), "do not fit 8 devices"),
        ((-1, -1, 1), "at most one may be -1"),
        ((0, 1, 1), "sizes must be positive"),
        ((8, -2, 1), "sizes must be positive"),
    ],
    ids=str,
)
def test_bad_sizes(sizes, message):
    named = f"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}, mesh.tensor={sizes[2]}"
    with pytest.raises(UserError, match=f"{named}.*{message}"):
        make_mesh(MeshConfig(*sizes))


class Tpu(NamedTuple):
    """A device of one of several slices."""

    slice_index: int
    platform: str = "tpu"


def test_slices_are_the_outer_part_of_data(monkeypatch):
    """JAX lays out what is inside a slice; `fsdp` and `tensor` never leave it."""
    asked = []

    def hybrid(inner, outer, devices, **_):
        asked.append((inner, outer, len(devices)))
        return np.array(jax.devices()).reshape(np.multiply(inner, outer))

    monkeypatch.setattr("jax.experimental.mesh_utils.create_hybrid_device_mesh", hybrid)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2), [Tpu(n // 4) for n in range(8)])
    assert asked == [((2, 2, 1), (2, 1, 1), 8)]
    assert tuple(mesh.shape.values()) == (4, 2, 1)
    with pytest.raises(UserError, match=r"mesh\.data=1 is not divisible by the 2 slices; .* its 4 devices"):
        make_mesh(MeshConfig(data=1, fsdp=8), [Tpu(n // 4) for n in range(8)])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 1, "fsdp": 1, "tensor": 3}, r"model\.num_attention_heads=4 .* mesh\.tensor=3"),
        ({"data": 1, "fsdp": 3, "tensor": 1}, r"model\.hidden_size=16 .* mesh\.fsdp × mesh\.tensor=3"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_divide_the_model(axes, message):
    with pytest.raises(UserError, match=message):
        check_model(axes, MODEL)


def test_check_batch():
    check_batch(mesh_of(data=2, fsdp=2, tensor=2), 24, 3)
    with pytest.raises(UserError, match=r"data\.global_batch_size=20 .* 4 devices .*use a multiple of 12\."):
        check_batch(mesh_of(data=2, fsdp=2, tensor=2), 20, 3)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_one_process_holds_all_rows_once(axes):
    np.testing.assert_array_equal(process_rows(mesh_of(**axes), 16), np.arange(16))


class OtherProcess:
    """Stands in for a sharding of which this process holds some devices."""

    def __init__(self, slices):
        self._slices = slices

    def addressable_devices_indices_map(self, _):
        return {device: (part,) for device, part in enumerate(self._slices)}


def test_rows_of_one_of_several_processes(monkeypatch):
    """Replicas over `tensor` hold the same rows; they are wanted once, in order."""
    parts = [slice(12, 16), slice(4, 8), slice(12, 16), slice(4, 8)]
    monkeypatch.setattr("bert_jax.training.mesh.NamedSharding", lambda *_: OtherProcess(parts))
    np.testing.assert_array_equal(process_rows(mesh_of(), 16), [4, 5, 6, 7, 12, 13, 14, 15])


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_to_global_cuts_batches_by_rows(axes):
    mesh = mesh_of(**axes)
    batch = {"input_ids": np.arange(16 * 3, dtype=np.int32).reshape(16, 3), "weights": np.ones((16, 2))}
    arrays = to_global(mesh, batch)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.sharding.spec == BATCH
        assert {shard.data.shape[0] for shard in array.addressable_shards} == {16 // shards}
