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
        self._steps, self._folder, self._tracing = steps, workdir / "profile", False
        self._first, self._last = map(int, steps.split(":")) if steps else (-1, -1)

    def warn_if_outside(self, step: int, last_step: int) -> None:
        """Warns if the first step to trace is not among those to train, from `step` to `last_step` - 1."""
        if self._steps and step < last_step and not step <= self._first < last_step:
            log.warning(
                "train.profile_steps=%s: no trace is written, since this command trains steps %d to %d",
                self._steps, step, last_step - 1,
            )  # fmt: skip

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
