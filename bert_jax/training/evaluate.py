"""Evaluators: compute metrics of the parameters every few steps; the loop records them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import jax
import numpy as np

from bert_jax.training.mesh import to_global
from bert_jax.training.program import Program

HostBatch = dict[str, np.ndarray]


class Evaluator(Protocol):
    """Computes metrics of the parameters during training."""

    @property
    def name(self) -> str:
        """Prefix of its metrics in `metrics.jsonl`, e.g. `eval`."""
        ...

    @property
    def every(self) -> int:
        """Steps between runs; 0: after the last step only, when all evaluators run."""
        ...

    def run(self, program: Program, params: Any) -> dict[str, float]:
        """Returns metrics by name; all processes call it, with the same result."""
        ...


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Losses and scores of held-out batches: means over all examples, not over batches.

    Args:
        name, every: see `Evaluator`.
        batches: rows of this process -> its share of every held-out batch, in order.
        scores: outputs of all batches -> metrics that are not means.
    """

    name: str
    every: int
    batches: Callable[[np.ndarray], Iterable[HostBatch]]
    scores: Callable[[list[HostBatch]], dict[str, float]] | None = None

    def run(self, program: Program, params: Any) -> dict[str, float]:
        """Returns the `loss` that is minimised, every term's mean, and the scores."""
        total: dict[str, Any] = {}
        outputs = []
        for batch in self.batches(program.rows):
            evaluated = program.evaluation_step(params, to_global(program.mesh, batch))
            terms, output = jax.device_get(evaluated)
            total = {name: total.get(name, 0.0) + np.float64(term) for name, term in terms.items()}
            outputs.append(output)
        means = {name: float(sums / max(weight, 1.0)) for name, (sums, weight) in total.items()}
        loss = sum(means[name] for name in program.objective.losses)
        return {"loss": loss} | means | (self.scores(outputs) if self.scores else {})


def due(evaluators: Iterable[Evaluator], step: int, last: bool) -> list[Evaluator]:
    """Selects the evaluators that run after `step` steps."""
    return [each for each in evaluators if last or (each.every and step % each.every == 0)]
