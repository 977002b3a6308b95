"""The launcher for Slurm: the batch script, run by bash with stand-ins, and what Slurm is asked."""

import getpass
import json
import subprocess
import sys

import pytest

from tests.commands.launch_standins.cluster import AWKWARD, SECRET, Cluster, shellcheck

FLAGS = ["--name=bert", "--nodes=2", "--gpus_per_node=8", "--config=bert_base", "--workdir=/shared/run"]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def script(cluster, *words):
    result = cluster.launch("slurm", "print", *FLAGS, *words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run(cluster, text, restarts=0):
    """The script as Slurm runs it on the first node; its exit code."""
    environment = cluster.environment | {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.run(["bash"], input=text, env=environment, text=True, capture_output=True).returncode


def test_what_is_asked_for(cluster):
    words = [
        "--time=24:00:00",
        "--partition=gpu",
        "--cpus_per_gpu=6",
        "--sbatch_flags=--qos=high --exclusive",
    ]
    text = script(cluster, *words, "--setup=module load cuda")
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert asked == [
        *["--job-name=bert", "--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--output=bert.log"],
        *["--open-mode=append", "--requeue", "--signal=TERM@120", "--cpus-per-task=6", "--time=24:00:00"],
        *["--partition=gpu", "--qos=high", "--exclusive"],
    ]
    assert "\nmodule load cuda\nsrun --cpus-per-task=6 env PYTHONUNBUFFERED=1 " in text


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [(0, 0, False), (2, 0, False), (130, 0, False), (1, 0, True), (137, 3, True), (75, 0, True),
     (75, 99, True), (75, 100, False)],
)  # fmt: skip
def test_which_ends_are_queued_again(cluster, code, restarts, again):
    cluster.plan(codes=[code])
    assert run(cluster, script(cluster), restarts) == code
    requeued = [call["arguments"] for call in cluster.calls("scontrol")]
    assert requeued == ([["requeue", "7"]] if again else [])


def test_every_word_arrives_as_it_was_typed(cluster):
    run(cluster, script(cluster, *AWKWARD))
    command = [sys.executable, "-m", "bert_jax.pretrain", "--config=bert_base", "--workdir=/shared/run"]
    assert cluster.calls("srun")[0]["arguments"] == ["env", "PYTHONUNBUFFERED=1", *command, *AWKWARD]


def test_submitted_once(cluster):
    cluster.plan(squeue=["", "12 RUNNING"], sbatch="Submitted batch job 12")
    first = cluster.launch("slurm", *FLAGS)
    assert (first.returncode, first.stdout) == (0, "Submitted batch job 12\n")
    again = cluster.launch("slurm", *FLAGS)
    assert (again.returncode, again.stdout) == (0, "[launch] bert is there already: job 12, RUNNING\n")
    assert [call["input"] for call in cluster.calls("sbatch")] == [script(cluster)]
    assert SECRET not in json.dumps([[call["arguments"], call["input"]] for call in cluster.calls()])


def test_nothing_is_submitted_while_nobody_knows_what_is_queued(cluster):
    cluster.plan(squeue=[None])
    result = cluster.launch("slurm", *FLAGS)
    assert (result.returncode, result.stderr) == (
        1, "error: squeue failed: Unable to contact slurm controller\n"
    )  # fmt: skip
    assert cluster.calls("sbatch") == []


def test_what_slurm_is_asked(cluster):
    mine = [f"--user={getpass.getuser()}", "--name=bert"]
    for verb, program in (("status", "squeue"), ("cancel", "scancel")):
        assert cluster.launch("slurm", verb, "--name=bert").returncode == 0
        assert cluster.calls(program)[0]["arguments"] == mine


@pytest.mark.parametrize("verb", ["submit", "status", "logs", "cancel"])
def test_dry_run_calls_nothing(cluster, verb):
    result = cluster.launch("slurm", verb, *FLAGS, "--dry_run")
    assert result.returncode == 0
    assert result.stdout.split()[0] == {"logs": "tail", "cancel": "scancel"}.get(verb, "squeue")
    assert cluster.calls() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["print", "--name=a b"], "--name=a b is not valid"),
        (["print", "--nodes=0"], "--nodes=0 must be at least 1"),
        (
            ["queue", *FLAGS],
            "the verb 'queue' is unknown; give one of submit, print, status, logs, cancel",
        ),
    ],
)
def test_mistakes_are_one_line(cluster, words, message):
    result = cluster.launch("slurm", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_missing_slurm_is_one_line(cluster):
    result = cluster.launch("slurm", *FLAGS, path="/nonexistent")
    assert result.returncode == 2
    assert result.stderr.startswith("error: squeue is not installed, or not in PATH")


def test_the_script_is_clean(cluster):
    assert shellcheck(script(cluster, "--config.note=two words", "--setup=module load cuda")) == ""
