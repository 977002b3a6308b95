"""The products that are measured are those that their names say."""

import jax
import numpy as np
import pytest

from bert_jax.benchmarks import products
from bert_jax.config import Config, from_dict, load_config


@pytest.mark.parametrize("name", products.FORMS)
def test_a_form_is_the_product_of_its_name(name):
    rng = np.random.default_rng(0)
    shapes = {"x": (6, 3), "w": (3, 4), "g": (6, 4)}
    arrays = {key: rng.integers(-3, 4, shape).astype(np.float32) for key, shape in shapes.items()}
    form = products.FORMS[name]
    expected = eval(name.partition(",")[0], {}, arrays)
    found = jax.jit(form.compute)(arrays[form.left], arrays[form.right])
    np.testing.assert_array_equal(found, expected)


def test_all_forms_are_measured_in_both_precisions(monkeypatch, capsys):
    """A product of 2,048 tokens and 128 × 512 weights is 0.27 GFLOP: in a millisecond, 268 GFLOP/s."""
    monkeypatch.setattr(products, "in_turns", lambda runs, repeats: dict.fromkeys(runs, [1e-3] * repeats))
    _, values = load_config("bert_tiny")
    products.measure(from_dict(values.to_dict(), Config), repeats=3)
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("GFLOP/s of products of 2,048 tokens and 128 × 512 weights, JAX ")
    assert header.split() == ["float32", "bfloat16"]
    assert [row.split()[-2:] for row in rows] == [["268", "268"]] * len(products.FORMS)
