"""Measures steps of known networks on one GPU, beside those of Transformers, within some minutes.

Each measurement runs in a process of its own, which then ends: each has the whole memory of the device, and
what ends one ends no other.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from bert_jax import config as config_lib
from bert_jax.benchmarks import peer
from bert_jax.benchmarks.measure import COLUMNS, Steps, in_process, in_turns
from bert_jax.benchmarks.step import CompiledStep, described, shape
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.corpus.mixture import PreparedSources
from bert_jax.data.mixed_batches import phase_batches
from bert_jax.errors import UserError, out_of_memory
from bert_jax.report.text_table import text_table
from bert_jax.scaling.compile import program_without_data
from bert_jax.training.flops import peak_flops
from bert_jax.training.opening import first_device_mesh

VOCABULARY = 30_522  # pieces of the embedded tokenizer; a network with more words never sees the others
SMALL = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
SMALL_SIZES = (4, 2)


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        config: name of the shipped config with the network.
        tokens: T.
        sequences: S; 1: not packed.
        sizes: B to try, from large to small.
        mask_rate: of the published recipe.
    """

    config: str
    tokens: int
    sequences: int
    sizes: tuple[int, ...]
    mask_rate: float = 0.15


ROWS = {
    "large, T=512 packed": Row("bert_large", 512, 16, (128, 96, 64, 48, 32, 16, 8)),
    "large, T=128": Row("bert_large", 128, 1, (512, 384, 256, 192, 128, 64, 32)),
    "base, T=128": Row("bert_base", 128, 1, (1024, 768, 512, 384, 256, 128, 64)),
    "base, T=512 packed": Row("bert_base", 512, 16, (256, 192, 128, 96, 64, 32, 16)),
    "modernbert_base, T=1024 packed": Row("modernbert_base", 1024, 8, (128, 96, 64, 48, 32, 16, 8), 0.3),
}
Measurement = tuple[list[str], Steps]  # what was measured and the shape of its batch, and the figures


def measure(data_dir: str, repeats: int, python: str, limit: float, pattern: str) -> None:
    """Prints each measurement when it is there, and a table of all at the end.

    Args:
        data_dir: of prepared datasets.
        repeats: turns of each.
        python: a program with torch and transformers; without them our steps are measured alone.
        limit: seconds after which none is begun. Ours come first, then the peer's compiled steps, which are
            its fastest, then its eager ones.
        pattern: a regular expression; rows whose names match it are measured.

    Raises:
        UserError: if no name does.
    """
    rows = {name: row for name, row in ROWS.items() if re.search(pattern, name)}
    if not rows:
        raise UserError(f"--rows={pattern} matches none of {'; '.join(ROWS)}.")
    table = Table(time.monotonic() + limit)
    jax.config.update("jax_platforms", "cpu")  # of this process: the device is for those that it starts
    if "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ:
        os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", "0.9")
    platform, kind = in_process(device)
    small = platform != "gpu"
    print(f"{platform}: {kind}{'; small networks, to try the command: no figure means anything' * small}")
    try:
        peer.check_python(python)
    except UserError as error:
        print(f"without the peer: {error}")
        python = ""
    dataset = prepared(config_of(next(iter(rows.values())), small), data_dir)  # the same for all rows
    jobs = {name: Job(row, small, dataset, data_dir, repeats, python) for name, row in rows.items()}
    for name, job in jobs.items():
        table.add(name, "ours", job.ours)
    for mode in ("compiled", "eager") if python else ():
        for name, job in jobs.items():
            table.add(name, f"transformers: {mode}", functools.partial(job.theirs, mode, table.seconds_left))
    print(table)


class Table:
    """All measurements by the names of `ROWS`. One that fails or would be too late is a line, too.

    Args:
        end: by `time.monotonic`, after which no measurement begins.
    """

    def __init__(self, end: float):
        self._end = end
        self._lines: dict[str, list[list[str]]] = {name: [] for name in ROWS}
        self._ours: dict[str, float] = {}  # real tokens/s

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def add(self, name: str, who: str, measurement: Callable[[], Measurement]) -> None:
        """Takes and prints a measurement; that of "ours" is the first of its row."""
        try:
            if self.seconds_left <= 0:
                raise RuntimeError("no time left")
            cells, steps = measurement()
        except RuntimeError as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            self._lines[name].append([name, who, "not measured"])
            print(f"{name}, {who}: not measured: {problem}", flush=True)
            return
        ratio = f"{self._ours[name] / steps.rate:.2f}" if name in self._ours else ""
        if who == "ours":
            self._ours[name] = steps.rate
        self._lines[name].append([name, *cells, *steps.cells(), ratio])
        print(f"{name}, {cells[0]}: {steps.rate:,.0f} real tokens/s", flush=True)

    def __str__(self) -> str:
        lines = [line for lines in self._lines.values() for line in lines]
        return text_table(lines, ["", "", "rows × tokens", *COLUMNS, "ours / theirs"], left=3)


