"""Builds what the steps of a run are compiled from, for training, planning and benchmarks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.model.config import ModelConfig
from bert_jax.model.objectives import Objective
from bert_jax.training import step as step_lib
from bert_jax.training.compiler import compiler_options
from bert_jax.training.config import RunConfig
from bert_jax.training.flops import peak_flops, training_flops
from bert_jax.training.mesh import BATCH, check_batch, check_model, process_rows
from bert_jax.training.optimizer import make_optimizer
from bert_jax.training.phases import SCHEDULE, Phase
from bert_jax.training.schedules import Schedule, schedule_of_run


class Program:
    """Network, optimizer, schedule and steps of a run on a mesh. Construction computes nothing.

    A phase has a program of its own, see `of_phase`.

    Args:
        config: sizes, optimizer and how to compute.
        objective: what is minimised.
        mesh: of devices that may be absent (see `bert_jax.scaling`); it must be in use (`jax.set_mesh`)
            wherever a step is compiled or run.

    Attributes:
        compute: how the network computes.
        structure: the network without its parameters.
        abstract: the state as ShapeDtypeStructs with shardings.
        schedule: step -> learning rate.
        train_step: jitted (state, batch, key) -> (state, metrics).
        evaluation_step: jitted (params, batch) -> (terms, outputs).

    Raises:
        UserError: for a mesh that cannot share out the network or the batch.
    """

    def __init__(self, config: RunConfig, objective: Objective, mesh: Mesh, schedule: Schedule | None = None):
        check_model(mesh.shape, config.model)
        check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
        self.config, self.objective, self.mesh = config, objective, mesh
        tokens, dropout = config.data.max_seq_length, config.model.attention_dropout
        self.compute = step_lib.compute_of(config.train, mesh, tokens, dropout)
        self.optimizer = make_optimizer(config.optimizer)
        self.schedule = schedule or schedule_of_run(config.optimizer, config.phase_list())
        self.structure, abstract_params = step_lib.abstract_model(self.build)
        self.abstract = step_lib.abstract_state(abstract_params, self.optimizer, mesh)
        self.train_step = step_lib.make_train_step(
            self.structure,
            config.model,
            objective,
            self.optimizer,
            self.schedule,
            self.abstract,
            config.train.gradient_accumulation_steps,
            compiler_options(mesh),
        )
        self.evaluation_step = step_lib.make_evaluation_step(
            self.structure, objective, config.train.gradient_accumulation_steps
        )
        self._after: dict[ModelConfig, Program] = {}

    def of_phase(self, phase: Phase, objective: Objective) -> "Program":
        """Returns the program of a phase: other batches, objective, dropout and decay for the same state."""
        if phase.config is self.config and objective is self.objective:
            return self
        return Program(phase.config, objective, self.mesh, self.schedule)

    def after(self, step: int) -> "Program":
        """Returns the program that evaluates the weights after `step` steps, see `RunConfig.after`."""
        config = self.config.after(step)
        if config == self.config:
            return self
        if config.model not in self._after:
            self._after[config.model] = Program(config, self.objective, self.mesh, self.schedule)
        return self._after[config.model]

    @property
    def constants(self) -> tuple[Any, ...]:
        """What the training step is compiled from beside the shapes of its arguments."""
        rate = dict.fromkeys(SCHEDULE, None)
        optimizer = dataclasses.asdict(self.config.optimizer) | rate
        if self.config.optimizer.weight_decay_mode == "decoupled":
            optimizer["peak"] = self.config.optimizer.learning_rate
        return self.config.model, tuple(optimizer.items()), self.objective

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the network with random parameters."""
        return self.objective.build(self.config.model, rngs, self.compute)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Rows of the global batch that this process's devices hold: int [rows], ascending."""
        return process_rows(self.mesh, self.config.data.global_batch_size)

    @property
    def num_parameters(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract.params))

    def random_params(self) -> Any:
        """Makes random parameters from `train.seed`, sharded as in training."""
        return step_lib.init_params(self.build, self.abstract, self.config.train.seed)

    def initial_state(self, params: Any) -> step_lib.TrainState:
        """Makes the state of given parameters before the first update."""
        return step_lib.init_state(params, self.optimizer, self.abstract)

    @functools.cached_property
    def key(self) -> jax.Array:
        """The key that dropout is drawn from, on all devices."""
        make = functools.partial(jax.random.key, self.config.train.seed)
        return jax.jit(make, out_shardings=NamedSharding(self.mesh, P()))()

    @property
    def abstract_key(self) -> jax.ShapeDtypeStruct:
        """`key` without its value."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct((), key.dtype, sharding=NamedSharding(self.mesh, P()))

    def abstract_batch(self, shapes: dict[str, tuple[tuple[int, ...], type]]) -> dict[str, Any]:
        """Returns a batch of these shapes and dtypes, with what the loop adds, as ShapeDtypeStructs."""
        stop = {"stop_requested": ((self.config.data.global_batch_size,), np.float32)}
        sharding = NamedSharding(self.mesh, BATCH)
        return {
            name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in (shapes | stop).items()
        }

    @property
    def ideal_seconds(self) -> Callable[..., float] | None:
        """Seconds that so many `tokens`, `attended` tokens and `predictions` take at the devices' peak rate.

        None where that rate is not known.
        """
        peak = peak_flops(self.mesh.devices.ravel().tolist())
        return (lambda **counts: training_flops(self.config.model, **counts) / peak) if peak else None
