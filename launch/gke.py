#!/usr/bin/env python3
"""Pretrain on TPU slices of a GKE cluster, as a JobSet that starts again by itself.

    python launch/gke.py apply --name=bert --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
        --config=bert_base --workdir=gs://BUCKET/runs/base --data_dir=gs://BUCKET/data

Verbs:
    apply    make the JobSet; it is left as it is when it is there
    print    show its manifest
    status   the JobSet and its pods
    logs     follow the log of the first process
    delete   save a checkpoint, end and remove it

The cluster needs JobSet (https://jobset.sigs.k8s.io) and a node pool for each slice. Flags that are not
listed below go to the command as they are.
"""

import argparse
import json
import math
import re
from typing import Any

import shell
from shell import Mistake

VERBS = ("apply", "print", "status", "logs", "delete")
# Values of cloud.google.com/gke-tpu-accelerator: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
ACCELERATORS = (
    "tpu-v3-slice", "tpu-v4-podslice", "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice", "tpu7x",
)  # fmt: skip
CONTAINER, SLICE = "train", "slice"


def arguments() -> tuple[str, argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__)
    parser.add_argument("--name", help="of the JobSet")
    parser.add_argument("--namespace", help="(default: kubectl's)")
    parser.add_argument("--image", help="a container image with this package (to apply)")
    parser.add_argument("--accelerator", help=f"of the nodes: {', '.join(ACCELERATORS)}")
    parser.add_argument("--topology", help="of the nodes' slice, e.g. 4x4 or 2x2x2")
    parser.add_argument("--chips_per_host", type=int, help="of the nodes (default: 4, or all there are)")
    parser.add_argument("--slices", type=int, default=1, help="how many of these (default: 1)")
    parser.add_argument("--spot", action="store_true", help="on Spot nodes")
    parser.add_argument("--service_account", help="of Kubernetes, with access to the bucket")
    parser.add_argument("--restarts", type=int, default=100, help="at most so many in all (default: 100)")
    parser.add_argument("--grace", type=int, default=120, help="seconds to save and end in (default: 120)")
    verb, options, rest = parser.verb_and_flags(VERBS)
    shell.require(options, "name")
    # The JobSet's pods are named NAME-slice-0-0-abcde, in at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        raise Mistake(
            f"--name={options.name} is not valid; give at most 40 lower-case letters, digits and dashes."
        )
    if verb in ("apply", "print"):
        shell.require(options, "image", "accelerator", "topology")
        shell.require_shared(options.module, rest)
    return verb, options, rest


def hosts(options: argparse.Namespace) -> tuple[int, int]:
    """The hosts of a slice, and the chips of each."""
    if options.accelerator not in ACCELERATORS:
        raise Mistake(f"--accelerator={options.accelerator} is unknown; give {', '.join(ACCELERATORS)}.")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", options.topology):
        raise Mistake(f"--topology={options.topology} is not valid; give it like 4x4 or 2x2x2.")
    chips = math.prod(map(int, options.topology.split("x")))
    each = options.chips_per_host or min(4, chips)
    if each < 1 or chips % each:
        raise Mistake(
            f"--chips_per_host={each} does not divide the {chips} chips of --topology={options.topology}."
        )
    if options.slices < 1:
        raise Mistake(f"--slices={options.slices} must be at least 1.")
    return chips // each, each


def manifest(options: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The JobSet: a Job for each slice, with a pod for each host.

    A pod that ends badly fails its Job (backoffLimit 0), and that starts all Jobs again; with an exit code
    that says "not again" it fails by policy, and that fails the JobSet.
    """
    number, chips = hosts(options)
    selector = {
        "cloud.google.com/gke-tpu-accelerator": options.accelerator,
        "cloud.google.com/gke-tpu-topology": options.topology,
    } | ({"cloud.google.com/gke-spot": "true"} if options.spot else {})
    # Kubernetes replaces $(NAME) in commands, and $$ by $.
    command = [word.replace("$", "$$") for word in ("python", "-m", options.module, *rest)]
    container = {
        "name": CONTAINER,
        "image": options.image,
        "command": command,
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
        "resources": {"limits": {"google.com/tpu": chips}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": selector,
        "containers": [container],
    } | ({"serviceAccountName": options.service_account} if options.service_account else {})
    final = {"containerName": CONTAINER, "operator": "In", "values": sorted(shell.NOT_AGAIN)}
    job = {
        "parallelism": number,
        "completions": number,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": {"spec": pod},
    }
    not_again = {"name": "notAgain", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            # Each slice on a node pool of its own.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": options.restarts, "rules": [not_again]},
            "network": {"enableDNSHostnames": True},  # by a headless service
            "replicatedJobs": [{"name": SLICE, "replicas": options.slices, "template": {"spec": job}}],
        },
    }


def main() -> int:
    verb, options, rest = arguments()
    programs = shell.Programs(options.dry_run)
    kubectl = ["kubectl", *([f"--namespace={options.namespace}"] if options.namespace else [])]
    pods = f"jobset.sigs.k8s.io/jobset-name={options.name}"
    if verb in ("apply", "print"):
        text = json.dumps(manifest(options, rest), indent=2)
        if verb == "print":
            print(text)
        else:
            programs.run(*kubectl, "apply", "--filename=-", text=text)
    elif verb == "status":
        programs.run(*kubectl, "get", "jobset", options.name)
        programs.run(*kubectl, "get", "pods", f"--selector={pods}", "--output=wide")
    elif verb == "logs":
        first = f"{pods},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        programs.run(*kubectl, "logs", "--follow", "--tail=100", f"--selector={first}")
    else:
        programs.run(*kubectl, "delete", "jobset", options.name, "--ignore-not-found")
    return 0


if __name__ == "__main__":
    shell.exit_with(main)
