"""Measures the three matrix products of a dense layer's update: forward, and the two of the backward pass."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.benchmarks.measure import in_turns
from bert_jax.config import Config
from bert_jax.model.layers import row_major
from bert_jax.report.text_table import text_table

DTYPES = ("float32", "bfloat16")


class Form(NamedTuple):
    """A product of two of x [tokens, in], w [in, out] and g [tokens, out]."""

    left: str
    right: str
    compute: Callable[[jax.Array, jax.Array], jax.Array]


FORMS = {
    "x @ w": Form("x", "w", jnp.dot),
    "g @ w.T, transposed": Form("g", "w", lambda g, w: g @ w.T),
    "g @ w.T, contracted": Form("g", "w", functools.partial(jnp.tensordot, axes=((1,), (1,)))),
    "x.T @ g, transposed": Form("x", "g", lambda x, g: x.T @ g),
    "x.T @ g, contracted": Form("x", "g", functools.partial(jnp.tensordot, axes=((0,), (0,)))),
    "x.T @ g, behind a barrier": Form("x", "g", lambda x, g: jax.lax.optimization_barrier(x.T) @ g),
    "x.T @ g, transposed in memory": Form("x", "g", lambda x, g: row_major(x.T) @ g),
}


def measure(config: Config, repeats: int) -> None:
    """Prints the rate of each product for the feed-forward layer and the batch of the last phase."""
    data, model = config.phase_list()[-1].config.data, config.model
    T, D, F = data.global_batch_size * data.max_seq_length, model.hidden_size, model.intermediate_size
    runs = {f"{form} {dtype}": product(FORMS[form], dtype, T, D, F) for form in FORMS for dtype in DTYPES}
    seconds = in_turns(runs, repeats)
    rates = {name: 2e-9 * math.prod((T, D, F)) / statistics.median(each) for name, each in seconds.items()}
    rows = [[form, *(f"{rates[f'{form} {dtype}']:.0f}" for dtype in DTYPES)] for form in FORMS]
    print(f"GFLOP/s of products of {T:,} tokens and {D} × {F} weights, JAX {jax.__version__}")
    print(text_table(rows, ["", *DTYPES]))


def product(form: Form, dtype: str, tokens: int, features: int, outputs: int) -> Callable[[int], float]:
    """Returns a function that computes a product so many times, and returns the mean seconds."""
    shapes = {"x": (tokens, features), "w": (features, outputs), "g": (tokens, outputs)}
    left, right = (jnp.ones(shapes[name], dtype) for name in (form.left, form.right))
    compute = jax.jit(form.compute)

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            result = compute(left, right)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / times

    return run
