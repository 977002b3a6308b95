"""Turns, ratios and batches of the comparison with a peer, whose processes are stand-ins without PyTorch."""

import contextlib
import dataclasses
import json
import pathlib
import re
import sys

import numpy as np
import pytest

from bert_jax import config as config_lib
from bert_jax.benchmarks import measure, peer
from bert_jax.benchmarks.measure import Steps, in_turns
from bert_jax.errors import UserError
from tests import tiny

# Answers like the worker; `bfloat16 compiled` fails as a compiler would, and `bfloat16 eager` is killed.
WORKER = """
import json, os, signal, sys
folder, precision, mode = sys.argv[1:]
for steps in map(int, sys.stdin):
    if precision == "bfloat16" and mode == "compiled":
        print("torch.CompileError: no g++\\n  in /bin\\n\\nSet a variable for more.", file=sys.stderr)
        sys.exit(1)
    if precision == "bfloat16":
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({"seconds": 0.5 / steps, "loss": 1.0, "rows": 2, "peak_bytes": 3 << 20}), flush=True)
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    monkeypatch.setattr(peer, "WORKER", path)


def test_all_take_turns_of_about_a_second():
    taken = []

    def run_of(name, seconds):
        def run(steps):
            taken.append((name, steps))
            return seconds + 0.01 * len(taken)

        return run

    found = in_turns({"a": run_of("a", 0.24), "b": run_of("b", 7.0)}, 3)
    assert taken == [("a", 1), ("a", 1), ("b", 1), ("b", 1), *[("a", 4), ("b", 1)] * 3]
    assert {name: np.round(values, 2).tolist() for name, values in found.items()} == {
        "a": [0.29, 0.31, 0.33],
        "b": [7.06, 7.08, 7.1],
    }


def test_cells_are_median_spread_rate_utilisation_and_memory():
    steps = Steps([0.5, 0.1, 0.2], 1000, 0.05, 3 << 30)
    assert steps.cells() == ["200.0", "100.0 to 500.0", "5,000", "25.0%", "3,072"]
    assert steps._replace(ideal_seconds=None, peak_bytes=None).cells()[3:] == ["", ""]


def test_ratio_is_that_of_medians_against_the_best_variant():
    ours = Steps([1.0, 9.0, 2.0], 1000, None, None)  # 500 tokens/s
    peers = {
        "float32 eager": Steps([1.0], 100, None, None),
        "bfloat16 eager": Steps([0.5, 0.5], 200, None, None),
    }
    table = peer.report(["ours", "8×16 packed"], ours, "8×16", peers, {"bfloat16 compiled": "no compiler"})
    assert [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()] == [
        ["rows × tokens", "ms", "spread", "real tokens/s", "MFU", "peak MiB", "ours / theirs"],
        ["ours", "8×16 packed", "2000.0", "1000.0 to 9000.0", "500"],
        ["transformers: float32 eager", "8×16", "1000.0", "1000.0 to 1000.0", "100", "5.00"],
        ["transformers: bfloat16 eager", "8×16", "500.0", "500.0 to 500.0", "400", "1.25"],
        ["transformers: bfloat16 compiled", "does not run here"],
        ["bfloat16 compiled does not run here: no compiler"],
        ["ratio: 1.25"],
    ]
    assert table.splitlines()[-1] == "ratio: 1.25"


@pytest.mark.usefixtures("worker")
def test_variants_that_fail_say_why_and_the_others_run(tmp_path):
    with contextlib.ExitStack() as stack:
        workers, problems = peer.start(sys.executable, tmp_path, stack, "")
        assert problems == {
            "bfloat16 eager": "ended by signal 9",
            "bfloat16 compiled": "torch.CompileError: no g++",
        }
        assert [*workers] == ["float32 eager", "float32 compiled"]
        assert workers["float32 eager"].run(5) == 0.1


@pytest.mark.usefixtures("worker")
def test_no_variant_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(peer, "VARIANTS", [("bfloat16", "compiled")])
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(UserError, match=r"no variant runs here .*no g\+\+"),
    ):
        peer.start(sys.executable, tmp_path, stack, "")


@pytest.mark.usefixtures("worker")
def test_chosen_variants_alone_are_started(tmp_path):
    with contextlib.ExitStack() as stack:
        workers, problems = peer.start(sys.executable, tmp_path, stack, "float32")
        assert ([*workers], problems) == (["float32 eager", "float32 compiled"], {})
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(UserError, match=r"^--rows=fp8: no variant of the peer has such a name\.$"),
    ):
        peer.start(sys.executable, tmp_path, stack, "fp8")


def test_a_worker_that_is_not_ready_in_time_is_ended(tmp_path, monkeypatch):
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(peer, "WORKER", slow)
    worker = peer.Worker(sys.executable, tmp_path, "float32", "eager", limit=0.2)
    with pytest.raises(peer.PeerError, match=r"ended by signal 9; the limit was 0 s"):
        worker.run(1)
    worker.close()


@pytest.mark.parametrize(
    ("lacking", "part"),
    [
        (("torch",), "has no torch; install the extra `peer`"),
        (("torch", "transformers"), "torch and no trans"),
    ],
)
def test_a_python_without_the_packages_is_an_error_that_names_the_extra(tmp_path, lacking, part):
    for name in {"torch", "transformers"} - set(lacking):
        (tmp_path / f"{name}.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(UserError, match=part) as error:
        peer.check_python(str(python))
    assert "\n" not in str(error.value)


def test_a_python_that_does_not_exist_is_an_error():
    with pytest.raises(UserError, match=r"--peer_python=no/such cannot be run .*; give a Python"):
        peer.check_python("no/such")


def test_packed_rows_become_rows_of_one_sequence():
    """Two rows of three sequences, the first of which has a target of its second token, 7."""
    batch = {
        "input_ids": np.array([[2, 4, 3, 2, 8, 9, 3, 0], [2, 5, 6, 3, 6, 3, 0, 0]]),
        "sequence_ids": np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1, 0, 0]]),
        "position_ids": np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 1, 2, 3, 4, 5, 0, 0]]),
        "token_type_ids": np.array([[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0]]),
        "masked_lm_positions": np.array([[1, 5, 0], [2, 0, 0]]),
        "masked_lm_ids": np.array([[7, 9, 0], [8, 0, 0]]),
        "masked_lm_weights": np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        "next_sentence_labels": np.array([[0, 0], [1, 0]]),
        "next_sentence_weights": np.array([[0.0, 0.0], [1.0, 0.0]]),
    }
    rows = {name: x.tolist() for name, x in peer.one_sequence_a_row(batch, 9, pad_id=1).items()}
    assert rows == {
        "input_ids": [[2, 4, 3, *[1] * 5], [2, 8, 9, 3, *[1] * 4], [2, 5, 6, 3, 6, 3, 1, 1]],
        "attention_mask": [[1] * n + [0] * (8 - n) for n in (3, 4, 6)],
        "token_type_ids": [[0] * 8, [0] * 8, [0, 0, 0, 0, 1, 1, 0, 0]],
        "labels": [[-100, 7, *[-100] * 6], [-100, -100, 9, *[-100] * 5], [-100, -100, 8, *[-100] * 5]],
        "next_sentence_label": [-100, -100, 1],
    }
    two = peer.one_sequence_a_row(batch, 2, pad_id=1)
    assert two["labels"].tolist() == rows["labels"][:2]  # 0 and 3 // 2
    batch["next_sentence_weights"][:] = 0.0
    assert "next_sentence_label" not in peer.one_sequence_a_row(batch, 3, pad_id=1)


class Tokenizer:
    pad_id, cls_id, sep_id = 0, 1, 2


def config_of(name, **model):
    _, values = config_lib.load_config(name)
    config = config_lib.from_dict(values.to_dict(), config_lib.Config)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **model))


BERT = {"attention_output_dropout": 0.1, "weight_decay": 0.01, "eps": 1e-6, "clip_norm": 1.0, "lr": 1e-4}
MODERN = {
    "attention_output_dropout": 0.1,
    "weight_decay": 1e-5 / 8e-4,
    "betas": [0.9, 0.98],
    "clip_norm": 0.0,
}


@pytest.mark.parametrize(
    ("name", "model", "expected"),
    [
        ("bert_base", {}, BERT),
        ("modernbert_base", {}, MODERN),
        ("modern_mini", {"hidden_dropout": 0.2}, {"attention_output_dropout": 0.2}),
    ],
)
def test_the_folder_of_a_worker(tmp_path, name, model, expected):
    config = config_of(name, **model)
    arrays = {"input_ids": np.zeros((2, 4), np.int64), "token_type_ids": np.zeros((2, 4), np.int64)}
    peer.write_folder(tmp_path, config, Tokenizer(), arrays, "cuda")
    training = json.loads((tmp_path / "training.json").read_text())
    assert training["device"] == "cuda"
    assert expected.items() <= training.items()
    written = json.loads((tmp_path / "config.json").read_text())
    modern = name != "bert_base"
    assert written["architectures"] == ["ModernBertForMaskedLM" if modern else "BertForPreTraining"]
    with np.load(tmp_path / "batch.npz") as batch:
        assert [*batch] == ["input_ids"] + ["token_type_ids"] * (not modern)  # ModernBERT knows none


def test_a_network_of_another_family_is_an_error(tmp_path):
    config = config_of("modern_mini", **tiny.NEO)
    with pytest.raises(UserError, match=r"is for BERT and ModernBERT, .* this network is NeoBERT; leave it"):
        peer.write_folder(tmp_path, config, Tokenizer(), {}, "cpu")


def test_what_is_compared_is_the_last_phase_with_masks_and_adamw():
    phase = peer.comparable(config_of("bert_tiny"))
    assert (phase.index, phase.config.data.max_seq_length, phase.config.data.objective) == (1, 64, "masked")
    optimizer = phase.config.optimizer
    assert (optimizer.name, optimizer.schedule, optimizer.warmup_steps) == ("adamw", "constant", 0)
    causal = config_of("bert_tiny").phase_list()[0].config
    with pytest.raises(UserError, match=r"needs a phase with data\.objective=masked"):
        peer.comparable(causal)


def test_the_worker_is_a_file_of_the_package():
    assert pathlib.Path(measure.__file__).with_name("peer_worker.py") == peer.WORKER
    assert peer.WORKER.is_file()
