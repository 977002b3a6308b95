"""Sequences know nothing of what else is in their row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.step import abstract_model, means
from tests.tiny import EURO, MODEL, MODERN, batch_of, objective, random_sequence

LENGTHS = [(12, 9, 11), (20, 5), (7, 7, 6, 6), (32,)]
CONFIG = dataclasses.replace(MODEL, hidden_dropout=0.0, attention_dropout=0.0)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [[random_sequence(rng, n, predictions=1 + n // 8) for n in row] for row in LENGTHS]


@pytest.fixture(scope="module")
def batches(sequences):
    """The same sequences, several in a row and each in a row of its own."""
    alone = [[sequence] for row in sequences for sequence in row]
    return batch_of(sequences, 32, predictions=8, slots=4), batch_of(alone, 32, predictions=5, slots=1)


KINDS = {"bert": {}, "modern": MODERN, "euro": EURO}
FLOAT32 = [(kind, jnp.float32) for kind in KINDS]


@pytest.fixture(scope="module", params=[*FLOAT32, *((kind, jnp.bfloat16) for kind in KINDS)], ids=str)
def model(request):
    """Structure and weights; all of these random, so that nothing hides behind 0 or 1."""
    kind, dtype = request.param
    config = dataclasses.replace(CONFIG, **KINDS[kind])
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(config, rngs, Compute(dtype)))
    rng = np.random.default_rng(1)
    return structure, jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(x.dtype), abstract)


def used(values, weights):
    """Values of the slots that hold something, in the order of rows and slots: that of the sequences."""
    return np.asarray(values)[np.asarray(weights) > 0]


@pytest.mark.parametrize("model", FLOAT32, indirect=True, ids=str)
def test_packed_is_unpacked(model, batches):
    structure, params = model
    pairs = "next_sentence" in params
    task = objective(pairs=pairs)

    @jax.jit
    def run(params, batch):
        def loss_of(params):
            terms = means(task.terms(nnx.merge(structure, params), batch, None))
            return sum(terms[name] for name in task.losses), terms

        logits = nnx.merge(structure, params)(batch)
        return *logits, *jax.value_and_grad(loss_of, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        packed, alone = (run(params, batch) for batch in batches)
    for slot, weights in enumerate(("masked_lm_weights", "next_sentence_weights")[: 1 + pairs]):
        ours, theirs = (used(r[slot], b[weights]) for r, b in zip((packed, alone), batches, strict=True))
        assert len(ours) == {0: 5 + 4 + 2 * 1 + 5, 1: 10}[slot] or len(ours) > 0
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    (loss, terms), gradients = packed[2:]
    (expected_loss, expected_terms), expected_gradients = alone[2:]
    np.testing.assert_allclose(loss, expected_loss, rtol=TOLERANCE)
    assert terms.keys() == {
        f"{head}_{score}" for head in ("mlm", "nsp")[: 1 + pairs] for score in ("loss", "accuracy")
    }
    for name, value in terms.items():
        np.testing.assert_allclose(value, expected_terms[name], rtol=TOLERANCE)
    close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE, rtol=TOLERANCE)
    jax.tree.map(close, gradients, expected_gradients)


@pytest.mark.parametrize("changed", [0, 1, 3])
def test_changing_one_sequence_leaves_the_others_bit_identical(model, sequences, changed):
    structure, params = model
    other = random_sequence(np.random.default_rng(7), len(sequences[2][changed].ids), predictions=1)
    after = [*sequences[:2], [*sequences[2]], sequences[3]]
    after[2][changed] = other
    batches = [batch_of(rows, 32, predictions=8, slots=4) for rows in (sequences, after)]

    @jax.jit
    def run(batch):
        network = nnx.merge(structure, params)
        pairs = network(batch)[1]
        return network.encoder(batch), jnp.zeros((4, 4)) if pairs is None else pairs

    (hidden, pairs), (changed_hidden, changed_pairs) = ([np.asarray(x) for x in run(b)] for b in batches)
    mine = batches[0]["sequence_ids"] == changed + 1
    mine[[0, 1, 3]] = False
    assert hidden[~mine].tobytes() == changed_hidden[~mine].tobytes()
    assert not np.array_equal(hidden[mine], changed_hidden[mine])
    mine = np.zeros((4, 4), bool)
    mine[2, changed] = True
    assert pairs[~mine].tobytes() == changed_pairs[~mine].tobytes()
