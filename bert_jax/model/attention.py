"""Self-attention inside each sequence of a row. B rows, T tokens, N heads, H head size.

One function, computed in two ways: plainly, on every platform, or on TPU by the splash kernel, which never
holds the T × T scores. Which of them is decided when a program is compiled for a platform.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bert_jax.model.dropout import dropout
from bert_jax.model.partition import ROWS, TENSOR

LANES = 128  # the kernel's tokens come in blocks of so many
BLOCK = 512  # tokens of a block, where there are so many


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    dropout_keys: jax.Array | None = None,
    dropout_rate: float = 0.0,
    kind: str = "auto",
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) that never crosses from one sequence into another.

    Args:
        query, key, value: [B, T, N, H].
        sequence_ids: int [B, T]; tokens see the tokens of the same number. Padding (0) sees padding, so
            that no row of the softmax is empty; nothing reads its result.
        dropout_keys: one PRNG key per row [B], or None for no dropout on the attention probabilities.
        dropout_rate: probability of a zero.
        kind: `auto` takes the kernel on TPU, if T is a multiple of 128 and no probability is dropped;
            `plain` never does.

    Returns:
        [B, T, N, H] in the dtype of `value`. Scores and softmax are computed in float32 or wider: a masked
        score is the most negative number, its probability exactly 0, so that what another sequence of the row
        holds cannot change a single bit.
    """
    # Heads before tokens, once: the products are then plain batched matrix products on every platform.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    drops = dropout_keys is not None and dropout_rate > 0.0
    plain = functools.partial(_plain, dropout_keys=dropout_keys, dropout_rate=dropout_rate)
    if kind == "auto" and not drops and query.shape[2] % LANES == 0:
        context = jax.lax.platform_dependent(query, key, value, sequence_ids, tpu=splash, default=plain)
    else:
        context = plain(query, key, value, sequence_ids)
    return context.swapaxes(1, 2)


def _plain(query, key, value, sequence_ids, dropout_keys, dropout_rate):
    """[B, N, T, H] each -> [B, N, T, H]; the reference."""
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.matmul(query, key.swapaxes(2, 3), preferred_element_type=accumulate)
    scores = scores * (query.shape[-1] ** -0.5)
    same_sequence = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    scores = jnp.where(same_sequence, scores, jnp.finfo(accumulate).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_keys, dropout_rate)
    return jnp.matmul(probabilities.astype(value.dtype), value)


def splash(
    query: jax.Array, key: jax.Array, value: jax.Array, sequence_ids: jax.Array, interpret: bool = False
) -> jax.Array:
    """Block by block with a running softmax, on each device for its rows and heads: [B, N, T, H] each.

    `interpret` runs the kernel's program on any platform, slowly.

    Source: Dao et al., "FlashAttention", 2022, as jax.experimental.pallas.ops.tpu.splash_attention has it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    local = functools.partial(_splash_of_device, interpret=interpret)
    if mesh.empty:
        return local(query, key, value, sequence_ids)
    heads, rows = P(ROWS, TENSOR), P(ROWS)
    # The compiler cannot cut a kernel: it is told which part each device has.
    return jax.shard_map(
        local, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )(query, key, value, sequence_ids)


def _splash_of_device(query, key, value, sequence_ids, interpret):
    from jax.experimental.pallas.ops.tpu import splash_attention  # here, since importing it takes a second

    heads, tokens, size = query.shape[1:]
    block = next(size for size in (BLOCK, 384, 256, LANES) if tokens % size == 0)
    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((tokens, tokens))] * heads)
    kernel = splash_attention.make_splash_mha_single_device(
        mask,
        block_sizes=splash_attention.BlockSizes(
            block_q=block, block_kv=block, block_kv_compute=block,
            block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block,
            block_q_dq=block, block_kv_dq=block,
        ),
        interpret=interpret,
    )  # fmt: skip
    scaled = query * (size**-0.5)
    segments = splash_attention.SegmentIds(sequence_ids, sequence_ids)
    return jax.vmap(kernel)(scaled, key, value, segments).astype(value.dtype)
