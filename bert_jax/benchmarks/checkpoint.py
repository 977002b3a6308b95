"""Measures saving and restoring."""

import tempfile
import time

import jax
import numpy as np

from bert_jax.benchmarks.measure import median_and_spread
from bert_jax.config import Config
from bert_jax.report.text_table import text_table
from bert_jax.scaling.compile import program_without_data
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.mesh import make_mesh


def measure(config: Config, repeats: int) -> None:
    """Measures how long a save blocks training, how long it takes to complete, and how long to restore."""
    program = program_without_data(config, make_mesh(config.mesh))
    abstract, state = program.abstract, program.initial_state(program.random_params())
    blocked, saved, restored = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = Checkpoints(folder, {}, 1, 0)
        for number in range(repeats + 1):
            state = state.replace(step=jax.device_put(np.int32(number), abstract.step.sharding))
            start = time.perf_counter()
            checkpoints.save(state, {})
            blocked.append(time.perf_counter() - start)
            checkpoints.wait()
            saved.append(time.perf_counter() - start)
            start = time.perf_counter()
            jax.block_until_ready(checkpoints.restore_newest(abstract))
            restored.append(time.perf_counter() - start)
        checkpoints.close()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**20
    print(
        f"checkpoint of {size:,.0f} MiB; the first save, which compiles the fingerprints: {blocked[0]:.2f} s"
    )
    measured = {"save blocks": blocked, "save is complete": saved, "restore": restored}
    rows = [[name, *median_and_spread(seconds[1:])] for name, seconds in measured.items()]
    print(text_table(rows, ["checkpoint", "seconds", "spread"]))
