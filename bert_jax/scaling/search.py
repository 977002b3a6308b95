"""Finds the largest batch, cheapest remat and best mesh that fit, with few compilations."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.scaling.compile import Compiled, compile_step
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import count_slices

FIRST_ROWS = 8  # of a device
MOST_ROWS = 4096  # of a device; the smallest networks would fit many more
MOST_FSDP = 16  # devices that parameters are split over; beyond, gathers send twice the bytes (docs/pods.md)
SHOWN = ("data.global_batch_size", "train.remat", "mesh.fsdp")  # in every attempt's line, changed or not


class SearchResult(NamedTuple):
    """A step that fits."""

    compiled: Compiled
    overrides: str  # flags that turn the given config into this one

    @property
    def tokens_per_second(self) -> float:
        """By the compiler's estimate; tokens a step where it makes none."""
        estimate = self.compiled.estimate()
        return self.compiled.tokens / estimate.step if estimate else float(self.compiled.tokens)


def search(
    config: Config,
    devices: list[jax.Device],
    report: Callable[[str], None],
    key_of: Callable[[str], str] = str,
) -> SearchResult | None:
    """Tries remat × mesh, each with the largest power of two of rows a device that fits.

    Memory grows linearly with the rows: two compilations predict how many fit, a third one confirms it.

    Args:
        report: gets a line for every attempt, and for every mesh that is refused.
        key_of: the key that sets a value of `config`, by its name there: a phase may have its own.

    Returns:
        The step with the most tokens a second; None if nothing fits.

    Raises:
        UserError: the last refusal, if every mesh is refused.
    """
    found: list[SearchResult] = []
    refused: list[UserError] = []
    meshes = _meshes(config, devices)
    for mesh in meshes:
        try:
            largest = [
                _largest(config, devices, mesh, remat, report, key_of) for remat in ("none", "dots", "full")
            ]
        except UserError as error:
            report(f"mesh.fsdp={mesh.fsdp} is refused: {error}")
            refused.append(error)
        else:
            found += filter(None, largest)
    if len(refused) == len(meshes):
        raise refused[-1]
    return max(found, key=lambda each: each.tokens_per_second, default=None)


def _meshes(config: Config, devices: list[jax.Device]) -> list[MeshConfig]:
    """Lists meshes: data alone, and fsdp over as many devices of a slice as divide the hidden size."""
    inside = len(devices) // count_slices(devices)
    fsdp = max(n for n in range(1, MOST_FSDP + 1) if inside % n == config.model.hidden_size % n == 0)
    return [MeshConfig(), MeshConfig(fsdp=fsdp)] if fsdp > 1 else [MeshConfig()]


def _largest(
    config: Config,
    devices: list[jax.Device],
    mesh: MeshConfig,
    remat: str,
    report: Callable[[str], None],
    key_of: Callable[[str], str],
) -> SearchResult | None:
    """Finds the most rows a device that fit with one mesh and remat."""
    best: SearchResult | None = None
    rows, tried = FIRST_ROWS, set()
    while 1 <= rows <= MOST_ROWS and rows not in tried:
        tried.add(rows)
        changed = dataclasses.replace(
            config,
            mesh=mesh,
            data=dataclasses.replace(config.data, global_batch_size=rows * len(devices)),
            train=dataclasses.replace(config.train, remat=remat, gradient_accumulation_steps=1),
        )
        compiled = compile_step(changed, devices)
        memory = compiled.memory
        overrides = _overrides(config, changed, key_of)
        verdict = "fits" if memory.fits else "does not fit"
        report(f"{rows:>4} rows a device, {overrides}: {memory.total / 2**30:.2f} GiB, {verdict}")
        if memory.fits:
            best = SearchResult(compiled, overrides)
            if memory.temporaries:
                room = rows * (memory.capacity - (memory.arguments or 0)) / memory.temporaries
                rows = min(MOST_ROWS, max(2 * rows, 1 << int(room).bit_length() - 1))
        else:
            rows //= 2  # rows are powers of two: halving ends at those that fit, which were tried
    return best


def _overrides(given: Config, changed: Config, key_of: Callable[[str], str]) -> str:
    """Returns the flags that turn one config into the other."""
    before = given.flat()
    return " ".join(
        f"--config.{key_of(name)}={value}"
        for name, value in changed.flat().items()
        if name in SHOWN or value != before[name]
    )
