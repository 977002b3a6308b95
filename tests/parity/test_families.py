"""Files of each family become the same networks, and the same files again (make_modern.py, neobert.py)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.interop.families import FAMILIES, family_of
from bert_jax.interop.heads import HEADS, PRETRAINING
from bert_jax.interop.huggingface import exports_as, read_config, write_config
from bert_jax.interop.tensors import Network, canonical, from_params, to_params
from bert_jax.model.config import ModelConfig
from bert_jax.training.step import abstract_model
from tests.parity import neobert
from tests.parity.test_modern import batch_of, close, loss_of, part
from tests.saved import wordpiece

PATH = pathlib.Path("config.json")
NEOBERT = {
    "model_type": "neobert", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 2,
    "intermediate_size": 60, "vocab_size": 50, "max_length": 64, "norm_eps": 1e-5, "hidden_act": "SwiGLU",
}  # fmt: skip
# The same as Transformers 5 writes it, in the words of the hub.
HUB = {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}


def directory(family, modern):
    """The settings and tensors of a small network of a family."""
    if family == "neobert":
        return NEOBERT, neobert.random_tensors(np.random.default_rng(0), 3, 32, 40, 50)
    arrays = part(modern, f"{family}/")
    return json.loads(str(arrays["config"])), part(arrays, "weights/")


@pytest.mark.parametrize("name", ["modernbert", "eurobert", "neobert"])
def test_read_and_written_is_the_same_to_the_bit(modern, name):
    settings, tensors = directory(name, modern)
    family, model = read_config(settings, PATH, None)
    network = Network(family, model, HEADS[PRETRAINING], 0)
    params, initialised, ignored = to_params(dict(tensors), network, PATH)
    assert (initialised, ignored, family_of(model)) == ([], [], family)
    again = from_params(params, network)
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(again[key], tensor, key)
    written = write_config(model, wordpiece(), PRETRAINING, {})
    assert read_config(written, PATH, None) == (family, model)
    assert written["architectures"] == [HEADS[PRETRAINING].architecture(family)]


@pytest.mark.parametrize("name", ["modernbert", "eurobert"])
def test_what_is_read_computes_the_same(modern, name):
    settings, tensors = directory(name, modern)
    family, model = read_config(settings, PATH, None)
    network = Network(family, model, HEADS[PRETRAINING], 0)
    params, _, _ = to_params(canonical(dict(tensors), family), network, PATH)
    arrays = part(modern, f"{name}/40/")
    structure, _ = abstract_model(network.build)
    close(loss_of(structure, params, batch_of(arrays))[0], arrays["loss"])


def test_neobert_computes_what_its_paper_says(modern):
    settings, tensors = directory("neobert", modern)
    family, model = read_config(settings, PATH, None)
    assert model.intermediate_size == 40
    network = Network(family, model, HEADS[PRETRAINING], 0)
    params, _, _ = to_params(dict(tensors), network, PATH)
    ids = np.random.default_rng(1).integers(0, 50, 20)
    row = {
        "input_ids": ids, "token_type_ids": 0 * ids, "sequence_ids": 1 + 0 * ids,
        "position_ids": np.arange(20), "masked_lm_positions": np.arange(20), "cls_positions": np.array([0]),
    }  # fmt: skip
    structure, _ = abstract_model(network.build)
    found, _ = nnx.merge(structure, params)({key: jnp.asarray(value)[None] for key, value in row.items()})
    close(found[0], neobert.logits(tensors, ids, 2), 1e-4)


def test_both_dialects_of_modernbert_are_one_network(modern):
    settings, _ = directory("modernbert", modern)
    _, model = read_config(settings, PATH, None)
    assert (model.global_attn_every_n_layers, model.local_attention) == (3, 128)
    assert (model.rope_theta, model.local_rope_theta) == (160_000.0, 10_000.0)
    hub = {key: value for key, value in settings.items() if key not in ("layer_types", "rope_parameters")}
    assert read_config(hub | HUB, PATH, None)[1] == model
    assert read_config(hub, PATH, None)[1] == model
    assert read_config(hub | HUB | {"local_rope_theta": None}, PATH, None)[1].local_rope_theta == 160_000.0
    everywhere = hub | HUB | {"global_attn_every_n_layers": 1}
    assert read_config(everywhere, PATH, None)[1].local_attention == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_attn_every_n_layers": 2}, "=2 contradicts layer_types, which have every 3"),
        (
            {"global_rope_theta": 1e4},
            "=10000.0 contradicts rope_parameters, which have 160000.0",
        ),
        ({"layer_types": ["sliding_attention"] * 5}, "is no pattern of one full_attention"),
        (
            {"mlp_bias": True},
            "attention_bias=False, mlp_bias=True, classifier_bias=False; a network",
        ),
        ({"hidden_activation": "relu"}, "hidden_activation='relu' is not one of gelu"),
        ({"norm_eps": "small"}, "norm_eps='small' is not a number of that kind"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "type 'yarn'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_read_are_named(modern, changes, message):
    settings, _ = directory("modernbert", modern)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        read_config(settings | changes, PATH, None)


def test_a_network_of_no_family_names_what_stands_in_the_way():
    assert family_of(ModelConfig()).model_type == "bert"
    message = "cannot be exported: model.norm='rms'; the nearest family, BERT, has 'layer'."
    assert exports_as(ModelConfig(norm="rms")) == message
    with pytest.raises(UserError, match=message):
        family_of(ModelConfig(norm="rms"))
    assert set(FAMILIES) == {"bert", "modernbert", "eurobert", "neobert"}


@pytest.mark.parametrize("name", ["modernbert", "eurobert", "neobert"])
def test_what_does_not_fit_is_listed(modern, name):
    settings, tensors = directory(name, modern)
    family, model = read_config(settings, PATH, None)
    network = Network(family, model, HEADS[PRETRAINING], 0)
    first, second, *_ = tensors
    wrong = {key: x for key, x in tensors.items() if key != first} | {
        second: np.zeros((2, 3)),
        "extra.x": np.zeros(1),
    }
    with pytest.raises(UserError) as error:
        to_params(wrong, network, PATH)
    for part_of_message in (f"{first} is missing", f"{second} is [2, 3] and must be", "extra.x is not known"):
        assert part_of_message in str(error.value)


def test_the_encoder_alone_is_read_by_its_bare_names(modern):
    settings, tensors = directory("modernbert", modern)
    family, model = read_config(settings, PATH, None)
    bare = {key.removeprefix("model."): x for key, x in tensors.items() if key.startswith("model.")}
    network = Network(family, model, HEADS[PRETRAINING], 0)
    params, initialised, _ = to_params(canonical(bare, family), network, PATH)
    assert initialised == ["masked_lm"]
    whole, _, _ = to_params(dict(tensors), network, PATH)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], whole["encoder"])
