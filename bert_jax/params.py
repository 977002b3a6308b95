"""Print where a network's parameters are, and the memory that training keeps for them.

python -m bert_jax.params --config=bert_base
python -m bert_jax.params --config=bert_base --like-lecture
"""

import jax
import numpy as np
from absl import flags

from bert_jax import command
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.mesh import path_name
from bert_jax.training.step import abstract_model

BYTES_PER_PARAMETER = 12  # float32: the parameter and the two moments of Adam
LECTURE_VOCABULARY = 30_000

# What a person asks for -> the paths that belong to it. Every parameter belongs to exactly one group.
GROUPS: dict[str, str | tuple[str, ...]] = {
    "token embeddings": "encoder/embeddings/token",
    "segment embeddings": "encoder/embeddings/segment",
    "position embeddings": "encoder/embeddings/position",
    "embeddings' LayerNorm": "encoder/embeddings/norm",
    "attention": "encoder/layers/attention",  # with attention_norm
    "feed-forward": ("encoder/layers/intermediate", "encoder/layers/output"),  # with output_norm
    "pooler": "encoder/pooler",
    "masked-LM head": "masked_lm",
    "next-sentence head": "next_sentence",
}


def main() -> int:
    model = command.resolved_config().model
    print(lecture(model) if flags.FLAGS.like_lecture else table(model))
    return 0


def counts(model: ModelConfig) -> dict[str, int]:
    """Parameters of each group of `GROUPS`; of all layers together for those of a layer."""
    _, params = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
    result = dict.fromkeys(GROUPS, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        (group,) = [name for name, prefix in GROUPS.items() if path_name(path).startswith(prefix)]
        result[group] += int(np.prod(leaf.shape))
    return result


def table(model: ModelConfig) -> str:
    """The table that the command prints."""
    count, layers = counts(model), model.num_hidden_layers
    rule: tuple[str, int, str] = ("", 0, "")
    rows = [
        ("token embeddings", count["token embeddings"], f"{model.vocab_size:,} × {model.hidden_size}"),
        ("segment embeddings", count["segment embeddings"], ""),
        ("position embeddings", count["position embeddings"], f"{model.max_position_embeddings} positions"),
        ("embeddings' LayerNorm", count["embeddings' LayerNorm"], ""),
        ("attention, each layer", count["attention"] // layers, "with its LayerNorm"),
        ("feed-forward, each layer", count["feed-forward"] // layers, "with its LayerNorm"),
        (f"{layers} layers", count["attention"] + count["feed-forward"], ""),
        ("pooler", count["pooler"], ""),
        rule,
        ("encoder with pooler", sum(count[name] for name in GROUPS if not name.endswith("head")), ""),
        ("masked-LM head", count["masked-LM head"], "its matrix is the token embeddings"),
        ("next-sentence head", count["next-sentence head"], ""),
        rule,
        ("with both pretraining heads", sum(count.values()), ""),
    ]
    lines = [f"{'':<34}{'parameters':>14}{'in training':>16}"]
    for name, parameters, note in rows:
        mebibytes = parameters * BYTES_PER_PARAMETER / 2**20
        line = f"{name:<34}{parameters:>14,}{mebibytes:>12,.1f} MiB  {note}".rstrip()
        lines.append(line if name else "-" * 64)
    lines.append(f"in training: float32 parameters and Adam's two moments, {BYTES_PER_PARAMETER} bytes each")
    return "\n".join(lines)


def lecture(model: ModelConfig) -> str:
    """Back-of-the-envelope: matrices only, in millions, as on a blackboard."""
    d, f = model.hidden_size, model.intermediate_size
    embeddings = (LECTURE_VOCABULARY + model.max_position_embeddings + model.type_vocab_size) * d
    attention, feed_forward = 4 * d * d, 2 * d * f
    layer = attention + feed_forward
    rounded = embeddings / 1e6 + model.num_hidden_layers * round(layer / 1e6)
    exact = embeddings + model.num_hidden_layers * layer
    return (
        f"embeddings    ({LECTURE_VOCABULARY:,} + {model.max_position_embeddings} + "
        f"{model.type_vocab_size}) × {d} = {embeddings / 1e6:.1f} M\n"
        f"attention     4 × {d} × {d} = {attention / 1e6:.1f} M\n"
        f"feed-forward  2 × {d} × {f} = {feed_forward / 1e6:.1f} M\n"
        f"layer         {layer / 1e6:.1f} M, about {round(layer / 1e6)} M\n"
        f"total         {embeddings / 1e6:.1f} M + {model.num_hidden_layers} × {round(layer / 1e6)} M"
        f" = {rounded:.0f} M (with the layers unrounded {exact / 1e6:.1f} M)"
    )


if __name__ == "__main__":
    command.define_config_flags()
    about = f"The lecture's arithmetic: vocabulary {LECTURE_VOCABULARY:,}, matrices only, rounded."
    flags.DEFINE_boolean("like_lecture", False, about)
    command.run(main)
