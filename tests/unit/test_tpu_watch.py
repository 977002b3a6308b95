"""What the launcher for Cloud TPU concludes from the answers of workers, without a cluster."""

import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
DONE, MISTAKE, RESTART, INTERRUPTED = 0, 2, 75, 130


@pytest.fixture
def tpu(monkeypatch):
    """The launcher's module, which imports those beside it."""
    monkeypatch.syspath_prepend(str(LAUNCH))
    for name in ("tpu", "shell", "restarts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tpu

    monkeypatch.setattr("time.sleep", lambda _: None)
    yield tpu
    for name in ("tpu", "shell", "restarts"):
        sys.modules.pop(name, None)


def cluster(*answers, keep=False):
    """A TPU whose workers give these answers, the last one again and again."""
    answers = list(answers)
    done = []
    return SimpleNamespace(
        options=SimpleNamespace(poll=0.0, grace=-1.0, keep=keep),
        name="bert",
        idle=False,
        follow=lambda: None,
        workers=lambda: answers.pop(0) if len(answers) > 1 else answers[0],
        active=lambda: True,
        kill=lambda: done.append("kill"),
        delete=lambda: done.append("delete"),
        done=done,
    )


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ("ended with 2", MISTAKE),
        ("ended with 130", INTERRUPTED),
        ("stopped with 75", INTERRUPTED),
        ("ended with 0", RESTART),
        ("ended with 1", RESTART),
    ],
)
def test_a_worker_that_hangs_does_not_undo_how_the_others_ended(tpu, ended, code):
    workers = cluster({"w0": ended, "w1": "running"})
    assert tpu.watch(workers) == code
    assert workers.done == ["kill"]


def test_a_worker_that_does_not_answer_has_not_ended(tpu):
    running, done = {"w0": "running", "w1": "running"}, {"w0": "ended with 0", "w1": "ended with 0"}
    workers = cluster(running, {"w0": "running"}, {"w0": "running"}, done)
    assert tpu.watch(workers) == DONE
    assert workers.idle
    partly = cluster(running, {"w0": "ended with 0"})
    assert tpu.watch(partly) == RESTART
    assert (partly.idle, partly.done) == (False, ["kill"])


@pytest.mark.parametrize(
    ("answer", "deleted"),
    [
        ({"w0": "running", "w1": "ended with 1"}, False),
        ({}, False),
        ({"w0": "ended with 1"}, True),
    ],
)
def test_a_tpu_on_which_the_command_may_run_is_not_deleted(tpu, answer, deleted, capsys):
    workers = cluster(answer)
    workers.programs, workers.ssh = SimpleNamespace(run=lambda *_: None), lambda *_: []
    assert tpu.finish(workers, RESTART) == RESTART
    assert workers.done == ["delete"] * deleted
    assert ("bert is kept, and costs until it is deleted" in capsys.readouterr().out) != deleted


@pytest.mark.usefixtures("tpu")
def test_values_that_are_flags_of_other_programs_stay_as_they_are():
    from shell import _with_underscores

    assert _with_underscores("--data-dir=gs://a-b/c-d") == "--data_dir=gs://a-b/c-d"
    assert _with_underscores("--gpu-bind=none --exclusive-user") == "--gpu-bind=none --exclusive-user"
    assert _with_underscores("--best-effort --valid-until=6h") == "--best-effort --valid-until=6h"


@pytest.mark.usefixtures("tpu")
@pytest.mark.parametrize(
    ("module", "flags", "missing"),
    [
        ("bert_jax.pretrain", ["--workdir=gs://a/b"], "data_dir"),
        ("bert_jax.finetune", [], "workdir"),
        ("bert_jax.finetune", ["--workdir=gs://a/b"], ""),
        ("bert_jax.prepare", [], "data_dir"),
        ("bert_jax.benchmark", [], ""),
    ],
)
def test_what_hosts_share_must_be_given(module, flags, missing):
    from shell import Mistake, require_shared

    if missing:
        with pytest.raises(Mistake, match=f"--{missing} missing; give a folder that all hosts see"):
            require_shared(module, flags)
    else:
        require_shared(module, flags)


def test_nothing_is_installed_under_a_running_command(tmp_path):
    home = tmp_path / "bert_jax"
    (home / "venv").mkdir(parents=True)
    (home / "pid").write_text(str(os.getpid()))
    (home / "installed").write_text("old")
    install = ["sh", str(LAUNCH / "worker" / "install.sh"), "new", "3.12", "package"]
    environment = os.environ | {"HOME": str(tmp_path)}
    output = subprocess.run(install, env=environment, capture_output=True, text=True, check=True).stdout
    assert output == "a command is running: nothing is installed\n"
    assert (home / "installed").read_text() == "old"
    assert (home / "venv").is_dir()
