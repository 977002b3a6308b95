"""Weights out and in again by the commands, with paths as people type them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from bert_jax.training.opening import open_checkpoint
from tests.saved import save, save_finetuned, sentencepiece, wordpiece

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # what files are read and written in


def command(folder, verb, *words, **environment):
    """Exit code and output of a command given in the folder."""
    result = subprocess.run(
        [sys.executable, "-m", f"bert_jax.{verb}", *words],
        cwd=folder, capture_output=True, text=True, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("tokenizer", [sentencepiece, pytest.param(wordpiece, marks=pytest.mark.slow)])
def test_out_and_in_again(tmp_path, tokenizer):
    """That every bit survives is tested beside the modules."""
    save(tmp_path / "run", tokenizer())
    code, output = command(tmp_path, "export", "--input=run", "--output=out/first")
    assert code == 0, output
    config = json.loads((tmp_path / "out/first/config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    code, output = command(tmp_path, "convert", "--input=out/first", "--output=in/first")
    assert code == 0, output
    assert "initialised: nothing" in output
    text = ("predict", "fill-mask", "--text=the [MASK] is")
    (code, ours), (_, theirs) = (
        command(tmp_path, *text, f"--checkpoint={name}") for name in ("in/first", "run")
    )
    assert code == 0, ours
    assert "mask 1: " in ours
    assert ours.splitlines()[1:] == theirs.splitlines()[1:]


@pytest.mark.parametrize(
    ("task", "facts", "architecture"),
    [
        ("classification", {"pairs": False, "labels": ["ne", "možná"]}, "BertForSequenceClassification"),
        pytest.param("question_answering", {"version_2": True}, "BertForQuestionAnswering",
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_fine_tuned_head_out_and_in_again(tmp_path, task, facts, architecture):
    save_finetuned(tmp_path / "run", wordpiece(), task, facts)
    code, output = command(tmp_path, "export", "--input=run", "--output=out", **ASCII)
    assert code == 0, output
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture]
    code, output = command(tmp_path, "convert", "--input=out", "--output=in")
    assert code == 0, output
    told = ", ".join(f"{name} {value}" for name, value in facts.items())
    assert f"task: {task} (its config), a fine-tuned checkpoint; {told}" in output
    assert json.loads((tmp_path / "in/checkpoints/0/task.json").read_text()) == facts


def test_what_was_read_and_what_was_left_out_is_told(tmp_path):
    save(tmp_path / "run", wordpiece())
    command(tmp_path, "export", "--input=run", "--output=out")
    tensors = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    more = {"regressor.weight": np.zeros((1, 2), np.float32), "func.bias": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(tensors | more, tmp_path / "out/model.safetensors")
    (tmp_path / "out/pytorch_model.bin").touch()
    code, output = command(tmp_path, "convert", "--input=out", "--output=in")
    assert code == 2
    assert output == (
        "error: out: the tensors are not those of config.json's BERT: func.bias is not known; "
        "regressor.weight is not known. To import the others, give --leave_out=func,regressor.\n"
    )
    words = ("--input=out", "--output=in", "--leave-out=func,regressor")
    code, output = command(tmp_path, "convert", *words)
    assert code == 0, output
    assert "weights: model.safetensors, and not pytorch_model.bin, which is there too" in output
    assert "not imported: func.bias, regressor.weight (--leave_out)" in output
    imported = open_checkpoint(tmp_path / "in").meta["imported"]
    assert imported["left_out"] == ["func.bias", "regressor.weight"]


def test_words_are_added_to_a_run(tmp_path):
    save(tmp_path / "run", wordpiece())
    (tmp_path / "words.txt").write_text("greatest\nstate\n\n")
    words = ("--input=run", "--output=new", "--add_words=words.txt")
    code, output = command(tmp_path, "convert", *words)
    assert code == 0, output
    assert "vocabulary: 1 of 2 words added, model.vocab_size=34; the others are one token already" in output
    code, output = command(tmp_path, "predict", "fill-mask", "--checkpoint=new", "--text=the greatest [MASK]")
    assert code == 0, output
    assert open_checkpoint(tmp_path / "new").tokenizer.encode(["the greatest"]) == [[5, 33]]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--config=modern_tiny"], "exports as ModernBertForMaskedLM"),
        (
            ["--config=modern_tiny", "--config.model.norm_position=after"],
            "cannot be exported: model.norm_position='after'; the nearest family, ModernBERT, has 'before'.",
        ),
    ],
)
def test_what_can_be_exported_is_said_before_a_run(tmp_path, words, line):
    code, output = command(tmp_path, "params", *words)
    assert code == 0, output
    assert output.splitlines()[-1] == line


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("convert", ["--input=run", "--output=new", "--task=tagging"], "--task=tagging is not valid"),
        ("convert", ["--input=nowhere", "--output=new"], "--input=nowhere is not a folder"),
        ("convert", ["--input=run", "--output=new"], "--input=run is a checkpoint of bert_jax already; give"),
        (
            "convert",
            ["--input=run", "--output=new", "--add_words=no"],
            "--add_words=no cannot be read: No such",
        ),
        ("export", ["--input=run", "--output=run"], "--output=run exists; give another folder"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(tmp_path, verb, words, message):
    save(tmp_path / "run", wordpiece())
    code, output = command(tmp_path, verb, *words)
    assert code == 2
    assert message in output
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
