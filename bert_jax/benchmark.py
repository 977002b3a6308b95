"""Measure preparation, input, training step or checkpoints on this machine; print medians and spreads.

    python -m bert_jax.benchmark --config=bert_tiny --what=prepare
    python -m bert_jax.benchmark --config=bert_tiny --what=input
    python -m bert_jax.benchmark --config=bert_tiny --what=step
    python -m bert_jax.benchmark --config=bert_base --what=checkpoint

Run nothing else on the machine meanwhile.
"""

import os
import platform

import jax
from absl import flags

from bert_jax import command
from bert_jax.benchmarks import checkpoint, inputs, prepare, step
from bert_jax.config import Config

command.define_config_flags(data_dir=True)
WHAT = flags.DEFINE_enum("what", "step", ["prepare", "input", "step", "checkpoint"], "What to measure.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each row of the table.")


def main() -> None:
    config: Config = command.resolved_config()
    data_dir, repeats = flags.FLAGS.data_dir, REPEATS.value
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} × {jax.device_count()}")
    match WHAT.value:
        case "prepare":
            prepare.measure(config, repeats)
        case "input":
            inputs.measure(config, data_dir, repeats)
        case "step":
            step.measure(config, data_dir, repeats)
        case "checkpoint":
            checkpoint.measure(config, repeats)


if __name__ == "__main__":
    command.run(main)
