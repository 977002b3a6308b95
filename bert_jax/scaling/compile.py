"""Compiles the training step of a config ahead of time, for devices that may be absent."""

import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from bert_jax.config import Config
from bert_jax.data.batch import batch_shapes
from bert_jax.model.kernels import visited_tokens
from bert_jax.model.objectives import CausalObjective, PretrainingObjective
from bert_jax.model.partition import path_name
from bert_jax.scaling.collectives import SLICES, Collective, collectives
from bert_jax.scaling.profile import Cost, costs
from bert_jax.scaling.topology import CHIPS, GIB, capacity
from bert_jax.training.flops import attended_tokens, peak_flops, training_flops
from bert_jax.training.mesh import count_slices, make_mesh
from bert_jax.training.program import Program

KERNEL = 'custom_call_target="tpu_custom_call"'
KERNEL_RATE = 0.4  # of the peak rate, assumed for the attention kernel: the compiler does not estimate it


class Memory(NamedTuple):
    """Bytes on one device; of a program that does not fit only the total is known."""

    arguments: int | None  # parameters, optimizer state, batch
    temporaries: int | None  # activations, gradients, buffers
    total: int
    capacity: int

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity


class Estimate(NamedTuple):
    """Seconds of a step.

    Sending is that inside a slice, at the full rate of the links: the network between slices is slower.
    """

    computing: float
    sending: float
    alone: float  # of sending, while nothing is computed

    @property
    def step(self) -> float:
        return max(self.computing + self.alone, self.sending)


class Compiled(NamedTuple):
    """The compiler's figures of a training step."""

    config: Config
    mesh: Mesh
    parameters: int
    shardings: dict[str, str]  # parameter -> axes of its dimensions
    seconds: float  # to compile
    memory: Memory
    # Not known of a program that does not fit:
    collectives: Sequence[Collective] = ()
    kernel: bool = False  # whether attention is a kernel
    squares: int = 0  # the most arrays of T × T numbers in one array: scores of rows and heads, if in memory
    costs: Sequence[Cost] = ()  # where the compiler estimates cycles

    @property
    def devices(self) -> int:
        return self.mesh.size

    @property
    def cycles(self) -> int:
        """Estimated cycles of a step; 0 where the compiler makes no estimates."""
        return sum(cost.cycles for cost in self.costs)

    @property
    def scores(self) -> bool:
        """Whether attention scores of all pairs of tokens, of a device's rows and heads, are in memory."""
        config, mesh = self.config, self.mesh.shape
        parts = mesh["data"] * mesh["fsdp"] * config.train.gradient_accumulation_steps
        heads = config.model.num_attention_heads // mesh["tensor"]
        # Where D = T, as large arrays of states end in [T, T], too.
        return not self.kernel and self.squares >= config.data.global_batch_size // parts * heads

    @property
    def tokens(self) -> int:
        """Tokens of a step with full rows."""
        return self.config.data.global_batch_size * self.config.data.max_seq_length

    @property
    def flops(self) -> float:
        """FLOPs of a step on all devices, where each row is one sequence.

        Its tokens attend to all of it, or with `data.objective=causal` to half of it.
        """
        data = self.config.data
        rate = (data.mask_rate + (data.final_mask_rate or data.mask_rate)) / 2
        predictions = self.tokens if data.objective == "causal" else self.tokens * rate
        return training_flops(self.config.model, self.tokens, self.attended, predictions)

    @property
    def attended(self) -> float:
        """Tokens that each token attends to, summed over a step with full rows; the mean of all layers."""
        data = self.config.data
        of_row = attended_tokens(
            np.float64(data.max_seq_length), self.config.model, data.objective == "causal"
        )
        return data.global_batch_size * float(of_row)

    def _compared(self) -> float:
        """Tokens that the kernel compares each token with, summed over a step; the mean of all layers."""
        model, T = self.config.model, self.config.data.max_seq_length
        causal = self.config.data.objective == "causal"
        local = model.num_local_layers / model.num_hidden_layers
        everywhere, nearby = (visited_tokens(T, causal, window) for window in (0, model.local_attention))
        return self.tokens * ((1 - local) * everywhere + local * nearby)

    def estimate(self) -> Estimate | None:
        """Estimates a step's time; None without a TPU."""
        chip = CHIPS.get(self.mesh.devices.flat[0].device_kind)
        if chip is None or not self.cycles:
            return None
        peak = peak_flops(self.mesh.devices.ravel().tolist()) or 1.0
        # Of three: the backward pass computes the scores again, and `full` the forward pass before it.
        passes = 4.5 if self.config.train.remat == "full" else 3.5
        kernel = 0.0 if self.scores else passes / 3 * (
            training_flops(self.config.model, 0, self._compared(), 0) / peak / KERNEL_RATE
        )  # fmt: skip
        sent = alone = 0.0
        for found in self.collectives:
            if found.axes != SLICES:
                trips = 2.0 if found.kind == "all-reduce" else 1.0  # a reduction and a gather
                sent, alone = sent + trips * found.bytes, alone + trips * found.alone
        return Estimate(self.cycles / chip.clock + kernel, sent / chip.link, alone / chip.link)


