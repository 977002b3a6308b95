"""Measures the training step."""

import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from bert_jax.benchmarks.measure import COLUMNS, Steps, in_turns
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.corpus.config import DataConfig
from bert_jax.report.text_table import text_table
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.memory import room_for
from bert_jax.training.mesh import make_mesh, to_global
from bert_jax.training.program import Program
from bert_jax.training.step import TrainState


class CompiledStep:
    """A compiled training step that takes the same batch again and again.

    Attributes:
        state: after the steps so far.
        loss: of the last step, before its update.
        counts: real `tokens`, `attended` tokens and `predictions` of the batch.
    """

    def __init__(self, program: Program, state: TrainState, batch: dict[str, np.ndarray]):
        self.program, self.state = program, state
        self._batch = to_global(program.mesh, batch)
        self._compiled = program.train_step.lower(state, self._batch, program.key).compile()
        self.loss, self.counts = 0.0, dict.fromkeys(("tokens", "attended", "predictions"), 0.0)

    def run(self, steps: int) -> float:
        """Takes some steps; returns the mean seconds of one."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, metrics = self._compiled(self.state, self._batch, self.program.key)
        jax.block_until_ready((self.state, metrics))
        seconds = (time.perf_counter() - start) / steps
        self.loss, self.counts = float(metrics["loss"]), {name: float(metrics[name]) for name in self.counts}
        return seconds

    def measured(self, seconds: list[float]) -> Steps:
        """Returns what was measured, once it has run."""
        ideal = self.program.ideal_seconds
        return Steps(seconds, int(self.counts["tokens"]), ideal and ideal(**self.counts), self.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Memory of state, batch and temporaries, by the compiler."""
        sizes: Any = self._compiled.memory_analysis()
        new = sizes.output_size_in_bytes - sizes.alias_size_in_bytes  # the rest takes the old state's place
        return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes + max(new, 0)


def measure(config: Config, data_dir: str, repeats: int) -> None:
    """Measures the compiled training step of each phase on a real batch, without input."""
    rows: list[list[str]] = []
    try:
        rows.extend(_measured(config, data_dir, repeats))
    finally:
        if rows:  # also where the step of a later phase does not fit
            print(text_table(rows, ["rows × tokens", "step", *COLUMNS], left=2))


def _measured(config: Config, data_dir: str, repeats: int) -> Iterator[list[str]]:
    dataset = mixture.prepare(config.data, config.model.vocab_size, data_dir)
    task, mesh = Pretraining(config, dataset), make_mesh(config.mesh)
    whole = Program(config, task.objective, mesh)
    with jax.set_mesh(mesh):
        with room_for(config):
            state = whole.initial_state(whole.random_params())
        for phase in config.phase_list():
            with room_for(phase.config):
                program = whole.of_phase(phase, task.objective_of(phase))
                step = CompiledStep(program, state, next(iter(task.batches(phase, 0, program.rows))))
                (seconds,) = in_turns({"step": step.run}, repeats).values()
            state = step.state
            yield [shape(phase.config.data), described(program), *step.measured(seconds).cells()]


def shape(data: DataConfig) -> str:
    """Returns the shape of a batch as text: `256×512 packed`."""
    packed = " packed" if data.max_sequences_per_row > 1 else ""
    return f"{data.global_batch_size}×{data.max_seq_length}{packed}"


def described(program: Program) -> str:
    """Returns what a step minimises and how it computes: `masked, float32, plain attention`."""
    return f"{program.config.data.objective}, {program.compute}"
