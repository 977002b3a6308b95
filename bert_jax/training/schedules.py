"""Learning rates by step."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from bert_jax.training.config import OptimizerConfig

Schedule = Callable[[Any], Any]


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
    """Returns the function step -> learning rate: linear warm-up from 0, then the decay of `config.schedule`.

    `step` counts from 0, skipped steps included. `linear` and `cosine` end at `final_learning_rate` after
    `num_steps`; `rsqrt` falls with the inverse square root of the step; `constant` stays.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    decay_steps = max(num_steps - warmup, 1)
    decay: Schedule = {
        "linear": optax.linear_schedule(peak, config.final_learning_rate, decay_steps),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_learning_rate / peak),
        "rsqrt": lambda step: peak * jnp.sqrt(max(warmup, 1) / (step + max(warmup, 1))),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    if warmup == 0:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])
