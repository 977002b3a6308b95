"""The launcher for Cloud TPU against a stand-in for gcloud whose workers are shells of this machine."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.commands.launch_standins.cluster import AWKWARD, REPOSITORY, SECRET, Cluster, shellcheck

pytestmark = pytest.mark.skipif(not shutil.which("setsid"), reason="the workers' shells need setsid of Linux")
PLACE = ["--name=bert", "--project=p", "--zone=us-west4-a"]
STORED = ["--workdir=gs://bucket/run", "--data_dir=gs://bucket/data"]
CREATE = ["--accelerator=v5litepod-16", "--spot"]
UP = ["up", *PLACE, *CREATE, "--poll=0.1", "--config=bert_base", *STORED]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def verbs(cluster):
    """What gcloud was asked to do, without the looks."""
    done = [call["arguments"][3] for call in cluster.calls("gcloud")]
    return [verb for verb in done if verb in ("create", "delete", "scp")]


def starts(cluster):
    return [call["arguments"] for call in cluster.calls("python")]


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_up_creates_installs_runs_and_gives_back(cluster):
    cluster.plan(lives=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]], codes=[0])
    result = cluster.launch("tpu", *UP, "--config.mesh.fsdp=4")
    assert result.returncode == 0, result.stdout + result.stderr
    assert verbs(cluster) == ["create", "scp", "delete"]
    created = next(call["arguments"] for call in cluster.calls("gcloud") if call["arguments"][3] == "create")
    assert created == [
        *["compute", "tpus", "queued-resources", "create", "bert", "--project=p", "--zone=us-west4-a"],
        *["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=bert"],
        *["--spot", "--quiet"],
    ]
    assert (
        starts(cluster)
        == [["-m", "bert_jax.pretrain", "--config=bert_base", *STORED, "--config.mesh.fsdp=4"]] * 2
    )
    assert "bert is WAITING_FOR_RESOURCES; waiting for ACTIVE" in result.stdout
    assert "the command has ended: ended with 0 (2 of 2)" in result.stdout
    assert "bert is deleted, and costs no more" in result.stdout


def test_what_is_there_is_not_made_again(cluster):
    cluster.plan(codes=["hang"])
    for _ in range(2):
        assert cluster.launch("tpu", "create", *PLACE, *CREATE).returncode == 0
        assert cluster.launch("tpu", "install", *PLACE).returncode == 0
        result = cluster.launch("tpu", "run", *PLACE, "--config=bert_base", *STORED)
        assert result.returncode == 0, result.stderr
    assert "already running" in result.stdout
    assert verbs(cluster).count("create") == 1
    assert len(starts(cluster)) == 2  # one on each of two workers
    assert [call["arguments"][0] for call in cluster.calls("uv")] == ["venv", "pip"] * 2
    for _ in range(2):
        result = cluster.launch("tpu", "delete", *PLACE)
        assert result.returncode == 0
    assert "there is no bert in --project=p --zone=us-west4-a: nothing to delete" in result.stdout
    assert verbs(cluster).count("delete") == 1


def test_a_changed_checkout_is_installed_anew(cluster):
    cluster.launch("tpu", "create", *PLACE, *CREATE)
    cluster.launch("tpu", "install", *PLACE)
    for worker in ("worker0", "worker1"):
        installed = cluster.stage / worker / "bert_jax" / "installed"
        assert re.fullmatch(r"[0-9a-f]{64}\n", installed.read_text())
        assert (cluster.stage / worker / "bert_jax" / "source" / "bert_jax" / "pretrain.py").exists()
        installed.write_text("another\n")
    cluster.forget()
    cluster.launch("tpu", "install", *PLACE)
    assert [call["arguments"][0] for call in cluster.calls("uv")] == ["venv", "pip"] * 2


def test_a_package_is_installed_without_copying(cluster):
    cluster.launch("tpu", "create", *PLACE, *CREATE)
    assert cluster.launch("tpu", "install", *PLACE, "--package=bert_jax[tpu] == 0.3").returncode == 0
    assert verbs(cluster) == ["create"]
    assert cluster.calls("uv")[-1]["arguments"][-2:] == ["bert_jax[tpu] == 0.3", "gcsfs"]


def test_preempted_and_made_again(cluster):
    cluster.plan(lives=[["ACTIVE"] * 3 + ["SUSPENDED"], ["PROVISIONING", "ACTIVE"]], codes=["hang", 0])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 0, result.stdout + result.stderr
    assert verbs(cluster) == ["create", "scp", "delete", "create", "scp", "delete"]
    assert len(starts(cluster)) == 4
    assert starts(cluster)[0] == starts(cluster)[2]  # the same command, so it resumes
    assert "bert was taken away: it is SUSPENDED" in result.stdout


def test_preempted_while_installing(cluster):
    cluster.plan(lives=[["ACTIVE", "PREEMPTED"], ["ACTIVE"]], codes=[0])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 0, result.stdout + result.stderr
    assert verbs(cluster).count("create") == 2


@pytest.mark.parametrize("codes", [[75, 0], pytest.param([137, 1, 0], marks=pytest.mark.slow)])
def test_stopped_or_lost_commands_start_again(cluster, codes):
    cluster.plan(codes=codes)
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 0, result.stdout + result.stderr
    assert verbs(cluster).count("create") == 1
    assert len(starts(cluster)) == 2 * len(codes)


@pytest.mark.parametrize("code", [2, 130])
def test_a_mistake_ends_it_and_what_it_costs(cluster, code):
    cluster.plan(codes=[code])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == code
    assert len(starts(cluster)) == 2
    assert verbs(cluster)[-1] == "delete"
    assert "training" in result.stdout.split("the last lines of all workers:")[1]


def test_given_up_after_restarts_in_a_row(cluster):
    cluster.plan(codes=[75])
    result = cluster.launch("tpu", *UP, "--restarts=1", "--keep")
    assert result.returncode == 75
    assert "given up after 1 restarts in a row" in result.stdout
    assert "bert is kept, and costs until it is deleted" in result.stdout
    assert verbs(cluster) == ["create", "scp", "scp"]


@pytest.mark.slow
def test_workers_that_hang_after_the_others_are_killed(cluster):
    cluster.plan(workers=1, codes=["hang"])
    assert cluster.launch("tpu", "create", *PLACE, *CREATE).returncode == 0
    cluster.launch("tpu", "install", *PLACE)
    cluster.launch("tpu", "run", *PLACE, "--config=bert_base", *STORED)
    cluster.plan(workers=2, codes=[0])  # a second worker, that ends at once
    result = cluster.launch("tpu", *UP, "--grace=0.5")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "not all workers ended by themselves: ended with 0 (1 of 2), running (1 of 2)" in result.stdout


def test_a_running_command_outlives_the_ssh_of_this_machine(cluster):
    """gcloud calls the TPU ACTIVE, but no worker can be reached for more than ten polls."""
    cluster.plan(codes=["hang"])
    log = cluster.stage / "log"
    with log.open("w") as output:
        launcher = subprocess.Popen(
            [sys.executable, REPOSITORY / "launch" / "tpu.py", *UP],
            env=cluster.environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    wait_for(lambda: len(starts(cluster)) == 2)
    (cluster.stage / "no_ssh").touch()
    wait_for(lambda: "bert is ACTIVE, but no worker has answered 10 polls" in log.read_text())
    looks = len(cluster.calls("gcloud"))
    wait_for(lambda: len(cluster.calls("gcloud")) > looks + 6)
    (cluster.stage / "no_ssh").unlink()
    wait_for(lambda: "the workers of bert answer again" in log.read_text())
    assert verbs(cluster) == ["create", "scp"]
    cluster.launch("tpu", "stop", *PLACE)
    assert launcher.wait(30) == 130, log.read_text()
    assert len(starts(cluster)) == 2
    assert verbs(cluster) == ["create", "scp", "delete"]


@pytest.mark.parametrize("found", [True, False])
def test_without_ssh_only_a_tpu_that_is_surely_idle_is_deleted(cluster, found):
    """`up` reaches no worker. A TPU that it found may run the command; one that it created does not."""
    if found:
        cluster.launch("tpu", "create", *PLACE, *CREATE)
    (cluster.stage / "no_ssh").touch()
    result = cluster.launch("tpu", *UP, "--restarts=1")
    assert result.returncode == 75, result.stderr
    assert "given up after 1 restarts in a row" in result.stdout
    assert ("bert is kept, and costs until it is deleted: no worker answers" in result.stdout) == found
    assert (verbs(cluster)[-1] == "delete") == (not found)


def test_deleted_by_someone_else_while_installing(cluster):
    cluster.plan(lives=[["ACTIVE", "NONE"]])
    (cluster.stage / "no_ssh").touch()
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 2
    assert "bert was deleted by someone else" in result.stderr
    assert verbs(cluster) == ["create", "scp"]


def test_deleted_from_elsewhere_is_not_made_again(cluster):
    cluster.plan(codes=["hang"], lives=[["ACTIVE"] * 4 + ["DELETING"]])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 2
    assert result.stderr == "error: bert was deleted by someone else, and is not created again.\n"
    assert verbs(cluster) == ["create", "scp"]


def test_deleted_from_elsewhere_while_it_waits(cluster):
    cluster.plan(lives=[["WAITING_FOR_RESOURCES", "NONE"]])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 2
    assert "bert was deleted by someone else" in result.stderr
    assert verbs(cluster) == ["create"]


def test_failed_requests_are_not_repeated(cluster):
    cluster.plan(lives=[["WAITING_FOR_RESOURCES", "FAILED"]])
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: bert is FAILED; `gcloud compute tpus queued-resources describe bert "
    )
    assert verbs(cluster) == ["create"]


def test_stop_saves_and_status_tells(cluster):
    cluster.plan(codes=["hang"])
    assert "bert is not there" in cluster.launch("tpu", "status", *PLACE).stdout
    cluster.launch("tpu", "create", *PLACE, *CREATE)
    assert "worker worker0: not installed" in cluster.launch("tpu", "status", *PLACE).stdout
    cluster.launch("tpu", "install", *PLACE)
    assert "worker worker1: not started" in cluster.launch("tpu", "status", *PLACE).stdout
    cluster.launch("tpu", "run", *PLACE, "--config=bert_base", *STORED)
    wait_for(lambda: len(starts(cluster)) == 2)
    assert "worker worker1: running" in cluster.launch("tpu", "status", *PLACE).stdout
    time.sleep(0.3)  # until its handler is in place
    cluster.launch("tpu", "stop", *PLACE)
    wait_for(lambda: "stopped with 75" in cluster.launch("tpu", "status", *PLACE).stdout)
    assert verbs(cluster) == ["create", "scp"]  # the TPU stays


def test_a_lost_process_is_told(cluster):
    cluster.plan(codes=["hang"], workers=1)
    cluster.launch("tpu", "create", *PLACE, *CREATE)
    cluster.launch("tpu", "install", *PLACE)
    cluster.launch("tpu", "run", *PLACE, "--config=bert_base", *STORED)
    folder = cluster.stage / "worker0" / "bert_jax"
    os.killpg(int((folder / "session").read_text()), signal.SIGKILL)
    wait_for(lambda: "worker worker0: lost" in cluster.launch("tpu", "status", *PLACE).stdout)


def test_ctrl_c_leaves_the_run_alone(cluster):
    cluster.plan(codes=["hang"])
    launcher = subprocess.Popen(
        [sys.executable, REPOSITORY / "launch" / "tpu.py", *UP],
        env=cluster.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(starts(cluster)) == 2)
    time.sleep(0.3)
    launcher.send_signal(signal.SIGINT)
    output, _ = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert "the run goes on; `up` watches it again" in output
    assert "worker worker0: running" in cluster.launch("tpu", "status", *PLACE).stdout
    cluster.launch("tpu", "delete", *PLACE)


def test_every_word_arrives_as_it_was_typed(cluster):
    result = cluster.launch("tpu", *UP, *AWKWARD)
    assert result.returncode == 0, result.stdout + result.stderr
    assert starts(cluster) == [["-m", "bert_jax.pretrain", "--config=bert_base", *STORED, *AWKWARD]] * 2


def test_several_slices(cluster):
    cluster.launch(
        "tpu", "create", *PLACE, "--accelerator=v5p-32", "--slices=3", "--create_flags=--network=n"
    )
    arguments = cluster.calls("gcloud")[-2]["arguments"]
    assert "--runtime-version=v2-alpha-tpuv5" in arguments
    assert {"--node-count=3", "--node-prefix=bert", "--network=n"} <= set(arguments)
    assert not any(word.startswith(("--node-id", "--spot")) for word in arguments)


@pytest.mark.parametrize("verb", ["up", "create", "install", "run", "logs", "status", "stop", "delete"])
def test_dry_run_calls_nothing(cluster, verb):
    result = cluster.launch(
        "tpu", verb, *PLACE, *CREATE, "--config=bert_base", *STORED, *AWKWARD, "--dry_run"
    )
    assert result.returncode == 0, result.stderr
    assert cluster.calls() == []
    words = shlex.split(result.stdout)
    assert words[:4] == ["gcloud", "compute", "tpus", "queued-resources"]
    if verb == "up":
        assert [words[i + 1] for i, word in enumerate(words) if word == "queued-resources"] == [
            *["describe", "create", "scp", "ssh", "ssh", "ssh"]
        ]


def test_no_secrets_leave_this_machine(cluster):
    cluster.launch("tpu", *UP)
    assert SECRET not in json.dumps([call["arguments"] for call in cluster.calls("gcloud")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "--name=bert"], "--project and --zone missing"),
        (["status", "--project=p", "--zone=z"], "--name missing"),
        (["up", *PLACE, *STORED], "--accelerator missing"),
        (
            ["begin", *PLACE],
            "the verb 'begin' is unknown; give one of up, create, install, run, logs, status, stop, delete",
        ),
        (
            ["up", *PLACE, *CREATE, "--config=bert_base"],
            "--workdir missing; give a folder that all hosts",
        ),
        (["run", *PLACE, "--workdir=runs/x", STORED[1]], "--workdir=runs/x is on the disk of one host"),
        (["create", *PLACE, "--accelerator=tpu7x-16"], "use launch/gke.py"),
        (
            ["create", *PLACE, "--accelerator=h100"],
            "--accelerator=h100 is unknown; known are v2, v3, v4",
        ),
        (["create", *PLACE, *CREATE, "--slices=0"], "--slices=0 must be at least 1"),
        (["create", *PLACE, *CREATE, "--slices=two"], "argument --slices: invalid int value: 'two'"),
        (["status", "--name=Bert!", *PLACE[1:]], "--name=Bert! is not valid"),
    ],
)
def test_mistakes_are_one_line_and_call_nothing(cluster, words, message):
    result = cluster.launch("tpu", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert cluster.calls() == []


def test_a_missing_gcloud_is_one_line(cluster):
    result = cluster.launch("tpu", "status", *PLACE, path="/nonexistent")
    assert result.returncode == 2
    assert result.stderr == (
        "error: gcloud is not installed, or not in PATH; docs/pods.md lists what is needed.\n"
    )


def test_what_gcloud_refuses_is_told(cluster):
    cluster.plan(refusal="ERROR: (gcloud) You do not currently have an active account selected.\nmore")
    result = cluster.launch("tpu", *UP)
    assert result.returncode == 1
    assert result.stderr == (
        "error: gcloud cannot describe bert: ERROR: (gcloud) You do not currently have an active account "
        "selected.\n"
    )


def test_the_workers_scripts_are_clean(cluster):
    cluster.launch("tpu", *UP, "--config.note=two words")
    cluster.launch("tpu", "create", *PLACE, *CREATE)
    cluster.launch("tpu", "stop", *PLACE)
    flag = "--command="
    words = [word for call in cluster.calls("gcloud") for word in call["arguments"]]
    scripts = {word.removeprefix(flag) for word in words if word.startswith(flag)}
    assert len(scripts) == 5  # install, run, status, tail, stop
    assert [shellcheck(script, "--shell=sh") for script in scripts] == [""] * 5


@pytest.mark.slow
def test_the_guide_works_line_by_line(cluster):
    """docs/pods.md typed in from top to bottom, with stand-ins for make's recipes and all programs."""
    cluster.plan(codes=[0], squeue=[""])
    for program in ("make", "ssh-keygen", "ssh-agent", "ssh-add", "docker", "tail"):
        shutil.copy(cluster.stage / "bin" / "kubectl", cluster.stage / "bin" / program)
    guide = (REPOSITORY / "docs" / "pods.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 10
    environment = cluster.environment | {"HOME": str(cluster.stage), "REPOSITORY": str(REPOSITORY)}
    (cluster.stage / "guide.sh").write_text("\n".join(blocks))
    result = subprocess.run(
        ["bash", "-eu", "guide.sh"], cwd=cluster.stage, env=environment,
        text=True, capture_output=True, timeout=100, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    programs = {call["program"] for call in cluster.calls()}
    assert programs >= {"gcloud", "ssh-add", "make", "docker", "kubectl", "sbatch", "squeue", "scancel"}
    assert starts(cluster)[0][2:] == [
        *["--config=bert_base", "--workdir=gs://my-bucket/runs/base", "--data_dir=gs://my-bucket/data"],
        *["--config.mesh.fsdp=4", "--config.data.source=text:corpus/*.txt"],
    ]
