#!/usr/bin/env python3
"""Pretrain on Cloud TPU VMs, one or a whole pod, and keep the run going.

    python launch/tpu.py up --name=bert --project=P --zone=us-west4-a --accelerator=v5litepod-16 --spot \\
        --config=bert_base --workdir=gs://BUCKET/runs/base --data_dir=gs://BUCKET/data

Verbs; each may be repeated, and what is there is not made again:
    up       create, install, run; watch; create again when the TPU is taken away, run again when the command
             was stopped or lost; delete the TPU at the end (--keep: do not)
    create   ask for the TPU (a queued resource) and wait for it
    install  copy this checkout to all workers, with a Python and the packages of requirements.lock
    run      start the command on all workers; it outlives this connection
    logs     follow the log of the first worker
    status   the state of the TPU, and of the command on each worker
    stop     tell the command to save a checkpoint and end; the TPU stays, and costs
    delete   give the TPU back

Flags that are not listed below go to the command as they are.
"""

import argparse
import collections
import contextlib
import hashlib
import pathlib
import re
import shlex
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator

import shell
from shell import Failure, Mistake, say

VERBS = ("up", "create", "install", "run", "logs", "status", "stop", "delete")
RUNTIMES = {  # https://cloud.google.com/tpu/docs/runtimes, "PyTorch and JAX"
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
LOST = ("SUSPENDED", "PREEMPTED", "FAILED")  # states from which a queued resource does not come back
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
COPIED = ("bert_jax", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "requirements.lock")
PYTHON = "3.12"  # the VMs' own is older than the package allows
START_AGAIN, INTERRUPTED = 75, 130
LONG_ENOUGH = 600  # seconds after which a run has shown that it works: restarts are counted anew
UNREACHABLE = 10  # polls without an answer of the workers, after which the TPU counts as lost

# What the workers' shells are told; everything lies in ~/bert_jax. The command runs in a session of its own,
# `pid` is its process, and `code` how it ended.
INSTALL = """set -eu
mkdir -p ~/bert_jax && cd ~/bert_jax
if [ "$(cat installed 2>/dev/null)" = {digest} ]; then echo "already installed"; exit 0; fi
{unpack}
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python {python} venv
~/.local/bin/uv pip install --quiet --python venv/bin/python {packages}
echo {digest} > installed"""
RUNNER = """exec >> log 2>&1
echo $$ > session
"$@" &
echo $! > pid
wait $!
echo $? > code.tmp
mv code.tmp code
"""
RUN = """cd ~/bert_jax || exit 1
if [ -s pid ] && [ ! -s code ] && kill -0 "$(cat pid)" 2>/dev/null; then echo "already running"; exit 0; fi
rm -f pid code stopped
cat > runner <<'END'
{runner}END
PYTHONUNBUFFERED=1 nohup setsid sh runner {command} < /dev/null > /dev/null 2>&1 &
tries=0
until [ -s pid ] || [ $tries -ge 100 ]; do tries=$((tries + 1)); sleep 0.1; done
[ -s pid ]"""
STATUS = """cd ~/bert_jax 2>/dev/null || { echo "worker $(hostname): not installed"; exit 0; }
if [ -s code ] && [ -e stopped ]; then state="stopped with $(cat code)"
elif [ -s code ]; then state="ended with $(cat code)"
elif [ ! -s pid ]; then state="not started"
elif kill -0 "$(cat pid)" 2>/dev/null; then state="running"
else state="lost"; fi
echo "worker $(hostname): $state\""""
STOP = """cd ~/bert_jax || exit 1
if [ -s pid ] && [ ! -s code ]; then touch stopped; kill -TERM "$(cat pid)"; fi"""
KILL = """cd ~/bert_jax || exit 1
if [ -s session ] && [ ! -s code ]; then kill -s KILL -- "-$(cat session)"; fi"""
TAIL = "tail -n {lines} ~/bert_jax/log"


def arguments() -> tuple[str, argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__)
    parser.add_argument("--name", help="of the queued resource and its TPU")
    parser.add_argument("--project", help="Google Cloud project")
    parser.add_argument("--zone", help="e.g. us-west4-a")
    parser.add_argument("--accelerator", help="e.g. v5litepod-16, v6e-8, v5p-32, v4-16 (to create)")
    parser.add_argument("--slices", type=int, default=1, help="how many of these (default: 1)")
    parser.add_argument("--runtime", help="software version (default: by accelerator)")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away at any time")
    parser.add_argument("--create_flags", default="", help="further flags of queued-resources create")
    parser.add_argument("--ssh_flags", default="", help="of ssh and scp, e.g. --tunnel-through-iap")
    parser.add_argument("--package", help="a pip requirement to install instead of this checkout")
    parser.add_argument("--keep", action="store_true", help="up: leave the TPU when the run has ended")
    parser.add_argument("--restarts", type=int, default=10, help="up: at most so many in a row (default: 10)")
    parser.add_argument("--poll", type=float, default=30.0, help="seconds between looks (default: 30)")
    parser.add_argument("--grace", type=float, default=300.0,
                        help="seconds for the other workers to end when one has (default: 300)")  # fmt: skip
    verb, options, rest = parser.verb_and_flags(VERBS)
    shell.require(options, "name", "project", "zone")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", options.name):
        raise Mistake(f"--name={options.name} is not valid; give lower-case letters, digits and dashes.")
    if options.slices < 1:
        raise Mistake(f"--slices={options.slices} must be at least 1.")
    if verb in ("up", "create"):
        shell.require(options, "accelerator")
        options.runtime = options.runtime or runtime(options.accelerator)
    if verb in ("up", "run"):
        shell.require_shared(options.module, rest)
    return verb, options, rest


def runtime(accelerator: str) -> str:
    """The software version for an accelerator type."""
    family = accelerator.split("-")[0]
    if family.startswith("tpu7"):
        raise Mistake(f"--accelerator={accelerator} is not offered as a Cloud TPU VM; use launch/gke.py.")
    if family not in RUNTIMES:
        raise Mistake(
            f"--accelerator={accelerator} is unknown; known are {', '.join(RUNTIMES)}, or give --runtime."
        )
    return RUNTIMES[family]


class Tpu:
    """One queued resource, with what runs on its workers."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self.options = options
        self.command = ["venv/bin/python", "-m", options.module, *rest]
        self.programs = shell.Programs(options.dry_run)
        self.answered = False
        self.place = (f"--project={options.project}", f"--zone={options.zone}")

    def state(self) -> str | None:
        """The state of the queued resource, as Google names it; None if there is none.

        Once gcloud has answered, later failures are waited for: the run goes on meanwhile.

        Raises:
            Failure: when gcloud fails from the start.
        """
        while True:
            answer = self.programs.ask(*self._words("describe"), "--format=value(state.state)")
            if answer.returncode == 0 or re.search("NOT_FOUND|not found", answer.stderr):
                self.answered = True
                return answer.stdout.strip() or None
            reason = next((line for line in answer.stderr.splitlines() if line.strip()), "no reason given")
            if not self.answered:
                raise Failure(f"gcloud cannot describe {self.options.name}: {reason.strip()}")
            say(f"gcloud cannot describe {self.options.name} now: {reason.strip()}")
            time.sleep(self.options.poll)

    def create(self) -> None:
        """Asks for the TPU unless that has been done, and waits until it is there."""
        asked, told = False, None
        while (state := self.state()) != "ACTIVE":
            if state == "FAILED" and asked:
                raise Failure(
                    f"{self.options.name} is FAILED; `{shlex.join(self._words('describe'))}` tells why."
                )
            if state in LOST:
                say(f"{self.options.name} is {state}: deleting what is left of it")
                self.delete()
                asked = False
            elif state is None and asked:
                raise Mistake(self.deleted())
            elif state is None:
                self.programs.run(*self._create_words())
                asked = True
                if self.programs.dry_run:
                    return
                continue
            elif state != told:
                say(f"{self.options.name} is {state}; waiting for ACTIVE")
                told = state
            time.sleep(self.options.poll)
        say(f"{self.options.name} is ACTIVE, and costs from now on")

    def install(self) -> None:
        """Makes ~/bert_jax/venv on all workers, unless it is there and of the same content."""
        if self.options.package:
            digest, unpack = hashlib.sha256(self.options.package.encode()).hexdigest(), ":"
            packages = shlex.quote(self.options.package)
        else:
            digest = source_digest()
            unpack = "rm -rf source && mkdir source && tar -xf ~/bert_jax.tar -C source"
            packages = "--constraint source/requirements.lock './source[tpu]'"
            with archive() as path:
                self.programs.run(
                    *self._words("scp", str(path), f"{self.options.name}:bert_jax.tar"),
                    "--node=all", "--worker=all", "--quiet", *shlex.split(self.options.ssh_flags),
                )  # fmt: skip
        # gcsfs is what epath and TensorBoard's writer need for gs://.
        packages += " gcsfs"
        self.tell_all(INSTALL.format(digest=digest, unpack=unpack, python=PYTHON, packages=packages))

    def run(self) -> None:
        """Starts the command on all workers where it does not run yet."""
        self.tell_all(RUN.format(runner=RUNNER, command=shlex.join(self.command)))

    def workers(self) -> dict[str, str]:
        """What each worker says of the command; empty if they cannot be reached."""
        answer = self.programs.ask(*self.ssh(STATUS))
        return dict(re.findall(r"^worker (\S+): (.+?)\s*$", answer.stdout, re.MULTILINE))

    def follow(self) -> subprocess.Popen[bytes] | None:
        """Shows the log of the first worker, and what comes, until it is ended."""
        return self.programs.start(*self.ssh(TAIL.format(lines="20 -F"), "0"))

    def tell_all(self, script: str) -> None:
        """Runs a script on all workers, and shows what they say."""
        self.programs.run(*self.ssh(script))

    def delete(self) -> None:
        """Gives the TPU back; nothing costs afterwards."""
        if not self.programs.dry_run and self.state() is None:
            say(f"there is no {self.options.name} in {' '.join(self.place)}: nothing to delete")
            return
        self.programs.run(*self._words("delete"), "--force", "--quiet")
        if not self.programs.dry_run:
            say(f"{self.options.name} is deleted, and costs no more")

    def deleted(self) -> str:
        return f"{self.options.name} was deleted from elsewhere, and is not created again."

    def _create_words(self) -> list[str]:
        options = self.options
        nodes = (
            [f"--node-id={options.name}"]
            if options.slices == 1
            else [f"--node-count={options.slices}", f"--node-prefix={options.name}"]
        )
        return [
            *self._words("create"), f"--accelerator-type={options.accelerator}",
            f"--runtime-version={options.runtime}", *nodes, *(["--spot"] if options.spot else []),
            "--quiet", *shlex.split(options.create_flags),
        ]  # fmt: skip

    def _words(self, verb: str, *names: str) -> list[str]:
        names = names or (self.options.name,)
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *names, *self.place]

    def ssh(self, script: str, who: str = "all") -> list[str]:
        return [
            *self._words("ssh"), f"--node={who}", f"--worker={who}", "--quiet",
            *shlex.split(self.options.ssh_flags), f"--command={script}",
        ]  # fmt: skip


def source_files() -> list[pathlib.Path]:
    paths = [path for name in COPIED for path in (REPOSITORY / name, *(REPOSITORY / name).rglob("*"))]
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


def source_digest() -> str:
    digest = hashlib.sha256()
    for path in source_files():
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def archive() -> Iterator[pathlib.Path]:
    """What is installed, of this checkout, as a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "bert_jax.tar")
        with tarfile.open(path, "w") as tar:
            for source in source_files():
                tar.add(source, source.relative_to(REPOSITORY).as_posix())
        yield path


