"""A network small enough for any test, and batches of given sequences for it."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.objectives import PretrainingObjective
from bert_jax.training import step as step_lib
from bert_jax.training.config import MeshConfig, OptimizerConfig
from bert_jax.training.mesh import make_mesh
from bert_jax.training.optimizer import make_optimizer

MODEL = ModelConfig(
    num_hidden_layers=2, hidden_size=16, num_attention_heads=4, intermediate_size=32, vocab_size=64,
    max_position_embeddings=32, hidden_dropout=0.0,
)  # fmt: skip
ROTARY = {
    "positions": "rotary", "norm_position": "before", "norm_bias": False, "linear_bias": False,
    "feed_forward": "gated", "type_vocab_size": 0, "pooler": False, "layer_norm_eps": 1e-5,
}  # fmt: skip
# What differs from `MODEL` in an encoder like ModernBERT's, like EuroBERT's and like NeoBERT's.
MODERN = {
    **ROTARY, "num_hidden_layers": 5, "local_attention": 8, "global_attn_every_n_layers": 3,
    "rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
}  # fmt: skip
EURO = {
    **ROTARY, "norm": "rms", "normalize_embeddings": False, "hidden_act": "silu", "num_key_value_heads": 2,
    "head_transform": False, "tie_word_embeddings": False, "decoder_bias": False,
}  # fmt: skip
NEO = {
    **ROTARY, "norm": "rms", "normalize_embeddings": False, "hidden_act": "silu", "head_transform": False,
    "tie_word_embeddings": False,
}  # fmt: skip
ADAMW = OptimizerConfig()
CLS, SEP, MASK, FIRST_WORD = 2, 3, 4, 5


class Sequence(NamedTuple):
    """[CLS] A [SEP] B [SEP] as the network sees it, and what it is to predict."""

    ids: np.ndarray  # int [n]
    types: np.ndarray  # int [n]
    positions: np.ndarray  # int [predictions]
    targets: np.ndarray  # int [predictions]
    label: int


def random_sequence(
    rng: np.random.Generator, length: int, predictions: int, vocab_size: int = 64
) -> Sequence:
    first_sep = length // 2
    ids = rng.integers(FIRST_WORD, vocab_size, length)
    ids[[0, first_sep, -1]] = CLS, SEP, SEP
    positions = np.sort(rng.choice(np.flatnonzero(ids >= FIRST_WORD), predictions, replace=False))
    targets = ids[positions]
    ids[positions] = MASK
    return Sequence(
        ids, (np.arange(length) > first_sep).astype(int), positions, targets, int(rng.integers(2))
    )


def batch_of(rows: list[list[Sequence]], tokens: int, predictions: int, slots: int) -> dict[str, np.ndarray]:
    """The batch whose rows hold these sequences: T, M and S are `tokens`, `predictions` and `slots`."""
    names = ("input_ids", "token_type_ids", "sequence_ids", "position_ids")
    batch = {name: np.zeros((len(rows), tokens), np.int32) for name in names}
    for name in ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights"):
        batch[name] = np.zeros((len(rows), predictions), np.float32 if "weights" in name else np.int32)
    for name in ("cls_positions", "next_sentence_labels", "next_sentence_weights"):
        batch[name] = np.zeros((len(rows), slots), np.float32 if "weights" in name else np.int32)
    for row, sequences in enumerate(rows):
        begin = used = 0
        for slot, sequence in enumerate(sequences):
            place = slice(begin, begin + len(sequence.ids))
            batch["input_ids"][row, place] = sequence.ids
            batch["token_type_ids"][row, place] = sequence.types
            batch["sequence_ids"][row, place] = slot + 1
            batch["position_ids"][row, place] = np.arange(len(sequence.ids))
            chosen = slice(used, used + len(sequence.positions))
            batch["masked_lm_positions"][row, chosen] = begin + sequence.positions
            batch["masked_lm_ids"][row, chosen] = sequence.targets
            batch["masked_lm_weights"][row, chosen] = 1.0
            batch["cls_positions"][row, slot] = begin
            batch["next_sentence_labels"][row, slot] = sequence.label
            batch["next_sentence_weights"][row, slot] = 1.0
            begin, used = place.stop, chosen.stop
    return batch


def random_batch(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Rows of 32 tokens with one or two sequences of different lengths, and padding."""
    rng = np.random.default_rng(seed)

    def some(low: int, high: int) -> Sequence:
        return random_sequence(rng, int(rng.integers(low, high)), int(rng.integers(1, 4)))

    return batch_of([[some(6, 16) for _ in range(rng.integers(1, 3))] for _ in range(rows)], 32, 6, 2)


def objective(vocab_size: int = 64, pairs: bool = True) -> PretrainingObjective:
    return PretrainingObjective(MASK, np.full(vocab_size, np.log(vocab_size), np.float32), pairs)


class Training:
    """What the loop puts together for `MODEL`, with changes, on a mesh."""

    def __init__(
        self, mesh, *, dtype=np.float32, remat="none", unroll=False, accumulation_steps=1,
        learning_rate=1e-2, optimizer=ADAMW, **model
    ):  # fmt: skip
        self.config, self.mesh = dataclasses.replace(MODEL, **model), mesh
        self.optimizer = make_optimizer(optimizer)

        def build(rngs: nnx.Rngs) -> nnx.Module:
            return BertForPreTraining(self.config, rngs, Compute(dtype, remat, unroll=unroll))

        self.structure, abstract_params = step_lib.abstract_model(build)
        self.abstract = step_lib.abstract_state(abstract_params, self.optimizer, mesh)
        self.build, self.objective = build, objective(self.config.vocab_size, self.config.pooler)
        self.train_step = step_lib.make_train_step(
            self.structure,
            self.config,
            self.objective,
            self.optimizer,
            optax.constant_schedule(learning_rate),
            self.abstract,
            accumulation_steps,
        )

    def random_params(self):
        """Those of seed 0, made on the mesh."""
        return step_lib.init_params(self.build, self.abstract, 0)

    def initial_state(self) -> step_lib.TrainState:
        """With the parameters of `random_params`, which are made once for all meshes of one process."""
        params = jax.tree.map(
            lambda leaf, value: jax.device_put(value, leaf.sharding),
            self.abstract.params, _random_params(self.config, jax.config.read("jax_enable_x64")),
        )  # fmt: skip
        return step_lib.init_state(params, self.optimizer, self.abstract)


@functools.cache
def _random_params(config: ModelConfig, wide: bool):
    """On the host, of float64 where `wide`."""
    with jax.enable_x64(wide), jax.set_mesh(mesh_of()):
        return jax.device_get(Training(mesh_of(), **dataclasses.asdict(config)).random_params())


def mesh_of(data: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
    """A mesh over the first devices of this machine."""
    return make_mesh(MeshConfig(data, fsdp, tensor), jax.devices()[: data * fsdp * tensor])
