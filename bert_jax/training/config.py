"""How the weights are updated and for how long: the `optimizer`, `train` and `mesh` sections."""

import dataclasses
import math
import re

from bert_jax.errors import UserError, check_known, check_least

RUN_TIME = {"run_time": True}  # may change when a run resumes: it does not change what is learned


def _run_time(default):
    return dataclasses.field(default=default, metadata=RUN_TIME)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule. Defaults are BERT's (Devlin et al., 2019, appendix A.2).

    Raises:
        UserError: for an unknown optimizer or schedule, or a number out of range.
    """

    name: str = "adamw"  # adamw | lamb
    learning_rate: float = 1e-4  # the peak
    schedule: str = "linear"  # after the warm-up: linear | cosine | rsqrt | constant
    warmup_steps: int = 10_000
    final_learning_rate: float = 0.0  # of linear and cosine
    weight_decay: float = 0.01  # not on LayerNorm and biases
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float = 1.0  # of the global gradient; 0 turns clipping off
    layer_decay: float = 1.0  # every layer's learning rate, as a share of that of the layer above

    def __post_init__(self):
        schedules = ("linear", "cosine", "rsqrt", "constant")
        check_known("optimizer", self, name=("adamw", "lamb"), schedule=schedules)
        for name, fits, bounds in (  # written so that "not a number" does not fit
            ("learning_rate", 0.0 < self.learning_rate < math.inf, "be positive"),
            ("final_learning_rate", 0.0 <= self.final_learning_rate < math.inf, "not be negative"),
            ("warmup_steps", self.warmup_steps >= 0, "not be negative"),
            ("weight_decay", 0.0 <= self.weight_decay < math.inf, "not be negative"),
            ("beta1", 0.0 <= self.beta1 < 1.0, "be in [0, 1)"),
            ("beta2", 0.0 <= self.beta2 < 1.0, "be in [0, 1)"),
            ("epsilon", 0.0 < self.epsilon < math.inf, "be positive"),
            ("clip_norm", 0.0 <= self.clip_norm < math.inf, "not be negative"),
            ("layer_decay", 0.0 < self.layer_decay <= 1.0, "be above 0 and at most 1"),
        ):
            if not fits:
                raise UserError(f"optimizer.{name}={getattr(self, name)} must {bounds}.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: its length, its seed, and what it does on the way.

    Raises:
        UserError: if a number is out of range.
    """

    num_steps: int = 1_000_000
    seed: int = 0
    unigram_bias: bool = False  # start the masked-LM bias at log frequencies: short runs need not learn them
    prng: str = "threefry"  # rbg is faster on TPU, but dropout then depends on the mesh
    activation_dtype: str = "auto"  # auto: bfloat16 on TPU and GPU, float32 on CPU
    max_bad_steps: int = 3  # so many in a row with a loss or gradient that is not finite: roll back
    spike_z_score: float = 20.0  # roll back if the loss stands out by so many robust deviations; 0: never
    skip_margin: int = 0  # steps before the bad ones that are left out with them
    max_rollbacks: int = _run_time(5)  # then training stops
    gradient_accumulation_steps: int = _run_time(1)
    log_every: int = _run_time(100)
    eval_every: int = _run_time(10_000)
    eval_batches: int = _run_time(32)
    checkpoint_every: int = _run_time(10_000)
    profile_steps: str = _run_time("")  # e.g. 10:15 writes a trace of steps 10 to 14 for XProf
    keep_last: int = _run_time(3)  # checkpoints
    keep_every: int = _run_time(0)  # also keep those of every n-th step for ever; 0: none
    attention: str = _run_time("auto")  # auto: fused (splash) on TPU where it can be | plain
    remat: str = _run_time("none")  # none | dots (keep matmul outputs) | full (recompute everything)

    def __post_init__(self):
        check_least("train", self, 1, "num_steps", "gradient_accumulation_steps", "log_every", "eval_every",
                    "eval_batches", "checkpoint_every", "keep_last", "max_bad_steps")  # fmt: skip
        for name in ("keep_every", "spike_z_score", "skip_margin", "max_rollbacks"):
            if not getattr(self, name) >= 0:
                raise UserError(f"train.{name}={getattr(self, name)} must not be negative; 0 means none.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"train.seed={self.seed} must be at least 0 and below 2**32.")
        if self.profile_steps and not re.fullmatch(r"\d+:\d+", self.profile_steps):
            raise UserError(f"train.profile_steps={self.profile_steps!r} is not FIRST:LAST, e.g. 10:15.")
        if self.profile_steps and int.__ge__(*map(int, self.profile_steps.split(":"))):
            raise UserError(f"train.profile_steps={self.profile_steps!r} ends before it begins; e.g. 10:15.")
        check_known("train", self, prng=("threefry", "rbg"), activation_dtype=("auto", "float32", "bfloat16"),
                    attention=("auto", "plain"), remat=("none", "dots", "full"))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 for "the rest"."""

    data: int = _run_time(-1)
    fsdp: int = _run_time(1)
    tensor: int = _run_time(1)
