"""A phase that raises the rotary base: its steps, evaluations, checkpoints and a resumed run all use it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.batch import batch_shapes
from bert_jax.data.batches import Batches, iterate
from bert_jax.model.config import ModelConfig
from bert_jax.training import checkpoint
from bert_jax.training.config import OptimizerConfig, TrainConfig
from bert_jax.training.evaluate import HeldOut
from bert_jax.training.loop import train
from bert_jax.training.program import Program
from bert_jax.training.step import abstract_model, compute_of, means, with_shardings
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import MODEL, MODERN, mesh_of, objective

SHORT, LONG = {"num_steps": 4}, {"num_steps": 4, "model": {"rope_theta": 100.0, "local_rope_theta": 50.0}}
DATA = DataConfig(max_seq_length=32, global_batch_size=16, second_objective="none")


class Task:
    """Masked tokens of made-up documents, on which it is evaluated too."""

    data_digest, files, metric, patience = "made up", {"tokenizer/none": b""}, "", 0

    def __init__(self):
        self.objective = objective(pairs=False)
        store = MemoryStore(random_documents(200), MODEL.vocab_size)
        self.made = Batches(store, DATA, FakeTokenizer(MODEL.vocab_size), seed=3)
        self.evaluators = (HeldOut("eval", 4, lambda rows: [self.made(0, rows)]),)

    def initial_params(self, random_params, _):
        return random_params()

    def objective_of(self, _):
        return self.objective

    def batch_shapes(self, phase):
        return batch_shapes(phase.config.data)

    def batches(self, phase, first_step, rows):
        return iterate(self.made, phase.first_step + first_step, rows, 1, 1)

    def exposure(self, _):
        return {}

    def examples(self, *_):
        return []


def config(*phases):
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, schedule="constant")
    settings = TrainConfig(num_steps=0, log_every=4, eval_every=4, checkpoint_every=4)
    return Config(
        dataclasses.replace(MODEL, **MODERN), DATA, optimizer, settings, phases=phases
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_jax.training.loop.make_mesh", lambda _: mesh_of())
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both phases."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(config(SHORT, LONG), Task(), workdir) == 0
    return workdir


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_network_of_the_weights_after_a_step():
    both = config(SHORT, LONG)
    bases = [(after.rope_theta, after.local_rope_theta) for after in (both.after(n).model for n in range(9))]
    assert bases == [(160_000.0, 10_000.0)] * 5 + [(100.0, 50.0)] * 4
    assert dataclasses.replace(both.after(8), model=both.model) == both
    program = Program(both, objective(pairs=False), mesh_of())
    assert program.after(4) is program
    assert program.after(5) is program.after(8)


@pytest.mark.parametrize(("step", "bases"), [(4, (160_000.0, 10_000.0)), (8, (100.0, 50.0))])
def test_a_checkpoint_holds_the_network_that_was_evaluated(whole, step, bases):
    folder, meta = checkpoint.find_verified(whole / "checkpoints" / str(step))
    model = ModelConfig.from_checkpoint(meta["config"]["model"], folder)
    assert (model.rope_theta, model.local_rope_theta) == bases
    found = objective(pairs=False)
    compute = compute_of(TrainConfig(), mesh_of())  # of the run, whose activations this CPU decides
    structure, abstract = abstract_model(lambda rngs: found.build(model, rngs, compute))
    params = checkpoint.restore(folder, meta, with_shardings(abstract, mesh_of()))
    losses = jax.jit(lambda params, batch: found.evaluate(nnx.merge(structure, params), batch)[0])
    expected = means(losses(params, Task().made(0)))
    (row,) = [row for row in rows_of(whole) if row["step"] == step and "eval_loss" in row]
    for name in ("mlm_loss", "mask_token_loss"):
        np.testing.assert_allclose(row[f"eval_{name}"], expected[name], rtol=1e-6)


def test_a_phase_that_follows_later_ends_alike(whole, tmp_path):
    assert train(config(SHORT), Task(), tmp_path) == 0
    assert train(config(SHORT, LONG), Task(), tmp_path) == 0
    other = tmp_path / "other"
    assert train(config(SHORT, {"num_steps": 4}), Task(), other) == 0
    digests = [rows_of(run)[-1]["params_digest"] for run in (whole, tmp_path, other)]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]  # the base is part of what is learned
