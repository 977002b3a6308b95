"""The phases of a run: stretches of steps, each with overrides of what may change on the way.

Parameters, optimizer state and step go on from phase to phase.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_jax.corpus.specs import check_same_sources
from bert_jax.errors import UserError
from bert_jax.settings import names

# Settings of the rate: a phase that brings one has a schedule of its own, over its own steps.
SCHEDULE = (
    "learning_rate", "schedule", "warmup_steps", "decay_steps", "decay_shape", "final_learning_rate",
)  # fmt: skip
SPANNING = ("linear", "cosine", "trapezoid")  # schedules that depend on the number of all steps
MOST_STEPS = 2**31 - 1  # they are counted in int32
KEY = re.compile(r"phases\[(\d+)\]\.(.+)")
Overrides = Mapping[str, Any]  # {"num_steps": …, section: {field: value}}


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps `first_step` to `last_step` (exclusive) of a run, trained with one config.

    Attributes:
        config: that of the run with the phase's overrides.
        index: from 0.
        same: phases before that cut and pack the text alike: this one goes on with the rows behind theirs.
        own_schedule: whether the learning rate is a function of the phase's own steps.
    """

    config: Any
    first_step: int
    last_step: int
    index: int = 0
    same: tuple["Phase", ...] = ()
    own_schedule: bool = False

    @property
    def num_steps(self) -> int:
        return self.last_step - self.first_step

    @property
    def num_rows(self) -> int:
        """Rows of all its batches."""
        return self.num_steps * self.config.data.global_batch_size


def make_phases(config: Any, overrides: Sequence[Overrides], kinds: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Resolves the phases of a run.

    Args:
        config: of the run, a frozen dataclass with the sections of `kinds`.
        overrides: one for each phase; checked here.
        kinds: the classes of the sections.

    Raises:
        UserError: for a key that does not exist or that must not change, or a value out of range; names
            the phase.
    """
    phases: list[Phase] = []
    for index, changes in enumerate(overrides):
        try:
            changed = _changed(config, changes, kinds)
        except UserError as error:
            raise UserError(f"phases[{index}]: {error}") from None
        first = phases[-1].last_step if phases else 0
        if first + changes["num_steps"] > MOST_STEPS:
            raise UserError(
                f"phases[{index}]: with its num_steps a run has over {MOST_STEPS:,} steps; lower it."
            )
        same = [before for before in phases if _plan(before.config.data) == _plan(changed.data)]
        phases.append(
            Phase(
                changed,
                first,
                first + changes["num_steps"],
                index,
                tuple(same),
                any(name in SCHEDULE for name in changes.get("optimizer", {})),
            )
        )
    return tuple(phases)


def flat_overrides(phase: Overrides) -> dict[str, Any]:
    """Returns the overrides of a phase as {section.field: value}."""
    flat: dict[str, Any] = {}
    for name, value in phase.items():
        flat |= (
            {f"{name}.{field}": x for field, x in value.items()}
            if isinstance(value, Mapping)
            else {name: value}
        )
    return flat


def unlearned(phases: Sequence[Phase], schedule: str, done: int) -> Callable[[str], bool]:
    """Returns which keys of a run's identity may still change after `done` steps: those of later phases.

    The number of all steps may, too, unless the rate of the steps so far depends on it.

    Args:
        phases: of the run, from its config.
        schedule: `optimizer.schedule` of the run.
    """
    begun = [phase for phase in phases if phase.first_step < done]
    rate_depends = schedule in SPANNING and not all(phase.own_schedule for phase in begun)

    def may_change(key: str) -> bool:
        if key == "train.num_steps":
            return not rate_depends
        match = KEY.match(key)
        return match is not None and int(match[1]) >= len(begun)

    return may_change


def phase_keys(kinds: Mapping[str, Any]) -> list[str]:
    """Lists the keys that a phase may set: `num_steps`, `data.mask_rate`, …"""
    fields = [f"{section}.{name}" for section, kind in kinds.items() for name in names(kind, "by_phase")]
    return ["num_steps", *fields]


def _changed(config: Any, changes: Overrides, kinds: Mapping[str, Any]) -> Any:
    allowed = phase_keys(kinds)
    for key, value in flat_overrides(changes).items():
        if key not in allowed and any(other.startswith(f"{key}.") for other in allowed):
            raise UserError(f"{key}={value!r} must be a dict.")
        if key not in allowed:
            raise UserError(f"{key} cannot be set by a phase; these can: {', '.join(allowed)}.")
    if "num_steps" not in changes:
        raise UserError("num_steps is missing.")
    steps = changes["num_steps"]
    if type(steps) is not int or steps < 1:
        raise UserError(f"num_steps={steps!r} must be a whole number, at least 1.")
    sections = {}
    for section, values in changes.items():
        if section == "num_steps":
            continue
        values = dict(values)
        if section == "optimizer" and any(name in SCHEDULE for name in values):
            values = {"warmup_steps": 0} | values  # the run has warmed up already
        for name, value in values.items():
            kind = type(getattr(getattr(config, section), name))
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UserError(
                    f"{section}.{name}={value!r} is of type {type(value).__name__}, not {kind.__name__}."
                )
        sections[section] = dataclasses.replace(getattr(config, section), **values)
        if "source" in values:
            check_same_sources(config.data.source, values["source"])
    return dataclasses.replace(config, phases=(), **sections)


def _plan(data: Any) -> tuple[Any, ...]:
    """Returns what decides how text is cut and packed into rows, as in `bert_jax.data.batches`."""
    return data.max_seq_length, data.max_sequences_per_row, data.short_sequence_rate, data.pairs
