import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.training.config import OptimizerConfig
from bert_jax.training.mesh import path_name
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.schedules import make_schedule
from tests.tiny import Training, mesh_of


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Peak 0.8 after 4 steps of warm-up, 24 steps in all.
        ({"schedule": "linear"}, {0: 0.0, 1: 0.2, 3: 0.6, 4: 0.8, 14: 0.4, 24: 0.0, 30: 0.0}),
        ({"schedule": "linear", "final_learning_rate": 0.4}, {4: 0.8, 14: 0.6, 24: 0.4, 30: 0.4}),
        ({"schedule": "cosine"}, {2: 0.4, 4: 0.8, 9: 0.682842712, 14: 0.4, 24: 0.0, 30: 0.0}),
        ({"schedule": "cosine", "final_learning_rate": 0.2}, {4: 0.8, 14: 0.5, 24: 0.2, 30: 0.2}),
        ({"schedule": "rsqrt"}, {2: 0.4, 4: 0.8, 16: 0.4, 64: 0.2}),
        ({"schedule": "constant"}, {0: 0.0, 3: 0.6, 4: 0.8, 24: 0.8, 1000: 0.8}),
        ({"schedule": "linear", "warmup_steps": 0}, {0: 0.8, 12: 0.4, 24: 0.0}),
        ({"schedule": "cosine", "warmup_steps": 0}, {0: 0.8, 12: 0.4, 24: 0.0}),
        ({"schedule": "rsqrt", "warmup_steps": 0}, {0: 0.8, 3: 0.4, 15: 0.2}),
        ({"schedule": "constant", "warmup_steps": 0}, {0: 0.8, 24: 0.8}),
        ({"schedule": "linear", "warmup_steps": 24}, {12: 0.4, 23: 0.766666667}),
        ({"schedule": "linear", "warmup_steps": 48}, {12: 0.2, 24: 0.4}),
    ],
    ids=str,
)
def test_schedule(changes, expected):
    config = dataclasses.replace(OptimizerConfig(learning_rate=0.8, warmup_steps=4), **changes)
    schedule = make_schedule(config, num_steps=24)
    values = {step: float(schedule(step)) for step in expected}
    assert values == pytest.approx(expected, abs=1e-7)
    traced = jax.jit(schedule)
    assert {step: float(traced(jnp.int32(step))) for step in expected} == pytest.approx(expected, abs=1e-7)


@pytest.fixture(scope="module")
def params():
    """Random parameters of a small network, biases and LayerNorm too."""
    abstract = Training(mesh_of()).abstract.params
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), abstract)


def first_update(config, gradients, params):
    """What the first step adds at a learning rate of 0.1, and the optimizer's state."""
    optimizer = make_optimizer(config)
    updates, state = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradients, params)
    return jax.tree.map(lambda update: -0.1 * update, updates), state


def by_path(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_decay_leaves_layer_norm_and_biases_alone(params, name):
    """Without a gradient only decay is left, which LAMB makes as long as the weights."""
    config = OptimizerConfig(name=name, weight_decay=0.5)
    updates, _ = first_update(config, jax.tree.map(np.zeros_like, params), params)
    decayed = {path for path, update in by_path(updates).items() if np.any(update)}
    untouched = by_path(updates).keys() - decayed
    assert all(path.endswith(("/kernel", "/embedding")) for path in decayed)
    assert all(path.endswith(("bias", "norm/scale")) for path in untouched)
    assert len(decayed) == 6 + 3 + 3  # of the layers; embeddings; pooler, transform, next sentence
    scale = {"adamw": -0.1 * 0.5, "lamb": -0.1}[name]
    for path in decayed:
        np.testing.assert_allclose(by_path(updates)[path], scale * by_path(params)[path], rtol=1e-5)


def test_lamb_of_stacked_layers_is_lamb_of_each_layer(params):
    """The same weights, as one stack and as layers of their own that `optax.lamb` knows how to treat."""
    layers = params["encoder"]["layers"]
    spread = np.float32([1, 10])  # norms that differ from layer to layer
    layers = jax.tree.map(lambda x: x * spread.reshape(-1, *[1] * (x.ndim - 1)), layers)
    gradients = jax.tree.map(lambda x: np.cos(17 * x), layers)
    config = OptimizerConfig(name="lamb", weight_decay=0.01, clip_norm=0.0)
    stacked = {"encoder": {"layers": layers}}
    updates, _ = first_update(config, {"encoder": {"layers": gradients}}, stacked)

    reference = optax.lamb(0.1, config.beta1, config.beta2, config.epsilon, weight_decay=0.01)
    for number in range(2):
        weights, gradient, update = (
            {k: v[number] for k, v in by_path(x).items() if k.endswith("kernel")}
            for x in (layers, gradients, updates["encoder"]["layers"])
        )
        expected, _ = jax.jit(reference.update)(gradient, reference.init(weights), weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), update, expected)


