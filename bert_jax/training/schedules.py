"""Learning rates by step."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from bert_jax.errors import UserError
from bert_jax.training.config import OptimizerConfig, RunConfig
from bert_jax.training.phases import Phase

log = logging.getLogger("bert_jax")
Schedule = Callable[[Any], Any]


def schedule_of_run(config: OptimizerConfig, phases: Sequence[Phase]) -> Schedule:
    """Returns the function step -> learning rate of a run.

    A schedule spans the whole run; a phase that brings its own has that, over its own steps.
    """
    whole = make_schedule(config, phases[-1].last_step)
    if not any(phase.own_schedule for phase in phases):
        return whole
    own = {
        phase.index: make_schedule(phase.config.optimizer, phase.num_steps)
        for phase in phases
        if phase.own_schedule
    }

    def rate(step: Any) -> Any:
        rates = [own[p.index](step - p.first_step) if p.index in own else whole(step) for p in phases]
        return jnp.select([step < phase.last_step for phase in phases[:-1]], rates[:-1], rates[-1])

    return rate


def check_schedules(config: RunConfig) -> None:
    """Raises UserError for a schedule of a run or phase that contradicts its steps or other settings.

    A warm-up that does not end is a warning: a run may be a trial of a few steps.
    """
    phases = config.phase_list()
    parts = [
        (f"phases[{phase.index}]: ", phase.config.optimizer, "", phase.num_steps)
        for phase in phases
        if phase.own_schedule
    ]
    if len(parts) < len(phases):
        parts.append(("", config.optimizer, "train.", phases[-1].last_step))
    for part in parts:
        _check_part(*part)
    given, inherited = config.optimizer, len(phases) > 1 or phases[0].own_schedule
    if given.decay_steps and given.schedule != "trapezoid" and not inherited:
        raise UserError(
            f"optimizer.decay_steps={given.decay_steps} has no effect with optimizer.schedule="
            f"{given.schedule}; set it to 0, or optimizer.schedule=trapezoid."
        )


def _check_part(where: str, optimizer: OptimizerConfig, section: str, steps: int) -> None:
    warmup_steps, decay_steps = optimizer.warmup_steps, optimizer.decay_steps
    most, length = max(steps - warmup_steps, 0), f"{section}num_steps={steps}"
    if optimizer.schedule == "trapezoid" and decay_steps > most:
        raise UserError(
            f"{where}optimizer.decay_steps={decay_steps} is more than the {most} steps of {length} after "
            f"optimizer.warmup_steps={warmup_steps}; lower it."
        )
    if optimizer.schedule == "trapezoid" and not decay_steps:
        raise UserError(
            f"{where}optimizer.decay_steps=0: a trapezoid that never falls; raise it, or set "
            "optimizer.schedule=constant."
        )
    if warmup_steps > steps:
        log.warning(
            "%soptimizer.warmup_steps=%d is more than %s: the learning rate does not reach %g; lower it, "
            "unless this is a trial",
            where, warmup_steps, length, optimizer.learning_rate,
        )  # fmt: skip


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Returns the function step -> learning rate: linear warm-up from 0, then the decay of `config.schedule`.

    `step` counts from 0, skipped steps included. `linear` and `cosine` end at `final_learning_rate` after
    `num_steps`; `rsqrt` falls with the inverse square root of the step; `constant` stays; `trapezoid` stays
    until the last `decay_steps` and ends at `final_learning_rate`, by a line or by one minus a square root
    (Hägele et al., 2024).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(num_steps - warmup, 1)
    decay: Schedule = {
        "linear": optax.linear_schedule(peak, config.final_learning_rate, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_learning_rate / peak),
        "rsqrt": lambda step: peak * jnp.sqrt(max(warmup, 1) / (step + max(warmup, 1))),
        "constant": optax.constant_schedule(peak),
        "trapezoid": _stable_then_down(config, max(num_steps - warmup, 0)),
    }[config.schedule]
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def _stable_then_down(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Returns the rate of a trapezoid by the number of steps after the warm-up, of `num_steps` in all."""
    peak, drop = config.learning_rate, config.learning_rate - config.final_learning_rate
    shape = {"linear": lambda done: done, "one_minus_sqrt": jnp.sqrt}[config.decay_shape]
    stable = num_steps - config.decay_steps

    def rate(step: Any) -> Any:
        return peak - drop * shape(jnp.clip((step - stable) / max(config.decay_steps, 1), 0.0, 1.0))

    return rate
