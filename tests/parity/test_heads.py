"""Heads of fine-tuning, read by their names: equality with Hugging Face's (see make_heads.py)."""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.interop.heads import HEADS
from bert_jax.interop.huggingface import read_config
from bert_jax.interop.tensors import Network, to_params
from bert_jax.training.step import abstract_model

ORIGIN = pathlib.Path(__file__).with_name("heads.npz")


@pytest.fixture(scope="module")
def reference():
    with np.load(ORIGIN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("task", "num_labels"),
    [("classification", 3), ("regression", 1), ("question_answering", 2), ("token_classification", 5)],
)
def test_logits(huggingface, reference, task, num_labels):
    family, config = read_config(json.loads(str(huggingface["config"])), ORIGIN, None)
    weights = {
        f"weights/{name.partition('/')[2]}": x for name, x in reference.items() if name.startswith(task)
    }
    expected = weights.pop("weights/logits")
    weights |= {name: x for name, x in huggingface.items() if name.startswith("weights/bert.")}
    tensors = {name.removeprefix("weights/"): x for name, x in weights.items()}
    params, initialised, ignored = to_params(
        tensors, Network(family, config, HEADS[task], num_labels), ORIGIN
    )
    assert (initialised, ignored) == ([], [])
    rows, tokens = huggingface["input_ids"].shape
    batch = {
        "input_ids": huggingface["input_ids"],
        "token_type_ids": huggingface["token_type_ids"],
        "sequence_ids": huggingface["attention_mask"],
        "position_ids": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1)),
        "cls_positions": np.zeros((rows, 1), np.int32),
    }
    structure, _ = abstract_model(HEADS[task].build(config, num_labels))
    logits = np.asarray(jax.jit(lambda params, batch: nnx.merge(structure, params)(batch))(params, batch))
    if expected.ndim == 2:
        logits = logits[:, 0]
    else:
        real = huggingface["attention_mask"] > 0
        logits, expected = logits[real], expected[real]
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
