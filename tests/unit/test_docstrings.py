import doctest
import importlib

import numpy as np
import pytest


@pytest.mark.parametrize(
    "name",
    [
        *("corpus.index", "corpus.sentences", "corpus.sources.tfds"),
        *("data.batch", "data.epoch_plan", "data.masking"),
    ],
)
def test_the_examples_of_docstrings_are_true(name, tmp_path):
    module = importlib.import_module(f"bert_jax.{name}")
    result = doctest.testmod(module, extraglobs={"np": np, "directory": tmp_path})
    assert result.attempted > 0
    assert result.failed == 0
