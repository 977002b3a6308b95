"""Exit codes of the command, and when a launcher starts it again. All launchers use these.

A command that ended with 0 (done), 2 (a mistake in the input) or 130 (Ctrl-C) is not started again. After
every other code it starts again from its newest checkpoint: 75 asks for that, after SIGTERM or a preemption.
"""

import time
from collections.abc import Iterable

DONE, FAILED, MISTAKE, RESTART, INTERRUPTED = 0, 1, 2, 75, 130
NOT_AGAIN = (DONE, MISTAKE, INTERRUPTED)
BACK_OFF = (1, 2, 5, 10, 30, 60)  # seconds before the first, second, … restart in a row; the last one stays
LONG_ENOUGH = 600  # seconds; a run that lasted longer works, so its failure is the first of a new row


def combined(codes: Iterable[int]) -> int:
    """Returns one exit code for all processes: a mistake first, then Ctrl-C, then the first failure."""
    codes = list(codes)
    failures = (code for code in codes if code != DONE)
    return next((code for code in (MISTAKE, INTERRUPTED) if code in codes), next(failures, DONE))


class Restarts:
    """Counts failures in a row and allows `limit` of them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.failures = 0
        self._started = 0.0

    def __str__(self) -> str:
        return f"restart {self.failures} of {self.limit}"

    def started(self) -> None:
        self._started = time.monotonic()

    def next_delay(self) -> int | None:
        """Counts a failure. Returns the seconds until the next start, or None where the limit is reached."""
        lasted = time.monotonic() - self._started
        self.failures = 1 if lasted > LONG_ENOUGH else self.failures + 1
        if self.failures > self.limit:
            return None
        return BACK_OFF[min(self.failures, len(BACK_OFF)) - 1]
