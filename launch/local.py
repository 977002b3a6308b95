#!/usr/bin/env python3
"""Pretrain as several processes on this machine, and keep them running.

    python launch/local.py --processes=4 --config=bert_tiny --config.mesh.fsdp=4

Flags that are not listed below go to the command (`--module`, by default bert_jax.pretrain) as they are. Each
line of the log begins with the number of the process that wrote it. When a process is lost, the others are
stopped and all start again from the newest checkpoint; likewise when the command exits with 75 ("start
again", after SIGTERM). Ctrl-C and SIGTERM go to all processes, which save a checkpoint and end.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import shell
from restarts import FAILED, INTERRUPTED, NOT_AGAIN, RESTART, Restarts, combined
from shell import say

ABORTED = {-signal.SIGABRT, 128 + signal.SIGABRT}  # how JAX ends a process that has lost another one
# The exit code when the signal ended a process that did not handle it yet.
STOPPED = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: RESTART, signal.SIGHUP: RESTART}


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__)
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process (default: 1)")
    parser.add_argument("--restarts", type=int, default=10, help="at most so many in a row (default: 10)")
    parser.add_argument("--grace", type=float, default=60.0,
                        help="seconds for the others to end when one is lost (default: 60)")  # fmt: skip
    known, rest = parser.parse_known_args()
    shell.require_positive(known, "processes", "devices")
    return known, rest


class Group:
    """The processes of one start."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self.processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        if options.devices > 1:
            flag = f"--xla_force_host_platform_device_count={options.devices}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
        for number, command in enumerate(commands(options, rest)):
            # In a session of its own, so that Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                env=environment, start_new_session=True,
            )  # fmt: skip
            reader = threading.Thread(target=self._copy_log, args=(number, process), daemon=True)
            reader.start()
            self.processes.append(process)
            self._readers.append(reader)

    def _copy_log(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            shell.show(f"[{number}] {line}")

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, grace: float, asked: list[int]) -> list[int]:
        """Waits for all processes, and passes on to them the signals that are in `asked` or arrive there.

        Once a process has failed, the others have `grace` seconds to end. Returns the exit codes.
        """
        deadline, sent = None, 0
        running = dict(enumerate(self.processes))
        while running:
            time.sleep(0.05)
            for signal_number in asked[sent:]:
                say(f"{signal.Signals(signal_number).name}: passed on to all processes")
                self.send(signal_number)
                sent += 1
            ended = [number for number, process in running.items() if process.poll() is not None]
            for number in ended:
                code = running.pop(number).returncode
                if code:
                    say(f"process {number} {describe(code)}")
                if code and deadline is None and running:
                    deadline = time.monotonic() + grace
                    say(f"waiting up to {grace:g} s for the others")
            if deadline and running and time.monotonic() > deadline:
                say("the others did not end by themselves; killing them")
                self.send(signal.SIGKILL)
                break
        codes = [process.wait() for process in self.processes]
        for reader in self._readers:
            reader.join(5)
        return codes


def commands(options: argparse.Namespace, rest: list[str]) -> list[list[str]]:
    """Returns the command line of each process, with a new port: the old one may still be in use."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    who = [f"--coordinator_address={address}", f"--num_processes={options.processes}"]
    command = [sys.executable, "-m", options.module, *rest]
    return [[*command, *who, f"--process_id={number}"] for number in range(options.processes)]


def describe(code: int) -> str:
    if code in ABORTED:
        return "stopped because it lost another one"
    if code < 0:
        return f"was lost (killed by {signal.Signals(-code).name})"
    words = {RESTART: "stopped and can be restarted", FAILED: "failed"}
    return words.get(code, f"ended with code {code}")


def main() -> int:
    options, rest = arguments()
    if options.dry_run:
        print("\n".join(shlex.join(command) for command in commands(options, rest)))
        return 0
    # Group.wait passes the signals on, so that none is lost that arrives while processes are started.
    asked: list[int] = []
    for number in STOPPED:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started by nohup
        signal.signal(number, lambda number, _: asked.append(number))
    restarts = Restarts(options.restarts)
    while True:
        restarts.started()
        codes = Group(options, rest).wait(options.grace, asked)
        code = combined(codes)
        if code in NOT_AGAIN or asked:
            break
        delay = restarts.next_delay()
        if delay is None:
            say(f"given up after {restarts.limit} restarts in a row; exit codes {codes}")
            return code if code > 0 else FAILED
        say(f"exit codes {codes}; starting all again in {delay} s ({restarts})")
        end = time.monotonic() + delay
        while time.monotonic() < end and not asked:
            time.sleep(0.05)
        if asked:
            break
    return code if code >= 0 else STOPPED[signal.Signals(asked[0])]


if __name__ == "__main__":
    shell.exit_with(main)
