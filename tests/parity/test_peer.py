"""Transformers trains the same network on the same batch as we do, so that speeds can be compared.

Needs a Python with torch and transformers: this one, or the one that BERT_JAX_PEER_PYTHON names.
"""

import dataclasses
import importlib.util
import os
import sys

import jax
import numpy as np
import pytest

from bert_jax.benchmarks import peer
from bert_jax.benchmarks.step import CompiledStep
from bert_jax.config import Config
from bert_jax.scaling.compile import program_without_data
from bert_jax.training.config import OptimizerConfig, TrainConfig
from bert_jax.training.opening import first_device_mesh
from tests import tiny

PYTHON = os.environ.get("BERT_JAX_PEER_PYTHON", sys.executable)
HERE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HERE and sys.executable == PYTHON,
        reason="needs BERT_JAX_PEER_PYTHON, or torch and transformers here",
    ),
]
ROWS, T = 8, 32


class Tokenizer:
    pad_id, cls_id, sep_id = 0, tiny.CLS, tiny.SEP


def config_of(**model) -> Config:
    data = dataclasses.replace(
        Config().data, max_seq_length=T, global_batch_size=ROWS, max_sequences_per_row=2,
        second_objective="next_sentence" if model.get("pooler", True) else "none",
    )  # fmt: skip
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.1)
    network = dataclasses.replace(tiny.MODEL, initializer_range=0.2, **model)
    return Config(network, data, optimizer, TrainConfig(num_steps=10))


def losses(config, batch, folder, precision="float32", mode="eager", steps=4):
    """The losses of the first steps, each before its update: ours and theirs."""
    mesh = first_device_mesh()
    with jax.set_mesh(mesh):
        program = program_without_data(config, mesh)
        params = program.random_params()
        theirs = peer.one_sequence_a_row(batch, 2 * ROWS, Tokenizer.pad_id)
        peer.write_folder(folder, config, Tokenizer(), theirs, "cpu", params)
        worker = peer.Worker(PYTHON, folder, precision, mode)
        ours = CompiledStep(program, program.initial_state(params), batch)
        found = []
        try:
            for _ in range(steps):
                ours.run(1), worker.run(1)
                found.append((ours.loss, worker.answer["loss"]))
        finally:
            worker.close()
    return np.array(found).T


@pytest.mark.parametrize("model", [{}, tiny.MODERN], ids=["BertForPreTraining", "ModernBertForMaskedLM"])
def test_losses_are_those_of_transformers_from_the_first_step_on(model, tmp_path):
    """Also after updates: so gradients, clipping, decay and AdamW are the same."""
    batch = tiny.random_batch(0, ROWS)
    ours, theirs = losses(config_of(**model), batch, tmp_path)
    assert ours[-1] < ours[0] - 0.1  # they train
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_a_comparison_ends_with_the_ratio_to_the_best_variant(tmp_path, capsys, monkeypatch):
    """Rows of ours hold two sequences, rows of theirs one."""
    monkeypatch.setattr(peer, "VARIANTS", [("float32", "eager"), ("bfloat16", "eager")])
    rng = np.random.default_rng(0)
    words = ["one", "two", "three", "four", "five"]
    texts = [". ".join(" ".join(rng.choice(words, 3)) for _ in range(3)) + "." for _ in range(200)]
    (tmp_path / "text").write_text("\n\n".join(texts))
    config = config_of(vocab_size=30_522)
    source = {"source": f"text:{tmp_path}/text", "tokenizer": "wordpiece:bert_uncased"}
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **source))
    peer.compare(config, str(tmp_path), 1, PYTHON, "")
    _, ours, *theirs, last = capsys.readouterr().out.splitlines()
    assert "masked, float32, plain attention  8×32 packed" in ours
    assert [line.split()[1:4] for line in theirs] == [
        ["float32", "eager", "8×32"],
        ["bfloat16", "eager", "8×32"],
    ]
    ratios = [float(line.split()[-1]) for line in theirs]
    assert last == f"ratio: {min(ratios):.2f}"
