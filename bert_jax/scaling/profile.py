"""What the compiler estimates the operations of a step to cost."""

import collections
import re
from typing import NamedTuple

from bert_jax.scaling import hlo

RANDOM = re.compile(r"bernoulli|fold_in|random_bits")  # in the path of what dropout draws


class Cost(NamedTuple):
    """Operations of one kind.

    `stage` is forward, backward, again (what remat computes again for the backward pass) or update; `part`
    is layers or outside. A fusion counts as its last operation.
    """

    stage: str
    part: str
    operation: str
    cycles: int  # a step, including repetitions in loops; kernels and links have none


def costs(text: str) -> list[Cost]:
    """Adds up the estimated cycles of a program by operation, the most expensive first.

    Args:
        text: `compiled.as_text()`.
    """
    cycles = collections.Counter[tuple[str, str, str]]()
    for times, _, line in hlo.executed(hlo.computations(text)):
        if match := re.search(r'"estimated_cycles":"(\d+)"', line):
            path = re.search(r'op_name="([^"]*)"', line)
            cycles[_kind(path[1] if path else "")] += times * int(match[1])
    return [Cost(*kind, count) for kind, count in cycles.most_common()]


def _kind(path: str) -> tuple[str, str, str]:
    """Returns stage, part and operation of a path such as jit(train_step)/jvp()/while/body/dot_general."""
    stages = {"rematted_computation": "again", "transpose(": "backward", "jvp(": "forward"}
    stage = next((stage for mark, stage in stages.items() if mark in path), "update")
    part = "layers" if re.search(r"jvp\(.*while/body", path) else "outside"
    operation = "dropout" if RANDOM.search(path) else re.sub(r"[.\d]+$", "", path.rpartition("/")[2])
    return stage, part, operation or "unnamed"
