"""Self-attention inside each sequence of a row. B rows, T tokens, N heads, H head size."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from bert_jax.model.dropout import dropout
from bert_jax.model.kernels import KERNELS, fits, fused
from bert_jax.model.layers import PRODUCT
from bert_jax.model.partition import AXES, TENSOR, axis_size
from bert_jax.model.positions import rotate

log = logging.getLogger("bert_jax")
TOLERANCE = 0.1  # of the trial of a kernel: rounding makes 0.02, sequences that see each other 0.8 or more


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    dropout_keys: jax.Array | None = None,
    dropout_rate: float = 0.0,
    kind: str = "plain",
    causal: bool = False,
    window: int = 0,
    turns: jax.Array | None = None,
) -> jax.Array:
    """Computes scaled dot-product attention (Vaswani et al., 2017) that stays inside each sequence.

    Args:
        query: [B, T, N, H].
        key, value: [B, T, N / G, H]; each is shared by G heads in a row (Ainslie et al., 2023).
        sequence_ids: int [B, T]; tokens see the tokens of the same number. Padding (0) sees padding, so
            that no row of the softmax is empty; nothing reads its result.
        dropout_keys: one PRNG key per row [B], or None for no dropout on the attention probabilities.
        dropout_rate: probability of a zero.
        kind: `plain` runs on every platform; where no probability is dropped, one of `KERNELS` takes that
            kernel if it `fits`.
        causal: a token sees itself and those before it only.
        window: a token sees itself and `window // 2` tokens to each side; 0: all.
        turns: float32 [B, T, R], by which queries and keys are turned first, see `rotate`; or None.

    Returns:
        [B, T, N, H] in the dtype of `value`. Scores and softmax are computed in float32 or wider: a masked
        score is the most negative number, its probability exactly 0, so that what another sequence of the row
        holds cannot change a single bit.
    """
    if kind != "plain" and (obstacle := _obstacle(kind, query, dropout_keys, dropout_rate)):
        if kind != KERNELS["cpu"]:  # there it makes less of a difference
            _say_plain(kind, obstacle)
        kind = "plain"
    if turns is not None and kind != KERNELS["tpu"]:  # that one turns them in fast memory
        query, key, turns = rotate(query, turns), rotate(key, turns), None
    if (shared_by := query.shape[2] // key.shape[2]) > 1:
        key, value = jnp.repeat(key, shared_by, axis=2), jnp.repeat(value, shared_by, axis=2)
    if kind != "plain":
        return fused(kind, query, key, value, sequence_ids, causal, window, turns)

    def attend(query, key, value):
        return _plain(query, key, value, sequence_ids, dropout_keys, dropout_rate, causal, window)

    # Heads before tokens, once: the products are then plain batched matrix products on every platform.
    return _on_platform(attend, *(x.swapaxes(1, 2) for x in (query, key, value))).swapaxes(1, 2)


def _obstacle(kind, query, dropout_keys, dropout_rate):
    """Why a kernel cannot be used; "" if it can."""
    if dropout_keys is not None and dropout_rate > 0.0:
        return f"model.attention_dropout={dropout_rate:g}"
    _, tokens, heads, size = query.shape
    if fits(kind, query):
        return ""
    split = f" over mesh.tensor={devices}" if (devices := axis_size(TENSOR)) > 1 else ""
    return f"rows of {tokens} tokens with {heads} heads of {size} numbers{split} in {query.dtype.name}"


@functools.cache  # once, though every trace asks
def _say_plain(kind, obstacle):
    log.warning("plain attention: the kernel %s is not for %s (docs/configs.md)", kind, obstacle)


def _on_platform(attend, *heads):
    """Computes attention in the dtype of its inputs, on CPU in float32: not all 16-bit products are there."""

    def widened(*heads):
        return attend(*(x.astype(jnp.float32) for x in heads)).astype(heads[0].dtype)

    if heads[0].dtype.itemsize > 2:
        return attend(*heads)
    return lax.platform_dependent(*heads, cpu=widened, default=attend)


def _plain(query, key, value, sequence_ids, dropout_keys, dropout_rate, causal=False, window=0):
    """[B, N, T, H] each -> [B, N, T, H]; the reference of all kernels."""
    accumulate = jnp.promote_types(query.dtype, jnp.float32)
    products = jnp.matmul(query, key.swapaxes(2, 3), preferred_element_type=accumulate)
    scores = checkpoint_name(products, PRODUCT) * (query.shape[-1] ** -0.5)
    visible = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    places = jnp.arange(sequence_ids.shape[1])
    behind = places[:, None] - places  # a sequence is in one piece, so distances are those of the row
    if causal:
        visible &= behind >= 0
    if window:
        visible &= jnp.abs(behind) <= window // 2
    scores = jnp.where(visible, scores, jnp.finfo(accumulate).min)
    probabilities = dropout(jax.nn.softmax(scores, axis=-1), dropout_keys, dropout_rate)
    return checkpoint_name(jnp.matmul(probabilities.astype(value.dtype), value), PRODUCT)


@functools.cache
def kernel_of(platform: str) -> str:
    """Returns the `kind` of attention that is fastest on a platform; a kernel is first tried on a device."""
    if (kind := KERNELS.get(platform)) is None:
        return "plain"
    if kind != KERNELS["cpu"] and (problem := _problem(kind)):  # that one is no program of its own
        log.warning(
            "attention without a fused kernel, which this %s cannot run: %s", platform.upper(), problem
        )
        return "plain"
    return kind


def _problem(kind: str) -> str:
    """Computes attention and gradients on this process's first device; returns what is wrong, "" if nothing.

    What an old device, another version of JAX or of the compiler cannot do shows only when it is compiled.
    """
    if kind == KERNELS["tpu"] and jax.default_backend() != "tpu":
        return ""  # planning for devices that are not here
    ids = np.arange(256)[None] // 100  # two sequences of 100 tokens, one of 56
    inputs = np.random.default_rng(0).standard_normal((4, 1, 256, 2, 64))

    @functools.partial(jax.jit, static_argnums=0)
    def results(kind, *inputs):
        *inputs, weights = (x.astype(jnp.bfloat16) for x in inputs)
        context, pull = jax.vjp(lambda *x: attention(*x, ids, kind=kind), *inputs)
        return jnp.stack([context, *pull(weights)]).astype(jnp.float32)

    one_device = Mesh(np.reshape(jax.local_devices()[:1], (1,) * len(AXES)), AXES)
    try:
        with jax.set_mesh(one_device):
            difference = np.max(np.abs(np.subtract(results(kind, *inputs), results("plain", *inputs))))
    except Exception as error:  # of any layer down to the driver
        reason, *_ = str(error).split("\n")
        return f"{type(error).__name__}: {reason}"
    return "" if difference < TOLERANCE else f"its results differ by {difference:.2g}"
