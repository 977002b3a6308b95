"""A plan in words: what a compiled training step takes, as people and as tests read it."""

import json
import pathlib

import jax

from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.model.heads import BertForPreTraining
from bert_jax.scaling.collectives import SLICES
from bert_jax.scaling.compile import Compiled
from bert_jax.scaling.topology import GIB
from bert_jax.training.flops import peak_flops
from bert_jax.training.step import abstract_model


def describe(compiled: Compiled, price: float | None = None) -> str:
    """The whole answer, as people read it; its last line but advice is the verdict."""
    config, mesh, memory = compiled.config, compiled.mesh, compiled.memory
    data, shape = config.data, dict(mesh.shape)
    rows = data.global_batch_size // (shape["data"] * shape["fsdp"])
    parameters = sum(leaf.size for leaf in _params(config))
    axes = " × ".join(f"{axis} {size}" for axis, size in shape.items())
    lines = [
        f"mesh        {axes}",
        f"batch       {data.global_batch_size:,} rows of {data.max_seq_length} tokens, {rows} on a device",
        f"remat       {config.train.remat}",
        f"parameters  {parameters:,}",
        f"FLOPs       {compiled.flops:.3g} a step, {compiled.flops / compiled.tokens:.3g} a token",
        f"compiled    in {compiled.seconds:.0f} s",
        "",
        "memory of a device, GiB",
        *_memory(compiled),
    ]
    if memory.fits:
        lines += ["", "sent between devices in a step, MiB of whole arrays", *_sent(compiled)]
        attention = "are in memory" if compiled.scores else "are nowhere in memory"
        lines += ["", f"attention   scores of all pairs of tokens {attention}"]
        lines += _times(compiled, price)
        return "\n".join([*lines, "", "verdict: fits"])
    over = (memory.total - memory.capacity) / GIB
    return "\n".join(
        [*lines, "", "verdict: does not fit", f"{over:.2f} GiB too much on every device. {advice(compiled)}"]
    )


def _params(config: Config) -> list[jax.ShapeDtypeStruct]:
    return jax.tree.leaves(abstract_model(lambda rngs: BertForPreTraining(config.model, rngs))[1])


def _memory(compiled: Compiled) -> list[str]:
    memory = compiled.memory
    rows = {
        "parameters, optimizer, batch": memory.arguments,
        "activations, gradients": memory.temporaries,
        "total": memory.total,
        "capacity": memory.capacity,
    }
    return [f"  {name:<30}{size / GIB:>8.2f}" for name, size in rows.items() if size is not None]


def _sent(compiled: Compiled) -> list[str]:
    """A line for each kind of collective; what is less than a thousandth of all is left out."""
    total = sum(found.bytes for found in compiled.collectives)
    lines = [
        f"  {found.kind:<20}{found.axes:<14}{found.dtype:<6}{found.bytes / 2**20:>10.1f}"
        for found in compiled.collectives
        if found.bytes * 1000 >= total
    ]
    return lines or ["  nothing"]


def _times(compiled: Compiled, price: float | None) -> list[str]:
    if (seconds := compiled.step_seconds()) is None:
        return []
    computing, sending = seconds
    step, peak = max(seconds), peak_flops(compiled.mesh.devices.ravel().tolist())
    steps = compiled.config.train.num_steps
    hours = steps * step / 3600
    speed, parts = compiled.tokens / step, f"computing {1000 * computing:.0f}, sending {1000 * sending:.0f}"
    between_slices = any(found.axes == SLICES for found in compiled.collectives)
    lines = [
        "",
        "estimates, not measurements: the compiler's cycles, links at their full rate, perfect overlap",
        *(["and without what is sent between slices"] if between_slices else []),
        f"  step          {1000 * step:.0f} ms ({parts})",
        f"  tokens/s      {speed:,.0f}, {speed / compiled.devices:,.0f} a device",
    ]
    if peak:
        lines.append(f"  MFU           {compiled.flops / step / peak:.0%}")
    cost = f", {price * hours * compiled.devices:,.0f} at {price:g} a device-hour" if price else ""
    lines.append(f"  {steps:,} steps  {hours:,.1f} h, {hours * compiled.devices:,.0f} device-hours{cost}")
    return lines


def advice(compiled: Compiled) -> str:
    """What makes room, the cheapest first."""
    train, data = compiled.config.train, compiled.config.data
    shape = dict(compiled.mesh.shape)
    rows = data.global_batch_size // (shape["data"] * shape["fsdp"] * train.gradient_accumulation_steps)
    options = []
    if train.remat == "none":
        options.append("--config.train.remat=dots (recomputes what is cheap)")
    if train.remat != "full":
        options.append("--config.train.remat=full (recomputes everything)")
    if rows > 1:
        steps = 2 * train.gradient_accumulation_steps
        options.append(f"--config.train.gradient_accumulation_steps={steps} (half the rows at a time)")
    if shape["fsdp"] < compiled.devices:
        options.append("--config.mesh.fsdp=N (a device stores an N-th of parameters and optimizer)")
    if train.attention == "plain":
        options.append("--config.train.attention=auto (no scores in memory)")
    return "Try " + ", or ".join(options) + ". --search tries them all." if options else "Use larger chips."


def comparison(compiled: Compiled, plain: Compiled) -> str:
    """The step with plain attention beside the fused one."""
    fused, other = compiled.memory.total / GIB, plain.memory.total / GIB
    return (
        f"\nwith plain attention: {other:.2f} GiB a device instead of {fused:.2f}; scores "
        f"{'are in memory' if plain.scores or not plain.memory.fits else 'are nowhere'}; "
        f"{'fits' if plain.memory.fits else 'does not fit'}"
    )


def summary(compiled: Compiled) -> dict:
    """What should not change unnoticed: shardings, memory and collectives; no times."""
    return {
        "mesh": dict(compiled.mesh.shape),
        "fits": compiled.memory.fits,
        "attention_scores_in_memory": compiled.scores,
        "arguments_mib": round((compiled.memory.arguments or 0) / 2**20),
        "temporaries_mib": round((compiled.memory.temporaries or 0) / 2**20),
        "collectives_mib": {
            f"{found.kind} {found.axes} {found.dtype}": round(found.bytes / 2**20, 1)
            for found in compiled.collectives
            if found.bytes > 2**19
        },
        "shardings": compiled.shardings,
    }


def write(compiled: Compiled, path: pathlib.Path) -> None:
    try:
        path.write_text(json.dumps(summary(compiled), indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {error.strerror}; give another.") from None
