"""Every optimizer against plain numpy, on given gradients (see make_optimizer.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax.training.config import OptimizerConfig
from bert_jax.training.optimizer import RULES, make_optimizer
from tests.parity.names import to_params

LAYERS = 3


@pytest.mark.parametrize("name", RULES)
def test_steps_on_given_gradients(optimizer_reference, name):
    reference = optimizer_reference

    def read(prefix, leading):
        arrays = {k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)}
        return to_params(arrays, LAYERS, leading)

    params = jax.tree.map(jnp.asarray, read("weights/", 0))
    gradients, expected = read("gradients/", 1), read(f"{name}/", 1)
    config = OptimizerConfig(name=name, **json.loads(str(reference["hyperparameters"])))
    optimizer = make_optimizer(config)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        updates = jax.tree.map(lambda update: -config.learning_rate * update, updates)
        return optax.apply_updates(params, updates), state

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    for step in range(jax.tree.leaves(gradients)[0].shape[0]):
        gradient, after = jax.tree.map(lambda x, step=step: x[step], (gradients, expected))
        params, state = update(params, state, gradient)
        jax.tree.map(close, params, after)
