#!/usr/bin/env python3
"""Pretrain on Cloud TPU VMs, one or a whole pod, and keep the run going.

    python launch/tpu.py up --name=bert --project=P --zone=us-west4-a --accelerator=v5litepod-16 --spot \\
        --config=bert_base --workdir=gs://BUCKET/runs/base --data_dir=gs://BUCKET/data

Verbs; each may be repeated, and does not do again what is done:
    up       create, install, run, and watch: recreate a TPU that was taken away, restart a command that was
             stopped or lost, delete the TPU at the end (--keep: do not)
    create   request the TPU (a queued resource) and wait for it
    install  copy this checkout to all workers, with a Python and the packages of requirements.lock
    run      start the command on all workers; it does not need this connection
    logs     follow the log of the first worker
    status   print the state of the TPU, and of the command on each worker
    stop     save a checkpoint and end the command; the TPU stays, and costs
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

import shell
from restarts import INTERRUPTED, MISTAKE, NOT_AGAIN, RESTART, Restarts, combined
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
REPOSITORY = shell.FOLDER.parent
COPIED = ("bert_jax", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "requirements.lock")
PYTHON = "3.12"  # the VMs' own is older than the package allows
RUNNING, SILENT = "running", "no answer"  # states of a command on a worker, beside how it ended
UNREACHABLE = 10  # polls in a row without an answer of any worker, after which the log says so


def arguments() -> tuple[str, argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__, VERBS)
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
    verb, options, rest = parser.verb_and_flags()
    shell.require(options, "name", "project", "zone")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", options.name):
        raise Mistake(f"--name={options.name} is not valid; give lower-case letters, digits and dashes.")
    shell.require_positive(options, "slices")
    if verb in ("up", "create"):
        shell.require(options, "accelerator")
        options.runtime = options.runtime or runtime(options.accelerator)
    if verb in ("up", "run"):
        shell.require_shared(options.module, rest)
    return verb, options, rest


def runtime(accelerator: str) -> str:
    """Returns the software version for an accelerator type."""
    family = accelerator.split("-")[0]
    if family.startswith("tpu7"):
        raise Mistake(f"--accelerator={accelerator} is not offered as a Cloud TPU VM; use launch/gke.py.")
    if family not in RUNTIMES:
        raise Mistake(
            f"--accelerator={accelerator} is unknown; known are {', '.join(RUNTIMES)}, or give --runtime."
        )
    return RUNTIMES[family]


class Tpu:
    """One queued resource, and the command on its workers."""

    def __init__(self, options: argparse.Namespace, rest: list[str]):
        self.options, self.name = options, options.name
        self.command = ["venv/bin/python", "-m", options.module, *rest]
        self.programs = shell.Programs(options.dry_run)
        self.place = (f"--project={options.project}", f"--zone={options.zone}")
        self.answered = False
        self.idle = False  # whether it is certain that the command runs on no worker

    def state(self) -> str | None:
        """Returns the state of the queued resource, as Google names it; None if there is none.

        Once gcloud has answered, later failures are waited out, since the run goes on meanwhile.

        Raises:
            Failure: when gcloud fails from the start.
        """
        while True:
            answer = self.programs.ask(*self._words("describe"), "--format=value(state.state)")
            if answer.returncode == 0 or "NOT_FOUND" in answer.stderr:
                self.answered = True
                return answer.stdout.strip() or None
            reason = next((line for line in answer.stderr.splitlines() if line.strip()), "no reason given")
            if not self.answered:
                raise Failure(f"gcloud cannot describe {self.name}: {reason.strip()}")
            say(f"gcloud cannot describe {self.name} now: {reason.strip()}")
            time.sleep(self.options.poll)

    def active(self) -> bool:
        """Returns whether the TPU is still there; says so if it was taken away.

        Raises:
            Mistake: when someone else deleted the TPU, and so does not want it back.
        """
        state = self.state()
        if state in (None, "DELETING"):
            raise Mistake(self.deleted())
        if state != "ACTIVE":
            say(f"{self.name} was taken away: it is {state}")
        return state == "ACTIVE"

    def create(self) -> None:
        """Requests the TPU unless it exists, and waits until it is ACTIVE."""
        asked, logged = False, None
        while (state := self.state()) != "ACTIVE":
            if state == "FAILED" and asked:
                raise Failure(f"{self.name} is FAILED; `{shlex.join(self._words('describe'))}` prints why.")
            if state in LOST:
                say(f"{self.name} is {state}: deleting what is left of it")
                self.delete()
                asked = False
            elif state is None and asked:
                raise Mistake(self.deleted())
            elif state is None:
                self.programs.run(*self._create_words())
                asked = self.idle = True
                if self.programs.dry_run:
                    return
                continue
            elif state != logged:
                say(f"{self.name} is {state}; waiting for ACTIVE")
                logged = state
            time.sleep(self.options.poll)
        say(f"{self.name} is ACTIVE, and costs from now on")

    def install(self) -> None:
        """Makes ~/bert_jax/venv on all workers, unless it exists with the same content."""
        if self.options.package:
            digest = hashlib.sha256(self.options.package.encode()).hexdigest()
            packages = [self.options.package]
        else:
            packages = ["--constraint", "source/requirements.lock", "./source[tpu]"]
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "bert_jax.tar")
                digest = archive(path)
                self.programs.run(
                    *self._words("scp", str(path), f"{self.name}:bert_jax.tar"),
                    "--node=all", "--worker=all", "--quiet", *shlex.split(self.options.ssh_flags),
                )  # fmt: skip
        # gcsfs is what epath and TensorBoard's writer need for gs://.
        self.programs.run(*self.ssh("install", digest, PYTHON, *packages, "gcsfs"))

    def run(self) -> None:
        """Starts the command on all workers where it does not run yet."""
        self.idle = False
        self.programs.run(*self.ssh("run", *self.command))

    def workers(self) -> dict[str, str]:
        """Returns the state of the command on each worker that answers; {} if this machine reaches none."""
        answer = self.programs.ask(*self.ssh("status"))
        return dict(re.findall(r"^worker (\S+): (.+?)\s*$", answer.stdout, re.MULTILINE))

    def follow(self) -> subprocess.Popen[bytes] | None:
        """Shows the log of the first worker, also what is added, until the process returned is ended."""
        return self.programs.start(*self.ssh("tail", "20", "-F", who="0"))

    def kill(self) -> None:
        """Kills the command where it still runs."""
        self.programs.run(*self.ssh("kill"))
        self.idle = True

    def delete(self) -> None:
        """Gives the TPU back, which then costs no more."""
        if not self.programs.dry_run and self.state() is None:
            say(f"there is no {self.name} in {' '.join(self.place)}: nothing to delete")
            return
        self.programs.run(*self._words("delete"), "--force", "--quiet")
        if not self.programs.dry_run:
            say(f"{self.name} is deleted, and costs no more")

    def deleted(self) -> str:
        return f"{self.name} was deleted by someone else, and is not created again."

    def _create_words(self) -> list[str]:
        options = self.options
        nodes = [f"--node-id={self.name}"]
        if options.slices > 1:
            nodes = [f"--node-count={options.slices}", f"--node-prefix={self.name}"]
        return [
            *self._words("create"), f"--accelerator-type={options.accelerator}",
            f"--runtime-version={options.runtime}", *nodes, *(["--spot"] if options.spot else []),
            "--quiet", *shlex.split(options.create_flags),
        ]  # fmt: skip

    def _words(self, verb: str, *names: str) -> list[str]:
        names = names or (self.name,)
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *names, *self.place]

    def ssh(self, name: str, *words: str, who: str = "all") -> list[str]:
        """Returns the command line that runs worker/NAME.sh with `words` as its arguments."""
        script = (shell.FOLDER / "worker" / f"{name}.sh").read_text(encoding="utf-8")
        if words:
            script = f"set -- {shlex.join(words)}\n{script}"
        return [
            *self._words("ssh"), f"--node={who}", f"--worker={who}", "--quiet",
            *shlex.split(self.options.ssh_flags), f"--command={script}",
        ]  # fmt: skip


def archive(path: pathlib.Path) -> str:
    """Writes this checkout as a tar file. Returns its digest, which depends on content only."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 10**9  # any time after 1980, where ZIP's and so the wheels' begins
        return None if "__pycache__" in entry.name else entry

    with tarfile.open(path, "w") as tar:
        for name in COPIED:
            tar.add(REPOSITORY / name, name, filter=plain)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def watch(tpu: Tpu) -> int | None:
    """Waits until the command has ended everywhere. Returns its exit code, or None if the TPU was taken away.

    Does not give up an ACTIVE TPU whose workers do not answer: this machine's ssh may be broken, and the
    command still running.

    Raises:
        Mistake: when someone else deleted the TPU.
    """
    silent, parting = 0, None
    seen: set[str] = set()
    log = tpu.follow()
    try:
        while True:
            time.sleep(tpu.options.poll)
            if log and log.poll() is not None:  # the connection was lost
                shell.end(log)
                log = tpu.follow()
            workers = tpu.workers()
            if not tpu.active():
                return None
            if workers and silent >= UNREACHABLE:
                say(f"the workers of {tpu.name} answer again")
            silent = 0 if workers else silent + 1
            if silent and silent % UNREACHABLE == 0:
                say(f"{tpu.name} is ACTIVE, but no worker has answered {silent} polls; waiting, since the "
                    "command may be running. Check ssh from here; `delete` gives the TPU back")  # fmt: skip
            seen |= workers.keys()  # one that does not answer this time has not ended
            workers = {name: workers.get(name, SILENT) for name in seen} if workers else {}
            ended = {name: what for name, what in workers.items() if what not in (RUNNING, SILENT)}
            if ended and len(ended) == len(workers):
                tpu.idle = True
                return outcome(ended)
            parting = (parting or time.monotonic()) if ended else None
            if parting and time.monotonic() - parting > tpu.options.grace:
                say(f"not all workers ended by themselves: {summary(workers)}; killing the rest")
                tpu.kill()
                code = outcome(ended)
                return code if code in (MISTAKE, INTERRUPTED) else RESTART
    finally:
        shell.end(log)


