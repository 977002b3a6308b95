"""Repeats measurements, and measures memory."""

import contextlib
import statistics
import threading
from collections.abc import Callable

import psutil


class PeakMemory(threading.Thread):
    """Samples the resident memory of a process and its children while entered, and keeps the maximum."""

    def __init__(self, process: psutil.Process):
        super().__init__(daemon=True)
        self._process, self._over, self.bytes = process, threading.Event(), 0

    def __enter__(self) -> "PeakMemory":
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


def repeated(measure: Callable[[], float], times: int) -> list[float]:
    """Measures so many times, after a first time that does not count."""
    measure()
    return [measure() for _ in range(times)]


def median_and_spread(values: list[float]) -> tuple[str, str]:
    """Returns the median, and the least and the greatest value, as text."""
    return f"{statistics.median(values):.2f}", f"{min(values):.1f} to {max(values):.1f}"
