"""Reads from HLO text what a compiled program sends between devices, in bytes by mesh axis."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bert_jax.scaling import hlo

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
SLICES = "slices"
RING = re.compile(r"windowed_dot_general_body_(ag|rs)")  # beside matrix products
STARTS = re.compile(rf" (?:(?:{KINDS})-start|send)\(")


class Collective(NamedTuple):
    """Collectives of one kind along the same axes of the mesh.

    `bytes` counts whole arrays, as one device holds them: the input of reductions, the output of gathers.
    Rings of permutations, which hide a gather or a reduction behind matrix products, count as that gather or
    reduction.
    """

    kind: str
    axes: str  # e.g. "data" or "data×fsdp"
    dtype: str
    bytes: int  # a step, including repetitions in loops
    times: int  # a step
    alone: int = 0  # bytes of those beside which nothing is computed


def collectives(text: str, mesh_shape: dict[str, int]) -> list[Collective]:
    """Lists all collectives of a program, the largest first.

    Args:
        text: `compiled.as_text()`.
        mesh_shape: {axis: devices} in the order of the mesh's dimensions; `slices` first, if several.
    """
    computations = hlo.computations(text)
    started = {
        name
        for name, instructions in computations.items()
        if any('"AsyncCollectiveStart"' in line for line in instructions.values())
    }
    # An asynchronous collective is repeated in every fusion that it overlaps; only the first counts.
    repeated = {
        name
        for name, instructions in computations.items()
        if name.startswith("async_collective_fusion")
        or any('"AsyncCollectiveDone"' in line for line in instructions.values())
    }
    sizes, counts, alone = (collections.Counter[tuple[str, str, str]]() for _ in range(3))
    for times, where, line in hlo.executed(computations):
        overlaps = where in started or RING.search(where) or STARTS.search(line)
        for kind, axes, dtype, size in () if where in repeated else _sent(line, where, mesh_shape):
            sizes[kind, axes, dtype] += times * size
            counts[kind, axes, dtype] += times
            alone[kind, axes, dtype] += 0 if overlaps else times * size
    found = [Collective(*key, size, counts[key], alone[key]) for key, size in sizes.items()]
    return sorted(found, key=lambda c: (-c.bytes, c))


def _sent(line: str, computation: str, mesh_shape: dict[str, int]) -> Iterator[tuple[str, str, str, int]]:
    """Yields (kind, axes, dtype, bytes) of every array that an instruction sends to other devices."""
    if match := re.match(rf"(.*?) ({KINDS})(-start)?\(", line):
        shapes = _shapes(match[1])
        if match[3] and match[2] == "collective-permute":
            shapes = shapes[:1]
        elif match[3] and match[2] == "all-gather":  # (input, output, …), or ((inputs), (outputs))
            shapes = shapes[len(shapes) // 2 :] if match[1].startswith("((") else shapes[1:2]
        whole = len(_group(line, math.prod(mesh_shape.values()))) if match[2] == "reduce-scatter" else 1
        if axes := _axes(line, mesh_shape):
            for dtype, size in shapes:
                yield _kind(match[2], computation), axes, dtype, size * whole
    elif match := re.match(r"\((\w+\[[\d,]*\]).*? send\(.*_xla_megascale_transfer_type=\"(\w+)\"", line):
        # Between slices every device sends its share of the slice's sum.
        ((dtype, size),) = _shapes(match[1])
        devices = math.prod(mesh_shape.values()) // mesh_shape[SLICES]
        yield match[2].lower().replace("_", "-"), SLICES, dtype, size * devices


def _kind(opcode: str, computation: str) -> str:
    if opcode == "all-reduce" and "all-reduce-scatter" in computation:
        return "reduce-scatter"
    if opcode == "collective-permute" and (match := RING.search(computation)):
        return {"ag": "all-gather", "rs": "reduce-scatter"}[match[1]]
    return opcode


def _shapes(text: str) -> list[tuple[str, int]]:
    """Returns (dtype, bytes) of every array in a type."""
    return [
        (dtype, -(-int(bits or 8) // 8) * math.prod(int(size) for size in sizes.split(",") if size))
        for dtype, bits, sizes in re.findall(r"\b((?:bf|f|s|u)(\d+)|pred)\[([\d,]*)\]", text)
    ]


def _axes(line: str, mesh_shape: dict[str, int]) -> str:
    """Names the mesh axes along which the devices of the first group differ; "" if groups have one device."""
    group = _group(line, math.prod(mesh_shape.values()))
    coordinates = np.unravel_index(np.array(group), tuple(mesh_shape.values()))
    differing = [axis for axis, where in zip(mesh_shape, coordinates, strict=True) if len(set(where)) > 1]
    return "×".join(differing)


def _group(line: str, devices: int) -> list[int]:
    """Returns the devices of one group of a collective, in any of HLO's notations."""
    if match := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line):
        return [int(match[1]), int(match[2])]
    if match := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        grid = _iota(match[2] or f"[{devices}]").reshape(list(sizes.values()))
        chosen = set(re.findall(r"'(\w+)'", match[3]))
        return grid[tuple(slice(None) if axis in chosen else 0 for axis in sizes)].ravel().tolist()
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return _iota(match[3]).reshape(int(match[1]), int(match[2]))[0].tolist()
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return [int(device) for device in match[1].split(",")]
    return list(range(devices))


def _iota(text: str) -> np.ndarray:
    """Returns 0, 1, … in the shape that HLO writes as [4,2], or transposed as [2,4]T(1,0)."""
    match = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    assert match, text
    shape = [int(size) for size in match[1].split(",")]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose([int(axis) for axis in match[2].split(",")]) if match[2] else numbers
