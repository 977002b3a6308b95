"""The launcher for GKE: the manifest against the published schema of JobSet, and what kubectl is asked."""

import importlib
import json
import pathlib
import re
import shlex

import pytest
import yaml

from tests.commands.launch_standins.cluster import AWKWARD, REPOSITORY, SECRET, Cluster

SCHEMA = pathlib.Path(__file__).parent / "launch_standins" / "jobset.schema.json"
STORED = ["--workdir=gs://bucket/run", "--data_dir=gs://bucket/data"]
NODES = ["--accelerator=tpu-v5-lite-podslice", "--topology=4x4"]
FLAGS = ["--name=bert", "--image=registry/bert:1", *NODES, "--config=bert_base", *STORED]


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


def manifest(cluster, *words):
    result = cluster.launch("gke", "print", *FLAGS, *words)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


def job(content):
    return content["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod(content):
    return job(content)["template"]["spec"]


@pytest.mark.parametrize(
    "words", [[], ["--spot", "--service_account=trainer", "--slices=4", "--chips_per_host=8", *AWKWARD]]
)
def test_the_manifest_is_valid(cluster, words):
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    content = manifest(cluster, *words)
    validator.validate(content)
    job(content)["podfailurepolicy"] = {}
    assert not validator.is_valid(content)  # it does look that far


@pytest.mark.parametrize(
    ("accelerator", "topology", "more", "hosts", "chips"),
    [
        ("tpu-v5-lite-podslice", "4x4", [], 4, 4),
        ("tpu-v5-lite-podslice", "2x4", ["--chips_per_host=8"], 1, 8),
        ("tpu-v6e-slice", "1x1", [], 1, 1),
        ("tpu-v5p-slice", "2x2x4", [], 4, 4),
        ("tpu7x", "4x4x4", [], 16, 4),
    ],
)
def test_a_pod_for_each_host(cluster, accelerator, topology, more, hosts, chips):
    content = manifest(cluster, f"--accelerator={accelerator}", f"--topology={topology}", *more)
    assert (job(content)["parallelism"], job(content)["completions"]) == (hosts, hosts)
    assert pod(content)["containers"][0]["resources"] == {"limits": {"google.com/tpu": chips}}
    assert pod(content)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }


