"""A run ends as an undisturbed one does, whatever its terminal does or cannot show."""

import os
import pty
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import DEADLINE, Command, make_corpus

pytestmark = pytest.mark.slow
LAUNCHER = ("launch/local.py", "--processes=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terminals")
    make_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder):
    command = Command(folder, "undisturbed")
    assert command.run()[0] == 0
    return command.rows_without_timings()


def in_shell(command, redirection, **environment):
    """Runs the command with redirections of the shell; returns exit code and standard error."""
    line = f"{shlex.join(command.words)} {redirection}"
    environment = os.environ | command.environment | environment
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, timeout=DEADLINE, env=environment)
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("name", "redirection", "environment"),
    [
        ("reader_gone", "| head -2; exit ${PIPESTATUS[0]}", {}),
        ("all_closed", "<&- >&- 2>&-", {}),
        ("disk_full", "> /dev/full", {}),
        ("ascii", "> /dev/null", {"PYTHONIOENCODING": "ascii"}),
    ],
)
def test_a_run_ends_alike_without_its_standard_output(folder, undisturbed, name, redirection, environment):
    command = Command(folder, name)
    code, err = in_shell(command, redirection, **environment)
    assert (code, command.rows_without_timings()) == (0, undisturbed)
    assert err.count("\n") <= 1
    assert (command.workdir / "report.html").exists()


def test_prepare_goes_on_when_nobody_reads_its_log(folder):
    words = ["-m", "bert_jax.prepare", f"--config={folder}/tiny.py", f"--data_dir={folder}/unread"]
    line = f"{shlex.join([sys.executable, *words])} | head -1 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], stderr=subprocess.PIPE, timeout=DEADLINE)
    assert done.returncode == 0, done.stderr
    assert next((folder / "unread").rglob("manifest.json"))


@pytest.mark.variant
def test_processes_started_together_go_on_when_nobody_reads_their_log(folder):
    command = Command(folder, "together", launcher=LAUNCHER)
    code, err = in_shell(command, "| head -1; exit ${PIPESTATUS[0]}")
    assert (code, err) == (0, "")
    assert "params_digest" in command.rows()[-1]


@pytest.mark.parametrize(
    "launcher",
    [pytest.param((), id="alone"), pytest.param(LAUNCHER, id="together", marks=pytest.mark.variant)],
)
def test_a_terminal_that_is_closed_stops_the_run_with_a_checkpoint(folder, launcher):
    command = Command(folder, f"hang_up_{len(launcher)}", "train.num_steps=2000", launcher=launcher)
    main, terminal = pty.openpty()

    def open_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
        os.close(os.open(os.ttyname(terminal), os.O_RDWR))  # makes it the controlling one

    process = subprocess.Popen(
        command.words, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        preexec_fn=open_terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    deadline = time.monotonic() + DEADLINE
    try:
        while not command.checkpoints(finished=True):
            assert time.monotonic() < deadline, shown
            shown += os.read(main, 1 << 16)
        os.close(main)
        assert process.wait(DEADLINE) == 75
    finally:
        process.terminate()  # the launcher passes it on
    newest = max(map(int, command.checkpoints(finished=True)))
    assert command.rows()[-1]["step"] <= newest < 2000


def test_nohup_keeps_a_run_going(folder, undisturbed):
    command = Command(folder, "nohup")
    process = subprocess.Popen(
        ["nohup", *command.words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | command.environment,
    )  # fmt: skip
    deadline = time.monotonic() + DEADLINE
    while not command.checkpoints(finished=True):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(DEADLINE) == 0
    assert command.rows_without_timings() == undisturbed


@pytest.mark.parametrize("module", ["predict", "inspect"])
def test_commands_that_show_something_end_quietly_without_a_reader(folder, undisturbed, module):
    assert undisturbed
    words = {
        "predict": ["fill-mask", f"--checkpoint={folder}/undisturbed", "--text=[MASK]"],
        "inspect": [f"--config={folder}/tiny.py", f"--data_dir={folder}/data_dir", "--rows=16"],
    }[module]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        command = [sys.executable, "-m", f"bert_jax.{module}", *words]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (141, b"")
