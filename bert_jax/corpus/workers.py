"""Applies a function to a stream of items in a few processes, in order and in bounded memory."""

import collections
import concurrent.futures
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from bert_jax.errors import UserError


class Workers:
    """Processes that live as long as the `with` block.

    Each is a fresh interpreter that runs `serve` and inherits nothing: a fork would copy the locks of JAX's
    threads and its device handles, and multiprocessing's other start methods import the parent's main module
    (JAX, Flax, Orbax) in every worker. joblib's loky does not, but its workers start and answer almost three
    times as slowly. A worker ends by itself when its parent has ended.
    """

    def __init__(self, count: int):
        command = [sys.executable, "-c", "from bert_jax.corpus.workers import serve; serve()"]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        env["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        pipe = subprocess.PIPE
        # In groups of their own: Ctrl-C in a terminal, which the parent handles, reaches them at no moment.
        self._processes = [
            subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, process_group=0) for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.communicate()

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yields function(item) in the order of the items, with at most two items per process in progress.

        Raises:
            UserError: if a process was killed.
            Exception: whatever `function` raises.
        """
        call = pickle.dumps(function)
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(len(self._processes)) as threads:
            try:
                for item in items:
                    pending.append(threads.submit(self._call, call, item))
                    if len(pending) > 2 * len(self._processes):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _call(self, call: bytes, item: Any) -> Any:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((call, item), process.stdin, pickle.HIGHEST_PROTOCOL)
            process.stdin.flush()
            succeeded, result = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            remedy = "above is why; run the command again"
            if (code := process.wait()) == -signal.SIGKILL:
                remedy = "most often because memory ran out: free memory or use a machine with more"
            raise UserError(f"a worker process ended with code {code}; {remedy}.") from None
        finally:
            self._idle.put(process)
        if not succeeded:
            raise result
        return result


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """Runs in a worker: reads (pickled function, item) and writes (succeeded, result or exception)."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    call, function = b"", abs
    while True:
        try:
            new_call, item = pickle.load(sys.stdin.buffer)
        except (EOFError, pickle.UnpicklingError):  # the parent has ended
            return
        try:
            if new_call != call:
                call, function = new_call, pickle.loads(new_call)
            reply = True, function(item)
        except Exception as error:
            reply = False, error
        except BaseException as error:  # of a library in another language: it may not be picklable
            reply = False, RuntimeError(f"{type(error).__name__}: {error}")
        try:
            pickle.dump(reply, replies, pickle.HIGHEST_PROTOCOL)
            replies.flush()
        except BrokenPipeError:
            os._exit(1)
