import functools
import operator
import os
import signal
import subprocess
import sys
import time

import pytest

from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError


def test_results_come_in_the_order_of_the_items():
    with Workers(3) as workers:
        assert list(workers.map(operator.neg, range(50))) == [-i for i in range(50)]
        assert list(workers.map(abs, [-3, 4])) == [3, 4]


def test_items_are_taken_no_faster_than_results():
    taken = []
    items = (taken.append(i) or i for i in range(100))
    with Workers(2) as workers:
        assert next(iter(workers.map(operator.neg, items))) == 0
        assert len(taken) == 5


def test_exceptions_of_the_function_are_raised_here():
    with Workers(2) as workers, pytest.raises(ZeroDivisionError):
        list(workers.map(functools.partial(operator.truediv, 1), [1, 0, 2]))


def test_a_killed_worker_is_reported():
    with Workers(1) as workers, pytest.raises(UserError, match="code 7"):
        list(workers.map(os._exit, [7]))


def test_output_of_the_function_does_not_disturb():
    with Workers(1) as workers:
        assert list(workers.map(print, ["printed"])) == [None]


def test_workers_end_with_their_parent():
    script = (
        "from bert_jax.corpus.workers import Workers; import time; w = Workers(2);"
        "print(*(p.pid for p in w._processes), flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(is_running, pids)):
        time.sleep(0.05)
    assert [is_running(pid) for pid in pids] == [False, False]


def test_ctrl_c_in_a_terminal_reaches_no_worker():
    """It goes to the group of the command, also while its workers still import what they need."""
    with Workers(2) as workers:
        groups = {os.getpgid(process.pid) for process in workers._processes}
    assert os.getpgid(0) not in groups


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
