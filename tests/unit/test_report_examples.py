"""What a report shows of a model: its predictions on held-out text."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Config
from bert_jax.model.heads import BertForPreTraining
from bert_jax.tasks import pretraining
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.mesh import shardings
from bert_jax.training.step import abstract_model
from tests.fakes import FakeTokenizer, MemoryStore, prepared
from tests.tiny import CLS, MASK, MODEL, SEP, Sequence, batch_of, mesh_of, random_batch


class Parrot(nnx.Module):
    """Predicts the same for every batch: token 7 with 60%, and that B follows with 80%."""

    def __init__(self):
        self.tokens = nnx.Param(jnp.log(jnp.full(64, 0.4 / 63).at[7].set(0.6)))
        self.follows = nnx.Param(jnp.log(jnp.array([0.8, 0.2])))

    def __call__(self, batch):
        targets, sequences = batch["masked_lm_positions"].shape, batch["cls_positions"].shape
        return (
            jnp.broadcast_to(self.tokens[...], (*targets, 64)),
            jnp.broadcast_to(self.follows[...], (*sequences, 2)),
        )


@pytest.fixture
def task(monkeypatch):
    """A task whose held-out rows are `batch`."""

    def make(batch):
        store = MemoryStore([[5, 5]] * 20, vocab_size=64)
        tokenizer = FakeTokenizer(64, word_starts=np.arange(64) % 10 != 9)
        task = Pretraining(Config(), prepared({"": {"train": store, "heldout": store}}, tokenizer))
        monkeypatch.setattr(task, "_held_out", {"eval": lambda _step, _rows: batch})
        return task

    return make


def test_examples_of_a_model(task):
    pair = Sequence(
        ids=np.array([CLS, 10, MASK, 19, SEP, 30, 7, SEP]), types=np.array([0, 0, 0, 0, 0, 1, 1, 1]),
        positions=np.array([2, 3, 5, 6]), targets=np.array([7, 19, 31, 7]), label=1,
    )  # fmt: skip
    alone = Sequence(np.array([CLS, MASK, SEP]), np.zeros(3, int), np.array([1]), np.array([29]), 0)
    batch = batch_of([[pair, alone], [pair]], tokens=16, predictions=6, slots=2)
    batch["next_sentence_weights"][0, 1] = 0.0
    structure, params = nnx.split(Parrot())
    params = nnx.to_pure_dict(params)
    says = {"guess": " w7", "probability": 0.6}
    expected = {
        "sentences": [
            [
                {"text": " w10"},
                {"text": " [MASK]", "fate": "masked", "truth": " w7", **says},
                {"text": "19", "fate": "kept", "truth": "19", **says},
            ],
            [
                {"text": " w30", "fate": "replaced", "truth": " w31", **says},
                {"text": " w7", "fate": "kept", "truth": " w7", **says},
            ],
        ],
        "next_sentence": {"truth": False, "probability": 0.8},
    }
    with jax.set_mesh(mesh_of()):
        examples = task(batch).examples(structure, params)
        compiled = pretraining._guesses._cache_size()
        first_two = task(batch).examples(nnx.split(Parrot())[0], params, count=2)
    assert examples == [
        expected,
        {
            "sentences": [[{"text": " [MASK]", "fate": "masked", "truth": "29", **says}]],
            "next_sentence": None,
        },
        expected,
    ]
    assert json.loads(json.dumps(examples)) == examples
    assert first_two == examples[:2]
    assert pretraining._guesses._cache_size() == compiled


def test_examples_are_the_same_on_any_mesh(task):
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(MODEL, rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), abstract)

    def on(mesh):
        with jax.set_mesh(mesh):
            sharded = jax.device_put(params, shardings(mesh, params))
            return task(random_batch(0, 3)).examples(structure, sharded)

    one, eight = on(mesh_of()), on(mesh_of(data=2, fsdp=2, tensor=2))
    assert len(one) >= 3

    def probabilities(examples):
        return [t.pop("probability") for e in examples for s in e["sentences"] for t in s if "truth" in t]

    np.testing.assert_allclose(probabilities(one), probabilities(eight), atol=2e-4)
    for example in one + eight:
        example["next_sentence"]["probability"] = round(example["next_sentence"]["probability"], 3)
    assert one == eight


def test_no_examples_without_held_out_text(task, monkeypatch):
    silent = task({})
    monkeypatch.setattr(silent, "_held_out", {})
    assert silent.examples(None, None) == []
