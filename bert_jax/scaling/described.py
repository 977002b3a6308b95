"""Describes the memory, communication and time of a compiled training step, as text and as JSON."""

import json
import textwrap
from collections.abc import Sequence
from typing import Any

from bert_jax import files
from bert_jax.errors import UserError, reason
from bert_jax.report.text_table import text_table
from bert_jax.scaling.collectives import SLICES, Collective
from bert_jax.scaling.compile import Compiled, Memory
from bert_jax.scaling.topology import GIB
from bert_jax.training.flops import peak_flops
from bert_jax.training.mesh import count_slices
from bert_jax.training.step import compute_of

INDENT = "  "


def describe(phases: Sequence[Compiled], price: float | None = None, profile: bool = False) -> str:
    """Describes the step of every phase of a run in words, and ends with the verdict.

    Args:
        phases: the steps in order; `train.num_steps` of each is that of the phase.
        price: of a device-hour, in any currency; None leaves the cost out.
        profile: whether to list the most expensive operations.
    """
    parts = []
    for number, compiled in enumerate(phases, 1):
        if len(phases) > 1:
            steps = compiled.config.train.num_steps
            parts.append(f"phase {number} of {len(phases)}: {steps:,} steps")
        parts += _described(compiled, price) + (_profile(compiled) if profile else [])
    if len(phases) > 1:
        parts += _sum(phases, price)
    large = [number for number, compiled in enumerate(phases, 1) if not compiled.memory.fits]
    if not large:
        return "\n\n".join([*parts, "verdict: fits"])
    of_phase = f" (phase {', '.join(map(str, large))})" if len(phases) > 1 else ""
    return "\n\n".join([*parts, f"verdict: does not fit\n{_surplus(phases[large[0] - 1])}{of_phase}"])


def _described(compiled: Compiled, price: float | None) -> list[str]:
    config, mesh, memory = compiled.config, compiled.mesh, compiled.memory
    data, shape = config.data, dict(mesh.shape)
    rows = data.global_batch_size // (shape["data"] * shape["fsdp"])
    summary_rows = [
        ("mesh", " × ".join(f"{axis} {size}" for axis, size in shape.items())),
        ("batch", f"{data.global_batch_size:,} rows of {data.max_seq_length} tokens, {rows} on a device"),
        ("remat", config.train.remat),
        ("layers", _layers(compiled)),
        ("parameters", f"{compiled.parameters:,}"),
        ("FLOPs", f"{compiled.flops:.3g} a step, {compiled.flops / compiled.tokens:.3g} a token"),
        ("compiled", f"in {compiled.seconds:.0f} s"),
    ]
    parts = [text_table(summary_rows, left=2), f"memory of a device, GiB\n{_memory(memory)}"]
    if not memory.fits:
        return parts
    return [
        *parts,
        f"sent between devices in a step, MiB of whole arrays\n{_sent(compiled.collectives)}",
        f"attention scores of all pairs of tokens {'are' if compiled.scores else 'are not'} in memory",
        *_times(compiled, price),
    ]


def _layers(compiled: Compiled) -> str:
    if compute_of(compiled.config.train, compiled.mesh).unroll:
        return "unrolled"
    on_tpu = compiled.mesh.devices.flat[0].platform == "tpu"
    hint = "--config.train.layers=unrolled makes faster steps, and takes longer to compile"
    return f"scanned; {hint}" if on_tpu else "scanned"


def _profile(compiled: Compiled) -> list[str]:
    """Lists operations down to a hundredth of all cycles; none where the compiler estimates no cycles."""
    rows = [
        (cost.stage, cost.part, cost.operation, f"{cost.cycles / compiled.cycles:.1%}")
        for cost in compiled.costs
        if cost.cycles * 100 >= compiled.cycles
    ]
    title = "estimated cycles by operation; the attention kernel and what is sent have none"
    return [f"{title}\n{textwrap.indent(text_table(rows, left=3), INDENT)}"] if rows else []


def _surplus(compiled: Compiled) -> str:
    """Says how much a step that does not fit is too large, and what makes room."""
    over = (compiled.memory.total - compiled.memory.capacity) / GIB
    return f"{over:.2f} GiB too much on every device. {advice(compiled)}"


def _sum(phases: Sequence[Compiled], price: float | None) -> list[str]:
    """Adds up the estimated times of all phases; returns none where the compiler estimates no cycles."""
    rows, total = [], 0.0
    for number, compiled in enumerate(phases, 1):
        if (estimate := compiled.estimate()) is None:
            return []
        hours = compiled.config.train.num_steps * estimate.step / 3600
        data, steps = compiled.config.data, compiled.config.train.num_steps
        rows.append(
            (f"phase {number}", f"{steps:,} steps of {data.global_batch_size:,} × {data.max_seq_length}",
             _hours(hours, compiled.devices, price))
        )  # fmt: skip
        total += hours
    rows.append(("all", "", _hours(total, phases[0].devices, price)))
    return [f"the run, estimated\n{textwrap.indent(text_table(rows, left=3), INDENT)}"]


def _hours(hours: float, devices: int, price: float | None) -> str:
    cost = f", {price * hours * devices:,.0f} at {price:g} a device-hour" if price else ""
    return f"{hours:,.1f} h, {hours * devices:,.0f} device-hours{cost}"


