"""Recovers from bad steps: decides when to roll back, and which steps to skip then.

A step is bad if its loss or gradient is not finite (then its update was not applied) or if its loss is far
above the recent ones. The run returns to an earlier checkpoint, trains up to the bad steps again, skips them
and continues with the batches of the steps after them (Chowdhery et al., 2022, section 5.1). All decisions
are a function of losses that every host sees and every checkpoint holds. Hosts therefore decide alike without
communication, and a run that is killed in between gives the same result.
"""

import collections
import math
import statistics
from typing import Any

from bert_jax.errors import UserError
from bert_jax.training.config import TrainConfig

HISTORY, LEAST_HISTORY = 128, 64  # losses that a new one is compared with
SPREAD_OF_MAD = 1.4826  # standard deviation of a normal distribution / its median absolute deviation
LEAST_SPREAD = 0.005  # of the median: where losses hardly vary, a small rise is no spike


class BadSteps(Exception):
    """Raised when the run must roll back because steps `first` to `last` are bad; the message says why."""

    def __init__(self, first: int, last: int, reason: str):
        super().__init__(reason)
        self.first, self.last = first, last


class Recovery:
    """Checks every step and keeps the list of steps to skip."""

    def __init__(self, config: TrainConfig):
        self._config = config
        self._losses: collections.deque[float] = collections.deque(maxlen=HISTORY)
        self._phase = 0  # that the losses are of
        self._bad_steps = 0  # the newest ones, in a row
        self.skips: list[list[Any]] = []  # [first, end, reason]

    def state_dict(self) -> dict[str, Any]:
        return {
            "losses": list(self._losses),
            "phase": self._phase,
            "bad_steps": self._bad_steps,
            "skips": self.skips,
        }

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Restores the state of a checkpoint; steps that were skipped since then stay skipped."""
        saved = saved or {"losses": [], "bad_steps": 0, "skips": []}
        self._losses = collections.deque(saved["losses"], HISTORY)
        self._phase = saved.get("phase", 0)  # older versions did not save it
        self._bad_steps = saved["bad_steps"]
        self.skips = self.skips or [list(skip) for skip in saved["skips"]]

    def check(self, step: int, loss: float, grad_norm: float) -> None:
        """Checks and records the loss and gradient norm of a step.

        Raises:
            BadSteps: if the run must roll back.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._bad_steps += 1
            if self._bad_steps >= self._config.max_bad_steps:
                name, value = ("grad_norm", grad_norm) if math.isfinite(loss) else ("loss", loss)
                raise BadSteps(step - self._bad_steps + 1, step, f"{name} is {value} at step {step}")
            return
        self._bad_steps = 0
        z_score = self._z_score(loss)
        if self._config.spike_z_score and z_score > self._config.spike_z_score:
            raise BadSteps(step, step, f"loss is {loss:.4g} at step {step}, a spike (z-score {z_score:.0f})")
        self._losses.append(loss)

    def _z_score(self, loss: float) -> float:
        """Returns how far a loss lies above the recent ones, in robust standard deviations."""
        if len(self._losses) < LEAST_HISTORY:
            return 0.0
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(other - median) for other in self._losses)
        return (loss - median) / max(SPREAD_OF_MAD * deviation, LEAST_SPREAD * abs(median), 1e-12)

    def add_skip(self, bad: BadSteps) -> int:
        """Skips these bad steps and the `train.skip_margin` steps before them from now on; returns the first.

        Raises:
            UserError: if the run was already rolled back `train.max_rollbacks` times.
        """
        if len(self.skips) >= self._config.max_rollbacks:
            raise UserError(
                f"{bad}, so training stops after {len(self.skips)} rollbacks (train.max_rollbacks); older "
                "checkpoints are good. Likely causes: optimizer.learning_rate too high or "
                "optimizer.warmup_steps too few, optimizer.clip_norm=0, or overflow in bfloat16 "
                "(try train.activation_dtype=float32)."
            )
        first = max(0, bad.first - self._config.skip_margin)
        self.skips.append([first, bad.last + 1, str(bad)])
        return first

    def after_skip(self) -> None:
        """Starts to count bad steps anew: those before and after skipped steps are not in a row."""
        self._bad_steps = 0

    def enter_phase(self, index: int) -> None:
        """Forgets the losses of another phase: those of other batches are no measure for this phase's."""
        if index != self._phase:
            self._losses.clear()
            self._phase = index

    def skip_at(self, step: int) -> list[Any] | None:
        """Returns the skipped range that `step` is in, as [first, end, reason], or None."""
        return next((skip for skip in reversed(self.skips) if skip[0] <= step < skip[1]), None)

    def next_skip(self, step: int, last_step: int) -> int:
        """Returns the first step after `step` that is skipped, or `last_step`."""
        return min([last_step, *(skip[0] for skip in self.skips if skip[0] > step)])
