"""The training step of a config, compiled ahead of time for devices that need not be there."""

import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.config import Config
from bert_jax.data.batch import batch_shapes
from bert_jax.model.heads import BertForPreTraining
from bert_jax.scaling.collectives import SLICES, Collective, collectives, estimated_cycles
from bert_jax.scaling.topology import CHIPS, GIB, capacity
from bert_jax.tasks.pretraining import PretrainingObjective
from bert_jax.training import step as step_lib
from bert_jax.training.flops import peak_flops, training_flops
from bert_jax.training.mesh import BATCH, check_batch, check_model, count_slices, make_mesh, path_name
from bert_jax.training.optimizer import make_optimizer, make_schedule

KERNEL_RATE = 0.4  # of the peak: what the attention kernel, which has no estimate, is taken to reach


class Memory(NamedTuple):
    """Bytes of one device; those of a program that does not fit are known in total only."""

    arguments: int | None  # parameters, optimizer state, batch
    temporaries: int | None  # activations, gradients, buffers
    total: int
    capacity: int

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


class Compiled(NamedTuple):
    """What the compiler says of a training step."""

    config: Config
    mesh: Mesh
    seconds: float  # to compile
    memory: Memory
    collectives: list[Collective]
    scores: bool  # whether T × T attention scores are in memory
    shardings: dict[str, str]  # parameter -> axes of its dimensions
    cycles: int | None  # of a step, where the compiler estimates them

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def tokens(self) -> int:
        """Of a step, rows being full."""
        return self.config.data.global_batch_size * self.config.data.max_seq_length

    @property
    def flops(self) -> float:
        """Of a step on all devices: rows full of one sequence each, whose tokens attend to all of them."""
        data = self.config.data
        attended, predictions = self.tokens * data.max_seq_length, self.tokens * data.mask_rate
        return training_flops(self.config.model, self.tokens, attended, predictions)

    def step_seconds(self) -> tuple[float, float] | None:
        """Estimates of a step's time: computing, and at least this long sending. None off TPU.

        What is sent between slices comes on top: the rate of the network there is not the chip's.
        """
        chip = CHIPS.get(self.mesh.devices.flat[0].device_kind)
        if chip is None or not self.cycles:
            return None
        peak = peak_flops(self.mesh.devices.ravel().tolist()) or 1.0
        model = self.config.model
        kernel = 0.0 if self.scores else 3.5 / 3 * (
            training_flops(model, 0, self.tokens * self.config.data.max_seq_length, 0) / peak / KERNEL_RATE
        )  # the kernel's backward pass computes the scores again  # fmt: skip
        factor = {"all-reduce": 2.0}  # a reduction and a gather
        sent = sum(
            factor.get(found.kind, 1.0) * found.bytes for found in self.collectives if found.axes != SLICES
        )
        return self.cycles / chip.clock + kernel, sent / chip.link


def compile_step(config: Config, devices: list[jax.Device]) -> Compiled:
    """Compiles the step that trains, nothing but its batch and state being abstract.

    A program that does not fit is an answer: its memory is what the compiler would need.

    Raises:
        UserError: for a mesh that does not fit the devices, the network or the batch.
    """
    mesh = make_mesh(config.mesh, devices)
    check_model(mesh.shape, config.model)
    check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
    optimizer = make_optimizer(config.optimizer)
    compute = step_lib.compute_of(config.train, mesh)
    structure, params = step_lib.abstract_model(lambda rngs: BertForPreTraining(config.model, rngs, compute))
    state = step_lib.abstract_state(params, optimizer, mesh)
    objective = PretrainingObjective(0, np.zeros(config.model.vocab_size, np.float32))
    schedule = make_schedule(config.optimizer, config.train.num_steps)
    rows = NamedSharding(mesh, BATCH)
    shapes = batch_shapes(config.data) | {"stop_requested": ((config.data.global_batch_size,), np.float32)}
    batch = {name: jax.ShapeDtypeStruct(*shape, sharding=rows) for name, shape in shapes.items()}
    implementation = {"threefry": "threefry2x32", "rbg": "rbg"}[config.train.prng]
    key = jax.eval_shape(lambda: jax.random.key(0, impl=implementation))
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=NamedSharding(mesh, P()))
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    shardings = {path_name(path): str(tuple(leaf.sharding.spec)) for path, leaf in leaves}
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        train_step = step_lib.make_train_step(
            structure, objective, optimizer, schedule, state, config.train.gradient_accumulation_steps
        )
        lowered = train_step.lower(state, batch, key)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = _exceeded(str(error))
        if memory is None:
            raise
        return Compiled(config, mesh, time.perf_counter() - start, memory, [], False, shardings, None)
    return _described(compiled, config, mesh, time.perf_counter() - start, shardings)


def _described(compiled: Any, config: Config, mesh: Mesh, seconds: float, shardings: dict) -> Compiled:
    text, sizes = compiled.as_text(), compiled.memory_analysis()
    # The new state takes the old one's place: outputs that are aliased need nothing of their own.
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporaries = sizes.temp_size_in_bytes + max(outputs, 0)
    arguments, device = sizes.argument_size_in_bytes, mesh.devices.flat[0]
    memory = Memory(arguments, temporaries, arguments + temporaries, capacity(device))
    T, kernel = config.data.max_seq_length, "tpu_custom_call" in text
    scores = not kernel and bool(re.search(rf"\[(?:\d+,)*{T},{T}\]", text))
    cycles = estimated_cycles(text) if device.platform == "tpu" else None
    sent = collectives(text, _levels(mesh))
    return Compiled(config, mesh, seconds, memory, sent, scores, shardings, cycles)


def _levels(mesh: Mesh) -> dict[str, int]:
    """{axis: devices} of a mesh, `slices` being the outer part of `data`: what the slow network joins."""
    shape = dict(mesh.shape)
    slices = count_slices(mesh.devices.ravel().tolist())
    return {SLICES: slices, **shape, "data": shape["data"] // slices} if slices > 1 else shape


def _exceeded(message: str) -> Memory | None:
    """The memory that the TPU compiler would need, from what it says when that is too much."""
    size = r"([\d.]+)([KMGT])"
    # Told in two ways, by what was tried before it gave up.
    match = re.search(rf"Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)", message)
    if not match:
        return None
    parts = [group for group in match.groups() if group]
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    used, limit = (int(float(parts[i]) * units[parts[i + 1]]) for i in (0, 2))
    return Memory(None, None, used, limit)
