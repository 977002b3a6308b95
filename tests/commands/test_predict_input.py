"""What `predict` reads: a result for every line, in its place, from files, pipes and the command line."""

import gzip
import io
import json
import os
import sys
import threading

import numpy as np
import pytest

import bert_jax
from bert_jax.errors import UserError
from tests.saved import save, save_finetuned, wordpiece

FACTS = {  # of a fine-tuned checkpoint, by its task
    "classification": {"pairs": False, "labels": ["bad", "good"]},
    "regression": {"pairs": True, "mean": 0.0, "deviation": 1.0},
    "question_answering": {"version_2": True},
    "token_classification": {"labels": ["O", "B-PER", "I-PER"]},
}
MODES = {  # by the checkpoint: the mode, two lines of input, and the row of a blank line
    "pretrained": ("fill-mask", "so [MASK]", "[MASK] was", None),
    "pairs": ("next-sentence", "so it was\twe are", "the people\tthe state", None),
    "classification": ("classify", "so it was", "we are free", {"text": ""}),
    "regression": ("classify", "so\twe are", "a\tstate", {"text": "", "text_pair": ""}),
    "question_answering": ("answer", "who was\tit was god", "what is\tthe union", {"question": ""}),
    "token_classification": ("tag", "so it was", "we are", {"tokens": []}),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    save(folder / "pretrained", wordpiece())
    models = {"pretrained": bert_jax.load(folder / "pretrained")}
    for task, facts in FACTS.items():
        save_finetuned(folder / task, wordpiece(), task, facts)
        models[task] = bert_jax.load_finetuned(folder / task)
    return models | {"pairs": models["pretrained"]}


@pytest.fixture
def run(monkeypatch, predict, loaded):
    """Runs the mode of a checkpoint, which is loaded already: (exit code, stdout, stderr)."""
    monkeypatch.setattr("bert_jax.predict.load", loaded.__getitem__)
    monkeypatch.setattr("bert_jax.predict.load_finetuned", lambda name, _: loaded[name])
    return lambda name, *words: predict(MODES[name][0], f"--checkpoint={name}", *words)


def blank_row(name, row):
    """The output for a blank line, with the keys of the row of another line."""
    if MODES[name][-1] is None:
        return "\n"
    return json.dumps(dict.fromkeys(json.loads(row)) | MODES[name][-1]) + "\n"


@pytest.mark.parametrize("name", MODES)
def test_a_result_for_every_line_in_its_place(run, tmp_path, name):
    _, first, second, _ = MODES[name]
    path = tmp_path / "lines.txt"
    results = []
    for line in (first, second):
        path.write_text(line)
        code, out, err = run(name, "--input=lines.txt")
        assert (code, err) == (0, "")
        results.append(out)
    blank = blank_row(name, results[0])
    path.write_bytes(f"\r\n{first}\r\n \t\r\n{second}\n\n".encode())
    code, out, err = run(name, "--input=lines.txt")
    assert (code, err) == (0, "3 of 5 lines of --input are blank; their results are empty\n")
    assert out == blank + results[0] + blank + results[1] + blank


@pytest.mark.parametrize("name", MODES)
def test_every_mode_reads_standard_input_pipes_and_compressed_lines(monkeypatch, run, tmp_path, name):
    _, first, second, _ = MODES[name]
    content = f"{first}\n\n{second}\n".encode()
    (tmp_path / "lines.txt").write_bytes(content)
    code, expected, _ = run(name, "--input=lines.txt")
    assert code == 0
    (tmp_path / "LINES.TXT.GZ").write_bytes(gzip.compress(content))
    (tmp_path / "LINES.TXT").write_bytes(content)
    for source in ("LINES.TXT", "LINES.TXT.GZ"):
        assert run(name, f"--input={source}")[:2] == (0, expected)
    for source in ("-", "/dev/stdin"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert run(name, f"--input={source}")[:2] == (0, expected)
    os.mkfifo(tmp_path / "pipe")
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True).start()
    assert run(name, "--input=pipe")[:2] == (0, expected)


@pytest.mark.parametrize("name", MODES)
def test_text_of_the_command_line_that_is_not_utf8(run, name):
    """Python shows a byte that is not UTF-8 as half of a surrogate pair."""
    text, _, second = MODES[name][1].partition("\t")
    message = r"is not valid Unicode (surrogates not allowed); give UTF-8."
    tries = [(f"--text=caf\udce9 {text}", *([f"--next={second}"] if second else []))]
    if second:
        tries.append((f"--text={text}", "--next=caf\udce9"))
    for words in tries:
        code, out, err = run(name, *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: text 'caf\\udce9")
        assert err.endswith(f"{message}\n")
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", FACTS)
def test_text_from_python_that_is_not_unicode(loaded, name):
    task = loaded[name].task
    second = None if name in ("classification", "token_classification") else "\udce9"
    with pytest.raises(UserError, match=r"text '.*udce9' is not valid Unicode"):
        loaded[name].predict([task.example("so \udce9", second)])


def test_tag_reads_columns_whatever_their_suffix(run, tmp_path):
    """60 sentences of words and tags in a file of any suffix, not 240 lines of text."""
    content = "anna\tNN\tB-PER\nwas\tVB\tO\n\n" * 60
    outputs = []
    for name in ("words.conll", "words.txt", "WORDS.TXT"):
        (tmp_path / name).write_text(content)
        code, out, err = run("token_classification", f"--input={name}")
        kind = "; texts, one a line, have the suffix .txt" if name == "words.conll" else " and tags"
        assert (code, err) == (0, f"--input={name}: read as columns of words{kind}\n")
        outputs.append(out)
    assert outputs[0] == outputs[1] == outputs[2]
    rows = [json.loads(line) for line in outputs[0].splitlines()]
    assert len(rows) == 60
    assert {tuple(row["tokens"]) for row in rows} == {("anna", "was")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("token_classification", "anna\nwas\n\nwe\n", "--input=lines.txt has one word a line and blank "),
        (
            "token_classification",
            "so\tit\n",
            "lines.txt, line 1: this checkpoint was fine-tuned on single sen",
        ),
        (
            "classification",
            "so\n\nso\tit\n",
            "lines.txt, line 3: this checkpoint was fine-tuned on single texts",
        ),
        (
            "regression",
            "so\tit\n\n\nso\n",
            "lines.txt, line 4: this checkpoint was fine-tuned on pairs: give",
        ),
        (
            "question_answering",
            "so\tit\nso\n",
            "lines.txt, line 2: this checkpoint answers questions: give the",
        ),
        ("pairs", "\nso\tit\nso it\n", "--input=lines.txt: no tab between two sentences in 'so it'."),
        ("pretrained", "so [MASK]\n\nso\n", "text 'so' has no [MASK]"),
        ("classification", "\n \n\n", "--input=lines.txt has white space only; write one text a line."),
    ],
)
def test_lines_that_do_not_fit_are_named(run, tmp_path, name, content, message):
    (tmp_path / "lines.txt").write_text(content)
    code, out, err = run(name, "--input=lines.txt")
    assert (code, out) == (2, "")
    assert message in err
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("name", "known"),
    [("classification", ".tsv, .csv, .jsonl"), ("question_answering", "SQuAD's .json, .jsonl")],
)
def test_an_unknown_suffix_names_all_that_work(run, tmp_path, name, known):
    (tmp_path / "lines.text").write_text("so\n")
    code, _, err = run(name, "--input=lines.text")
    assert code == 2
    known += " (also .gz, .xz, .zst, .bz2) and tfds:NAME"
    assert f"{known}; predict also reads .txt, one text a line" in err


def test_predictions_of_lines_in_a_file(run, tmp_path):
    (tmp_path / "lines.txt").write_text("so it was\n\nwe are\n")
    code, out, err = run("classification", "--input=lines.txt", "--output=rows.jsonl")
    assert (code, out) == (0, "rows.jsonl: 3 predictions\n")
    assert err == "1 of 3 lines of --input are blank; their results are empty\n"
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["so it was", "", "we are"]
    assert rows[1] == {"text": "", "prediction": None, "probabilities": None}


def test_features_of_every_line(monkeypatch, predict, loaded, tmp_path):
    monkeypatch.setattr("bert_jax.predict.load", loaded.__getitem__)
    (tmp_path / "cr.txt").write_bytes(b"so\rit\n\nwas\r\n")
    code, out, err = predict("features", "--checkpoint=pretrained", "--input=cr.txt", "--output=cr.npy")
    assert (code, out, err) == (0, "cr.npy: 3 × 16 float32, pooling mean\n", "")
    np.testing.assert_array_equal(np.load("cr.npy"), loaded["pretrained"].features(["so\rit", "", "was"]))
