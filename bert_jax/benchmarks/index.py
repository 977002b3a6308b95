"""Measures the index and the plan of an epoch of a very large split, which is made up."""

import pathlib
import re
import tempfile
import threading
import time
from typing import Any

import numpy as np

from bert_jax.benchmarks.measure import median_and_spread
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import FILES, LENGTH_DTYPE, START_DTYPE, Index
from bert_jax.data.batches import Batches
from bert_jax.report.text_table import text_table

DOCUMENTS, AT_ONCE = 100_000_000, 1_000_000
SENTENCES = 5  # of a document, the mean
SHAPES: dict[str, dict[str, Any]] = {
    "T=128": {"max_seq_length": 128},
    "T=512 packed": {"max_seq_length": 512, "max_sequences_per_row": 8, "second_objective": "none"},
}


class _Tokenizer:
    """The parts of a tokenizer that batches need."""

    pad_id, cls_id, sep_id, mask_id = 0, 2, 3, 4
    maskable = word_starts = np.ones(1000, bool)


class _Store:
    """A split whose documents are made when they are read."""

    def __init__(self, index: Index):
        self.index = index

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        starts = self.index.token_starts
        return [np.full(length, 7, np.uint16) for length in (starts[documents + 1] - starts[documents])]


class _AnonymousMemory(threading.Thread):
    """Samples this process's own memory while entered; the pages of mapped files are not counted."""

    def __enter__(self) -> "_AnonymousMemory":
        self.first = self.most = self._now()
        self.daemon, self._over = True, threading.Event()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> float:
        match = re.search(r"RssAnon:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
        return int(match[1]) / 1024 if match else 0.0


def measure(repeats: int) -> None:
    """Prints seconds to open the index and to the first batch, memory of the plan, and time of a row."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        _make(folder)
        start = time.perf_counter()
        index = Index.open(folder)
        seconds = time.perf_counter() - start
        print(
            f"{index.num_documents:,} documents, {index.num_sentences:,} sentences, "
            f"{index.num_tokens:,} tokens: opened in {seconds * 1e3:.1f} ms"
        )
        rows = [[name, *_measured(index, DataConfig(**shape), repeats)] for name, shape in SHAPES.items()]
    print(text_table(rows, ["batches of 256", "first batch, s", "plan, MiB", "a row, ms", "spread"]))


def _measured(index: Index, data: DataConfig, repeats: int) -> list[str]:
    with _AnonymousMemory() as memory:
        start = time.perf_counter()
        batches = Batches(_Store(index), data, _Tokenizer(), seed=0)
        batches(0)
        first = time.perf_counter() - start
    times = []
    for step in range(1, 1 + repeats):
        start = time.perf_counter()
        batches(step)
        times.append((time.perf_counter() - start) / data.global_batch_size * 1e3)
    return [f"{first:.1f}", f"{memory.most - memory.first:,.0f}", *median_and_spread(times)]


def _make(folder: pathlib.Path) -> None:
    """Writes an index of documents of random sentences."""
    rng, sentences, tokens = np.random.default_rng(0), 0, 0
    files = {field: (folder / f"{field}.bin").open("wb") for field in FILES}
    for field in ("sentence_starts", "token_starts"):
        files[field].write(np.zeros(1, START_DTYPE).tobytes())
    for _ in range(DOCUMENTS // AT_ONCE):
        counts = np.maximum(1, rng.poisson(SENTENCES, AT_ONCE))
        lengths = np.clip(rng.lognormal(3.0, 0.6, counts.sum()), 1, 500).astype(LENGTH_DTYPE)
        ends, sums = np.cumsum(counts), np.cumsum(lengths, dtype=START_DTYPE)
        files["sentence_lengths"].write(lengths.tobytes())
        files["sentence_starts"].write((sentences + ends).astype(START_DTYPE).tobytes())
        files["token_starts"].write((tokens + sums[ends - 1]).astype(START_DTYPE).tobytes())
        sentences, tokens = sentences + int(ends[-1]), tokens + int(sums[-1])
    for file in files.values():
        file.close()