class Job:
    """The measurements of one row.

    Args:
        row: what is measured.
        small: whether there is no GPU.
        dataset: in `data_dir`.
        data_dir, repeats, python: as for `measure`.
    """

    def __init__(
        self, row: Row, small: bool, dataset: PreparedSources, data_dir: str, repeats: int, python: str
    ):
        self._config, self._sizes = config_of(row, small), SMALL_SIZES if small else row.sizes
        self._dataset, self._data_dir, self._repeats, self._python = dataset, data_dir, repeats, python
        self._device = "cpu" if small else "cuda"
        self._rows, self._peak = self._sizes[0], None  # their largest batch so far; FLOP/s of the device

    def ours(self) -> Measurement:
        """Measures our step with the largest batch that fits."""
        name, self._rows, self._peak, steps = in_process(
            ours, self._config, self._sizes, self._data_dir, self._repeats
        )
        return [f"ours: {name}", shape(sized(self._config, self._rows).data)], steps

    def theirs(self, mode: str, limit: float | None = None) -> Measurement:
        """Measures their step in bfloat16, with half our rows where so many do not fit, and so on.

        Raises:
            PeerError: if it does not run, or takes its first step later than in `limit` seconds.
        """
        tokenizer = self._dataset.tokenizer
        batch = batch_of(sized(self._config, self._rows), self._dataset)
        arrays = peer.one_sequence_a_row(batch, self._rows, tokenizer.pad_id)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            peer.write_folder(folder, self._config, tokenizer, arrays, self._device, shrinks=True)
            with contextlib.closing(peer.Worker(self._python, folder, "bfloat16", mode, limit)) as worker:
                (seconds,) = in_turns({mode: worker.run}, self._repeats).values()
        self._rows = worker.answer["rows"]
        steps = peer.measured(self._config.model, self._peak, arrays, seconds, worker.answer)
        return [f"transformers: bfloat16 {mode}", f"{self._rows}×{arrays['input_ids'].shape[1]}"], steps


def config_of(row: Row, small: bool) -> Config:
    """Returns the config of a row: its network with dropout 0.1, AdamW, embedded text and tokenizer."""
    _, values = config_lib.load_config(row.config)
    values.phases = ()
    values.model.update(hidden_dropout=0.1, **(SMALL if small else {}))
    values.data.update(
        source="corpus:",
        tokenizer="wordpiece:bert_uncased",
        lowercase=True,
        max_seq_length=row.tokens // 8 if small else row.tokens,
        max_sequences_per_row=row.sequences,
        mask_rate=row.mask_rate,
    )
    values.train.update(num_steps=1000, remat="none", gradient_accumulation_steps=1)
    return peer.comparable(config_lib.from_dict(values.to_dict(), Config)).config


def sized(config: Config, rows: int) -> Config:
    """Returns a config with batches of so many rows."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, global_batch_size=rows))


def prepared(config: Config, data_dir: str) -> PreparedSources:
    """Finds or builds the dataset."""
    return mixture.prepare(config.data, VOCABULARY, data_dir)


def batch_of(config: Config, dataset: PreparedSources) -> dict[str, np.ndarray]:
    """Returns the first batch."""
    (phase,) = config.phase_list()
    return phase_batches(dataset.stores("train"), dataset.tokenizer, phase)(0)


def device() -> tuple[str, str]:
    """Returns platform and kind of the first device."""
    first = jax.devices()[0]
    return first.platform, first.device_kind


def ours(
    config: Config, sizes: tuple[int, ...], data_dir: str, repeats: int
) -> tuple[str, int, float | None, Steps]:
    """Measures our step with the largest batch that fits.

    Returns:
        How it computes, the rows of the batch, the peak FLOP/s of the device, and the figures.

    Raises:
        RuntimeError: if none fits, or for another error of the device.
    """
    left, problem = list(sizes), ""
    while left:
        rows = left.pop(0)
        try:
            found = attempt(sized(config, rows), data_dir, repeats, is_last=not left)
        except jax.errors.JaxRuntimeError as error:
            problem = str(error).splitlines()[0]
            if not out_of_memory(error):
                break
            continue
        if not isinstance(found, float):
            return found
        left = [size for size in left if size <= rows * found] or left[-1:]
    raise RuntimeError(problem)  # JAX's own error cannot be sent to another process


def attempt(
    config: Config, data_dir: str, repeats: int, is_last: bool
) -> float | tuple[str, int, float | None, Steps]:
    """Compiles our step and runs it if it fits; if not, returns what share of the batch may fit.

    The last attempt runs in any case, since the compiler's figure is an estimate.
    """
    mesh = first_device_mesh()
    capacity = (mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit", math.inf)
    batch = batch_of(config, prepared(config, data_dir))
    with jax.set_mesh(mesh):
        program = program_without_data(config, mesh)
        step = CompiledStep(program, program.initial_state(program.random_params()), batch)
        if step.peak_bytes > capacity and not is_last:
            return capacity / step.peak_bytes
        (seconds,) = in_turns({"ours": step.run}, repeats).values()
        peak = peak_flops(mesh.devices.ravel().tolist())
        return described(program), config.data.global_batch_size, peak, step.measured(seconds)
