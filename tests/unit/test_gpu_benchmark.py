"""What the measurements on a GPU do when one of them fails, is too late or does not fit."""

import os
import time

import jax
import pytest

from bert_jax.benchmarks import gpu
from bert_jax.benchmarks.measure import Steps, in_process

CONFIG = gpu.config_of(gpu.ROWS["base, T=512 packed"], small=True)


def steps(tokens):
    return Steps([1.0], tokens, None, None)


def raise_error(text):
    raise RuntimeError(text)


def test_what_fails_or_comes_too_late_is_a_line_and_ends_no_other(capsys):
    table = gpu.Table(time.monotonic() + 60)
    row = "base, T=128"
    table.add(row, "ours", lambda: (["ours: bfloat16", "8×128"], steps(300)))
    table.add("large, T=128", "ours", lambda: raise_error("out of\nmemory"))
    table.add(row, "eager", lambda: (["theirs: eager", "4×128"], steps(200)))
    late = gpu.Table(time.monotonic() - 1)
    late.add(row, "ours", lambda: pytest.fail("it begins"))
    assert capsys.readouterr().out.splitlines() == [
        "base, T=128, ours: bfloat16: 300 real tokens/s",
        "large, T=128, ours: not measured: out of memory",
        "base, T=128, theirs: eager: 200 real tokens/s",
        "base, T=128, ours: not measured: no time left",
    ]
    lines = [" ".join(line.split()) for line in str(table).splitlines()[1:]]
    assert lines == [
        "large, T=128 ours not measured",
        "base, T=128 ours: bfloat16 8×128 1000.0 1000.0 to 1000.0 300",
        "base, T=128 theirs: eager 4×128 1000.0 1000.0 to 1000.0 200 1.50",
    ]


@pytest.mark.parametrize(
    ("answers", "tried"),
    [
        ({64: "fits"}, [64]),
        ({64: 0.4, 16: "fits"}, [64, 16]),  # 40% of 64 rows are 25
        ({64: "full", 48: "full", 32: "fits"}, [64, 48, 32]),
        ({64: 0.01, 8: "fits"}, [64, 8]),  # the smallest, if none seems to fit
    ],
)
def test_the_largest_batch_that_fits_is_found_in_few_attempts(monkeypatch, answers, tried):
    found = []

    def attempt(config, data_dir, repeats, is_last):
        assert (data_dir, repeats) == ("data", 3)
        rows = config.data.global_batch_size
        found.append(rows)
        assert is_last == (rows == 8)
        if answers[rows] == "full":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return ("plain", rows, None, steps(1)) if answers[rows] == "fits" else answers[rows]

    monkeypatch.setattr(gpu, "attempt", attempt)
    assert gpu.ours(CONFIG, (64, 48, 32, 16, 8), "data", 3)[1] == tried[-1]
    assert found == tried


@pytest.mark.parametrize(("error", "attempts"), [("RESOURCE_EXHAUSTED: x", 2), ("INTERNAL: x", 1)])
def test_an_error_of_the_device_can_be_sent_to_another_process(monkeypatch, error, attempts):
    found = []

    def attempt(*_, **__):
        found.append(1)
        raise jax.errors.JaxRuntimeError(f"{error}\nmore")

    monkeypatch.setattr(gpu, "attempt", attempt)
    with pytest.raises(RuntimeError, match=f"^{error}$") as raised:
        gpu.ours(CONFIG, (4, 2), "data", 1)
    assert type(raised.value) is RuntimeError
    assert len(found) == attempts


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        in_process(os._exit, 1)


@pytest.mark.parametrize("name", gpu.ROWS)
def test_rows_are_the_published_networks_with_adamw(name):
    config = gpu.config_of(gpu.ROWS[name], small=False)
    sizes = {"bert_large": (24, 1024), "bert_base": (12, 768), "modernbert_base": (22, 768)}
    model, data = config.model, config.data
    assert (model.num_hidden_layers, model.hidden_size) == sizes[gpu.ROWS[name].config]
    assert (model.hidden_dropout, model.attention_dropout) == (0.1, 0.0)
    assert f"T={data.max_seq_length}" in name
    assert ("packed" in name) == (data.max_sequences_per_row > 1)
    assert (config.optimizer.name, config.train.remat) == ("adamw", "none")
    assert config.train.gradient_accumulation_steps == 1


@pytest.mark.slow
def test_the_command_in_small_without_a_gpu_and_without_the_peer(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "ROWS", {name: gpu.ROWS[name] for name in [*gpu.ROWS][-2:]})
    gpu.measure(str(tmp_path), repeats=1, python="no/python", limit=600.0, pattern="")
    first, missing, *progress = capsys.readouterr().out.splitlines()
    assert first == "cpu: cpu; small networks, to try the command: no figure means anything"
    assert missing.startswith("without the peer: --peer_python=no/python cannot be run")
    for line, shape in zip(progress[-2:], ("4×64", "4×128"), strict=True):
        assert f"ours: masked, float32, plain attention  {shape} packed  " in line
        assert float(line.split()[-2].replace(",", "")) > 0.0  # real tokens/s
