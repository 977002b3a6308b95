"""Fine-tuned heads of modern families, read by their names: equality with Transformers.

See make_modern_heads.py.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.interop.families import family_of
from bert_jax.interop.heads import HEADS, PRETRAINING
from bert_jax.interop.huggingface import read_config
from bert_jax.interop.tensors import Network, canonical, from_params, to_params
from bert_jax.training.step import abstract_model
from tests.parity.test_modern import batch_of, close, part

ORIGIN = pathlib.Path(__file__).with_name("modern_heads.npz")
LABELS = {"classification": 3, "regression": 1, "question_answering": 2, "token_classification": 5}
POOLINGS = {"modernbert": ("cls", "mean"), "eurobert": ("bos", "mean", "late")}
CASES = [
    *(
        (name, task, pooling)
        for name, poolings in POOLINGS.items()
        for task in ("classification", "regression")
        for pooling in poolings
    ),
    ("modernbert", "question_answering", ""),
    ("modernbert", "token_classification", ""),
    ("eurobert", "token_classification", ""),
]


@pytest.fixture(scope="module")
def reference():
    with np.load(ORIGIN) as arrays:
        return dict(arrays)


def directory(modern, reference, name, task, pooling):
    """The settings and the tensors of a small fine-tuned network of a family."""
    weights = part(modern, f"{name}/weights/")
    encoder = {key: x for key, x in weights.items() if key.startswith("model.")}
    settings = json.loads(str(modern[f"{name}/config"]))
    settings |= {"classifier_pooling": pooling} if pooling else {}
    return settings, encoder | part(reference, f"{name}/{task}/weights/")


@pytest.mark.parametrize(("name", "task", "pooling"), CASES)
def test_logits(modern, reference, name, task, pooling):
    settings, tensors = directory(modern, reference, name, task, pooling)
    family, model = read_config(settings, ORIGIN, None)
    network = Network(family, model, HEADS[task], LABELS[task])
    params, initialised, ignored = to_params(dict(tensors), network, ORIGIN)
    assert (initialised, ignored) == ([], [])
    arrays = part(modern, f"{name}/40/")
    structure, _ = abstract_model(network.build)
    logits = jax.jit(lambda params, batch: nnx.merge(structure, params)(batch))(params, batch_of(arrays))
    expected = reference[f"{name}/{task}/logits{pooling and f'/{pooling}'}"]
    if expected.ndim == 2:
        close(logits[:, 0], expected)
    else:
        real = arrays["attention_mask"] > 0
        close(np.asarray(logits)[real], expected[real])
    again = from_params(params, network)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor, key)
    assert family_of(model) == family
    assert family.write(model)["classifier_pooling"] == settings["classifier_pooling"]


@pytest.mark.parametrize("name", ["modernbert", "eurobert"])
def test_the_encoder_of_a_fine_tuned_network_is_read_alone(modern, reference, name):
    """ModernBERT's heads share the names of two modules with the masked-LM head."""
    settings, tensors = directory(modern, reference, name, "classification", "")
    family, model = read_config(settings, ORIGIN, None)
    network = Network(family, model, HEADS[PRETRAINING], 0)
    params, initialised, ignored = to_params(canonical(dict(tensors), family), network, ORIGIN)
    assert initialised == ["masked_lm"]
    assert set(ignored) == {key for key in tensors if not key.startswith("model.")}
    weights = part(modern, f"{name}/weights/")
    whole, _, _ = to_params(weights, network, ORIGIN)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], whole["encoder"])
