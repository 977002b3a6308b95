import contextlib
import os
import pty
import sys

import pytest

from bert_jax.benchmarks import start
from bert_jax.config import Config, from_dict, load_config
from bert_jax.training.config import TrainConfig


@contextlib.contextmanager
def on_terminal():
    """Standard error is a terminal. No fixture: pytest redirects it anew for every test."""
    with contextlib.ExitStack() as opened:
        saved = os.dup(2)
        opened.callback(os.close, saved)
        for end in (ends := pty.openpty()):
            opened.callback(os.close, end)
        os.dup2(ends[1], 2)
        opened.callback(os.dup2, saved, 2)
        yield


def command(monkeypatch, folder, lines):
    """Stands in for the Python that runs `pretrain`."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{lines}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_the_first_step_is_found_on_a_terminal_too(monkeypatch, tmp_path):
    command(monkeypatch, tmp_path, "test -t 2 || echo 'step 1/3 loss 2'")
    with on_terminal():
        assert 0 < start._seconds_to(start.FIRST_STEP, [], tmp_path) < 60


def test_what_a_command_said_that_failed_is_shown(monkeypatch, tmp_path):
    command(monkeypatch, tmp_path, "echo 'error: no such file' >&2; exit 2")
    with pytest.raises(SystemExit, match="ended before it printed 'step 1/':\nerror: no such file"):
        start._seconds_to(start.FIRST_STEP, [], tmp_path)


def test_the_runs_have_the_overrides_of_the_command_line(monkeypatch, tmp_path):
    config, found = Config(train=TrainConfig(seed=7)), []

    def seconds_to(line, arguments, _):
        if line == start.FIRST_STEP:
            path = arguments[0].removeprefix("--config=")
            found.append(from_dict(load_config(path)[1].to_dict(), Config).train)
        return 1.0

    monkeypatch.setattr(start, "_seconds_to", seconds_to)
    monkeypatch.setattr("bert_jax.corpus.mixture.prepare", lambda *_: None)
    start.measure(config, str(tmp_path), 1)
    assert found == [TrainConfig(seed=7, log_every=1)] * 2
