"""Tests run on eight virtual CPU devices, so that every mesh can be tried; what XLA compiled is kept.

All by environment variables, so that the commands which tests start do the same.
"""

import importlib.metadata
import logging
import os
import pathlib
import signal
import sys

import pytest

assert "jax" not in sys.modules, "jax reads these variables when it is imported: too late to set them"
COMPILED = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Small arrays: compiling takes far longer than what better code would save.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
if importlib.metadata.version("jax").startswith("0.10."):  # later ones have no such flag
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# A script starts background commands (`make test &`) with SIGINT ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_of_commands():
    """Takes back what commands in this process, also in fixtures of several tests, have set of the log."""
    log = logging.getLogger("bert_jax")

    def take_back():
        log.handlers, log.propagate = [], True
        log.setLevel(logging.NOTSET)

    take_back()
    yield
    take_back()
