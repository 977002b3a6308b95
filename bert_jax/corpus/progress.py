"""Shows how far `prepare` is: a bar on a terminal, and a line in the log every minute."""

import logging
import time
from typing import Self

import tqdm

LOG_SECONDS = 60.0
log = logging.getLogger("bert_jax")


class Progress:
    """Progress in bytes of the sources' files. A context manager.

    Args:
        size: all bytes.
        done: bytes that were read before this process began.
        what: is done, as the bar and the log name it.
    """

    def __init__(self, size: int, done: int = 0, what: str = "prepare"):
        # disable=None: only on a terminal.
        self._bar = tqdm.tqdm(
            total=size, initial=done, desc=what, unit="B", unit_scale=True, disable=None, leave=False
        )
        self._what, self._size, self._before, self._done, self._documents = what, size, done, done, 0
        self._start = self._logged = time.monotonic()
        if done:
            log.info("prepare: goes on at %.0f%%", 100 * done / max(1, size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, read_bytes: int, documents: int = 0) -> None:
        """Counts what has been read, and how many documents were written, since."""
        self._done += read_bytes
        self._documents += documents
        now = time.monotonic()
        seconds = max(1e-9, now - self._start)
        self._bar.set_postfix_str(self._rate(seconds), refresh=False)
        self._bar.update(read_bytes)
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            with self._bar.external_write_mode():
                log.info("%s: %s", self._what, self._line(seconds))

    def _line(self, seconds: float) -> str:
        speed = (self._done - self._before) / seconds
        left = tqdm.tqdm.format_interval(max(0, self._size - self._done) / max(1e-9, speed))
        parts = f"{speed / 1e6:,.1f} MB/s of the files", self._rate(seconds), f"{left} left"
        return ", ".join([f"{100 * self._done / max(1, self._size):.0f}%", *filter(None, parts)])

    def _rate(self, seconds: float) -> str:
        return f"{self._documents / seconds:,.0f} documents/s" if self._documents else ""
