"""Measures the training step."""

import statistics
import time

import jax
import numpy as np

from bert_jax.benchmarks.measure import repeated
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.model.objectives import Batch
from bert_jax.report.text_table import text_table
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.mesh import make_mesh, to_global
from bert_jax.training.program import Program
from bert_jax.training.step import TrainState


def measure(config: Config, data_dir: str, repeats: int) -> None:
    """Measures the compiled training step of each phase on a real batch, without input."""
    dataset = mixture.prepare(config.data, config.model.vocab_size, data_dir)
    task, mesh = Pretraining(config, dataset), make_mesh(config.mesh)
    whole, rows = Program(config, task.objective, mesh), []
    with jax.set_mesh(mesh):
        state = whole.initial_state(whole.random_params())
        for phase in config.phase_list():
            program, data = whole.of_phase(phase, task.objective_of(phase)), phase.config.data
            batch = to_global(mesh, next(iter(task.batches(phase, 0, program.rows))))
            state, measured = _measured_step(program, state, batch, repeats)
            shape = f"{data.global_batch_size}×{data.max_seq_length} {data.objective}"
            rows.append([shape, *measured])
    header = ["rows × tokens", "ms", "spread", "real tokens/s", "arguments MiB", "temporaries MiB"]
    print(text_table(rows, header))


def _measured_step(
    program: Program, state: TrainState, batch: Batch, repeats: int
) -> tuple[TrainState, list[str]]:
    """Compiles and runs a step; returns the last state, and time, spread, speed and memory as text."""
    compiled = program.train_step.lower(state, batch, program.key).compile()
    tokens = int((np.asarray(batch["sequence_ids"]) > 0).sum())

    def seconds_of_a_step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state, batch, program.key)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    seconds = repeated(seconds_of_a_step, 4 * repeats)
    memory, median = compiled.memory_analysis(), statistics.median(seconds)
    return state, [
        f"{median * 1e3:.1f}",
        f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}",
        f"{tokens / median:,.0f}",
        f"{memory.argument_size_in_bytes / 2**20:.1f}",
        f"{memory.temp_size_in_bytes / 2**20:.1f}",
    ]
