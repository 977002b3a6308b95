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
import signal
import socket
import subprocess
import sys
import threading
import time

START_AGAIN = 75
NOT_AGAIN = {0, 2, 130}  # done; a mistake in the command; Ctrl-C
ABORTED = {-signal.SIGABRT, 128 + signal.SIGABRT}  # how JAX ends a process that has lost another one
BACK_OFF = (1, 2, 5, 10, 30, 60)  # seconds before the first, second, … start in a row
LONG_ENOUGH = 600  # seconds after which a run has shown that it works: restarts are counted anew


def arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--processes", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices of each process (default: 1)")
    parser.add_argument("--restarts", type=int, default=10, help="at most so many in a row (default: 10)")
    parser.add_argument("--grace", type=float, default=60.0,
                        help="seconds for the others to end when one is lost (default: 60)")  # fmt: skip
    parser.add_argument("--module", default="bert_jax.pretrain", help="the command (default: %(default)s)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    known, rest = parser.parse_known_args()
    if known.processes < 1 or known.devices < 1:
        parser.error("--processes and --devices must be at least 1")
    return known, rest


class Group:
    """The processes of one start."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self.processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if options.devices > 1:
            flag = f"--xla_force_host_platform_device_count={options.devices}"
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flag}".strip()
        for number, command in enumerate(commands(options, rest)):
            # In a group of its own, so that Ctrl-C reaches it once, from here.
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env=environment, start_new_session=True,
            )  # fmt: skip
            reader = threading.Thread(target=self._copy_log, args=(number, process), daemon=True)
            reader.start()
            self.processes.append(process)
            self._readers.append(reader)

    def _copy_log(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            print(f"[{number}] {line}", end="", flush=True)

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, grace: float) -> list[int]:
        """Waits for all; once one has ended badly the others have `grace` seconds. Returns exit codes."""
        deadline = None
        told: set[int] = set()
        while len(told) < len(self.processes):
            time.sleep(0.05)
            for number, process in enumerate(self.processes):
                if number in told or process.poll() is None:
                    continue
                told.add(number)
                if process.returncode:
                    say(f"process {number} {describe(process.returncode)}")
                if process.returncode and deadline is None and len(told) < len(self.processes):
                    deadline = time.monotonic() + grace
                    say(f"waiting up to {grace:g} s for the others")
            if deadline and time.monotonic() > deadline and len(told) < len(self.processes):
                say("the others did not end by themselves; killing them")
                self.send(signal.SIGKILL)
                break
        for process in self.processes:
            process.wait()
        for reader in self._readers:
            reader.join(5)
        return [process.returncode for process in self.processes]


def commands(options: argparse.Namespace, rest: list[str]) -> list[list[str]]:
    """The command line of each process; a new port each time, since the old one may still be in use."""
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
    return {START_AGAIN: "stopped and wants to start again", 1: "failed"}.get(code, f"ended with code {code}")


def verdict(codes: list[int]) -> int:
    """The exit code of all: what stops them for good counts first, then what was lost."""
    for code in (2, 130):
        if code in codes:
            return code
    return next((code for code in codes if code), 0)


def say(message: str) -> None:
    print(f"[launch] {message}", flush=True)


def main() -> int:
    options, rest = arguments()
    if options.dry_run:
        print("\n".join(" ".join(command) for command in commands(options, rest)))
        return 0
    asked: list[int] = []
    group: Group | None = None

    def forward(number: int, _: object) -> None:
        asked.append(number)
        if group:
            say(f"{signal.Signals(number).name}: passed on to all processes")
            group.send(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    failures = 0
    while True:
        started = time.monotonic()
        group = Group(options, rest)
        codes = group.wait(options.grace)
        code = verdict(codes)
        if code in NOT_AGAIN or asked:
            return code
        failures = 1 if time.monotonic() - started > LONG_ENOUGH else failures + 1
        if failures > options.restarts:
            say(f"given up after {options.restarts} restarts in a row; exit codes {codes}")
            return code if code > 0 else 1
        pause = BACK_OFF[min(failures, len(BACK_OFF)) - 1]
        say(f"exit codes {codes}; starting all again in {pause} s (restart {failures} of {options.restarts})")
        waited_until = time.monotonic() + pause
        while time.monotonic() < waited_until and not asked:
            time.sleep(0.05)
        if asked:
            return code


if __name__ == "__main__":
    sys.exit(main())
