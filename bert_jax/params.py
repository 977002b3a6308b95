"""Print the parameters of a network by part, the memory that training keeps for them, and what it exports as.

python -m bert_jax.params --config=bert_base
python -m bert_jax.params --config=bert_large --devices=16 --config.mesh.fsdp=16
python -m bert_jax.params --config=bert_base --like-lecture
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags()
    flags.DEFINE_integer("devices", None, "Number of devices (default: this machine's).", lower_bound=1)
    flags.DEFINE_boolean("like_lecture", False, "The lecture's arithmetic: matrices only, rounded.")
    command.run(command.main_of("bert_jax.params"))

import collections
import math

import jax
from jax.sharding import AbstractMesh

from bert_jax.config import Config
from bert_jax.interop.huggingface import exports_as
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.partition import AXES, path_name, rule_of
from bert_jax.report.text_table import text_table
from bert_jax.training.mesh import check_model, mesh_shape, shardings
from bert_jax.training.step import abstract_model

BYTES_PER_PARAMETER = 12  # float32: the parameter and the two moments of Adam
MUON = "\n(less with optimizer.name=muon, which has one moment of the matrices of layers)"
LECTURE_VOCABULARY = 30_000
NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}


def main() -> None:
    config = command.resolved_config()
    if flags.FLAGS.like_lecture:
        print(lecture(config.model))
    else:
        devices = flags.FLAGS.devices or jax.device_count()
        line = exports_as(config.phase_list()[-1].config.model)
        optimizer = MUON if config.optimizer.name == "muon" else ""
        print(table(config.model) + optimizer, sharding_table(config, devices), line, sep="\n\n")


def sharding_table(config: Config, devices: int) -> str:
    """Lists every array: its shape, the mesh axes that split its dimensions, and its memory on each device.

    Raises:
        UserError: when the config's mesh does not fit so many devices, or cannot split its model.
    """
    mesh = AbstractMesh(mesh_shape(config.mesh, devices), AXES)
    check_model(mesh.shape, config.model)
    _, params = abstract_model(lambda rngs: BertForPreTraining(config.model, rngs))
    arrays = jax.tree_util.tree_leaves_with_path(params)
    rows, total = [], 0.0
    for (path, leaf), sharding in zip(arrays, jax.tree.leaves(shardings(mesh, params)), strict=True):
        mebibytes = math.prod(sharding.shard_shape(leaf.shape)) * BYTES_PER_PARAMETER / 2**20
        shape = " × ".join(f"{size:,}" for size in leaf.shape)
        axes = ("+".join((axis,) if isinstance(axis, str) else axis or "·") for axis in sharding.spec)
        rows.append([path_name(path).removeprefix("encoder/"), shape, " ".join(axes), f"{mebibytes:,.2f}"])
        total += mebibytes
    axes_of_mesh = " × ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    rows.append([f"all, on each of {devices} devices", "", axes_of_mesh, f"{total:,.2f}"])
    return text_table(rows, ["array", "shape", "split over", "MiB a device"], left=3)


def counts(model: ModelConfig) -> dict[str, int]:
    """Counts the parameters of each group of `partition.RULES`, over all layers together."""
    _, params = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
    result: collections.Counter[str] = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        result[rule_of(path_name(path)).group] += math.prod(leaf.shape)
    return dict(result)


def table(model: ModelConfig) -> str:
    """Lists the parts of a network; an empty line comes before each sum."""

    def row(part: str, note: str, parameters: int) -> list[str]:
        return [part, note, f"{parameters:,}", f"{parameters * BYTES_PER_PARAMETER / 2**20:,.1f}"]

    count, layers = counts(model), model.num_hidden_layers
    norm, words = f"with its {NORMS[model.norm]}", f"{model.vocab_size:,} × {model.hidden_size}"
    matrix = "its matrix is the token embeddings" if model.tie_word_embeddings else f"its matrix {words}"
    notes = {
        "token embeddings": words,
        "segment embeddings": "",
        "position embeddings": f"{model.max_position_embeddings} positions",
        "embeddings' LayerNorm": "",
    }
    heads = [name for name in count if name.endswith("head")]
    encoder = sum(count[name] for name in count if name not in heads)
    rows = [
        *(row(part, note, count[part]) for part, note in notes.items() if part in count),
        row("attention, each layer", norm, count["attention"] // layers),
        row("feed-forward, each layer", norm, count["feed-forward"] // layers),
        row(f"{layers} layers", "", count["attention"] + count["feed-forward"]),
        *([row("pooler", "", count["pooler"])] if model.pooler else []),
        [],
        row("encoder with pooler" if model.pooler else "encoder", "", encoder),
        row("masked-LM head", matrix, count["masked-LM head"]),
        *([row("next-sentence head", "", count["next-sentence head"])] if model.pooler else []),
        [],
        row(f"with {'both pretraining heads' if model.pooler else 'its head'}", "", sum(count.values())),
    ]
    return (
        text_table(rows, ["part", "", "parameters", "MiB in training"], left=2)
        + f"\nin training: float32 parameters and Adam's two moments, {BYTES_PER_PARAMETER} bytes each"
    )


def lecture(model: ModelConfig) -> str:
    """Counts as a lecture does on the blackboard: matrices only, in millions."""
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