def watch(tpu: Tpu) -> int | None:
    """Looks after the command until it runs nowhere; its exit code, or None if the TPU was taken away.

    Raises:
        Mistake: when the TPU was deleted from elsewhere: who did that does not want it back.
    """
    silent, parting = 0, None
    log = tpu.follow()
    try:
        while True:
            time.sleep(tpu.options.poll)
            if log and log.poll() is not None:  # the connection was lost
                shell.end(log)
                log = tpu.follow()
            workers = tpu.workers()
            state = tpu.state()
            if state in (None, "DELETING"):
                raise Mistake(tpu.deleted())
            if state != "ACTIVE":
                say(f"{tpu.options.name} was taken away: it is {state}")
                return None
            silent = 0 if workers else silent + 1
            if silent == UNREACHABLE:
                say(f"the workers of {tpu.options.name} do not answer: making it anew")
                tpu.delete()
                return None
            running = "running" in workers.values()
            if workers and not running:
                return outcome(workers)
            parting = (parting or time.monotonic()) if len(set(workers.values())) > 1 else None
            if parting and time.monotonic() - parting > tpu.options.grace:
                say(f"not all workers ended by themselves: {summary(workers)}; killing the rest")
                tpu.tell_all(KILL)
                return START_AGAIN
    finally:
        shell.end(log)