def program_without_data(config: Config, mesh: Mesh) -> Program:
    """Makes the program of `pretrain` without a dataset: its objective needs one for evaluation only."""
    unigram_loss = np.zeros(config.model.vocab_size, np.float32)
    masked = PretrainingObjective(0, unigram_loss, pairs=config.model.pooler)
    return Program(config, CausalObjective() if config.data.objective == "causal" else masked, mesh)


def compile_step(config: Config, devices: list[jax.Device]) -> Compiled:
    """Compiles the step that `pretrain` runs, for a state and a batch without values.

    A program that does not fit is an answer: its memory is what the compiler would need.

    Raises:
        UserError: for a mesh that does not fit the devices, the network or the batch.
    """
    mesh = make_mesh(config.mesh, devices)
    program = program_without_data(config, mesh)
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract.params)
    shardings = {path_name(path): str(tuple(leaf.sharding.spec)) for path, leaf in leaves}
    given = config, mesh, program.num_parameters, shardings
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        batch = program.abstract_batch(batch_shapes(config.data))
        lowered = program.train_step.lower(program.abstract, batch, program.abstract_key)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (memory := _exceeded(str(error))) is None:
            raise
        return Compiled(*given, time.perf_counter() - start, memory)
    seconds, text = time.perf_counter() - start, compiled.as_text()
    return Compiled(
        *given,
        seconds,
        _memory(compiled, mesh),
        collectives(text, _levels(mesh)),
        kernel=KERNEL in text,
        squares=_squares(text, config.data.max_seq_length),
        costs=costs(text),
    )


def _squares(text: str, T: int) -> int:
    """Returns the most squares of T × T in one array of a program."""
    leading = re.findall(rf"\[((?:\d+,)*){T},{T}\]", text)
    return max((math.prod(int(size) for size in sizes.split(",") if size) for sizes in leading), default=0)


def _memory(compiled: jax.stages.Compiled, mesh: Mesh) -> Memory:
    sizes: Any = compiled.memory_analysis()
    # The new state takes the old one's place: outputs that are aliased need nothing of their own.
    outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    temporaries = sizes.temp_size_in_bytes + max(outputs, 0)
    arguments = sizes.argument_size_in_bytes
    return Memory(arguments, temporaries, arguments + temporaries, capacity(mesh.devices.flat[0]))


def _levels(mesh: Mesh) -> dict[str, int]:
    """{axis: devices} of a mesh; `slices`, joined by a slow network, is split off from `data`."""
    shape = dict(mesh.shape)
    slices = count_slices(mesh.devices.ravel().tolist())
    return {SLICES: slices, **shape, "data": shape["data"] // slices} if slices > 1 else shape


def _exceeded(message: str) -> Memory | None:
    """Reads the memory that a program would need out of the TPU compiler's error; None for other errors."""
    size = r"([\d.]+)([KMGT])"
    # The compiler has two messages.
    match = re.search(rf"Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)", message)
    if not match:
        return None
    parts = [group for group in match.groups() if group]
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    used, limit = (int(float(parts[i]) * units[parts[i + 1]]) for i in (0, 2))
    return Memory(None, None, used, limit)
