"""The table of all parameters, and the sharding of activations on the mesh.

Mesh axes: `data` and `fsdp` split the rows of a batch. `fsdp` also splits what a device stores, `tensor` what
it computes: heads, feed-forward and vocabulary.
"""

import re
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError

AXES = DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
ROWS = (DATA, FSDP)


class Rule(NamedTuple):
    """What holds for the parameters whose path ends in `pattern`."""

    pattern: str  # a regular expression
    axes: P  # mesh axis of each dimension
    group: str  # the part of the network that `params` counts it in
    decayed: bool  # matrices and embeddings: weight decay and LAMB's trust ratio; not LayerNorm and biases


# Every parameter matches exactly one rule. Parameters of the layers have a leading layer axis. Devices store
# slices of D of the token embeddings: numbers of words are rarely divisible (see `Embeddings.token_table`).
RULES = (
    Rule("embeddings/token/embedding", P(None, (TENSOR, FSDP)), "token embeddings", True),
    Rule("embeddings/segment/embedding", P(), "segment embeddings", True),
    Rule("embeddings/position/embedding", P(), "position embeddings", True),
    Rule("embeddings/norm/(scale|bias)", P(), "embeddings' LayerNorm", False),
    Rule("layers/attention/(query|key|value)/kernel", P(None, FSDP, TENSOR), "attention", True),
    Rule("layers/attention/(query|key|value)/bias", P(None, TENSOR), "attention", False),
    Rule("layers/attention/output/kernel", P(None, TENSOR, FSDP), "attention", True),
    Rule("layers/attention/output/bias", P(), "attention", False),
    Rule("layers/attention_norm/(scale|bias)", P(), "attention", False),
    Rule("layers/intermediate/kernel", P(None, FSDP, TENSOR), "feed-forward", True),
    Rule("layers/intermediate/bias", P(None, TENSOR), "feed-forward", False),
    Rule("layers/gate/kernel", P(None, FSDP, TENSOR), "feed-forward", True),
    Rule("layers/gate/bias", P(None, TENSOR), "feed-forward", False),
    Rule("layers/output/kernel", P(None, TENSOR, FSDP), "feed-forward", True),
    Rule("layers/output/bias", P(), "feed-forward", False),
    Rule("layers/output_norm/(scale|bias)", P(), "feed-forward", False),
    Rule("pooler/kernel", P(FSDP, None), "pooler", True),
    Rule("pooler/bias", P(), "pooler", False),
    Rule("masked_lm/transform/kernel", P(FSDP, None), "masked-LM head", True),
    Rule("masked_lm/decoder/embedding", P(None, (TENSOR, FSDP)), "masked-LM head", True),
    Rule("masked_lm/(bias|transform/bias|norm/scale|norm/bias)", P(), "masked-LM head", False),
    Rule("next_sentence/kernel", P(), "next-sentence head", True),
    Rule("next_sentence/bias", P(), "next-sentence head", False),
    Rule("head/transform/kernel", P(FSDP, None), "classifier", True),
    Rule("head/(transform/bias|norm/scale|norm/bias)", P(), "classifier", False),
    Rule("classifier/kernel", P(), "classifier", True),
    Rule("classifier/bias", P(), "classifier", False),
)


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a pytree path as `encoder/layers/output/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def rule_of(name: str) -> Rule:
    """Finds the rule of a parameter, or of what an optimizer keeps for it.

    Args:
        name: a path that ends in the parameter's, as `path_name` writes it.

    Raises:
        UserError: if no rule matches, or several do.
    """
    matches = [rule for rule in RULES if re.search(rf"(^|/){rule.pattern}$", name)]
    if len(matches) != 1:
        raise UserError(
            f"parameter {name} matches {len(matches)} rules; give it one in RULES of model/partition.py."
        )
    return matches[0]


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Lays the dimensions of `x` along these mesh axes; does nothing without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P(*axes))


def axis_size(axis: str) -> int:
    """Devices along an axis of the mesh in use; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[axis]
