#!/bin/bash
# The job of launch/slurm.py, which replaces the words in angle brackets; whatever has no flag can be changed here.
# VERB=print shows the result.
#
# One task for each GPU. JAX finds the other tasks, and the GPU of each, in the variables that srun sets
# (jax/_src/clusters/slurm_cluster.py). So each task must see all GPUs of its node, as with --gpus-per-node.
#SBATCH --job-name=<name>
#SBATCH --nodes=<nodes>
#SBATCH --ntasks-per-node=<gpus_per_node>
#SBATCH --gpus-per-node=<gpus_per_node>
#SBATCH --output=<log>
#SBATCH --open-mode=append
#SBATCH --requeue
# Before the time limit the tasks get SIGTERM, not this script.
#SBATCH --signal=TERM@<grace>
<flags>

<setup>
srun <srun_flags>env PYTHONUNBUFFERED=1 <command>
code=$?
case $code in <not_again>) exit $code ;; esac
# The command was stopped before the time limit (75), or lost: the same job starts again from its newest checkpoint.
if [ "${SLURM_RESTART_COUNT:-0}" -lt <restarts> ]; then
    echo "[launch] ended with code $code; queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
