"""From the number of a row of the run to its source and its epoch: by counting, without state."""

import bisect
import functools
import heapq
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

LONGEST_PERIOD = 1 << 16  # rows after which the order of the sources repeats
log = logging.getLogger("bert_jax")


class Turns:
    """Which source each row of a mixture is from.

    After any number of rows each source has had its share of them to within less than one row.

    Args:
        shares: of the sources in the rows; their sum is 1.

    Attributes:
        counts: int64 [sources], rows of each source in a period.

    Three of four rows are from the first source; row 5 is its row number 4, and row 6 the other's number 1:

    >>> turns = Turns([Fraction(3, 4), Fraction(1, 4)])
    >>> for values in turns(np.arange(8)):
    ...     print(values)
    [0 0 1 0 0 0 1 0]
    [0 1 0 2 3 4 1 5]
    """

    def __init__(self, shares: Sequence[Fraction]):
        self.counts, self._order, self._ranks = _period(tuple(shares))

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the source of each row, and the number of the row among all rows of that source.

        Args:
            rows: ints [R], from 0, in any order.

        Returns:
            Two int64 arrays [R].
        """
        periods, places = np.divmod(rows, len(self._order))
        sources = self._order[places]
        return sources, periods * self.counts[sources] + self._ranks[places]

    def seen(self, rows: int) -> np.ndarray:
        """Counts the rows of each source among the first `rows` ones: int64 [sources]."""
        periods, rest = divmod(rows, len(self._order))
        return periods * self.counts + np.bincount(self._order[:rest], minlength=len(self.counts))


@functools.lru_cache(64)
def _period(shares: tuple[Fraction, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows of each source in a period, the source of each row, and its rank in that source."""
    counts = _counts(shares)
    order = np.array(list(_chairmen(counts)), np.int64)
    ranks = np.empty_like(order)
    for source, count in enumerate(counts):
        ranks[order == source] = np.arange(count)
    return np.array(counts, np.int64), order, ranks


def _counts(shares: Sequence[Fraction]) -> list[int]:
    """Returns integers in the ratio of the shares, rounded where their sum would exceed the longest period.

    None of a positive share is 0.
    """
    period = math.lcm(*(share.denominator for share in shares))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in shares]
    exact = [share * LONGEST_PERIOD for share in shares]
    counts = [max(1, int(rows)) if rows else 0 for rows in exact]
    while missing := LONGEST_PERIOD - sum(counts):
        change = 1 if missing > 0 else -1
        may_change = [i for i, count in enumerate(counts) if count > (1 if change < 0 else 0)]
        counts[max(may_change, key=lambda i: change * (exact[i] - counts[i]))] += change
    log.info(
        "the weights of data.source are rounded to %s of %d rows",
        ", ".join(map(str, counts)), LONGEST_PERIOD,
    )  # fmt: skip
    return counts


def _chairmen(counts: Sequence[int]) -> Iterator[int]:
    """Yields the source of each row of a period, so that no source is ever ahead or behind by a whole row.

    With δ = 1 / (2n - 2) for n sources, a source of share w has its row m (from 0) at the first row k with
    k w - m >= δ or later, and at the first one with k w - m > 1 - δ or earlier: so it is never ahead or
    behind by more than 1 - δ. Of the sources that may come, the one with the earliest deadline does.

    Source: R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980.
    """
    period, positive = sum(counts), [source for source, count in enumerate(counts) if count]
    parts = max(2 * len(positive) - 2, 1)  # 1 / δ

    def turn(source: int, number: int) -> tuple[int, int, int]:
        """Returns the first row at which it may come, its deadline, and the source."""
        denominator = parts * counts[source]
        first = -(-(parts * number + 1) * period // denominator)
        return first, (parts * (number + 1) - 1) * period // denominator + 1, source

    waiting = [turn(source, 0) for source in positive]
    heapq.heapify(waiting)
    ready: list[tuple[int, int]] = []
    had = [0] * len(counts)
    for row in range(1, period + 1):
        while waiting and waiting[0][0] <= row:
            heapq.heappush(ready, heapq.heappop(waiting)[1:])
        source = heapq.heappop(ready)[1]
        had[source] += 1
        heapq.heappush(waiting, turn(source, had[source]))
        yield source


class EpochRows:
    """Numbers rows through all epochs, laid end to end. Threads may share an instance.

    With epochs of 3 and 4 rows, rows 2, 4 and 3 of the run are row 2 of epoch 0, and rows 1 and 0 of epoch 1:

        EpochRows(lambda epoch: (3, 4)[epoch])(np.array([2, 4, 3]))

    yields (0, [0], [2]) and (1, [1, 2], [1, 0]).

    Args:
        count_rows: epoch -> number of its rows; called once for each epoch.
    """

    def __init__(self, count_rows: Callable[[int], int]):
        self._count_rows = count_rows
        self._first_rows = [0]  # of the epochs up to the first one that is not counted yet
        self._lock = threading.Lock()

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields for each epoch that has some of the rows: its number, their indices, their numbers in it.

        Args:
            rows: ints [R], numbers through all epochs, in any order.
        """
        first_rows = self._counted(rows.max(initial=0))
        epochs = np.searchsorted(first_rows, rows, "right") - 1
        for epoch in np.unique(epochs).tolist():
            (which,) = np.nonzero(epochs == epoch)
            yield epoch, which, rows[which] - first_rows[epoch]

    def epochs(self, rows: int) -> float:
        """Returns how many epochs the first `rows` rows are.

        >>> EpochRows(lambda epoch: (3, 4)[epoch]).epochs(5)
        1.5
        """
        first_rows = self._counted(rows)
        epoch = bisect.bisect_right(first_rows, rows) - 1
        return epoch + (rows - first_rows[epoch]) / (first_rows[epoch + 1] - first_rows[epoch])

    def _counted(self, row: int) -> list[int]:
        """Returns the first rows of the epochs, beyond that of `row`."""
        with self._lock:
            while self._first_rows[-1] <= row:
                self._first_rows.append(self._first_rows[-1] + self._count_rows(len(self._first_rows) - 1))
        return self._first_rows
