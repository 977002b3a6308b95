"""Selects the best checkpoint of a run, and ends training when no better one comes."""

import math
from typing import Any


class Selection:
    """Compares evaluations by one metric, and equal ones by their loss; keeps the first of the best.

    A few hundred examples often give the same accuracy twice, and then the loss decides. For `patience` that
    does not count as better.

    Args:
        metric: of a row of held-out metrics, e.g. `eval_f1`; "" selects nothing. Losses are minimised.
        patience: evaluations without a better one, after which training ends; 0 for never.
    """

    def __init__(self, metric: str, patience: int):
        self._metric, self._patience = metric, patience
        self._sign = -1.0 if metric.endswith(("loss", "error")) else 1.0
        self.restore(None)

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Restores what `state_dict` returned; None, or the state of another metric, restores the start."""
        start = {"metric": self._metric, "best_step": None, "best": None, "loss": None, "since": 0}
        # Older checkpoints do not name the metric.
        same = saved is not None and saved.get("metric", self._metric) == self._metric
        self._state: dict[str, Any] = start | (saved or {}) if same else start

    def update(self, row: dict[str, Any]) -> None:
        """Compares a row of held-out metrics with the best so far."""
        value, loss = row.get(self._metric), row.get("eval_loss")
        if value is None:
            return
        best, least = self._state["best"], self._state["loss"]  # None in older checkpoints
        better = math.isfinite(value) and (best is None or self._sign * value > self._sign * best)
        tied = value == best and loss is not None and least is not None and loss < least
        if better or tied:
            self._state = self._state | {"best_step": row["step"], "best": value, "loss": loss}
        self._state = self._state | {"since": 0 if better else self._state["since"] + 1}

    @property
    def best_step(self) -> int | None:
        return self._state["best_step"]

    @property
    def should_stop(self) -> bool:
        """Whether `patience` is used up."""
        return 0 < self._patience <= self._state["since"]

    def state_dict(self) -> dict[str, Any]:
        return self._state