def _memory(memory: Memory) -> str:
    sizes = {
        "parameters, optimizer, batch": memory.arguments,
        "activations, gradients": memory.temporaries,
        "total": memory.total,
        "capacity": memory.capacity,
    }
    rows = [(name, f"{size / GIB:.2f}") for name, size in sizes.items() if size is not None]
    return textwrap.indent(text_table(rows), INDENT)


def _sent(collectives: Sequence[Collective]) -> str:
    """Lists each kind of collective; leaves out those below a thousandth of all bytes."""
    total = sum(found.bytes for found in collectives)
    rows = [
        (found.kind, found.axes, found.dtype, f"{found.bytes / 2**20:.1f}", _beside(found))
        for found in collectives
        if found.bytes * 1000 >= total
    ]
    return textwrap.indent(text_table(rows, left=3) or "nothing", INDENT)


def _beside(found: Collective) -> str:
    beside = 1 - found.alone / found.bytes
    return f"{beside:.0%} beside computing" if beside else ""


def _times(compiled: Compiled, price: float | None) -> list[str]:
    """Estimates time and cost in one paragraph; returns none where the compiler estimates no cycles."""
    if (estimate := compiled.estimate()) is None:
        return []
    computing, sending, alone = (f"{1000 * seconds:.0f}" for seconds in estimate)
    step, peak = estimate.step, peak_flops(compiled.mesh.devices.ravel().tolist())
    speed, steps = compiled.tokens / step, compiled.config.train.num_steps
    hours = _hours(steps * step / 3600, compiled.devices, price)
    rows = [
        ("step", f"{1000 * step:.0f} ms (computing {computing}, sending {sending}, {alone} of it alone)"),
        ("tokens/s", f"{speed:,.0f}, {speed / compiled.devices:,.0f} a device"),
        *([("MFU", f"{compiled.flops / step / peak:.0%}")] if peak else []),
        (f"{steps:,} steps", hours),
    ]
    title = "estimates, not measurements: the compiler's cycles, links at their full rate"
    if any(found.axes == SLICES for found in compiled.collectives):
        title += "\nwhat is sent between slices is not included"
    return [f"{title}\n{textwrap.indent(text_table(rows, left=2), INDENT)}"]


def advice(compiled: Compiled) -> str:
    """Names what makes room, the cheapest first."""
    train, data = compiled.config.train, compiled.config.data
    shape = dict(compiled.mesh.shape)
    rows = data.global_batch_size // (shape["data"] * shape["fsdp"] * train.gradient_accumulation_steps)
    steps, slices = (
        2 * train.gradient_accumulation_steps,
        count_slices(compiled.mesh.devices.ravel().tolist()),
    )
    helps = {
        "--config.train.remat=dots (recomputes what is cheap)": train.remat == "none",
        "--config.train.remat=full (recomputes everything)": train.remat != "full",
        f"--config.train.gradient_accumulation_steps={steps} (half the rows at a time)": rows % 2 == 0,
        "--config.mesh.fsdp=N (a device stores an N-th of parameters and optimizer)": shape["data"] > slices,
        "--config.train.attention=auto (no scores in memory)": train.attention == "plain",
    }
    if not any(helps.values()):
        return "Use larger chips."
    options = ", or ".join(option for option, does in helps.items() if does)
    return f"Try {options}. --search tries batch, remat and fsdp."


def comparison(compiled: Compiled, plain: Compiled) -> str:
    """Compares the step with plain attention to the fused one, in one line."""
    fused, other = compiled.memory.total / GIB, plain.memory.total / GIB
    scores = "are" if plain.scores or not plain.memory.fits else "are not"
    fits = "fits" if plain.memory.fits else "does not fit"
    return (
        f"with plain attention: {other:.2f} GiB a device instead of {fused:.2f}; "
        f"scores {scores} in memory; {fits}"
    )


def summary(compiled: Compiled) -> dict[str, Any]:
    """Returns what should not change unnoticed: shardings, memory, collectives, estimated times.

    Times are None where the compiler estimates none.
    """
    estimate = compiled.estimate()
    return {
        "mesh": dict(compiled.mesh.shape),
        "fits": compiled.memory.fits,
        "attention_scores_in_memory": compiled.scores,
        "squares_of_all_tokens": compiled.squares,
        "arguments_mib": round((compiled.memory.arguments or 0) / 2**20),
        "temporaries_mib": round((compiled.memory.temporaries or 0) / 2**20),
        "collectives_mib": {
            f"{found.kind} {found.axes} {found.dtype}": round(found.bytes / 2**20, 1)
            for found in compiled.collectives
            if found.bytes > 2**19
        },
        "computing_ms": round(1000 * estimate.computing, 1) if estimate else None,
        "sending_alone_ms": round(1000 * estimate.alone, 1) if estimate else None,
        "shardings": compiled.shardings,
    }


def write_summary(phases: Sequence[Compiled], path: str) -> None:
    """Writes the summary as JSON; a list of them for several phases.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        found = [summary(compiled) for compiled in phases]
        files.write(path, json.dumps(found if len(found) > 1 else found[0], indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--output={path} cannot be written: {reason(error)}; give another.") from None
