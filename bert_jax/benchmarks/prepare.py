"""Measures the `prepare` command, for text in each kind of file."""

import dataclasses
import functools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil

from bert_jax.benchmarks import containers
from bert_jax.benchmarks.measure import PeakMemory, config_file, median_and_spread
from bert_jax.config import Config
from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus.config import OPTIONS_OF_TRAINED, DataConfig
from bert_jax.corpus.sources import read_text
from bert_jax.errors import UserError
from bert_jax.report.text_table import text_table

TOKENIZERS = ("sentencepiece", "wordpiece")
WORDPIECE, WORDPIECES = "wordpiece:bert_uncased", 30522
COLUMNS = ("source", "tokenizer", "MB/s and core", "spread", "cores fed", "MiB, small", "MiB, large")


class Run(NamedTuple):
    """What one `prepare` took."""

    seconds: float
    first_seconds: float  # of processor time, of the process that reads and writes
    peak_mib: float  # of the largest process, resident


def measure(config: Config, repeats: int, rows: str, copies: int) -> None:
    """Prints speed and memory of `prepare` on the embedded corpus and on `copies` of it, in each container.

    The rate is that of the additional copies: it leaves out start-up and tokenizer training, which do not
    grow with the corpus. "Cores fed" is how many cores could encode before the one process that reads and
    writes is busy all the time.

    Args:
        config: gives SentencePiece's size, and how text is cleaned; its own text and vocabulary are not read.
        repeats: of each row.
        rows: a regular expression; rows ("text, wordpiece") with such names are measured.
        copies: of the embedded corpus in the larger one.

    Raises:
        UserError: if no row has such a name.
    """
    names = [f"{name}, {key}" for name in containers.WRITERS for key in TOKENIZERS]
    if not any(re.search(rows, name) for name in names):
        raise UserError(f"--rows={rows}: no row has such a name; there are: {'; '.join(names)}.")
    texts = ["\n".join(document) for document in read_text("corpus:")]
    with tempfile.TemporaryDirectory() as folder:
        kind = "bpe" if config.data.tokenizer == "bpe" else "unigram"
        ours = _changed(config, "corpus:", kind)
        trained = dataset_lib.prepare(ours.data, ours.model.vocab_size, folder)
        model = trained.directory / "tokenizer" / "sentencepiece.model"
        tokenizers = dict(zip(TOKENIZERS, (f"sentencepiece:{model}", WORDPIECE), strict=True))
        found = []
        for name, write in containers.WRITERS.items():
            chosen = {key: x for key, x in tokenizers.items() if re.search(rows, f"{name}, {key}")}
            if chosen:
                found += _rows(name, write, texts, chosen, config, repeats, copies)
    size = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{size:.1f} MB of text, and {size * copies:,.1f} MB")
    print(text_table(found, COLUMNS))


def _rows(
    name: str,
    write: Callable[[containers.Texts, pathlib.Path], str],
    texts: list[str],
    tokenizers: dict[str, str],
    config: Config,
    repeats: int,
    copies: int,
) -> list[list[str]]:
    """Returns a row for each tokenizer."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        for count in (1, copies):
            place = pathlib.Path(folder, str(count))
            place.mkdir()
            sources[count] = write(functools.partial(_copies, texts, count), place)
        added = (copies - 1) * sum(len(text.encode()) for text in texts) / 1e6
        for key, tokenizer in tokenizers.items():
            configs = [_changed(config, sources[count], tokenizer) for count in (1, copies)]
            pairs = [[_prepare(each) for each in configs] for _ in range(repeats)]
            cores = os.cpu_count() or 1
            rates = [added / (large.seconds - small.seconds) / cores for small, large in pairs]
            fed = [
                cores * (large.seconds - small.seconds) / (large.first_seconds - small.first_seconds)
                for small, large in pairs
            ]
            memory = [f"{max(run.peak_mib for run in size):.0f}" for size in zip(*pairs, strict=True)]
            rows.append([name, key, *median_and_spread(rates), f"{statistics.median(fed):.0f}", *memory])
    return rows


def _copies(texts: list[str], count: int):
    """Yields the documents of all copies, which differ in a word: equal ones would be held out together."""
    for number in range(count):
        for text in texts:
            yield f"copy {number} {text}"


def _changed(config: Config, source: str, tokenizer: str) -> Config:
    """Returns the config for one of our texts, without what belongs to its own text and tokenizer."""
    options = {name: getattr(DataConfig, name) for name in ("text_field", "language", *OPTIONS_OF_TRAINED)}
    data = dataclasses.replace(config.data, source=source, tokenizer=tokenizer, **options)
    size = WORDPIECES if tokenizer == WORDPIECE else config.model.vocab_size
    model = dataclasses.replace(config.model, vocab_size=size)
    return dataclasses.replace(config, data=data, model=model, phases=())


def _prepare(config: Config) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [f"--config={config_file(config, folder)}", f"--data_dir={folder}/data"]
        start = time.perf_counter()
        command_line = [sys.executable, "-m", "bert_jax.prepare", *arguments]
        process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        processes = _Processes(process.pid)
        with PeakMemory(processes.largest) as peak:
            _, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{' '.join(command_line)} failed:\n{errors.decode()}")
        return Run(time.perf_counter() - start, processes.seconds, peak.bytes / 2**20)


class _Processes:
    """The processes of a command, as `PeakMemory` looks at them.

    Attributes:
        seconds: processor time of the first process so far.
    """

    def __init__(self, pid: int):
        self._first, self.seconds = psutil.Process(pid), 0.0

    def largest(self) -> int:
        """Returns the resident bytes of the largest process; notes the time of the first."""
        self.seconds = sum(self._first.cpu_times()[:2])
        processes = [self._first, *self._first.children(recursive=True)]
        return max(each.memory_info().rss for each in processes)
