"""Computes the batches of a run whose text is a mixture, and says what they were made of."""

import functools
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.specs import parse
from bert_jax.data.batches import Batches
from bert_jax.data.epoch_plan import Sequences
from bert_jax.data.mixture import Turns

STEPS_AT_ONCE = 8  # whose rows are found together


class Origin(NamedTuple):
    """Where a row is from."""

    source: int
    epoch: int  # of the source
    row: int  # of the epoch


class MixedBatches:
    """The batches of a mixture: every row is a row of one source, as `Batches` of that source compute it.

    So NotNext sentences and the sequences of a packed row are of one source.

    Args:
        sources: of each source, all with the same sizes and rates.
        shares: of each source in the rows; their sum is 1.
        batch_size: B.
    """

    def __init__(self, sources: Sequence[Batches], shares: Sequence[Fraction], batch_size: int):
        self.sources, self.turns, self._batch_size = sources, Turns(shares), batch_size
        self._lock, self._steps_from = threading.Lock(), functools.lru_cache(4)(self._find)

    def __call__(self, step: int, rows: slice | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Computes the batch of a step, or some of its rows, as `Batches.__call__`."""
        rows = np.arange(self._batch_size)[slice(None) if rows is None else rows]
        first_step = step - step % STEPS_AT_ONCE
        with self._lock:  # so that no two threads find the same sequences
            found = self._steps_from(first_step, rows.tobytes())
        edges = len(rows) * (step - first_step + np.arange(2))
        keys, parts, tokens = np.empty(len(rows), np.uint64), [], []
        for source, places, sequences, row_keys in found:
            mine, inside = (slice(*np.searchsorted(where, edges)) for where in (places, sequences.row))
            keys[places[mine] - edges[0]] = row_keys[mine]
            if inside.start < inside.stop:
                parts.append(Sequences(*(values[inside] for values in sequences)))
                tokens.append(self.sources[source].tokens(parts[-1]))
        sequences = Sequences(*map(np.concatenate, zip(*parts, strict=True)))
        sequences = sequences._replace(row=sequences.row - edges[0])
        # Masks depend on the row's key alone, so that those of all sources are made together.
        return self.sources[0].masked(sequences, np.concatenate(tokens), keys, step)

    def _find(self, first_step: int, rows: bytes) -> list[tuple[int, np.ndarray, Sequences, np.ndarray]]:
        """Finds the rows of STEPS_AT_ONCE steps at once, which takes little longer than those of one.

        Returns:
            For each source that has some: its number, the places of its rows among the rows of all these
            steps, ascending; their sequences, which have these places as rows; and their keys.
        """
        steps = first_step + np.arange(STEPS_AT_ONCE)
        numbers = np.add.outer(steps * self._batch_size, np.frombuffer(rows, np.int64)).ravel()
        sources, numbers = self.turns(numbers)
        found = []
        for source in np.unique(sources).tolist():
            (places,) = np.nonzero(sources == source)
            sequences, keys = self.sources[source].sequences(numbers[places])
            order = np.argsort(sequences.row, kind="stable")
            sequences = Sequences(*(values[order] for values in sequences))
            found.append((source, places, sequences._replace(row=places[sequences.row]), keys))
        return found

    def rows_per_epoch(self) -> int:
        """Returns the rows of the first epochs of all sources that have a share."""
        counts = self.turns.counts.tolist()
        return sum(one.rows_per_epoch() for one, n in zip(self.sources, counts, strict=True) if n)

    def origins(self, step: int) -> list[Origin]:
        """Returns where each row of the batch of a step is from."""
        found = self.turns(step * self._batch_size + np.arange(self._batch_size))
        return [
            Origin(source, *self.sources[source].origin(number))
            for source, number in zip(*(values.tolist() for values in found), strict=True)
        ]


def make_batches(
    stores: Sequence[Any], shares: Sequence[Fraction], data: DataConfig, tokenizer, seed: int,
    num_steps: int = 1, first_rows: Sequence[int] | None = None,
) -> Batches | MixedBatches:  # fmt: skip
    """Returns the batches of one source, or of a mixture.

    Args:
        stores: a split of each source.
        shares: of each source in the rows; their sum is 1.
        data, tokenizer, seed, num_steps: as for `Batches`; each source has a seed of its own, made from this.
        first_rows: of each source, see `Batches`; default: 0.
    """
    # Seeds of configs are below 2^32.
    sources = [
        Batches(store, data, tokenizer, seed + (number << 32), num_steps, first_row)
        for number, (store, first_row) in enumerate(zip(stores, first_rows or [0] * len(stores), strict=True))
    ]
    return sources[0] if len(sources) == 1 else MixedBatches(sources, shares, data.global_batch_size)


def phase_batches(stores: Sequence[Any], tokenizer, phase) -> Batches | MixedBatches:
    """Returns the batches of a phase of a run (see `bert_jax.training.phases`), by the number of its step.

    A source goes on with its rows behind those of the phases before that cut and pack the text alike.
    """
    config = phase.config
    before = [Turns(_shares(same)).seen(same.num_rows) for same in phase.same]
    first_rows = np.sum(before, axis=0).tolist() if before else None
    return make_batches(
        stores, _shares(phase), config.data, tokenizer, config.train.seed, phase.num_steps, first_rows
    )


def exposure(
    names: Sequence[str], phases: Sequence[Any], batches: Callable[[Any], Any], step: int
) -> dict[str, float]:
    """Returns how much of each source the first `step` steps hold, by counting.

    Args:
        names: of the sources.
        phases: of the run.
        batches: phase -> its `MixedBatches`.
        step: steps done; those that a rollback has skipped count, too.

    Returns:
        For each source `share_NAME` and `token_share_NAME`, its share of the rows and of the real tokens
        since the phase began, and `epochs_NAME`, how often the whole run has seen it.
    """
    begun = [phase for phase in phases if phase.first_step < step]
    rows, tokens = np.zeros((2, len(names)))
    epochs = np.zeros(len(names))
    for phase in begun:
        mixed, steps = batches(phase), min(step, phase.last_step) - phase.first_step
        rows = mixed.turns.seen(steps * phase.config.data.global_batch_size)
        seen = [one.seen(n) for one, n in zip(mixed.sources, rows.tolist(), strict=True)]
        tokens, until = np.array(seen).T
        # The epochs of a phase begin where those of an earlier one end that cuts and packs the text alike.
        if not any(phase.index in {same.index for same in later.same} for later in begun):
            epochs += until
    return {
        f"{what}_{name}": round(value, 6)
        for what, values in (
            ("share", rows / max(rows.sum(), 1)),
            ("token_share", tokens / max(tokens.sum(), 1)),
            ("epochs", epochs),
        )
        for name, value in zip(names, values.tolist(), strict=True)
    }


def _shares(phase: Any) -> Sequence[Fraction]:
    return parse(phase.config.data.source).weights
