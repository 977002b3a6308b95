import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.encoder import Compute
from bert_jax.model.objectives import SpanExtraction
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.packed import Rows
from bert_jax.tasks.token_classification import Sentence, TokenClassification
from tests.saved import WORDS, wordpiece
from tests.tiny import MODEL

LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
TAGGING = TokenClassification(TaskConfig(), TaskData(text="tokens", label="tags"), {"labels": LABELS})


def test_losses_and_accuracy_of_spans_are_over_the_tokens_of_each_sequence():
    """Two sequences of 3 and 2 tokens, one of padding; an empty slot. Answers are at 1 … 2 and at [CLS]."""
    batch = {
        "sequence_ids": np.array([[1, 1, 1, 2, 2, 0]], np.int32),
        "cls_positions": np.array([[0, 3, 0]], np.int32),
        "start_positions": np.array([[1, 0, 0]], np.int32),
        "end_positions": np.array([[2, 0, 0]], np.int32),
        "sequence_weights": np.array([[1.0, 1.0, 0.0]], np.float32),
        "span_weights": np.array([[1.0, 1.0, 0.0]], np.float32),
    }
    start = [0.0, 2.0, 0.0, 0.0, 1.0, 50.0]
    end = [0.0, 0.0, 3.0, 4.0, 0.0, 50.0]
    logits = jnp.array([list(zip(start, end, strict=True))], jnp.float32)
    first = (np.log(2 + np.e**2) - 2 + np.log(2 + np.e**3) - 3) / 2
    second = (np.log(1 + np.e) + np.log(1 + np.e**4) - 4) / 2
    objective = SpanExtraction()
    for weights, loss, accuracy in (
        ([1, 1, 0], (first + second, 2), (1, 2)),  # the second's start is not at [CLS]
        ([1, 0, 0], (first, 1), (1, 1)),
        ([0, 1, 0], (second, 1), (0, 1)),
        ([0, 0, 0], (0, 0), (0, 0)),
    ):
        batch["span_weights"] = np.array([weights], np.float32)
        terms = objective.terms(lambda *_: logits, batch, None)
        np.testing.assert_allclose(terms["span_loss"], loss, rtol=1e-6)
        np.testing.assert_array_equal(terms["span_accuracy"], accuracy)
        np.testing.assert_array_equal(batch[objective.losses["span_loss"]].sum(), loss[1])
    assert terms.keys() == {"span_loss", "span_accuracy"}
    assert objective.losses.keys() == {"span_loss"}


def evaluate(batch):
    config = dataclasses.replace(MODEL, vocab_size=wordpiece().vocab_size)
    objective = TAGGING.objective()
    model = objective.build(config, nnx.Rngs(0), Compute())

    @jax.jit
    def compiled(batch):
        return *objective.evaluate(model, batch), model(batch), objective.terms(model, batch, None)

    terms, outputs, logits, training_terms = compiled(batch)
    assert jax.tree.all(jax.tree.map(np.array_equal, terms, training_terms))  # there is no dropout
    return terms, outputs, logits


def some_rows(slots):
    rng = np.random.default_rng(0)
    sentences = [
        Sentence(rng.choice([*WORDS, "governments"], n).tolist(), rng.choice(LABELS, n).tolist(), "here")
        for n in (9, 2, 1, 25, 5, 3)
    ]
    rows = Rows(TAGGING.encode(sentences, wordpiece(), 20), wordpiece(), 20, slots)
    return rows.num_rows, rows.batch(np.arange(8), 0, 0)


def test_packed_sentences_are_learned_as_if_each_had_a_row_of_its_own():
    (many, alone), (few, packed) = some_rows(1), some_rows(4)
    assert few < many <= 8
    name = TAGGING.objective().losses["token_loss"]
    assert packed[name].sum() == alone[name].sum() == 45.0
    terms, expected = evaluate(packed)[0], evaluate(alone)[0]
    for name in ("token_loss", "token_accuracy"):
        np.testing.assert_allclose(terms[name], expected[name], rtol=1e-6)


def test_loss_and_outputs_of_tokens_are_those_of_the_logits():
    _, batch = some_rows(4)
    terms, outputs, logits = evaluate(batch)
    shares = np.asarray(jax.nn.softmax(logits))
    assert shares.shape == (8, 20, len(LABELS))
    row, token = np.nonzero(batch["labels"] >= 0)
    right = shares[row, token, batch["labels"][row, token]]
    np.testing.assert_allclose(terms["token_loss"], (-np.log(right).sum(), 45.0), rtol=1e-5)
    hits = outputs["label"][row, token] == batch["labels"][row, token]
    np.testing.assert_array_equal(terms["token_accuracy"], (hits.sum(), 45.0))
    np.testing.assert_array_equal(outputs["label"], shares.argmax(axis=-1))
    np.testing.assert_allclose(outputs["probability"], shares.max(axis=-1), rtol=1e-6)
    assert (outputs["label"].dtype, outputs["probability"].dtype) == (np.int32, np.float32)
