"""The causal objective: what a token sees, what it predicts, and that rows may be packed."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.batches import Batches
from bert_jax.data.masking import gather_next
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.objectives import CausalObjective
from bert_jax.training.program import Program
from bert_jax.training.step import abstract_model, means
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import MODEL, batch_of, mesh_of, random_sequence

LENGTHS = [(12, 9, 11), (20, 5), (7, 7, 6, 6), (32,)]
CONFIG = dataclasses.replace(MODEL, hidden_dropout=0.0, attention_dropout=0.0)
TOLERANCE = 1e-5


@functools.cache
def network(dtype=jnp.float32):
    """Structure and weights; all of these random, so that nothing hides behind 0 or 1."""
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(CONFIG, rngs, Compute(dtype)))
    rng = np.random.default_rng(1)
    return structure, jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(x.dtype), abstract)


def causal_batch(rows, slots):
    batch = batch_of(rows, 32, predictions=8, slots=slots)
    batch["next_sentence_weights"][:] = 0.0
    return batch | gather_next(batch["input_ids"], batch["sequence_ids"], 31)


@pytest.fixture(scope="module")
def sequences():
    rng = np.random.default_rng(0)
    return [[random_sequence(rng, n, predictions=1) for n in row] for row in LENGTHS]


@pytest.fixture(scope="module")
def batches(sequences):
    """The same sequences, several in a row and each in a row of its own."""
    alone = [[sequence] for row in sequences for sequence in row]
    return causal_batch(sequences, 4), causal_batch(alone, 1)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def norm(x, layer):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + CONFIG.layer_norm_eps)
    return scaled * layer["scale"] + layer["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference(params, ids, types):
    """The hidden states of one sequence, in NumPy, with an explicit matrix of who sees whom."""
    table, length = params["embeddings"], len(ids)
    x = norm(
        table["token"]["embedding"][ids]
        + table["position"]["embedding"][:length]
        + table["segment"]["embedding"][types],
        table["norm"],
    )
    visible = np.array([[j <= i for j in range(length)] for i in range(length)])
    for number in range(CONFIG.num_hidden_layers):
        layer = jax.tree.map(lambda x, number=number: x[number], params["layers"])
        query, key, value = (
            dense(x, layer["attention"][name]).reshape(length, 4, 4).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = np.where(visible, query @ key.swapaxes(1, 2) / 2, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        context = (shares @ value).swapaxes(0, 1).reshape(length, 16)
        x = norm(x + dense(context, layer["attention"]["output"]), layer["attention_norm"])
        expanded = gelu(dense(x, layer["intermediate"]))
        x = norm(x + dense(expanded, layer["output"]), layer["output_norm"])
    return x


def test_hidden_states_are_those_of_a_dense_reference(sequences, batches):
    structure, params = network()
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["encoder"]
    with jax.default_matmul_precision("highest"):
        hidden = nnx.merge(structure, params).encoder(batches[0], causal=True)
    for row, in_row in enumerate(sequences):
        begin = 0
        for sequence in in_row:
            ours = hidden[row, begin : begin + len(sequence.ids)]
            expected = reference(wide, sequence.ids, sequence.types)
            np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=TOLERANCE)
            begin += len(sequence.ids)


def test_packed_is_unpacked(batches):
    structure, params = network()
    task = CausalObjective()

    @jax.jit
    def run(params, batch):
        def loss_of(params):
            terms = means(task.terms(nnx.merge(structure, params), batch, None))
            return terms["clm_loss"], terms

        logits = nnx.merge(structure, params)(batch, causal=True)[0]
        return logits, *jax.value_and_grad(loss_of, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        packed, alone = (run(params, batch) for batch in batches)
    weights = [batch["masked_lm_weights"] > 0 for batch in batches]
    assert weights[0].sum() == weights[1].sum() == sum(n - 1 for row in LENGTHS for n in row)
    close = functools.partial(np.testing.assert_allclose, atol=TOLERANCE, rtol=TOLERANCE)
    close(np.asarray(packed[0])[weights[0]], np.asarray(alone[0])[weights[1]])
    assert packed[1][1].keys() == {"clm_loss", "clm_accuracy"}
    jax.tree.map(close, packed[1:], alone[1:])
    assert not np.any(packed[2]["next_sentence"]["kernel"])  # no second objective


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_later_tokens_and_other_sequences_change_no_bit(sequences, dtype):
    structure, params = network(dtype)
    batch = causal_batch(sequences, 4)
    changed = {name: values.copy() for name, values in batch.items()}
    changed["input_ids"][2, 10:20] = 60  # tokens 3 to 6 of the second of four, and the third
    run = jax.jit(lambda batch: nnx.merge(structure, params).encoder(batch, causal=True))
    before, after = (np.asarray(run(one)) for one in (batch, changed))
    mine = np.zeros((4, 32), bool)
    mine[2, 10:20] = True
    assert before[~mine].tobytes() == after[~mine].tobytes()
    assert (before[mine] != after[mine]).any(axis=-1).all()


def test_loss_is_the_mean_over_the_next_tokens(batches):
    structure, params = network()
    batch = batches[0]
    model = nnx.merge(structure, params)
    terms, outputs = CausalObjective().evaluate(model, batch)
    table = model.encoder.embeddings.token_table()
    logits = np.asarray(model.masked_lm(model.encoder(batch, causal=True), table), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    losses, right = [], 0
    for row in range(4):
        for token in range(31):
            if 0 < batch["sequence_ids"][row, token] == batch["sequence_ids"][row, token + 1]:
                target = batch["input_ids"][row, token + 1]
                losses.append(-np.log(probabilities[row, token, target]))
                right += probabilities[row, token].argmax() == target
    np.testing.assert_allclose(terms["clm_loss"], (np.sum(losses), len(losses)), rtol=1e-5)
    np.testing.assert_allclose(terms["clm_accuracy"], (right, len(losses)))
    assert outputs == {}


def test_batches_are_plain_text_with_the_next_tokens():
    data = DataConfig(
        max_seq_length=32, global_batch_size=16, max_sequences_per_row=3, second_objective="none",
        objective="causal",
    )  # fmt: skip
    store = MemoryStore(random_documents(60, tokens=8))
    causal, masked = (
        Batches(store, one, FakeTokenizer(), 0)
        for one in (data, dataclasses.replace(data, objective="masked", mask_token_rate=0.0,
                                              random_token_rate=0.0))
    )  # fmt: skip
    assert causal.max_predictions == 31
    batch, same_text = causal(5), masked(5)
    for name in ("input_ids", "token_type_ids", "sequence_ids", "position_ids", "cls_positions"):
        np.testing.assert_array_equal(batch[name], same_text[name])
    assert not batch["next_sentence_weights"].any()
    real = np.count_nonzero(batch["sequence_ids"])
    assert batch["masked_lm_weights"].sum() == real - batch["sequence_ids"].max(axis=1).sum()
    row, slot = np.nonzero(batch["masked_lm_weights"])
    position = batch["masked_lm_positions"][row, slot]
    np.testing.assert_array_equal(batch["masked_lm_ids"][row, slot], batch["input_ids"][row, position + 1])
    np.testing.assert_array_equal(*(batch["sequence_ids"][row, position + step] for step in (0, 1)))
    part = causal(5, np.array([7, 2]))
    for name, values in part.items():
        np.testing.assert_array_equal(values, batch[name][[7, 2]], err_msg=name)


def test_half_of_the_pairs_of_tokens_are_attended(batches):
    """What MFU counts; the loss of a step is that of the objective."""
    data = DataConfig(max_seq_length=32, global_batch_size=4, second_objective="none", objective="causal")
    program = Program(Config(CONFIG, data), CausalObjective(), mesh_of())
    with jax.set_mesh(program.mesh):
        state = program.initial_state(program.random_params())
        _, metrics = program.train_step(state, batches[0], program.key)
    lengths = [n for row in LENGTHS for n in row]
    assert metrics["attended"] == sum(n * (n + 1) / 2 for n in lengths)
    assert metrics["predictions"] == sum(n - 1 for n in lengths)
    assert metrics["loss"] == metrics["clm_loss"]
    assert {"mlm_loss", "nsp_loss"} & metrics.keys() == set()
