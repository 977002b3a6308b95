"""Pretraining as several processes: one is lost, all are stopped, and others go on with it."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.runs import DEADLINE, Command, make_corpus

pytestmark = pytest.mark.slow
LAUNCHER = str(pathlib.Path(__file__).parents[2] / "launch" / "local.py")
OVERRIDES = ("train.num_steps=40", "train.checkpoint_every=10", "train.eval_every=20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    make_corpus(folder)
    code, output = launched(folder, "first", 1, "train.num_steps=1").run()  # alone: makes the dataset
    assert code == 0, output
    return folder


def launched(folder, name, processes, *overrides, devices=1, restarts=10):
    launcher = (LAUNCHER, f"--processes={processes}", f"--devices={devices}", f"--restarts={restarts}")
    return Command(folder, name, *overrides, launcher=launcher)


@pytest.fixture(scope="module")
def undisturbed(folder):
    command = launched(folder, "undisturbed", 4, *OVERRIDES)
    code, output = command.run()
    assert code == 0, output
    assert len(re.findall(r"^\[\d\] finished step 40", output, re.MULTILINE)) == 1  # one of them tells
    return command


def signal_one(command, number, process, after_step):
    """Sends a signal to one of the processes as soon as a step was logged."""
    deadline = time.monotonic() + DEADLINE
    while command.last_step_logged() <= after_step:
        assert process.poll() is None, command.log.read_text()
        assert time.monotonic() < deadline, command.log.read_text()
        time.sleep(0.01)
    (victim,) = subprocess.run(
        ["pgrep", "-f", f"{command.workdir} .*--process_id=2$"], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(victim), number)


def test_a_killed_process_costs_nothing_but_time(folder, undisturbed):
    command = launched(folder, "killed", 4, *OVERRIDES)
    process = command.start()
    signal_one(command, signal.SIGKILL, process, after_step=20)
    killed_at = time.monotonic()
    while "starting all again" not in command.log.read_text():
        assert time.monotonic() < killed_at + 60, command.log.read_text()
        time.sleep(0.1)
    assert process.wait(DEADLINE) == 0
    output = command.log.read_text()
    assert "[launch] process 2 was lost (killed by SIGKILL)" in output
    assert re.search(r"^\[0\] resumed at step [23]0 of 40", output, re.MULTILINE)
    assert "Traceback" not in output
    assert command.rows_without_timings() == undisturbed.rows_without_timings()
    (last,) = [row for row in command.rows() if row["step"] == 40 and "restarts" in row]
    assert last["restarts"] == 1
    assert 0 < last["goodput"] < 1


def assert_stopped(command, code):
    """All processes agreed on a step, saved it, and ask to be started again."""
    output = command.log.read_text()
    assert code == 75, output
    assert "Traceback" not in output
    stopped = int(re.search(r"stopped at step (\d+) of 40", output)[1])
    assert max(map(int, command.checkpoints(finished=True))) == stopped


def test_a_stop_is_agreed_and_fewer_processes_on_another_mesh_go_on(folder, undisturbed):
    """Four processes, of which one is told to stop, then two with parameters split, then one."""
    command = launched(folder, "changing", 4, *OVERRIDES, restarts=0)
    process = command.start()
    signal_one(command, signal.SIGTERM, process, after_step=4)
    assert_stopped(command, process.wait(DEADLINE))
    assert "exit codes [75, 75, 75, 75]" in command.log.read_text()

    command = launched(folder, "changing", 2, *OVERRIDES, "mesh.fsdp=4", devices=2)
    code, _ = command.interrupt(signal.SIGTERM, lambda: command.last_step_logged() > 16)
    assert_stopped(command, code)

    command = launched(folder, "changing", 1, *OVERRIDES)
    code, output = command.run()
    assert code == 0, output
    ours, theirs = command.rows_without_timings(), undisturbed.rows_without_timings()
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert row.keys() == other.keys()
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-4, atol=1e-4)


def test_processes_that_disagree_refuse_with_what_differs(folder):
    """Two processes are started by hand, with different seeds and one without the dataset."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"

    def start(number, *more):
        command = Command(folder, f"other{number}", "train.num_steps=1", *more)
        command.words += [f"--coordinator_address={address}", "--num_processes=2", f"--process_id={number}"]
        return command, command.start()

    started = [start(0), start(1, "train.seed=7")]
    for command, process in started:
        assert process.wait(DEADLINE) == 2, command.log.read_text()
        output = command.log.read_text()
        assert "error: process 1 differs from process 0: config.train.seed is '7' there and '0' on" in output
        assert "Traceback" not in output


def test_several_processes_do_not_prepare(folder):
    command = launched(folder, "unprepared", 2, "data.held_out_fraction=0.2")
    code, output = command.run()
    assert code == 2
    assert "holds no dataset of this config, and 2 processes must not build it at once" in output
    assert "bert_jax.prepare --config=" in output
    assert "Traceback" not in output
