"""The local launcher with a stand-in for the command: its processes, log, signals and restarts."""

import importlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
# Appends a line for each start. What it does depends on the number of the process and of the start.
COMMAND = """
import os, pathlib, signal, sys, time
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
process, folder = int(given["process_id"]), pathlib.Path(given["folder"])
starts = folder / f"starts{process}"
with starts.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
start = len(starts.read_text().splitlines())
def stop(*_):
    print("stopping", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
print(f"start {start} of {given['num_processes']}", flush=True)
"""
# Runs the launcher. A signal arrives in the midst of a start: process 0 is there, process 1 is not.
SIGNALLED = """
import os, pathlib, runpy, subprocess, sys, time
folder, launcher, number, start, *words = sys.argv[1:]
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if command[-1] != "--process_id=0":
            return
        ready = pathlib.Path(folder) / f"ready{start}"
        while not ready.exists() and self.poll() is None:
            time.sleep(0.02)
        if ready.exists():
            os.kill(os.getpid(), int(number))
subprocess.Popen = Popen
sys.argv = [launcher, *words]
sys.path.insert(0, os.path.dirname(launcher))
runpy.run_path(launcher, run_name="__main__")
"""


@pytest.fixture
def launch(tmp_path):
    """Starts the launcher with this behaviour of the command: code that sees `process` and `start`."""

    def start(behaviour: str, *words: str, through: Sequence[object] = (LAUNCHER,)) -> subprocess.Popen:
        (tmp_path / "stand_in.py").write_text(COMMAND + behaviour)
        command = [sys.executable, *map(str, through), "--module=stand_in", f"--folder={tmp_path}", *words]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )

    return start


def result(process):
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def starts(tmp_path, process):
    return (tmp_path / f"starts{process}").read_text().splitlines()


def test_one_start_that_works(launch, tmp_path):
    code, output = result(launch("", "--processes=3", "--config=bert_tiny"))
    assert code == 0, output
    assert sorted(output.splitlines()) == [f"[{n}] start 1 of 3" for n in range(3)]
    words = [starts(tmp_path, n)[0].split() for n in range(3)]
    assert all("--config=bert_tiny" in line for line in words)
    assert len({line[-3] for line in words}) == 1  # the coordinator's address
    assert re.fullmatch(r"--coordinator_address=localhost:\d+", words[0][-3])


def test_a_lost_process_is_named_and_all_start_again(launch, tmp_path):
    behaviour = "if start == 1: os.kill(os.getpid(), 9) if process == 1 else os.abort()"
    code, output = result(launch(behaviour, "--processes=2"))
    assert code == 0, output
    assert "[launch] process 1 was lost (killed by SIGKILL)\n" in output
    assert "[launch] process 0 stopped because it lost another one\n" in output
    assert output.count("[launch] waiting up to 60 s for the others\n") == 1
    assert "starting all again in 1 s (restart 1 of 10)" in output
    first, second = starts(tmp_path, 0)
    assert first.split()[-3] != second.split()[-3]  # another port


def test_others_that_hang_are_killed(launch):
    behaviour = "if start == 1: time.sleep(60) if process else sys.exit(1)"
    code, output = result(launch(behaviour, "--processes=2", "--grace=0.5"))
    assert code == 0, output
    assert "[launch] process 0 failed\n[launch] waiting up to 0.5 s for the others\n" in output
    assert "[launch] the others did not end by themselves; killing them" in output


def test_start_again_is_done_and_given_up(launch, tmp_path):
    code, output = result(launch("sys.exit(75)", "--processes=1", "--restarts=1"))
    assert code == 75
    assert "process 0 stopped and can be restarted" in output
    assert "given up after 1 restarts in a row; exit codes [75]" in output
    assert len(starts(tmp_path, 0)) == 2


@pytest.mark.parametrize("code", [2, 130])
def test_a_mistake_or_ctrl_c_is_not_tried_again(launch, tmp_path, code):
    ended, _ = result(launch(f"sys.exit({code} if process else 0)", "--processes=2"))
    assert ended == code
    assert len(starts(tmp_path, 0)) == 1


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signals_go_to_all_and_end_it(launch, tmp_path, number, expected):
    process = launch("time.sleep(60)", "--processes=2")
    while not all((tmp_path / f"starts{n}").exists() for n in range(2)):
        time.sleep(0.02)
    time.sleep(0.3)  # until their handlers are in place
    process.send_signal(number)
    code, output = result(process)
    assert code == expected, output
    assert "passed on to all processes" in output
    assert [len(starts(tmp_path, n)) for n in range(2)] == [1, 1]


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_while_processes_are_started_reaches_all(launch, tmp_path, number, expected, start):
    behaviour = f"""
if start < {start}:
    sys.exit(1)
(folder / f"ready{{start}}").touch()
time.sleep(60)
"""
    process = launch(
        behaviour, "--processes=2", through=["-c", SIGNALLED, tmp_path, LAUNCHER, int(number), start]
    )
    code, output = result(process)
    assert code == expected, output
    assert "passed on to all processes" in output
    assert len(starts(tmp_path, 0)) == start  # no restart follows


def test_restarts_pause_longer_and_are_counted_anew_after_a_long_run(monkeypatch):
    monkeypatch.syspath_prepend(LAUNCHER.parent)
    restarts = importlib.import_module("restarts")
    now = 0.0
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now)
    count = restarts.Restarts(limit=8)
    count.started()
    assert [count.next_delay() for _ in range(9)] == [1, 2, 5, 10, 30, 60, 60, 60, None]
    count.started()
    now += restarts.LONG_ENOUGH + 1
    assert count.next_delay() == 1
    assert str(count) == "restart 1 of 8"


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([75, 2, 130], 2), ([1, 130], 130), ([0, 75, 1], 75), ([0, -9], -9)]
)
def test_one_exit_code_for_all_processes(monkeypatch, codes, code):
    monkeypatch.syspath_prepend(LAUNCHER.parent)
    assert importlib.import_module("restarts").combined(codes) == code


@pytest.mark.parametrize("flag", ["--processes=0", "--devices=0"])
def test_mistakes_are_one_line(launch, flag):
    assert result(launch("", flag)) == (2, f"error: {flag} must be at least 1.\n")


def test_dry_run_prints_the_commands(launch, tmp_path):
    code, output = result(launch("", "--processes=2", "--dry_run"))
    assert code == 0
    assert len(output.splitlines()) == 2
    assert output.splitlines()[1].endswith("--num_processes=2 --process_id=1")
    assert not (tmp_path / "starts0").exists()
