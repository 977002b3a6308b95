"""What holds for every optimizer: the result depends on neither mesh nor accumulation; the state is saved.

A step against a reference is tested in tests/parity/test_optimizer.py. In float64, as in test_step.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.partition import path_name, rule_of
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.config import OptimizerConfig
from bert_jax.training.mesh import CONSTANTS, to_global
from bert_jax.training.optimizer import RULES
from tests.tiny import Training, mesh_of, random_batch

STEPS, ROWS, TOLERANCE = 4, 16, 1e-9
pytestmark = pytest.mark.parametrize("name", RULES)


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def training_on(name, axes, **options):
    optimizer = OptimizerConfig(
        name=name, weight_decay=0.1, weight_decay_mode="decoupled", learning_rate=0.01
    )
    return Training(mesh_of(**axes), dtype=jnp.float64, hidden_dropout=0.1, optimizer=optimizer, **options)


def steps(training, state, numbers):
    with jax.set_mesh(training.mesh):
        for number in numbers:
            batch = to_global(training.mesh, random_batch(number, ROWS))
            state, _ = training.train_step(state, batch, jax.random.key(7))
    return state


@functools.cache
def on_one_device(name):
    training = training_on(name, {"data": 1})
    return training, jax.device_get(steps(training, training.initial_state(), range(STEPS)))


def assert_close(state, expected):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE),
        jax.device_get(state),
        expected,
    )


@pytest.mark.parametrize(
    ("axes", "accumulation_steps"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 1),
        pytest.param({"data": 1}, 4, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, 2, marks=[pytest.mark.slow, pytest.mark.variant]),
    ],
    ids=str,
)
def test_mesh_and_accumulation_change_nothing(name, axes, accumulation_steps):
    training = training_on(name, axes, accumulation_steps=accumulation_steps)
    state = steps(training, training.initial_state(), range(STEPS))
    assert training.train_step._cache_size() == 1
    assert_close(state, on_one_device(name)[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        if leaf.ndim and not path_name(path).endswith(CONSTANTS):
            assert leaf.sharding.spec == rule_of(path_name(path)).axes, path_name(path)


def test_a_saved_state_goes_on_as_it_would_have(name, tmp_path):
    """So does a run that rolls back: both restore a checkpoint and train on."""
    training, expected = on_one_device(name)
    checkpoints = Checkpoints(tmp_path, {}, keep_last=3, keep_every=0)
    state = steps(training, training.initial_state(), range(2))
    checkpoints.save(state, {})
    steps(training, state, [2])  # what is then lost
    restored, _ = checkpoints.restore_newest(training.abstract)
    checkpoints.close()
    again = steps(training, restored, range(2, STEPS))
    for x, y in zip(jax.tree.leaves(jax.device_get(again)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_it_learns(name):
    training, _ = on_one_device(name)
    with jax.set_mesh(training.mesh):
        state, losses = training.initial_state(), []
        for _ in range(12):
            batch = to_global(training.mesh, random_batch(0, ROWS))
            state, metrics = training.train_step(state, batch, jax.random.key(7))
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