def outcome(workers: dict[str, str]) -> int:
    """The exit code of all: what ends the run for good counts first."""
    say(f"the command has ended: {summary(workers)}")
    codes = {int(state.split()[-1]) if state.startswith("ended") else None for state in workers.values()}
    if any(state.startswith("stopped") for state in workers.values()):
        return INTERRUPTED
    return next((code for code in shell.NOT_AGAIN if code in codes), 0 if codes == {0} else START_AGAIN)


def summary(workers: dict[str, str]) -> str:
    counts = collections.Counter(workers.values())
    return ", ".join(f"{state} ({count} of {len(workers)})" for state, count in sorted(counts.items()))


def up(tpu: Tpu) -> int:
    """Everything, until the run is done or cannot go on; its exit code."""
    failures = 0
    while True:
        tpu.create()
        started = time.monotonic()
        try:
            tpu.install()
            tpu.run()
            if tpu.programs.dry_run:
                tpu.follow()
                return 0
            code = watch(tpu)
        except Failure as failure:
            say(str(failure))
            code = START_AGAIN if tpu.state() == "ACTIVE" else None
        if code is None:  # that is what spot is, and no fault of the run
            failures = 0
            continue
        if code == 0 or code in shell.NOT_AGAIN:
            return finish(tpu, code)
        failures = 1 if time.monotonic() - started > LONG_ENOUGH else failures + 1
        if failures > tpu.options.restarts:
            say(f"given up after {tpu.options.restarts} restarts in a row")
            return finish(tpu, code)
        say(f"starting it again, from the newest checkpoint (restart {failures} of {tpu.options.restarts})")
        time.sleep(tpu.options.poll)