def outcome(workers: dict[str, str]) -> int:
    """Returns one exit code for all workers."""
    say(f"the command has ended: {summary(workers)}")
    if any(state.startswith("stopped") for state in workers.values()):
        return INTERRUPTED
    states = [state.split() for state in workers.values()]
    code = combined(int(words[-1]) if words[0] == "ended" else RESTART for words in states)
    return code if code in NOT_AGAIN else RESTART


def summary(workers: dict[str, str]) -> str:
    counts = collections.Counter(workers.values())
    return ", ".join(f"{state} ({count} of {len(workers)})" for state, count in sorted(counts.items()))


def up(tpu: Tpu) -> int:
    """Does everything until the run is done or cannot go on. Returns its exit code."""
    restarts = Restarts(tpu.options.restarts)
    while True:
        tpu.create()
        restarts.started()
        try:
            tpu.install()
            restarts.started()  # not the time to install
            tpu.run()
            if tpu.programs.dry_run:
                tpu.follow()
                return 0
            code = watch(tpu)
        except Failure as failure:
            say(str(failure))
            code = RESTART if tpu.active() else None
        if code is None:  # Spot TPUs are taken away: no failure of the run
            restarts.failures = 0
            continue
        if code in NOT_AGAIN:
            return finish(tpu, code)
        delay = restarts.next_delay()
        if delay is None:
            say(f"given up after {restarts.limit} restarts in a row")
            return finish(tpu, code)
        say(f"starting it again in {delay} s, from the newest checkpoint ({restarts})")
        time.sleep(delay)


