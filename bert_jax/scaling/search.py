"""The largest batch, cheapest remat and best mesh that fit: tried with the compiler, few times."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from bert_jax.config import Config
from bert_jax.scaling.compile import Compiled, compile_step
from bert_jax.training.config import MeshConfig

FIRST_ROWS = 8  # of a device
MOST_ROWS = 4096  # the smallest networks would go on for long


class Found(NamedTuple):
    compiled: Compiled
    overrides: str  # as the command line takes them

    @property
    def tokens_per_second(self) -> float:
        seconds = self.compiled.step_seconds()
        return self.compiled.tokens / max(seconds) if seconds else float(self.compiled.tokens)


def search(config: Config, devices: list[jax.Device], tell: Callable[[str], None]) -> Found | None:
    """Tries remat × mesh, each with the largest power of two of rows a device that fits.

    Memory grows with the rows, so two compilations tell how many fit, and a third one makes sure.

    Returns:
        What has the most tokens a second by the compiler's estimate; None if nothing fits.
    """
    best: Found | None = None
    for mesh in _meshes(config, len(devices)):
        for remat in ("none", "dots", "full"):
            found = _largest(config, devices, mesh, remat, tell)
            if found and (best is None or found.tokens_per_second > best.tokens_per_second):
                best = found
    return best


def _meshes(config: Config, devices: int) -> list[MeshConfig]:
    """All data parallel, and parameters split over as many devices as divide the hidden size."""
    fsdp = max(
        n for n in range(1, min(devices, 64) + 1) if devices % n == 0 and config.model.hidden_size % n == 0
    )
    return [MeshConfig(), MeshConfig(fsdp=fsdp)] if fsdp > 1 else [MeshConfig()]


def _largest(
    config: Config, devices: list[jax.Device], mesh: MeshConfig, remat: str, tell: Callable[[str], None]
) -> Found | None:
    best: Found | None = None
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
        overrides = (
            f"--config.mesh.fsdp={mesh.fsdp} --config.train.remat={remat} "
            f"--config.data.global_batch_size={rows * len(devices)}"
        )
        verdict = "fits" if memory.fits else "does not fit"
        tell(f"{rows:>4} rows a device, {overrides}: {memory.total / 2**30:.2f} GiB, {verdict}")
        if memory.fits:
            best = Found(compiled, overrides)
            if memory.temporaries:
                room = rows * (memory.capacity - (memory.arguments or 0)) / memory.temporaries
                rows = min(MOST_ROWS, max(2 * rows, 1 << max(0, int(room)).bit_length() - 1))
        elif best:
            rows = rows // 2 if rows // 2 > best.compiled.config.data.global_batch_size // len(devices) else 0
        else:
            rows //= 2
    return best
