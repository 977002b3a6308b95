"""Measures how fast batches are made."""

import dataclasses
import functools
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import psutil

from bert_jax.benchmarks.measure import PeakMemory, median_and_spread, repeated, resident
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import DocumentStore
from bert_jax.corpus.index import Index
from bert_jax.data.epoch_plan import EpochPlan
from bert_jax.data.mixed_batches import make_batches
from bert_jax.report.text_table import text_table

PLANNED_SEQUENCES = 16_000_000


def measure(config: Config, data_dir: str, repeats: int) -> None:
    """Measures batches of 256 rows made by one thread (real tokens/s, fill), and a large epoch's plan.

    Two sources are every second document of the first source of the config, and the others.
    """
    shapes: dict[str, dict[str, Any]] = {
        "T=128": {"max_seq_length": 128, "max_sequences_per_row": 1, "masking": "token"},
        "T=128 packed": {"max_seq_length": 128, "max_sequences_per_row": 8, "masking": "whole_word"},
        "T=512 packed": {"max_seq_length": 512, "max_sequences_per_row": 16, "masking": "whole_word"},
    }
    prepared = mixture.prepare(config.data, config.model.vocab_size, data_dir)
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
        for repeat in range(repeats + 1):  # in turns, so that both have the same machine
            for count, batches in made.items():
                rate, fill, not_next = _rate_of_batches(batches)
                if repeat:
                    rates[count].append(rate)
                if repeat == repeats:
                    shares = f"{fill:.2%}", f"{not_next:.1%}"
                    rows.append([name, str(count), *median_and_spread(rates[count]), *shares])
    print(text_table(rows, ["batches", "sources", "M real tokens/s", "spread", "fill", "NotNext"]))
    _plan_of_an_epoch(repeats)


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


def _plan_of_an_epoch(repeats: int) -> None:
    """Measures time and memory to plan 16 M packed sequences of a synthetic index, and to find a row."""
    rng = np.random.default_rng(0)
    documents = PLANNED_SEQUENCES // 5
    sentences = np.maximum(1, rng.poisson(22, documents))
    lengths = np.clip(rng.lognormal(3.0, 0.6, sentences.sum()), 1, 500).astype(np.int64)
    index = Index.from_lengths(lengths, sentences)
    del lengths, sentences
    data = DataConfig(max_sequences_per_row=8)
    with PeakMemory(functools.partial(resident, psutil.Process())) as peak:
        start = time.perf_counter()
        plan = EpochPlan(index, data, 0, 0)
        seconds = time.perf_counter() - start
    rows = rng.integers(0, plan.num_rows, 4096)

    def seconds_of_a_row() -> float:
        start = time.perf_counter()
        plan.rows(rows)
        return (time.perf_counter() - start) / len(rows) * 1e6

    median, spread = median_and_spread(repeated(seconds_of_a_row, repeats))
    print(
        f"plan of {plan.num_sequences:,} sequences, {plan.num_rows:,} rows: {seconds:.1f} s, "
        f"{(peak.bytes - peak.first) / 2**20:.0f} MiB; a row: {median} µs ({spread})"
    )