def test_lamb_does_not_scale_layer_norm_and_biases(params):
    gradients = jax.tree.map(lambda x: np.cos(x), params)
    adamw, lamb = (
        by_path(first_update(OptimizerConfig(name=name), gradients, params)[0]) for name in ("adamw", "lamb")
    )
    for path, update in lamb.items():
        same = np.allclose(update, adamw[path], rtol=1e-6)
        assert same == (not path.endswith(("kernel", "embedding"))), path


def test_trust_ratio_of_zero_weights_or_zero_updates_is_one():
    params = {"pooler": {"kernel": jnp.zeros((2, 2))}, "classifier": {"kernel": jnp.ones((2, 2))}}
    gradients = {"pooler": {"kernel": jnp.ones((2, 2))}, "classifier": {"kernel": jnp.zeros((2, 2))}}
    config = OptimizerConfig(name="lamb", weight_decay=0.0, clip_norm=0.0)
    updates, _ = first_update(config, gradients, params)
    np.testing.assert_allclose(updates["pooler"]["kernel"], -0.1, rtol=1e-5)  # Adam's first step: length 1
    np.testing.assert_array_equal(updates["classifier"]["kernel"], 0.0)


@pytest.mark.parametrize(("clip_norm", "scale"), [(1.0, 1 / 5), (10.0, 1.0), (0.0, 1.0)])
def test_clipping_by_the_norm_of_all_gradients(clip_norm, scale):
    params = {"pooler": {"kernel": jnp.zeros((2, 1)), "bias": jnp.zeros(1)}}
    gradients = {"pooler": {"kernel": jnp.array([[3.0], [0.0]]), "bias": jnp.array([4.0])}}  # norm 5
    _, state = first_update(OptimizerConfig(clip_norm=clip_norm), gradients, params)
    (adam,) = [part for part in state if isinstance(part, optax.ScaleByAdamState)]
    np.testing.assert_allclose(adam.mu["pooler"]["kernel"], [[0.1 * 3 * scale], [0.0]], rtol=1e-6)
    np.testing.assert_allclose(adam.mu["pooler"]["bias"], [0.1 * 4 * scale], rtol=1e-6)


def test_the_state_is_laid_out_as_in_the_checkpoints_there_are():
    """A part more or less, and the runs of all users could not go on: make it depend on a new setting."""
    state = make_optimizer(OptimizerConfig()).init({"pooler": {"kernel": jnp.zeros((2, 2))}})
    assert [type(part).__name__ for part in state] == [
        "EmptyState", "ScaleByAdamState", "MaskedState", "EmptyState"
    ]  # fmt: skip
    assert by_path(state).keys() == {"1/count", "1/mu/pooler/kernel", "1/nu/pooler/kernel"}


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_layers_below_learn_more_slowly(params, name):
    """Heads and pooler at the full rate; of two layers the upper at a half, the lower at a quarter."""
    gradients = jax.tree.map(lambda x: np.cos(17 * x), params)
    config = OptimizerConfig(name=name)
    plain, decayed = (
        by_path(first_update(dataclasses.replace(config, layer_decay=decay), gradients, params)[0])
        for decay in (1.0, 0.5)
    )
    for path, update in plain.items():
        if path.startswith("encoder/layers/"):
            scale = np.array([0.25, 0.5]).reshape(-1, *[1] * (update.ndim - 1))
        else:
            scale = 0.125 if path.startswith("encoder/embeddings/") else 1.0
        np.testing.assert_allclose(decayed[path], scale * update, rtol=1e-6, err_msg=path)


def test_lamb_gathers_nothing_where_weights_are_split():
    """Its norms are a number for each layer, whatever the axis that is split."""
    training = Training(mesh_of(fsdp=8), optimizer=OptimizerConfig(name="lamb"))
    params, state = training.abstract.params, training.abstract.opt_state
    with jax.set_mesh(training.mesh):
        program = jax.jit(training.optimizer.update).lower(params, state, params).compile().as_text()
    assert "all-reduce(" in program
    assert "all-gather(" not in program