def finish(tpu: Tpu, code: int) -> int:
    """Deletes the TPU, unless it is to be kept or the command may be running on it."""
    if code:
        say("the last lines of all workers:")
        with contextlib.suppress(Failure):
            tpu.programs.run(*tpu.ssh("tail", "20"))
    if tpu.options.keep:
        say(f"{tpu.name} is kept, and costs until it is deleted")
    elif not tpu.idle and (not (workers := tpu.workers()) or RUNNING in workers.values()):
        why = f"the command runs: {summary(workers)}" if workers else (
            "no worker answers, so the command may be running. Check ssh from here"
        )  # fmt: skip
        say(f"{tpu.name} is kept, and costs until it is deleted: {why}; `up` watches it again")
    else:
        tpu.delete()
    return code


def status(tpu: Tpu) -> None:
    state = tpu.state()
    if tpu.programs.dry_run:
        tpu.workers()
        return
    say(f"{tpu.name} is {state or 'not there'}")
    for name, what in sorted(tpu.workers().items()) if state == "ACTIVE" else ():
        say(f"worker {name}: {what}")


def main() -> int:
    verb, options, rest = arguments()
    tpu = Tpu(options, rest)
    if verb == "up":
        try:
            return up(tpu)
        except KeyboardInterrupt:
            say("the run goes on; `up` watches it again, `delete` gives the TPU back")
            return INTERRUPTED
    if verb == "logs":
        tpu.programs.run(*tpu.ssh("tail", "100", "-F", who="0"))
    elif verb == "stop":
        tpu.programs.run(*tpu.ssh("stop"))
    elif verb == "status":
        status(tpu)
    else:
        {"create": tpu.create, "install": tpu.install, "run": tpu.run, "delete": tpu.delete}[verb]()
    return 0


if __name__ == "__main__":
    shell.exit_with(main)
