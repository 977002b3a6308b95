"""A larger network from a smaller one's weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.growing import centred, grow, smaller_sizes
from bert_jax.training.step import abstract_model
from tests.tiny import EURO, MODEL, MODERN, Training, mesh_of, random_batch

TWICE = {"hidden_size": 32, "num_attention_heads": 8, "intermediate_size": 64}
NETWORKS = {
    "bert": ({}, TWICE),
    "modern": (MODERN, TWICE),
    "euro": (EURO, TWICE | {"num_key_value_heads": 4}),
}


def numbered(model):
    """Parameters that are all different, in the order of their paths."""
    _, abstract = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
    leaves, structure = jax.tree.flatten(abstract)
    first = np.cumsum([0, *(leaf.size for leaf in leaves)])
    arrays = [np.arange(n, n + leaf.size).reshape(leaf.shape) for n, leaf in zip(first, leaves, strict=False)]
    return jax.tree.unflatten(structure, arrays)


def random(model, seed=0):
    return nnx.to_pure_dict(nnx.state(BertForPreTraining(model, nnx.Rngs(seed))))


def logits(model, params, batch):
    structure, _ = nnx.split(BertForPreTraining(model, nnx.Rngs(0)))
    return nnx.merge(structure, params)(batch)[0]


def sources_of(small, large, **arrays):
    """Grows stated arrays of the layers only: {"intermediate/bias": array}."""
    tree: dict = {}
    for path, array in arrays.items():
        *modules, name = path.split("/")
        place = tree
        for module in modules:
            place = place.setdefault(module, {})
        place[name] = jnp.asarray(array)
    grown = grow({"encoder": {"layers": tree, "embeddings": {}}}, small, large)
    return jax.tree.map(np.ndarray.tolist, jax.device_get(grown["encoder"]["layers"]))


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [
        (2, 4, [1, 0, 1, 0]),
        (3, 5, [2, 0, 1, 2, 0]),
        (3, 8, [1, 2, 0, 1, 2, 0, 1, 2]),
        (4, 7, [3, 0, 1, 2, 3, 0, 1]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_the_smaller_lies_in_the_centre_and_repeats_to_both_sides(small, large, expected):
    assert centred(small, large).tolist() == expected


SMALL = ModelConfig(
    num_hidden_layers=1, hidden_size=4, num_attention_heads=2, intermediate_size=3, feed_forward="gated"
)


def test_heads_are_tiled_by_number_and_their_features_by_size():
    query = {"attention/query/bias": [[0, 1, 10, 11]]}
    more = dataclasses.replace(SMALL, hidden_size=8, num_attention_heads=4)
    assert sources_of(SMALL, more, **query)["attention"]["query"]["bias"] == [[10, 11, 0, 1, 10, 11, 0, 1]]
    wider = dataclasses.replace(SMALL, hidden_size=8, num_attention_heads=2)
    assert sources_of(SMALL, wider, **query)["attention"]["query"]["bias"] == [[1, 0, 1, 0, 11, 10, 11, 10]]


def test_heads_keep_the_keys_that_they_share():
    small = dataclasses.replace(SMALL, num_attention_heads=4, num_key_value_heads=2)
    large = dataclasses.replace(SMALL, hidden_size=9, num_attention_heads=9, num_key_value_heads=3)
    arrays = {"attention/query/bias": [[0, 1, 10, 11]], "attention/key/bias": [[0, 10]]}
    grown = sources_of(small, large, **arrays)["attention"]
    assert grown["key"]["bias"] == [[0, 10, 0]]
    assert grown["query"]["bias"] == [[0, 1, 0, 10, 11, 10, 0, 1, 0]]


def test_features_that_are_turned_together_stay_pairs():
    small = dataclasses.replace(SMALL, hidden_size=10, positions="rotary", num_attention_heads=1)
    small = dataclasses.replace(small, rotary_share=0.8)  # pairs 0 4, 1 5, 2 6, 3 7; 8 and 9 are not turned
    large = dataclasses.replace(small, hidden_size=15)
    bias = sources_of(small, large, **{"attention/key/bias": [list(range(10))]})["attention"]["key"]["bias"]
    assert bias == [[3, 0, 1, 2, 3, 0, 7, 4, 5, 6, 7, 4, 8, 9, 8]]


def test_rows_and_columns_and_both_halves_of_a_gated_block():
    large = dataclasses.replace(SMALL, hidden_size=6, num_attention_heads=3, intermediate_size=4)
    kernel = np.arange(12).reshape(1, 4, 3)
    arrays = {"intermediate/kernel": kernel, "gate/kernel": 100 + kernel, "output/kernel": [kernel[0].T]}
    grown = sources_of(SMALL, large, **arrays)
    expected = [[9, 10, 11, 9], [0, 1, 2, 0], [3, 4, 5, 3], [6, 7, 8, 6], [9, 10, 11, 9], [0, 1, 2, 0]]
    assert grown["intermediate"]["kernel"] == [expected]
    assert grown["gate"]["kernel"] == [(100 + np.array(expected)).tolist()]
    assert grown["output"]["kernel"] == [np.array(expected).T.tolist()]


@pytest.mark.parametrize(
    ("every", "small", "large", "expected"),
    [
        (1, 2, 4, [0, 0, 1, 1]),
        (1, 3, 5, [0, 0, 1, 1, 2]),
        # Groups of a global layer and two local ones, which the last one lacks.
        (3, 4, 8, [0, 1, 2, 0, 1, 2, 3, 1]),
        (3, 5, 7, [0, 1, 2, 3, 4, 2, 3]),
        # ModernBERT-base and -large
        (3, 22, 28, [0, 1, 2, 0, 1, 2, *range(3, 15), 12, 13, 14, *range(15, 22)]),
        (3, 1, 4, [0, 0, 0, 0]),
        (3, 2, 4, [0, 1, 1, 0]),
    ],
)
def test_layers_are_repeated_by_groups_and_keep_their_kind(every, small, large, expected):
    window = {"local_attention": 8, "global_attn_every_n_layers": every} if every > 1 else {}
    small, large = (dataclasses.replace(SMALL, num_hidden_layers=n, **window) for n in (small, large))
    arrays = {"intermediate/bias": np.arange(small.num_hidden_layers)[:, None].repeat(3, 1)}
    assert [row[0] for row in sources_of(small, large, **arrays)["intermediate"]["bias"]] == expected


@pytest.mark.parametrize(
    ("position", "expected"), [("after", [0, 0, 1, 1]), ("before", [-1, 0, 0, 1])], ids=str
)
def test_a_norm_goes_with_the_layer_that_reads_it(position, expected):
    """Before the first layer it is that of the embeddings, here -1. The layers come from 0, 0, 1 and 1."""
    small, large = (dataclasses.replace(SMALL, num_hidden_layers=n, norm_position=position) for n in (2, 4))
    scales = {"output_norm": {"scale": jnp.arange(2)[:, None].repeat(4, 1)}}
    params = {"encoder": {"layers": scales, "embeddings": {"norm": {"scale": -jnp.ones(4, int)}}}}
    grown = grow(params, small, large)["encoder"]
    assert grown["layers"]["output_norm"]["scale"][:, 0].tolist() == expected
    assert grown["embeddings"]["norm"]["scale"].tolist() == [-1] * 4


def test_embeddings_keep_their_words_and_positions_begin_again():
    large = dataclasses.replace(MODEL, hidden_size=20, max_position_embeddings=40)
    params = numbered(MODEL)
    grown = grow(params, MODEL, large)["encoder"]["embeddings"]
    columns, embeddings = [14, 15, *range(16), 0, 1], params["encoder"]["embeddings"]
    np.testing.assert_array_equal(grown["token"]["embedding"], embeddings["token"]["embedding"][:, columns])
    positions = embeddings["position"]["embedding"][[*range(32), *range(8)]]
    np.testing.assert_array_equal(grown["position"]["embedding"], positions[:, columns])


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_of_the_larger_network_is_made_and_equal_shapes_are_copied(kind):
    changes, twice = NETWORKS[kind]
    small = dataclasses.replace(MODEL, **changes)
    large = dataclasses.replace(small, **twice, num_hidden_layers=7, max_position_embeddings=64)
    _, abstract = abstract_model(lambda rngs: BertForPreTraining(large, rngs))
    grown = grow(numbered(small), small, large)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, abstract)
    jax.tree.map(np.testing.assert_array_equal, grow(numbered(small), small, small), numbered(small))


@pytest.mark.parametrize("kind", NETWORKS)
def test_twice_the_width_computes_what_doubled_kernels_compute(kind):
    """Every kernel reads its inputs twice; norms of repeated states are repeated norms."""
    changes, twice = NETWORKS[kind]
    small = dataclasses.replace(MODEL, initializer_range=0.1, **changes)
    large, params, batch = dataclasses.replace(small, **twice), random(small), random_batch(0, 2)
    doubled = jax.tree_util.tree_map_with_path(lambda p, x: 2 * x if p[-1].key == "kernel" else x, params)

    def states(model, params):
        structure, _ = nnx.split(BertForPreTraining(model, nnx.Rngs(0)))
        with jax.default_matmul_precision("highest"):
            return nnx.merge(structure, params).encoder(batch)

    expected, grown = states(small, doubled), states(large, grow(params, small, large))
    np.testing.assert_allclose(grown, expected[..., centred(16, 32)], atol=1e-5)


@pytest.mark.parametrize("kind", ["modern", "euro"])
def test_a_larger_network_computes_what_the_smaller_one_did(kind):
    """In width, number of heads and depth; and what it adds at first adds nothing later only by chance."""
    changes, twice = NETWORKS[kind]
    small = dataclasses.replace(MODEL, initializer_range=0.1, **changes)
    large = dataclasses.replace(small, **twice, num_hidden_layers=8, max_position_embeddings=64)
    params, batch = random(small), random_batch(0, 2)
    grown = grow(params, small, large, "preserve")
    with jax.default_matmul_precision("highest"):
        expected, there = logits(small, params, batch), logits(large, grown, batch)
    np.testing.assert_allclose(there, expected, atol=1e-5)
    output = grown["encoder"]["layers"]["output"]["kernel"]
    assert np.sum(~np.any(output, axis=(1, 2))) == 8 - small.num_hidden_layers


def test_a_wider_bert_computes_what_the_smaller_one_did():
    small = dataclasses.replace(MODEL, initializer_range=0.1)
    large = dataclasses.replace(small, **TWICE)
    params, batch = random(small), random_batch(0, 2)
    with jax.default_matmul_precision("highest"):
        there = logits(large, grow(params, small, large, "preserve"), batch)
        np.testing.assert_allclose(there, logits(small, params, batch), atol=1e-5)


def test_larger_heads_have_the_same_scores():
    small = dataclasses.replace(MODEL, initializer_range=0.1)
    large = dataclasses.replace(small, hidden_size=32)
    params, batch = random(small), random_batch(0, 2)
    with jax.default_matmul_precision("highest"):
        there = logits(large, grow(params, small, large, "preserve"), batch)
        np.testing.assert_allclose(there, logits(small, params, batch), atol=1e-5)


WIDER = {"hidden_size": 24, "num_attention_heads": 6, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("kind", "sizes", "growth"),
    [
        ("bert", {"num_hidden_layers": 3}, "tile"),
        ("bert", {"num_hidden_layers": 3}, "preserve"),
        ("modern", WIDER | {"num_hidden_layers": 6}, "preserve"),
    ],
)
def test_a_grown_network_knows_what_the_smaller_one_has_learned(kind, sizes, growth):
    mesh, batch = mesh_of(), random_batch(0, 8)
    small = Training(mesh, **NETWORKS[kind][0])
    large = dataclasses.replace(small.config, **sizes)
    state = small.initial_state()
    for _ in range(60):
        state, _ = small.train_step(state, batch, jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def loss(model, params):
        structure, _ = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
        terms, _ = small.objective.evaluate(nnx.merge(structure, params), batch)
        total, weight = terms["mlm_loss"]
        return total / weight

    grown = loss(large, grow(state.params, small.config, large, growth))
    assert grown < loss(large, random(large)) - 1
    if growth == "preserve":
        assert abs(grown - loss(small.config, state.params)) < 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, "model.num_hidden_layers is 2 there and 1 here"),
        (
            {"hidden_size": 12},
            "model.hidden_size is 16 there and 12 here; the size of a head is 4 there and 3",
        ),
        ({"num_attention_heads": 8}, "the size of a head is 4 there and 2 here"),
        ({"num_attention_heads": 2}, "the number of heads of keys and values is 4 there and 2 here"),
        ({"num_key_value_heads": 2}, "the number of heads of keys and values is 4 there and 2 here"),
        ({"intermediate_size": 31}, "model.intermediate_size is 32 there and 31 here"),
        ({"max_position_embeddings": 8}, "model.max_position_embeddings is 32 there and 8 here"),
    ],
)
def test_what_is_smaller_is_named(changes, message):
    assert message in "; ".join(smaller_sizes(MODEL, dataclasses.replace(MODEL, **changes)))


def test_nothing_is_smaller_in_a_network_of_the_same_size():
    assert smaller_sizes(MODEL, MODEL) == []
    shared = dataclasses.replace(MODEL, num_key_value_heads=2)
    assert smaller_sizes(shared, dataclasses.replace(MODEL, num_key_value_heads=4)) == [
        "the number of heads that share one of them is 2 there and 1 here"
    ]
    rotary = dataclasses.replace(MODEL, positions="rotary", num_attention_heads=1, rotary_share=0.97)
    assert smaller_sizes(rotary, dataclasses.replace(rotary, hidden_size=64)) == [
        "the number of its features that positions do not turn is 0 there and 2 here"
    ]