def finish(tpu: Tpu, code: int) -> int:
    if code:
        say("the last lines of all workers:")
        with contextlib.suppress(Failure):
            tpu.tell_all(TAIL.format(lines=20))
    if tpu.options.keep:
        say(f"{tpu.options.name} is kept, and costs until it is deleted")
    else:
        tpu.delete()
    return code


def status(tpu: Tpu) -> None:
    state = tpu.state()
    if tpu.programs.dry_run:
        tpu.workers()
        return
    say(f"{tpu.options.name} is {state or 'not there'}")
    for name, what in sorted(tpu.workers().items()) if state == "ACTIVE" else ():
        say(f"worker {name}: {what}")


def main() -> int:
    verb, options, rest = arguments()
    tpu = Tpu(options, rest)
    if verb == "up":
        try:
            return up(tpu)
        except KeyboardInterrupt:
            say("the run goes on; `up` looks after it again, `delete` ends what it costs")
            return INTERRUPTED
    if verb == "logs":
        tpu.programs.run(*tpu.ssh(TAIL.format(lines="100 -F"), "0"))
    elif verb == "stop":
        tpu.tell_all(STOP)
    elif verb == "status":
        status(tpu)
    else:
        {"create": tpu.create, "install": tpu.install, "run": tpu.run, "delete": tpu.delete}[verb]()
    return 0


if __name__ == "__main__":
    shell.exit_with(main)
