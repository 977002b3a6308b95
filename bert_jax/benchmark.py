"""Measure preparation, input, training step or checkpoints on this machine; print medians and spreads.

    python -m bert_jax.benchmark --config=bert_tiny --what=prepare
    python -m bert_jax.benchmark --config=bert_tiny --what=input
    python -m bert_jax.benchmark --config=bert_tiny --what=step
    python -m bert_jax.benchmark --config=bert_base --what=checkpoint

Run nothing else on the machine meanwhile.
"""

import contextlib
import dataclasses
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import psutil
from absl import flags

from bert_jax import command
from bert_jax.config import Config
from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus import mixture
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import DocumentStore
from bert_jax.corpus.index import Index
from bert_jax.corpus.sources import read_text
from bert_jax.data.epoch_plan import EpochPlan
from bert_jax.data.mixed_batches import make_batches
from bert_jax.model.objectives import Batch
from bert_jax.report.text_table import text_table
from bert_jax.scaling.compile import program_without_data
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.mesh import make_mesh, to_global
from bert_jax.training.program import Program
from bert_jax.training.step import TrainState

command.define_config_flags(data_dir=True)
WHAT = flags.DEFINE_enum("what", "step", ["prepare", "input", "step", "checkpoint"], "What to measure.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each row of the table.")

PLANNED_SEQUENCES = 16_000_000


def main() -> None:
    config = command.resolved_config()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} × {jax.device_count()}")
    {"prepare": prepare, "input": inputs, "step": step, "checkpoint": checkpoint}[WHAT.value](config)


def prepare(config: Config) -> None:
    """Measures speed and memory of the `prepare` command on the embedded corpus and on ten copies of it.

    The rate is that of the nine additional copies: it leaves out start-up and tokenizer training, which do
    not grow with the corpus.
    """
    text = "\n\n".join("\n".join(document) for document in read_text("corpus:"))
    megabytes = len(text.encode()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, 10):
            # Copies of a document differ in a word: equal ones would be held out or dropped together.
            copy = [text.replace("\n\n", f"\n\ncopy {number} ") for number in range(copies)]
            pathlib.Path(folder, f"{copies}.txt").write_text("\n\n".join(copy), encoding="utf-8")
        trained = dataset_lib.prepare(config.data, config.model.vocab_size, folder)
        model = trained.directory / "tokenizer" / "sentencepiece.model"
        rows = []
        sizes = {f"sentencepiece:{model}": config.model.vocab_size, "wordpiece:bert_uncased": 30522}
        for name, vocab_size in sizes.items():
            rates, peaks = [], {}
            for repeat in range(REPEATS.value):
                seconds = {}
                for copies in (1, 10):
                    arguments = [
                        f"--config.data.source=text:{folder}/{copies}.txt",
                        f"--config.data.tokenizer={name}",
                        f"--config.model.vocab_size={vocab_size}",
                        f"--data_dir={folder}/{vocab_size}-{copies}-{repeat}",
                    ]
                    seconds[copies], peaks[copies] = _run("bert_jax.prepare", arguments)
                rates.append(9 * megabytes / (seconds[10] - seconds[1]) / (os.cpu_count() or 1))
            memory = (f"{peaks[copies]:.0f}" for copies in (1, 10))
            rows.append([name.split(":")[0], *_median_and_spread(rates), *memory])
    print(text_table(rows, ["tokenizer", "MB/s and core", "spread", "peak MiB, 1×", "10×"]))


def inputs(config: Config) -> None:
    """Measures batches of 256 rows made by one thread (real tokens/s, fill), and a large epoch's plan.

    Two sources are every second document of the first source of the config, and the others.
    """
    shapes: dict[str, dict[str, Any]] = {
        "T=128": {"max_seq_length": 128, "max_sequences_per_row": 1, "masking": "token"},
        "T=128 packed": {"max_seq_length": 128, "max_sequences_per_row": 8, "masking": "whole_word"},
        "T=512 packed": {"max_seq_length": 512, "max_sequences_per_row": 16, "masking": "whole_word"},
    }
    prepared = mixture.prepare(config.data, config.model.vocab_size, flags.FLAGS.data_dir)
    store, rows = prepared.stores("train")[0], []
    sources: dict[int, list[Any]] = {1: [store], 2: [_EverySecond(store, 0), _EverySecond(store, 1)]}
    for name, shape in shapes.items():
        data = dataclasses.replace(config.data, **shape, global_batch_size=256, mask_rate=0.15)
        made = {
            count: make_batches(
                stores, [Fraction(1, count)] * count, data, prepared.tokenizer, config.train.seed
            )
            for count, stores in sources.items()
        }
        rates: dict[int, list[float]] = {count: [] for count in made}
        for repeat in range(REPEATS.value + 1):  # in turns, so that both have the same machine
            for count, batches in made.items():
                rate, fill, not_next = _rate_of_batches(batches)
                if repeat:
                    rates[count].append(rate)
                if repeat == REPEATS.value:
                    shares = f"{fill:.2%}", f"{not_next:.1%}"
                    rows.append([name, str(count), *_median_and_spread(rates[count]), *shares])
    print(text_table(rows, ["batches", "sources", "M real tokens/s", "spread", "fill", "NotNext"]))
    _plan_of_an_epoch()


class _EverySecond:
    """The documents 0, 2, … or 1, 3, … of a split, as a source of its own."""

    def __init__(self, store: DocumentStore, first: int):
        self._store, self._first = store, first
        counts = np.diff(store.index.sentence_starts)
        mine = np.arange(len(counts)) % 2 == first
        lengths = store.index.sentence_lengths[np.repeat(mine, counts)]
        self.index = Index.from_lengths(lengths, counts[mine])

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        return self._store.read(2 * documents + self._first)


