"""Every flag that takes a path takes any name: all printable characters of ASCII in one, and some beyond."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import DEADLINE, make_corpus

pytestmark = pytest.mark.slow
PRINTABLE = "".join(map(chr, range(32, 127))).replace("/", "")
# One name, for these processes take their time; test_stored_arrays.py and test_source_paths.py have many.
NAME = f" {PRINTABLE} é日"
ROWS = "".join(f"text {n}\t{'ab'[n % 2]}\n" for n in range(12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of this name with a corpus, a config and examples."""
    path = tmp_path_factory.mktemp("paths") / NAME
    path.mkdir()
    make_corpus(path)
    (path / "rows.tsv").write_text(f"text\tlabel\n{ROWS}")
    (path / "lines.txt").write_text("one text.\nanother.\n")
    return path


def run(module, *words, script=("-m",)):
    command = [sys.executable, *script, *([f"bert_jax.{module}"] if script == ("-m",) else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stderr) == (0, ""), (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder):
    """A run in it, resumed once; returns the flags of its config."""
    config = [
        f"--config={folder}/tiny.py",
        f"--config.data.source=text:{folder}/corpus.txt",
        f"--data_dir={folder}/data",
    ]
    run("prepare", *config)
    assert "dataset: " in (first := run("pretrain", *config, f"--workdir={folder}/run"))
    assert "train 300" not in first.replace(",", "")  # some documents are held out
    assert f"finished step 12; checkpoint in {folder}/run/checkpoints" in first
    for path in (folder / "run" / "checkpoints" / "12").rglob("*"):
        path.unlink() if path.is_file() else None
    assert "resumed at step 10 of 12" in run("pretrain", *config, f"--workdir={folder}/run")
    return config


def test_the_source_is_the_file_of_that_name(folder, trained):
    manifest = next((folder / "data").glob("*/manifest.json"))
    sources = json.loads(manifest.read_text())["sources"]
    assert [source["paths"] for source in sources] == [[str(folder / "corpus.txt")]]
    assert "step 1: " in run("inspect", *trained, "--step=1", "--rows=2")


def test_predict_reads_and_writes_it(folder, trained):
    assert trained
    checkpoint, lines = f"--checkpoint={folder}/run", f"--input={folder}/lines.txt"
    assert "mask 1: " in run("predict", "fill-mask", checkpoint, "--text=a [MASK]")
    run("predict", "features", checkpoint, lines, f"--output={folder}/features.npy")
    assert np.load(folder / "features.npy").shape == (2, 16)


def test_finetune_and_its_checkpoint(folder, trained):
    assert trained
    run(
        "finetune", "--config=finetune/classification", f"--config.init_from={folder}/run",
        f"--config.data.train={folder}/rows.tsv", f"--config.data.eval={folder}/rows.tsv",
        "--config.data.max_seq_length=32", "--config.data.global_batch_size=8", "--config.train.num_epochs=1",
        f"--workdir={folder}/tuned",
    )  # fmt: skip
    words = [f"--checkpoint={folder}/tuned", f"--input={folder}/rows.tsv", f"--output={folder}/rows.jsonl"]
    run("predict", "classify", *words)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {label for row in rows for label in row["probabilities"]} == {"a", "b"}


def test_export_and_convert(folder, trained):
    assert trained
    run("export", f"--input={folder}/run", f"--output={folder}/exported")
    run("convert", f"--input={folder}/exported", f"--output={folder}/imported")
    words = ("--text=a [MASK]",)
    again = run("predict", "fill-mask", f"--checkpoint={folder}/imported", *words)
    assert again == run("predict", "fill-mask", f"--checkpoint={folder}/run", *words)


@pytest.mark.variant
def test_processes_started_together(folder, trained):
    out = run(
        "pretrain", "--processes=2", *trained, f"--workdir={folder}/together", script=("launch/local.py",)
    )
    assert f"finished step 12; checkpoint in {folder}/together/checkpoints" in out
