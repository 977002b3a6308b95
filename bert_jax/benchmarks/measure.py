"""Repeats measurements in turns, shows them, and measures memory."""

import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import re
import statistics
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psutil

from bert_jax.config import Config

TURN_SECONDS = 1.0
COLUMNS = ("ms", "spread", "real tokens/s", "MFU", "peak MiB")  # of `Steps.cells`


class Steps(NamedTuple):
    """What is measured of a training step.

    Attributes:
        seconds: of a step, one for each turn.
        tokens: real tokens of the batch.
        ideal_seconds: of a step at the device's peak rate; None where that is not known.
        peak_bytes: of memory; None where that is not known.
    """

    seconds: list[float]
    tokens: int
    ideal_seconds: float | None
    peak_bytes: int | None

    @property
    def rate(self) -> float:
        """Real tokens per second, by the median."""
        return self.tokens / statistics.median(self.seconds)

    def cells(self) -> list[str]:
        """Returns the cells of `COLUMNS`."""
        median = statistics.median(self.seconds)
        return [
            f"{median * 1e3:.1f}",
            f"{min(self.seconds) * 1e3:.1f} to {max(self.seconds) * 1e3:.1f}",
            f"{self.rate:,.0f}",
            "" if self.ideal_seconds is None else f"{self.ideal_seconds / median:.1%}",
            "" if self.peak_bytes is None else f"{self.peak_bytes / 2**20:,.0f}",
        ]


def in_turns(runs: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Lets each run for about `TURN_SECONDS`, one after the other, again and again: all see the same machine.

    Args:
        runs: name -> (number of steps) -> seconds of a step. Two steps of each do not count; the second
            decides how many are a turn.
        rounds: turns of each.

    Returns:
        The seconds of a step in each turn.
    """
    steps = {}
    for name, run in runs.items():
        run(1)
        steps[name] = max(1, round(TURN_SECONDS / run(1)))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run(steps[name]))
    return seconds


def config_file(config: Config, folder: str) -> str:
    """Writes a config file with these values, for a command that is measured; returns its path."""
    path = pathlib.Path(folder, "config.py")
    path.write_text(
        "import ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict({config.to_dict()!r})\n",
        encoding="utf-8",
    )
    return str(path)


class PeakMemory(threading.Thread):
    """Samples an amount of memory while entered, and keeps the maximum.

    Args:
        now: returns the bytes in use, such as `resident` or `anonymous`.

    Attributes:
        first, bytes: when entered, and the maximum.
    """

    def __init__(self, now: Callable[[], int]):
        super().__init__(daemon=True)
        self._now, self._over, self.first, self.bytes = now, threading.Event(), 0, 0

    def __enter__(self) -> "PeakMemory":
        self.first = self.bytes = self._now()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.02):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.bytes = max(self.bytes, self._now())


def resident(process: psutil.Process) -> int:
    """Returns the resident bytes of a process and its children."""
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def anonymous() -> int:
    """Returns the resident bytes of this process without pages of files; 0 where the system is not Linux."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(match[1]) << 10 if match else 0


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function of a module in a new process; raises RuntimeError if that dies."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def repeated(measure: Callable[[], float], times: int) -> list[float]:
    """Measures so many times, after a first time that does not count."""
    measure()
    return [measure() for _ in range(times)]


def median_and_spread(values: list[float]) -> tuple[str, str]:
    """Returns the median, and the least and the greatest value, as text."""
    return f"{statistics.median(values):.2f}", f"{min(values):.1f} to {max(values):.1f}"
