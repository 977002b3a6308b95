"""Traces the steps of `train.profile_steps`."""

import logging
from typing import Any

import jax
from etils import epath

log = logging.getLogger("bert_jax")


class Profiler:
    """Traces the steps FIRST to LAST - 1 of a run into WORKDIR/profile, for XProf.

    Args:
        steps: "FIRST:LAST", or "" for no trace.
        workdir: of the run.
    """

    def __init__(self, steps: str, workdir: epath.Path):
        self._first, self._last = map(int, steps.split(":")) if steps else (-1, -1)
        self._folder, self._tracing = workdir / "profile", False

    def before(self, step: int, state: Any) -> None:
        """Starts or ends the trace before this step; a run that resumes inside the window takes none."""
        if step == self._first:
            self._first = -1  # a rollback may return here
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif step >= self._last:  # steps may be skipped
            self.close(state)

    def close(self, state: Any) -> None:
        """Writes the trace, if one is being taken, once `state` is computed."""
        if self._tracing:
            self._tracing = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            log.info("trace of train.profile_steps: xprof --logdir %s", self._folder)
