"""Fused attention kernels, which never hold the T × T scores: JAX's splash on TPU, `flash` on GPU.

B rows, T tokens, N heads, H head size.
"""

import functools

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from bert_jax.model.partition import ROWS, TENSOR

LANES = 128  # the kernel's tokens come in blocks of so many
BLOCK = 512  # tokens of a block, where there are so many


def splash_fits(tokens: int) -> bool:
    """Returns whether the splash kernel supports rows of so many tokens."""
    return tokens % LANES == 0


def visited_tokens(tokens: int, causal: bool = False, window: int = 0) -> float:
    """Returns how many tokens the splash kernel compares a token of such a row with, the mean of the row.

    Blocks that hold any token in sight are computed whole, so these are more than the tokens in sight.
    """
    block, reach = _block(tokens), window // 2 if window else tokens
    first = np.arange(0, tokens, block)
    last = first + block - 1
    lowest = np.maximum(0, first - reach) // block
    highest = np.minimum(tokens - 1, last + (0 if causal else reach)) // block
    return float(np.mean(highest - lowest + 1)) * block


def _block(tokens: int) -> int:
    """Returns the tokens of a block of the splash kernel, for rows of so many."""
    return next(size for size in (BLOCK, 384, 256, LANES, tokens) if tokens % size == 0)


def splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    causal: bool = False,
    window: int = 0,
    interpret: bool = False,
    saved_as: str | None = None,
) -> jax.Array:
    """Computes attention block by block with a running softmax, on each device for its rows and heads.

    Args:
        query, key, value: [B, N, T, H].
        sequence_ids: int [B, T].
        causal: a token sees itself and those before it only; blocks behind it are left out.
        window: a token sees itself and `window // 2` tokens to each side, 0 all; blocks beyond are left out.
        interpret: run the kernel's program on any platform, slowly.
        saved_as: the name by which a remat policy may keep what the backward pass needs of the kernel.

    Returns:
        [B, N, T, H] in the dtype of `value`.

    Source: Dao et al., "FlashAttention", 2022, as jax.experimental.pallas.ops.tpu.splash_attention has it.
    """
    local = functools.partial(
        _splash_of_device, causal=causal, window=window, interpret=interpret, saved_as=saved_as
    )
    return _on_each_device(local, P(ROWS, TENSOR), query, key, value, sequence_ids)


def flash_fits(query: jax.Array) -> bool:
    """Returns whether the kernel of GPU supports queries [B, T, N, H] of this shape and dtype."""
    from bert_jax.model import flash as kernel  # here, since importing it takes time

    tokens, size = query.shape[1], query.shape[3]
    return query.dtype.itemsize == 2 and tokens % kernel.BLOCK == 0 and size in kernel.HEAD_SIZES


def flash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    causal: bool = False,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
    """Computes attention as `splash` does, on GPU.

    Args:
        query, key, value: [B, T, N, H].
        sequence_ids: int [B, T]; a sequence is in one piece.
        causal, window, interpret: as in `splash`.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    local = functools.partial(_flash_of_device, causal=causal, window=window, interpret=interpret)
    return _on_each_device(local, P(ROWS, None, TENSOR), query, key, value, sequence_ids)


def _on_each_device(kernel, split, query, key, value, sequence_ids):
    """Runs a kernel on every device for its rows and heads; `split` is the spec of query, key and value."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return kernel(query, key, value, sequence_ids)
    # The compiler cannot cut a kernel: the specs say which part each device has.
    return jax.shard_map(
        kernel, mesh=mesh, in_specs=(split, split, split, P(ROWS)), out_specs=split, check_vma=False
    )(query, key, value, sequence_ids)


def _flash_of_device(query, key, value, sequence_ids, causal, window, interpret):
    from bert_jax.model import flash as kernel

    before = window // 2 if window else sequence_ids.shape[1]
    after = 0 if causal else before
    seen, seen_by = (kernel.visible_range(sequence_ids, *ways) for ways in ((before, after), (after, before)))
    return kernel.flash_attention(query, key, value, seen, seen_by, interpret)


def _splash_of_device(query, key, value, sequence_ids, causal, window, interpret, saved_as):
    from jax.experimental.pallas.ops.tpu import splash_attention  # here, since importing it takes a second

    heads, tokens, size = query.shape[1:]
    block = _block(tokens)
    visible = (splash_attention.CausalMask if causal else splash_attention.FullMask)((tokens, tokens))
    if window:
        visible &= splash_attention.LocalMask((tokens, tokens), (window // 2, window // 2), offset=0)
    mask = splash_attention.MultiHeadMask([visible] * heads)
    kernel = splash_attention.make_splash_mha_single_device(
        mask,
        block_sizes=splash_attention.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        interpret=interpret,
        residual_checkpoint_name=saved_as,
    )  # fmt: skip
    scaled = query * (size**-0.5)
    segments = splash_attention.SegmentIds(sequence_ids, sequence_ids)
    return jax.vmap(kernel)(scaled, key, value, segments).astype(value.dtype)
