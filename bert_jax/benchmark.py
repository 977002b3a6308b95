"""Measure preparation, input, training step or checkpoints on this machine; print medians and spreads.

    python -m bert_jax.benchmark --config=bert_tiny --what=prepare
    python -m bert_jax.benchmark --config=bert_tiny --what=input
    python -m bert_jax.benchmark --config=bert_tiny --what=step
    python -m bert_jax.benchmark --config=bert_mini --what=step --peer=transformers
    python -m bert_jax.benchmark --config=bert_base --what=checkpoint
    python -m bert_jax.benchmark --config=bert_mini --what=products
    python -m bert_jax.benchmark --what=gpu

Run nothing else on the machine meanwhile.
"""

import os
import platform
import sys

import jax
from absl import flags

from bert_jax import command
from bert_jax.benchmarks import checkpoint, gpu, inputs, peer, prepare, products, step
from bert_jax.config import Config
from bert_jax.errors import UserError

command.define_config_flags(data_dir=True)
WHAT = flags.DEFINE_enum(
    "what", "step", ["prepare", "input", "step", "checkpoint", "products", "gpu"],
    "What to measure; gpu: steps of known networks on one GPU, beside those of Transformers.",
)  # fmt: skip
REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each row of the table.", lower_bound=1)
PEER = flags.DEFINE_enum("peer", None, ["transformers"], "Of step: compare with this library in PyTorch.")
PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "The Python that has the peer's packages.")
TIME_LIMIT = flags.DEFINE_float("time_limit", 420.0, "Of gpu: seconds after which no measurement begins.")


def main() -> None:
    command.keep_memory()  # as training does
    if WHAT.value == "gpu":
        gpu.measure(flags.FLAGS.data_dir, REPEATS.value, PEER_PYTHON.value, TIME_LIMIT.value)
        return
    config: Config = command.resolved_config()
    data_dir, repeats = flags.FLAGS.data_dir, REPEATS.value
    if PEER.value and WHAT.value != "step":
        raise UserError(f"--peer={PEER.value} compares the step, not --what={WHAT.value}; use --what=step.")
    if PEER.value:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU's memory to the peer
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} × {jax.device_count()}")
    match WHAT.value:
        case "prepare":
            prepare.measure(config, repeats)
        case "input":
            inputs.measure(config, data_dir, repeats)
        case "checkpoint":
            checkpoint.measure(config, repeats)
        case "products":
            products.measure(config, repeats)
        case "step" if PEER.value:
            peer.compare(config, data_dir, repeats, PEER_PYTHON.value)
        case "step":
            step.measure(config, data_dir, repeats)


if __name__ == "__main__":
    command.run(main)
