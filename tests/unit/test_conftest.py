import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
# Starts a child with the settings of the tests and prints how the child takes SIGINT.
PARENT = """
import subprocess, sys
import tests.conftest
subprocess.run([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT))"], check=True)
"""


def ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def test_processes_of_tests_can_be_interrupted_where_sigint_is_ignored():
    output = subprocess.check_output(
        [sys.executable, "-c", PARENT], cwd=ROOT, text=True, preexec_fn=ignore_interrupts
    )
    assert "default_int_handler" in output
