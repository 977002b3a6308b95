"""Features: the states of any layer of an encoder, of tokens or pooled to one vector a sequence."""

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import DEFAULT_COMPUTE, Compute, Encoder, gather_positions

TOKENS = 2048  # of a batch: enough work for an accelerator, not too much for a single text on a CPU
POOLINGS = ("mean", "cls")


class EncoderOnly(nnx.Module):
    """An encoder under the name that it has in every network with heads. Arguments as `Encoder`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE):
        self.encoder = Encoder(config, rngs, compute)


def default_pooling(model: ModelConfig) -> str:
    """Returns how the states of a network are pooled if nothing else is asked for.

    As its classifier would pool them, where there is no pooler; BERT's [CLS] means little without its own.
    """
    return "cls" if not model.pooler and model.classifier_pooling == "cls" else "mean"


def layer_number(layer: int, model: ModelConfig, key: str = "layer") -> int:
    """Counts a layer from 0; raises UserError, naming `key`, if there is no such layer."""
    layers = model.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise UserError(f"{key}={layer} does not exist: 0 is the embeddings, {layers} (or -1) the last.")
    return layer % (layers + 1)


def hidden_states(encoder: Encoder, batch: dict[str, jax.Array], layer: int) -> jax.Array:
    """Computes the states [B, T, D] of a `layer_number`, without dropout."""
    last = layer == encoder.config.num_hidden_layers
    return encoder(batch) if last else encoder(batch, all_hidden_states=True)[layer]


def pool(states: jax.Array, sequence_ids: jax.Array, cls_positions: jax.Array, pooling: str) -> jax.Array:
    """Makes one vector of the states of every sequence in packed rows.

    Args:
        states: float [B, T, D].
        sequence_ids: int [B, T], s + 1 for the tokens of slot s; 0: padding.
        cls_positions: int [B, S].
        pooling: `mean` over all tokens, [CLS] and [SEP] included, or `cls` for the state of [CLS].

    Returns:
        float32 [B, S, D]; it has no meaning where a slot is empty.
    """
    states = states.astype(jnp.float32)
    if pooling == "cls":
        return gather_positions(states, cls_positions)
    slots = jnp.arange(1, cls_positions.shape[1] + 1)
    inside = (sequence_ids[..., None] == slots).astype(states.dtype)  # [B, T, S]
    # The default precision of a TPU would round the states to bfloat16.
    totals = jnp.einsum("bts,btd->bsd", inside, states, precision=jax.lax.Precision.HIGHEST)
    return totals / jnp.maximum(inside.sum(axis=1), 1.0)[..., None]
