"""Measure preparation, input, training step, start or checkpoints on this machine; print medians and spreads.

    python -m bert_jax.benchmark --config=bert_tiny --what=prepare
    python -m bert_jax.benchmark --config=bert_tiny --what=input
    python -m bert_jax.benchmark --config=bert_tiny --what=step
    python -m bert_jax.benchmark --config=bert_mini --what=step --peer=transformers
    python -m bert_jax.benchmark --config=bert_tiny --what=start
    python -m bert_jax.benchmark --config=bert_base --what=checkpoint
    python -m bert_jax.benchmark --config=bert_mini --what=products
    python -m bert_jax.benchmark --what=index
    python -m bert_jax.benchmark --what=gpu

Run nothing else on the machine meanwhile.
"""

import sys

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    flags.DEFINE_enum(
        "what", "step", ["prepare", "input", "step", "start", "checkpoint", "products", "index", "gpu"],
        "What to measure; gpu: steps of known networks on one GPU, beside those of Transformers.",
    )  # fmt: skip
    flags.DEFINE_integer("repeats", 5, "Measurements of each row of the table.", lower_bound=1)
    flags.DEFINE_enum("peer", None, ["transformers"], "Of step: compare with this library in PyTorch.")
    flags.DEFINE_string("peer_python", sys.executable, "The Python that has the peer's packages.")
    flags.DEFINE_string("rows", "", "Of gpu, prepare and --peer: measure rows with this regular expression.")
    flags.DEFINE_integer("copies", 10, "Of prepare: of the embedded corpus, the larger text.", lower_bound=2)
    flags.DEFINE_float("time_limit", 420.0, "Of gpu: seconds after which no measurement begins.")
    command.run(command.main_of("bert_jax.benchmark"))

import os
import platform
import re

import jax

from bert_jax.benchmarks import checkpoint, gpu, index, inputs, peer, prepare, products, start, step
from bert_jax.config import Config
from bert_jax.errors import UserError
from bert_jax.training.memory import keep_freed_memory

PREPARE, STEP, GPU = "--what=prepare", "--what=step", "--what=gpu"
PEER = f"{STEP} --peer=transformers"
TAKEN_BY = {  # flags that only some measurements take
    "peer": (PEER, GPU),
    "peer_python": (PEER, GPU),
    "rows": (PREPARE, PEER, GPU),
    "copies": (PREPARE,),
    "time_limit": (GPU,),
}


def main() -> None:
    keep_freed_memory()  # as training does
    values = flags.FLAGS
    try:
        re.compile(values.rows)
    except re.error as error:
        raise UserError(f"--rows={values.rows} is no regular expression: {error}.") from None
    what = f"--what={values.what}"
    command.check_flags(PEER if values.peer and values.what == "step" else what, TAKEN_BY)
    data_dir, repeats = values.data_dir, values.repeats
    if values.what == "gpu":
        gpu.measure(data_dir, repeats, values.peer_python, values.time_limit, values.rows)
        return
    if values.what == "index":
        index.measure(repeats)
        return
    config: Config = command.resolved_config()
    if values.peer:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves a GPU's memory to the peer
    print(f"{platform.machine()}, {os.cpu_count()} cores, {jax.default_backend()} × {jax.device_count()}")
    match values.what:
        case "prepare":
            prepare.measure(config, repeats, values.rows, values.copies)
        case "input":
            inputs.measure(config, data_dir, repeats)
        case "start":
            start.measure(config, data_dir, repeats)
        case "checkpoint":
            checkpoint.measure(config, repeats)
        case "products":
            products.measure(config, repeats)
        case "step" if values.peer:
            peer.compare(config, data_dir, repeats, values.peer_python, values.rows)
        case "step":
            step.measure(config, data_dir, repeats)
