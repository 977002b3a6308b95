"""What we compute is BERT: equality with Hugging Face's BertForPreTraining (see make_huggingface.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.losses import cross_entropy
from bert_jax.training.step import abstract_model
from tests.parity.names import to_params

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def reference(huggingface):
    return huggingface


def part(reference, prefix):
    return {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def ours(reference):
    """(model structure, params, batch) of the reference."""
    theirs = json.loads(str(reference["config"]))
    config = ModelConfig(
        hidden_dropout=0.0,
        attention_dropout=0.0,
        **{k: v for k, v in theirs.items() if not k.endswith("dropout_prob")},
    )
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(config, rngs))
    params = jax.tree.map(jnp.asarray, to_params(part(reference, "weights/"), config.num_hidden_layers))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, abstract)
    labels = reference["labels"]
    rows, tokens = labels.shape
    # Every position is a prediction slot, so that the logits of all of them can be compared.
    positions = np.tile(np.arange(tokens, dtype=np.int32), (rows, 1))
    batch = {
        "input_ids": reference["input_ids"],
        "token_type_ids": reference["token_type_ids"],
        "sequence_ids": reference["attention_mask"],
        "position_ids": positions,
        "masked_lm_positions": positions,
        "masked_lm_ids": np.maximum(labels, 0),
        "masked_lm_weights": (labels >= 0).astype(np.float32),
        "cls_positions": np.zeros((rows, 1), np.int32),
        "next_sentence_labels": reference["next_sentence_label"][:, None],
        "next_sentence_weights": np.ones((rows, 1), np.float32),
    }
    return structure, params, jax.tree.map(jnp.asarray, batch)


def losses(structure, params, batch):
    masked_lm_logits, next_sentence_logits = nnx.merge(structure, params)(batch)
    masked_lm = cross_entropy(masked_lm_logits, batch["masked_lm_ids"], batch["masked_lm_weights"])
    next_sentence = cross_entropy(
        next_sentence_logits, batch["next_sentence_labels"], batch["next_sentence_weights"]
    )
    return masked_lm[0] / masked_lm[1], next_sentence[0] / next_sentence[1]


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_hidden_states_and_pooled_output(reference, ours):
    structure, params, batch = ours
    encoder = nnx.merge(structure, params).encoder
    hidden = encoder(batch, all_hidden_states=True)
    pooled = encoder.pool(hidden[-1], batch["cls_positions"])
    real = reference["attention_mask"] > 0
    close(np.asarray(hidden)[:, real], reference["hidden_states"][:, real])
    close(pooled[:, 0], reference["pooler_output"])


def test_logits_and_losses(reference, ours):
    structure, params, batch = ours
    masked_lm_logits, next_sentence_logits = nnx.merge(structure, params)(batch)
    mlm_loss, nsp_loss = losses(structure, params, batch)
    real = reference["attention_mask"] > 0
    close(np.asarray(masked_lm_logits)[real], reference["prediction_logits"][real])
    close(next_sentence_logits[:, 0], reference["seq_relationship_logits"])
    close(mlm_loss, reference["mlm_loss"])
    close(nsp_loss, reference["nsp_loss"])


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_every_gradient(reference, ours, remat):
    structure, params, batch = ours
    model = nnx.merge(structure, params)
    model.encoder.compute = Compute(remat=remat)
    structure, _ = nnx.split(model)
    gradients = jax.jit(jax.grad(lambda p: sum(losses(structure, p, batch))))(params)
    expected = to_params(
        part(reference, "gradients/"), params["encoder"]["layers"]["output"]["bias"].shape[0]
    )
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    jax.tree.map(close, gradients, expected)


@pytest.mark.parametrize(
    ("shape", "encoder", "both_heads"),
    [
        (ModelConfig(), 109_482_240, 110_106_428),
        (
            ModelConfig(
                num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096
            ),
            335_141_888,
            336_226_108,
        ),
        (
            ModelConfig(
                num_hidden_layers=3,
                hidden_size=96,
                num_attention_heads=4,
                intermediate_size=384,
                vocab_size=1000,
            ),
            490_368,
            501_066,
        ),
    ],
    ids=["base", "large", "odd"],
)
def test_parameter_counts(reference, request, shape, encoder, both_heads):
    _, params = abstract_model(lambda rngs: BertForPreTraining(shape, rngs))
    count = {name: sum(x.size for x in jax.tree.leaves(part)) for name, part in params.items()}
    assert (count["encoder"], sum(count.values())) == (encoder, both_heads)
    name = request.node.callspec.id
    assert tuple(reference[f"counts/{name}"]) == (encoder, both_heads)
