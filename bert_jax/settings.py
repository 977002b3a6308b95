"""Fields of a config's section: default, bounds and role are declared in one place and checked in one way.

@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int = setting(1000, least=1)
    remat: str = setting("none", known=("none", "dots", "full"), run_time=True)

    def __post_init__(self):
        check("train", self)
"""

import dataclasses
import math
from typing import Any

from bert_jax.errors import UserError


def setting(
    default: Any,
    *,
    known: tuple[str, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    run_time: bool = False,
    prepares: bool = False,
    by_phase: bool = False,
) -> Any:
    """Declares a field of a section.

    Args:
        default: its value if a config does not set it.
        known: all values that it may have.
        least, above, most, below: bounds of a number; `above` and `below` are excluded themselves.
        run_time: it may change when a run resumes, since it does not change what is learned.
        prepares: the prepared dataset depends on it.
        by_phase: a phase of a run may have a value of its own.
    """
    bounds = {"known": known, "least": least, "above": above, "most": most, "below": below}
    roles = {"run_time": run_time, "prepares": prepares, "by_phase": by_phase}
    return dataclasses.field(default=default, metadata=bounds | roles)


def check(section: str, values: Any) -> None:
    """Checks every field of a section against its declaration.

    Args:
        section: its name in the config, for the message.
        values: the section, whose fields `setting` has declared; others have no bounds.

    Raises:
        UserError: for the first value that is out of bounds or no finite number, with the bounds.
    """
    for field in dataclasses.fields(values):
        value, bounds = getattr(values, field.name), field.metadata
        if bounds.get("known") and value not in bounds["known"]:
            raise UserError(
                f"{section}.{field.name}={value!r} is unknown; use one of {', '.join(bounds['known'])}."
            )
        if isinstance(value, int | float) and not _inside(value, bounds):
            raise UserError(f"{section}.{field.name}={value} must be {_described(bounds)}.")


def names(kind: Any, role: str) -> tuple[str, ...]:
    """Lists the fields of a section's class that have a role: `run_time`, `prepares` or `by_phase`."""
    return tuple(field.name for field in dataclasses.fields(kind) if field.metadata.get(role))


def _inside(value: float, bounds: Any) -> bool:
    least, above, most, below = (bounds.get(name) for name in ("least", "above", "most", "below"))
    return math.isfinite(value) and (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def _described(bounds: Any) -> str:
    words = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
    parts = [f"{word} {bounds[name]:.10g}" for name, word in words.items() if bounds.get(name) is not None]
    return " and ".join(parts) or "a finite number"
