import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _highest_precision() -> Iterator[None]:
    """GPUs and TPUs multiply float32 matrices in less than float32 unless told."""
    with jax.default_matmul_precision("highest"):
        yield


def _load(name: str) -> dict[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).with_name(name)) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def huggingface() -> dict[str, np.ndarray]:
    """See make_huggingface.py for the keys."""
    return _load("huggingface.npz")


@pytest.fixture(scope="session")
def optimizer_reference() -> dict[str, np.ndarray]:
    """See make_optimizer.py for the keys."""
    return _load("optimizer.npz")


@pytest.fixture(scope="session")
def modern() -> dict[str, np.ndarray]:
    """See make_modern.py for the keys."""
    return _load("modern.npz")
