"""One, two and four processes see the same batches and compute the same, in float64 with dropout on."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import ONE_DEVICE

pytestmark = pytest.mark.slow


def run(folder, processes, *sizes):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = f" --xla_force_host_platform_device_count={4 // processes}"
    environment = os.environ | {"XLA_FLAGS": ONE_DEVICE["XLA_FLAGS"] + devices}
    words = [sys.executable, "-m", "tests.processes", str(folder), str(processes)]
    started = [
        subprocess.Popen([*words, str(number), str(port), *map(str, sizes)], env=environment)
        for number in range(processes)
    ]
    assert [process.wait(400) for process in started] == [0] * processes
    return dict(np.load(folder / f"{processes}.npz"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"), 1, 4, 1, 1)


@pytest.mark.parametrize(
    ("processes", "sizes"), [(2, (1, 2, 2)), pytest.param(4, (4, 1, 1), marks=pytest.mark.variant)], ids=str
)
def test_processes_change_nothing(alone, tmp_path, processes, sizes):
    result = run(tmp_path, processes, *sizes)
    assert result.keys() == alone.keys()
    assert len(set(alone["losses"])) == len(alone["losses"]) == 20
    for name, value in alone.items():
        if name.startswith("batch/"):
            np.testing.assert_array_equal(result[name], value)
        else:
            np.testing.assert_allclose(result[name], value, rtol=1e-9, atol=1e-9)