def _rate_of_batches(batches: Callable[[int], dict[str, np.ndarray]]) -> tuple[float, float, float]:
    """Returns millions of real tokens per second, their share of all, and that of NotNext, of 20 batches."""
    start = time.perf_counter()
    made = [batches(number) for number in range(20)]
    seconds = time.perf_counter() - start
    real = np.concatenate([batch["sequence_ids"] > 0 for batch in made])
    not_next = sum(batch["next_sentence_labels"].sum() for batch in made)
    pairs = sum(batch["next_sentence_weights"].sum() for batch in made)
    return real.sum() / seconds / 1e6, real.mean(), not_next / max(pairs, 1)


def _plan_of_an_epoch() -> None:
    """Measures time and memory to plan 16 M packed sequences of a synthetic index, and to find a row."""
    rng = np.random.default_rng(0)
    documents = PLANNED_SEQUENCES // 5
    sentences = np.maximum(1, rng.poisson(22, documents))
    lengths = np.clip(rng.lognormal(3.0, 0.6, sentences.sum()), 1, 500).astype(np.int64)
    index = Index.from_lengths(lengths, sentences)
    del lengths, sentences
    data = DataConfig(max_sequences_per_row=8)
    process = psutil.Process()
    before = process.memory_info().rss
    with _PeakMemory(process) as peak:
        start = time.perf_counter()
        plan = EpochPlan(index, data, 0, 0)
        seconds = time.perf_counter() - start
    rows = rng.integers(0, plan.num_rows, 4096)

    def measure() -> float:
        start = time.perf_counter()
        plan.rows(rows)
        return (time.perf_counter() - start) / len(rows) * 1e6

    median, spread = _median_and_spread(_repeated(measure))
    print(
        f"plan of {plan.num_sequences:,} sequences, {plan.num_rows:,} rows: {seconds:.1f} s, "
        f"{(peak.bytes - before) / 2**20:.0f} MiB; a row: {median} µs ({spread})"
    )


def step(config: Config) -> None:
    """Measures the compiled training step of each phase on a real batch, without input."""
    dataset = mixture.prepare(config.data, config.model.vocab_size, flags.FLAGS.data_dir)
    task, mesh = Pretraining(config, dataset), make_mesh(config.mesh)
    whole, rows = Program(config, task.objective, mesh), []
    with jax.set_mesh(mesh):
        state = whole.initial_state(whole.random_params())
        for phase in config.phase_list():
            program, data = whole.of_phase(phase, task.objective_of(phase)), phase.config.data
            batch = to_global(mesh, next(iter(task.batches(phase, 0, program.rows))))
            state, measured = _measured_step(program, state, batch)
            shape = f"{data.global_batch_size}×{data.max_seq_length} {data.objective}"
            rows.append([shape, *measured])
    header = ["rows × tokens", "ms", "spread", "real tokens/s", "arguments MiB", "temporaries MiB"]
    print(text_table(rows, header))


def _measured_step(program: Program, state: TrainState, batch: Batch) -> tuple[TrainState, list[str]]:
    """Compiles and runs a step; returns the last state, and time, spread, speed and memory as text."""
    compiled = program.train_step.lower(state, batch, program.key).compile()
    tokens = int((np.asarray(batch["sequence_ids"]) > 0).sum())

    def measure() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = compiled(state, batch, program.key)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    seconds = _repeated(measure, times=4)
    memory, median = compiled.memory_analysis(), statistics.median(seconds)
    return state, [
        f"{median * 1e3:.1f}",
        f"{min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f}",
        f"{tokens / median:,.0f}",
        f"{memory.argument_size_in_bytes / 2**20:.1f}",
        f"{memory.temp_size_in_bytes / 2**20:.1f}",
    ]


def checkpoint(config: Config) -> None:
    """Measures how long a save blocks training, how long it takes to complete, and how long to restore."""
    program = program_without_data(config, make_mesh(config.mesh))
    abstract, state = program.abstract, program.initial_state(program.random_params())
    blocked, saved, restored = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        checkpoints = Checkpoints(folder, {}, 1, 0)
        for number in range(REPEATS.value + 1):
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
    rows = [[name, *_median_and_spread(seconds[1:])] for name, seconds in measured.items()]
    print(text_table(rows, ["checkpoint", "seconds", "spread"]))


def _run(module: str, arguments: list[str]) -> tuple[float, float]:
    """Runs a bert_jax command; returns its wall seconds and the peak MiB of all its processes together."""
    start = time.perf_counter()
    command_line = [sys.executable, "-m", module, f"--config={command.config_argument()}", *arguments]
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with _PeakMemory(psutil.Process(process.pid)) as peak:
        _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command_line)} failed:\n{errors.decode()}")
    return time.perf_counter() - start, peak.bytes / 2**20


class _PeakMemory(threading.Thread):
    """Samples the resident memory of a process and its children while entered, and keeps the maximum."""

    def __init__(self, process: psutil.Process):
        super().__init__(daemon=True)
        self._process, self._over, self.bytes = process, threading.Event(), 0

    def __enter__(self) -> "_PeakMemory":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [self._process, *self._process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(process.memory_info().rss for process in family))


def _repeated(measure: Callable[[], float], times: int = 1) -> list[float]:
    """Measures `times` for each repetition, after a first time that does not count."""
    measure()
    return [measure() for _ in range(times * REPEATS.value)]


def _median_and_spread(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f}", f"{min(values):.1f} to {max(values):.1f}"


if __name__ == "__main__":
    command.run(main)
