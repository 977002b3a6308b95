"""Connects the processes that train one model, compares what they run, and stops them together."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from bert_jax.errors import UserError, out_of_memory

HEARTBEAT_SECONDS = 30  # of silence of a process, after which the others stop
RESTART = 75  # exit code (sysexits' EX_TEMPFAIL) for which launchers restart all processes
NO_CLUSTER = "coordinator_address should be defined"  # in JAX's error where no cluster is configured
log = logging.getLogger("bert_jax")


def connect() -> None:
    """Connects to the other processes that flags or the environment name, if any.

    Raises:
        UserError: if the flags are incomplete, or the other processes cannot be reached.
    """
    names = ("coordinator_address", "num_processes", "process_id")
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(names):
        raise UserError(f"{' and '.join(missing)} missing: give all of --{', --'.join(names)}, or none.")
    if not missing:
        _check_flags(**given)
    # Its handler of SIGTERM would replace `StopRequest`, which also works without a cluster.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except ValueError as error:
        if missing and NO_CLUSTER in str(error):
            return
        raise UserError(
            f"cannot connect to the other processes: {error}; check --coordinator_address."
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"cannot reach the other processes: {str(error).splitlines()[0]}; check --coordinator_address."
        ) from None


def _check_flags(coordinator_address: str, num_processes: int, process_id: int) -> None:
    if not re.fullmatch(r".+:\d+", coordinator_address):
        raise UserError(
            f"--coordinator_address={coordinator_address} is not HOST:PORT; give it like 10.0.0.1:8476."
        )
    if process_id >= num_processes:
        raise UserError(
            f"--process_id={process_id} is not below --num_processes={num_processes}; they count from 0."
        )


def require_same(values: dict[str, str], problem: str | None = None) -> None:
    """Checks that these values are the same on all processes; every process must call it.

    Args:
        values: by name.
        problem: the error of this process, if any.

    Raises:
        UserError: on every process, for the problem of one, or values that differ from process 0.
    """
    everyone = gather(json.dumps([problem, values]))
    for process, (their_problem, _) in enumerate(everyone):
        if their_problem:
            raise _refusal(f"process {process}: {their_problem}" if len(everyone) > 1 else their_problem)
    expected = everyone[0][1]
    for process, (_, theirs) in enumerate(everyone):
        differing = [
            f"{name} is {theirs.get(name)!r} there and {expected.get(name)!r} on process 0"
            for name in sorted(theirs.keys() | expected.keys())
            if theirs.get(name) != expected.get(name)
        ]
        if differing:
            raise _refusal(f"process {process} differs from process 0: {'; '.join(differing)}.")


def _refusal(message: str) -> UserError:
    """Disconnects, or each process would report the others as lost; returns the error that all raise."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
    return UserError(message)


@contextlib.contextmanager
def fail_fast() -> Iterator[None]:
    """Ends this process at once after an error in the block, so that the others notice.

    An orderly exit could wait for the others for ever, e.g. while it closes files.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            _exit(error)
        raise


def _exit(error: Exception) -> NoReturn:
    code = 1
    if isinstance(error, UserError):
        code = 2
        log.error("error: %s", error)
    elif isinstance(error, jax.errors.JaxRuntimeError) and not out_of_memory(error):
        code = RESTART
        log.error(
            "process %d stops because another one was lost; all can resume from the newest checkpoint (%s)",
            jax.process_index(), str(error).splitlines()[0],
        )  # fmt: skip
    else:
        log.exception("process %d stops because of an error", jax.process_index())
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


class StopRequest:
    """Turns signals in a block into a request to stop; a second Ctrl-C ends the process.

    The signals are SIGTERM, that of Ctrl-C, and that of a closed terminal unless nohup ignores it.

    Attributes:
        requested: number of the signal; None before one arrives.
    """

    def __init__(self) -> None:
        self.requested: int | None = None

    def __enter__(self) -> "StopRequest":
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signals.append(signal.SIGHUP)
        self._previous = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("%s: saving a checkpoint, then stopping", signal.Signals(number).name)
        self.requested = number


def gather(text: str) -> list:
    """Returns the JSON texts of all processes, parsed; every process must call it."""
    if jax.process_count() == 1:
        return [json.loads(text)]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(content)))
    padded = np.pad(content, (0, int(lengths.max()) - len(content)), constant_values=ord(" "))
    return [json.loads(bytes(row)) for row in np.asarray(multihost_utils.process_allgather(padded))]


def code_digest() -> str:
    """Returns a digest of the package's code, so that hosts with different versions are refused."""
    package, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
