"""From the number of a row of the whole run to the row of an epoch."""

import threading
from collections.abc import Callable, Iterator

import numpy as np


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
        with self._lock:
            while self._first_rows[-1] <= rows.max(initial=0):
                self._first_rows.append(self._first_rows[-1] + self._count_rows(len(self._first_rows) - 1))
        epochs = np.searchsorted(self._first_rows, rows, "right") - 1
        for epoch in np.unique(epochs).tolist():
            (which,) = np.nonzero(epochs == epoch)
            yield epoch, which, rows[which] - self._first_rows[epoch]
