import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.losses import accuracy, cross_entropy
from bert_jax.training.step import means

LOG2, LOG3 = np.log(2.0), np.log(3.0)
LOGITS = jnp.array([[0.0, 0.0, LOG2], [LOG3, 0.0, 0.0], [0.0, 0.0, 0.0]])  # softmax: 1/4 1/4 1/2; 3/5 1/5 1/5
LABELS = jnp.array([2, 1, 0])


@pytest.mark.parametrize(
    ("weights", "total", "weight"),
    [
        ([1.0, 1.0, 1.0], np.log(2 * 5 * 3), 3.0),
        ([1.0, 0.0, 0.0], LOG2, 1.0),
        ([0.0, 2.0, 0.5], 2 * np.log(5) + 0.5 * LOG3, 2.5),
        ([0.0, 0.0, 0.0], 0.0, 0.0),
    ],
)
def test_cross_entropy(weights, total, weight):
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS, jnp.array(weights)), (total, weight), rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "total", "weight"),
    [
        ([1.0, 1.0, 0.0], 1.0, 2.0),
        ([0.5, 1.0, 2.0], 2.5, 3.5),  # three that tie are predictions of each
        ([0.0, 0.0, 0.0], 0.0, 0.0),
    ],
)
def test_accuracy(weights, total, weight):
    np.testing.assert_allclose(accuracy(LOGITS, LABELS, jnp.array(weights)), (total, weight))


def test_any_leading_axes_and_large_logits():
    rng = np.random.default_rng(0)
    logits = rng.uniform(-200, 200, (2, 3, 7)).astype(np.float32)
    labels, weights = rng.integers(0, 7, (2, 3)), rng.uniform(size=(2, 3)).astype(np.float32)
    chosen = np.take_along_axis(logits.astype(float), labels[..., None], -1)[..., 0]
    expected = np.logaddexp.reduce(logits.astype(float), -1) - chosen
    total, weight = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(weights))
    np.testing.assert_allclose(total, (expected * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(weight, weights.sum(), rtol=1e-6)


def test_slots_without_weight_have_no_gradient_and_the_others_that_of_the_softmax():
    weights = jnp.array([1.0, 0.0, 2.0])
    gradient = jax.grad(lambda logits: cross_entropy(logits, LABELS, weights)[0])(LOGITS)
    expected = [[1 / 4, 1 / 4, -1 / 2], [0, 0, 0], [2 * (1 / 3 - 1), 2 / 3, 2 / 3]]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_mean_of_nothing_is_zero():
    terms = {"mlm_loss": (jnp.float32(6.0), jnp.float32(4.0)), "nsp_loss": (jnp.float32(0), jnp.float32(0))}
    assert {name: float(mean) for name, mean in means(terms).items()} == {"mlm_loss": 1.5, "nsp_loss": 0.0}
