"""One of several processes that take some training steps in float64 and tell what came out of them.

    python -m tests.processes FOLDER PROCESSES PROCESS PORT DATA FSDP TENSOR

Process 0 writes `FOLDER/PROCESSES.npz`: the loss of every step, the batch of every step as its device arrays
hold it, and the parameters after the last one; and the batches of a mixture.
"""

import dataclasses
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.mixed_batches import phase_batches
from bert_jax.training.config import MeshConfig, TrainConfig
from bert_jax.training.mesh import make_mesh, path_name, process_rows, to_global
from bert_jax.training.step import init_state
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import MODEL, Training

STEPS, ROWS = 20, 16
DATA = DataConfig(max_seq_length=32, global_batch_size=ROWS, max_sequences_per_row=2)


def gathered(tree) -> dict[str, np.ndarray]:
    """Every array of a tree, whole, by path."""
    whole = multihost_utils.process_allgather(tree, tiled=True)
    return {path_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(whole)}


def take_steps(training: Training) -> dict[str, np.ndarray]:
    """Losses, batches and parameters of `STEPS` steps, from whichever processes there are."""
    store = MemoryStore(random_documents(300), MODEL.vocab_size)
    batches = Batches(store, DATA, FakeTokenizer(MODEL.vocab_size), seed=3)
    mesh, losses, seen = training.mesh, [], {}
    with jax.set_mesh(mesh):
        state = init_state(training.random_params(), training.optimizer, training.abstract)
        source = iterate(batches, 0, process_rows(mesh, ROWS), workers=1, prefetch=1)
        for step in range(STEPS):
            batch = to_global(mesh, next(source))
            seen |= {f"batch/{step}/{name}": x for name, x in gathered(batch).items()}
            state, metrics = training.train_step(state, batch, jax.random.key(7))
            losses.append(float(metrics["loss"]))
        source.close()
        seen |= batches_of_mixture(mesh)
        params = {f"params/{name}": x for name, x in gathered(state.params).items()}
    return {"losses": np.array(losses), **seen, **params}


def batches_of_mixture(mesh) -> dict[str, np.ndarray]:
    """The batches of a mixture in two phases of other weights and sizes, as device arrays hold them."""
    phases = (
        {"num_steps": 9},
        {"num_steps": 5, "data": {"source": "text:a@1,text:b@4", "global_batch_size": 8, "mask_rate": 0.3}},
    )
    data = dataclasses.replace(DATA, source="text:a@0.7,text:b@0.3")
    config = Config(model=MODEL, data=data, train=TrainConfig(num_steps=0), phases=phases)
    stores = [MemoryStore(random_documents(n, seed=n), MODEL.vocab_size) for n in (100, 10)]
    seen = {}
    for phase in config.phase_list():
        batches = phase_batches(stores, FakeTokenizer(MODEL.vocab_size), phase)
        rows = process_rows(mesh, phase.config.data.global_batch_size)
        source = iterate(batches, 0, rows, workers=2, prefetch=2)
        for step in range(phase.num_steps):
            batch = gathered(to_global(mesh, next(source)))
            seen |= {f"batch/phase {phase.index}/{step}/{name}": x for name, x in batch.items()}
        source.close()
    return seen


def main(folder: str, processes: str, process: str, port: str, *sizes: str) -> None:
    if int(processes) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    with jax.enable_x64(True):
        mesh = make_mesh(MeshConfig(*map(int, sizes)))
        training = Training(mesh, dtype=np.float64, hidden_dropout=0.1, attention_dropout=0.1)
        result = take_steps(training)
    if jax.process_index() == 0:
        np.savez(f"{folder}/{processes}.npz", **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
