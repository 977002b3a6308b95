#!/usr/bin/env python3
"""Pretrain on GPUs of a Slurm cluster, as a job that queues itself again until the run is done.

    python launch/slurm.py submit --name=bert --nodes=2 --gpus_per_node=8 --time=24:00:00 \\
        --config=bert_base --workdir=/shared/runs/base --data_dir=/shared/data

Verbs:
    submit   queue the job, unless one of this name is queued or runs
    print    print its script: slurm.sh, filled in
    status   print the job, as squeue shows it
    logs     follow its log
    cancel   save a checkpoint and end the job for good

The job runs this Python in this folder; all nodes must see both. Flags that are not listed below go to the
command as they are.
"""

import argparse
import getpass
import re
import shlex
import sys

import shell
from restarts import NOT_AGAIN
from shell import Mistake, say

VERBS = ("submit", "print", "status", "logs", "cancel")


def arguments() -> tuple[str, argparse.Namespace, list[str]]:
    parser = shell.Parser(__doc__, VERBS)
    parser.add_argument("--name", default="bert_jax", help="of the job (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--gpus_per_node", type=int, default=1, help="and processes (default: 1)")
    parser.add_argument("--cpus_per_gpu", type=int, default=0, help="and process (default: the cluster's)")
    parser.add_argument("--time", help="limit, e.g. 24:00:00; the job is queued again when it is reached")
    parser.add_argument("--grace", type=int, default=120, help="seconds before it to save in (default: 120)")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--sbatch_flags", default="", help="further ones, e.g. '--qos=high --exclusive'")
    parser.add_argument("--setup", default="", help="a line of shell before it, e.g. 'module load cuda'")
    parser.add_argument("--log", help="file (default: NAME.log here)")
    parser.add_argument("--restarts", type=int, default=100, help="at most so many in all (default: 100)")
    verb, options, rest = parser.verb_and_flags()
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", options.name):
        raise Mistake(
            f"--name={options.name} is not valid; give letters, digits, dots, dashes and underscores."
        )
    shell.require_positive(options, "nodes", "gpus_per_node")
    options.log = options.log or f"{options.name}.log"
    return verb, options, rest


def script(options: argparse.Namespace, rest: list[str]) -> str:
    """Returns the batch script: slurm.sh, filled in."""
    # Since Slurm 22.05 srun does not take --cpus-per-task from the job.
    cpus = f"--cpus-per-task={options.cpus_per_gpu}" if options.cpus_per_gpu else ""
    named = {"time": options.time, "partition": options.partition, "account": options.account}
    flags = [cpus] if cpus else []
    flags += [f"--{name}={value}" for name, value in named.items() if value]
    flags += shlex.split(options.sbatch_flags)
    return shell.fill(
        "slurm.sh", name=options.name, nodes=options.nodes, gpus_per_node=options.gpus_per_node,
        grace=options.grace, log=shlex.quote(options.log), restarts=options.restarts, setup=options.setup,
        flags="\n".join(f"#SBATCH {shlex.quote(flag)}" for flag in flags), srun_flags=cpus and f"{cpus} ",
        command=shlex.join([sys.executable, "-m", options.module, *rest]),
        not_again="|".join(map(str, NOT_AGAIN)),
    )  # fmt: skip


def main() -> int:
    verb, options, rest = arguments()
    programs = shell.Programs(options.dry_run)
    mine = [f"--user={getpass.getuser()}", f"--name={options.name}"]
    if verb == "print":
        print(script(options, rest), end="")
    elif verb == "submit":
        answer = programs.ask("squeue", *mine, "--noheader", "--format=%i %T")
        if answer.returncode:  # or the run might be submitted a second time
            raise shell.Failure(f"squeue failed: {answer.stderr.strip()}")
        if queued := answer.stdout.split():
            say(f"{options.name} is there already: job {queued[0]}, {queued[1]}")
        else:
            programs.run("sbatch", text=script(options, rest))
    elif verb == "status":
        programs.run("squeue", *mine)
    elif verb == "logs":
        programs.run("tail", "-n", "100", "-F", options.log)
    else:
        programs.run("scancel", *mine)
    return 0


if __name__ == "__main__":
    shell.exit_with(main)
