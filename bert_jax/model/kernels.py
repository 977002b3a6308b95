"""Attention without all scores in memory: the kernels `mosaic` of TPU and `flash` of GPU, `chunked` on CPU.

B rows, T tokens, N heads, H head size.
"""

import importlib
from types import ModuleType

import jax
from jax.sharding import PartitionSpec as P

from bert_jax.model.partition import ROWS, TENSOR, axis_size
from bert_jax.model.ranges import Reach

KERNELS = {"tpu": "mosaic", "gpu": "flash", "cpu": "chunked"}  # platform -> kind of attention


def _module(kind: str) -> ModuleType:
    return importlib.import_module(f"bert_jax.model.{kind}")  # here, since importing Pallas takes time


def fits(kind: str, query: jax.Array) -> bool:
    """Returns whether a kernel supports queries [B, T, N, H] of this shape and dtype on the current mesh."""
    B, T, N, H = query.shape
    devices = axis_size(TENSOR)
    of_device = jax.ShapeDtypeStruct((B, T, N // devices, H), query.dtype)
    return N % devices == 0 and _module(kind).fits(of_device)


def fused(
    kind: str,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    causal: bool = False,
    window: int = 0,
    turns: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes attention part by part, on each device for its rows and heads.

    Args:
        kind: of `KERNELS`; a kernel must `fits` the queries, `chunked` takes all.
        query, key, value: [B, T, N, H].
        sequence_ids: int [B, T]; a sequence is in one piece.
        causal: a token sees itself and those before it only.
        window: a token sees itself and `window // 2` tokens to each side; 0: all.
        turns: float32 [B, T, R], by which `mosaic` turns queries and keys first, see `rotate`; or None.
        interpret: run the kernel's program on any platform, slowly.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """

    def of_device(query, key, value, sequence_ids, *turns):
        reach = _reach(sequence_ids.shape[1], causal, window)
        return _module(kind).attention(query, key, value, sequence_ids, reach, interpret, *turns)

    inputs = query, key, value, sequence_ids, *([] if turns is None else [turns])
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return of_device(*inputs)
    # The compiler cannot cut a kernel: the specs say which part each device has.
    split = P(ROWS, None, TENSOR)
    specs = (split, split, split, P(ROWS), P(ROWS))[: len(inputs)]
    return jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)(*inputs)


def visited_tokens(tokens: int, causal: bool = False, window: int = 0) -> float:
    """Returns how many tokens the kernel of TPU compares a token of such a row with, the mean of the row."""
    return _module("mosaic").compared_tokens(tokens, _reach(tokens, causal, window))


def _reach(tokens: int, causal: bool, window: int) -> Reach:
    """Returns how many tokens a token of such a row sees before and after itself, at most."""
    before = window // 2 if window else tokens
    return before, 0 if causal else before
