"""The compiled training steps of a run: one for each shape, that of the next phase made in the background."""

import concurrent.futures
import logging
import time
from collections.abc import Callable
from typing import Any

import jax

from bert_jax.training.memory import room_for
from bert_jax.training.program import Program

log = logging.getLogger("bert_jax")
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # of a batch: name -> shape and dtype
Step = Callable[..., Any]  # (state, batch, key) -> (state, metrics)


class Executables:
    """Compiles the training step of each program once, ahead of time, so that it can never be compiled again.

    Programs that are compiled from the same constants for batches of the same shapes share an executable.
    """

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._started: dict[Any, concurrent.futures.Future[Step]] = {}

    def start(self, program: Program, shapes: Shapes) -> concurrent.futures.Future[Step]:
        """Starts to compile the step for batches of these shapes, unless that was done."""
        key = program.constants, tuple(sorted((name, shape[0]) for name, shape in shapes.items()))
        if key not in self._started:
            self._started[key] = self._thread.submit(_compile, program, shapes)
        return self._started[key]

    @property
    def failed(self) -> bool:
        """Whether a step could not be compiled; known long before its phase begins."""
        return any(future.done() and future.exception() for future in self._started.values())

    def wait(self) -> None:
        """Waits for all steps that are being compiled; raises the error of one that could not be."""
        for future in self._started.values():
            future.result()

    def close(self) -> None:
        """Waits for what is being compiled, which cannot be interrupted."""
        self._thread.shutdown(cancel_futures=True)


def _compile(program: Program, shapes: Shapes) -> Step:
    start = time.perf_counter()
    with jax.set_mesh(program.mesh), room_for(program.config):  # the mesh is that of this thread
        batch = program.abstract_batch(shapes)
        step = program.train_step.lower(program.abstract, batch, program.abstract_key).compile()
    rows, tokens = shapes["input_ids"][0]
    seconds = time.perf_counter() - start
    log.info("compiled the training step of %d rows of %d tokens in %.1f s", rows, tokens, seconds)
    return step