def test_restarts_and_what_is_not_restarted(cluster):
    content = manifest(cluster, "--restarts=7", "--grace=90", "--slices=2", "--spot")
    assert content["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert content["spec"]["failurePolicy"]["rules"] == [
        {"name": "notAgain", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    exit_codes = {"containerName": "train", "operator": "In", "values": [2, 130]}  # 75 and others: again
    assert job(content)["podFailurePolicy"] == {"rules": [{"action": "FailJob", "onExitCodes": exit_codes}]}
    assert job(content)["backoffLimit"] == 0
    assert pod(content)["restartPolicy"] == "Never"
    assert pod(content)["terminationGracePeriodSeconds"] == 90
    assert pod(content)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert content["spec"]["replicatedJobs"][0]["replicas"] == 2


def expanded(word):
    """As Kubernetes does it with HOME set: $$ is $, and $(HOME) its value."""
    return re.sub(r"\$\$|\$\(HOME\)", lambda match: "$" if match[0] == "$$" else "/root", word)


def test_every_word_arrives_as_it_was_typed(cluster):
    words = ["--config.home=$(HOME)", *AWKWARD]
    command = pod(manifest(cluster, *words))["containers"][0]["command"]
    given = ["python", "-m", "bert_jax.pretrain", "--config=bert_base", *STORED, *words]
    assert [expanded(word) for word in command] == given


def test_what_kubectl_is_asked(cluster):
    cluster.launch("gke", *FLAGS)  # apply is the verb when none is given
    for verb in ("status", "logs", "delete"):
        assert cluster.launch("gke", verb, "--name=bert", "--namespace=ml").returncode == 0
    calls = cluster.calls("kubectl")
    first = "job-index=0,batch.kubernetes.io/job-completion-index=0"
    pods = "--selector=jobset.sigs.k8s.io/jobset-name=bert"
    assert [" ".join(call["arguments"]) for call in calls] == [
        "apply --filename=-",
        "--namespace=ml get jobset bert",
        f"--namespace=ml get pods {pods} --output=wide",
        f"--namespace=ml logs --follow --tail=100 {pods},jobset.sigs.k8s.io/{first}",
        "--namespace=ml delete jobset bert --ignore-not-found",
    ]
    assert yaml.safe_load(calls[0]["input"]) == manifest(cluster)
    assert SECRET not in json.dumps([[call["arguments"], call["input"]] for call in calls])


def test_an_unknown_word_of_a_template_is_a_mistake(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "launch")
    shell = importlib.import_module("shell")
    monkeypatch.setattr(shell, "FOLDER", tmp_path)
    (tmp_path / "job.sh").write_text("cat <file >copy; echo <nam>")
    with pytest.raises(shell.Mistake, match=r"launch/job.sh has <nam>; give one of <name>, <log>\."):
        shell.fill("job.sh", name="bert", log="a")
    (tmp_path / "job.sh").write_text("cat <file >copy; echo <name>")
    assert shell.fill("job.sh", name="<log>", log="a") == "cat <file >copy; echo <log>"


def test_flags_may_have_a_space(cluster):
    apart = [word for flag in STORED for word in flag.split("=", 1)]
    assert cluster.launch("gke", "print", *FLAGS[:-2], *apart).returncode == 0


def test_names_of_flags_may_have_hyphens(cluster):
    """As the commands take them; a --dry-run that went on to the command would start the run."""
    hyphens = ["--chips-per-host=2", STORED[0], STORED[1].replace("_", "-")]
    result = cluster.launch("gke", "apply", *FLAGS[:-2], *hyphens, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert cluster.calls() == []
    assert STORED[1] in result.stdout
    assert "google.com/tpu: 2" in result.stdout


@pytest.mark.parametrize("verb", ["apply", "status", "logs", "delete"])
def test_dry_run_calls_nothing(cluster, verb):
    result = cluster.launch("gke", verb, *FLAGS, "--dry_run")
    assert result.returncode == 0
    assert shlex.split(result.stdout.splitlines()[0])[0] == "kubectl"
    assert cluster.calls() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["apply"], "--name missing"),
        (["apply", "--name=bert"], "--image and --accelerator and --topology missing"),
        (["print", *FLAGS, "--accelerator=v5e"], "--accelerator=v5e is unknown; give tpu-v3-slice, "),
        (["print", *FLAGS, "--topology=16"], "--topology=16 is not valid; give it like 4x4 or 2x2x2"),
        (["print", *FLAGS, "--chips_per_host=5"], "--chips_per_host=5 does not divide the 16 chips of"),
        (["print", *FLAGS, "--slices=0"], "--slices=0 must be at least 1"),
        (["print", *FLAGS, "--name=A_b"], "--name=A_b is not valid"),
        (["print", *FLAGS, "--workdir=runs/x"], "--workdir=runs/x is on the disk of one host"),
        (["print", *FLAGS, "--workdir", "runs/x"], "--workdir=runs/x is on the disk of one host"),
        (["print", *FLAGS, "-workdir=runs/x"], "--workdir=runs/x is on the disk of one host"),
        (["print", *FLAGS, "--data-dir=x"], "--data_dir=x is on the disk of one host"),
        (["print", *FLAGS[:-2], "--workdir", STORED[1]], "--workdir missing"),
        (
            ["start", *FLAGS],
            "the verb 'start' is unknown; give one of apply, print, status, logs, delete",
        ),
    ],
)
def test_mistakes_are_one_line_and_call_nothing(cluster, words, message):
    result = cluster.launch("gke", *words)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert cluster.calls() == []


def test_a_missing_kubectl_is_one_line(cluster):
    result = cluster.launch("gke", "status", "--name=bert", path="/nonexistent")
    assert result.returncode == 2
    assert result.stderr.startswith("error: kubectl is not installed, or not in PATH")
