#!/usr/bin/env python3
"""Pretrain on TPU slices of a GKE cluster, as a JobSet that restarts itself.

    python launch/gke.py apply --name=bert --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=4x4 \\
        --config=bert_base --workdir=gs://BUCKET/runs/base --data_dir=gs://BUCKET/data

Verbs:
    apply    make the JobSet; one that exists already stays as it is
    print    print its manifest: jobset.yaml, filled in
    status   print the JobSet and its pods
    logs     follow the log of the first process
    delete   save a checkpoint, end the JobSet and remove it

The cluster needs JobSet (https://jobset.sigs.k8s.io) and a node pool for each slice. Flags that are not
listed below go to the command as they are.
"""

import argparse
import json
import math
import re

import shell
from restarts import NOT_AGAIN
from shell import Mistake

VERBS = ("apply", "print", "status", "logs", "delete")
# Values of cloud.google.com/gke-tpu-accelerator: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
ACCELERATORS = (
    "tpu-v3-slice", "tpu-v4-podslice", "tpu-v5-lite-podslice", "tpu-v5p-slice", "tpu-v6e-slice", "tpu7x",
)  # fmt: skip


def arguments() -> tuple[str, argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__, VERBS)
    parser.add_argument("--name", help="of the JobSet")
    parser.add_argument("--namespace", help="(default: kubectl's)")
    parser.add_argument("--image", help="a container image with this package (to apply)")
    parser.add_argument("--accelerator", help=f"of the nodes: {', '.join(ACCELERATORS)}")
    parser.add_argument("--topology", help="of the nodes' slice, e.g. 4x4 or 2x2x2")
    parser.add_argument("--chips_per_host", type=int, help="of the nodes (default: 4, or all there are)")
    parser.add_argument("--slices", type=int, default=1, help="how many of these (default: 1)")
    parser.add_argument("--spot", action="store_true", help="on Spot nodes")
    parser.add_argument("--service_account", default="default",
                        help="of Kubernetes, with access to the bucket (default: %(default)s)")  # fmt: skip
    parser.add_argument("--restarts", type=int, default=100, help="at most so many in all (default: 100)")
    parser.add_argument("--grace", type=int, default=120, help="seconds to save and end in (default: 120)")
    verb, options, rest = parser.verb_and_flags()
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
    """Returns the number of hosts of a slice, and the chips of each."""
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
    shell.require_positive(options, "slices")
    return chips // each, each


def manifest(options: argparse.Namespace, rest: list[str]) -> str:
    """Returns the JobSet: jobset.yaml, filled in."""
    number, chips = hosts(options)
    # Kubernetes replaces $(NAME) in commands, and $$ by $.
    command = [word.replace("$", "$$") for word in ("python", "-m", options.module, *rest)]
    # JSON of a value is YAML too, and quotes what YAML would take for something else.
    quoted = {
        "name": options.name, "image": options.image, "accelerator": options.accelerator,
        "topology": options.topology, "service_account": options.service_account, "command": command,
        "not_again": [code for code in NOT_AGAIN if code],
    }  # fmt: skip
    return shell.fill(
        "jobset.yaml", hosts=number, chips=chips, slices=options.slices, restarts=options.restarts,
        grace=options.grace, spot='cloud.google.com/gke-spot: "true"' if options.spot else "",
        **{name: json.dumps(value, ensure_ascii=False) for name, value in quoted.items()},
    )  # fmt: skip


def main() -> int:
    verb, options, rest = arguments()
    programs = shell.Programs(options.dry_run)
    kubectl = ["kubectl", *([f"--namespace={options.namespace}"] if options.namespace else [])]
    pods = f"jobset.sigs.k8s.io/jobset-name={options.name}"
    if verb in ("apply", "print"):
        text = manifest(options, rest)
        if verb == "print":
            print(text, end="")
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
