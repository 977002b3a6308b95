"""Measures the index and the plan of an epoch of a very large split, which is made up."""

import tempfile
import time
from typing import Any

import numpy as np

from bert_jax.benchmarks.measure import PeakMemory, anonymous, in_process, median_and_spread
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import LENGTH_DTYPE, Index, IndexWriter
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


def measure(repeats: int) -> None:
    """Prints seconds to open the index and to the first batch, memory of the plan, and time of a row.

    Each is measured in a process of its own, which has no memory left over from others.
    """
    with tempfile.TemporaryDirectory() as folder:
        in_process(_make, folder)
        start = time.perf_counter()
        index = Index.open(folder)
        seconds = time.perf_counter() - start
        print(
            f"{index.num_documents:,} documents, {index.num_sentences:,} sentences, "
            f"{index.num_tokens:,} tokens: opened in {seconds * 1e3:.1f} ms"
        )
        rows = [[name, *in_process(_measured, folder, shape, repeats)] for name, shape in SHAPES.items()]
    print(text_table(rows, ["batches of 256", "first batch, s", "plan, MiB", "a row, ms", "spread"]))


def _measured(folder: str, shape: dict[str, Any], repeats: int) -> list[str]:
    data = DataConfig(**shape)
    with PeakMemory(anonymous) as memory:
        start = time.perf_counter()
        batches = Batches(_Store(Index.open(folder)), data, _Tokenizer(), seed=0)
        batches(0)
        first = time.perf_counter() - start
    times = []
    for step in range(1, 1 + repeats):
        start = time.perf_counter()
        batches(step)
        times.append((time.perf_counter() - start) / data.global_batch_size * 1e3)
    return [f"{first:.1f}", f"{(memory.bytes - memory.first) / 2**20:,.0f}", *median_and_spread(times)]


def _make(folder: str) -> None:
    """Writes an index of documents of random sentences."""
    rng = np.random.default_rng(0)
    with IndexWriter(folder) as writer:
        for _ in range(DOCUMENTS // AT_ONCE):
            counts = np.maximum(1, rng.poisson(SENTENCES, AT_ONCE))
            writer.add(np.clip(rng.lognormal(3.0, 0.6, counts.sum()), 1, 500).astype(LENGTH_DTYPE), counts)
