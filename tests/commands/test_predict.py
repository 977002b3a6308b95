import dataclasses
import os
import pathlib

import numpy as np
import pytest

import bert_jax
from tests.saved import save, wordpiece

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    save(folder, wordpiece())
    return folder


@pytest.fixture(scope="module")
def bert(run_folder):
    return bert_jax.load(run_folder)


@pytest.fixture
def loaded_once(monkeypatch, bert):
    """Lets the command use the checkpoint that is loaded already, and counts the calls of its methods."""
    calls = []

    class Counting:
        def __getattr__(self, name):
            if callable(found := getattr(bert, name)):
                calls.append(name)
            return found

    monkeypatch.setattr("bert_jax.predict.load", lambda _: Counting())
    return calls


def test_fill_mask_of_a_checkpoint(predict, run_folder, bert):
    text = "The [MASK] of the [MASK]."
    code, out, err = predict("fill-mask", f"--checkpoint={run_folder}", f"--text={text}", "--top-k=2")
    ((first, second),) = bert.fill_mask([text], 2)
    shown = ["  ".join(f"{token} {probability:.1%}" for token, probability in g) for g in (first, second)]
    assert (code, err) == (0, "")
    assert out == f"{text}\n  mask 1: {shown[0]}\n  mask 2: {shown[1]}\n"


def test_lines_of_a_file_are_one_call(predict, loaded_once, bert, tmp_path):
    texts = [f"so {'it was ' * n}[MASK]" for n in range(12)]
    (tmp_path / "texts").write_bytes(("\ufeff" + "\r\n".join(texts) + "\n\n").encode())
    code, out, _ = predict("fill-mask", "--checkpoint=x", "--input=texts", "--top_k=1")
    best = [guesses[0] for (guesses,) in bert.fill_mask(texts, 1)]
    expected = [f"{t}\n  mask 1: {g.token} {g.probability:.1%}\n" for t, g in zip(texts, best, strict=True)]
    expected.append("\n")  # of the blank line at the end
    assert (code, out, loaded_once) == (0, "".join(expected), ["fill_mask"])


def test_next_sentence(predict, loaded_once, bert, tmp_path):
    pairs = [("so it was", "we are free"), ("a state", "it is a union")]
    expected = [
        f"follows: {p:.1%}  {first} | {second}\n"
        for p, (first, second) in zip(bert.next_sentence(pairs), pairs, strict=True)
    ]
    one = predict("next-sentence", "--checkpoint=x", "--text=so it was", "--next=we are free")
    assert one == (0, expected[0], "")
    (tmp_path / "pairs").write_text("".join(f"{first}\t{second}\n" for first, second in pairs))
    assert predict("next-sentence", "--checkpoint=x", "--input=pairs") == (0, "".join(expected), "")
    assert loaded_once == ["next_sentence"] * 2


def test_order_of_sentences(predict, loaded_once, bert, monkeypatch):
    data = dataclasses.replace(bert.config.data, second_objective="sentence_order")
    monkeypatch.setattr(bert, "config", dataclasses.replace(bert.config, data=data))
    pair = ("so it was", "we are free")
    (probability,) = bert.next_sentence([pair])
    words = "next-sentence", "--checkpoint=x", "--text=so it was", "--next=we are free"
    assert predict(*words) == (0, f"in order: {probability:.1%}  {pair[0]} | {pair[1]}\n", "")
    assert loaded_once == ["next_sentence"]


def test_features_row_n_is_line_n(predict, loaded_once, bert, tmp_path):
    (tmp_path / "texts").write_text("so it was\n\nwe are free\n")
    (tmp_path / "features.npy").write_text("of an earlier call")
    words = "features", "--checkpoint=x", "--input=texts", "--output=features.npy"
    code, out, err = predict(*words)
    assert (code, out, err) == (0, "features.npy: 3 × 16 float32, pooling mean\n", "")
    np.testing.assert_array_equal(np.load("features.npy"), bert.features(["so it was", "", "we are free"]))
    assert predict(*words, "--pooling=cls", "--layer=1")[0] == 0
    expected = bert.features(["so it was", "", "we are free"], "cls", 1)
    np.testing.assert_array_equal(np.load("features.npy"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npy", "texts"]
    assert loaded_once == ["features"] * 2


def test_output_that_cannot_be_written_leaves_nothing(predict, loaded_once, tmp_path):
    (tmp_path / "folder.npy").mkdir()
    code, _, err = predict("features", "--checkpoint=x", "--text=so", "--output=folder.npy")
    assert (code, err) == (2, "error: --output=folder.npy cannot be written: Is a directory; give another.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.npy"]
    assert loaded_once == ["features"]


def test_newest_pretrained_checkpoint_is_the_default(predict, loaded_once, tmp_path):
    names = ["finetune/c/checkpoints/5", "b/checkpoints/20", "a/checkpoints/7", "a/checkpoints/100"]
    for age, name in enumerate(names):
        folder = tmp_path / "runs" / name
        (folder / "meta").mkdir(parents=True)
        (folder / "meta" / "metadata").write_text(
            '{"config": {"task": {}}}' if age == 0 else '{"config": {}}'
        )
        (folder / "checksums.json").touch()
        os.utime(folder / "checksums.json", (1e9 - age, 1e9 - age))
    (tmp_path / "runs/a/checkpoints/200").mkdir()  # a save that was not finished
    code, out, err = predict("fill-mask", "--text=[MASK]")
    assert (code, loaded_once) == (0, ["fill_mask"])
    assert err == "checkpoint: runs/b/checkpoints/20\n"
    assert out.splitlines()[0] == "[MASK]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the first argument must be one of fill-mask, next-sentence, features, classify, answer, tag."),
        ("fil-mask", "tag, not 'fil-mask'."),
        ("fill-mask", "give either --text or --input"),
        ("classify --text=a --input=a.tsv", "give either --text or --input"),
        ("fill-mask --text=a --input=latin1", "give either --text or --input"),
        ("fill-mask --text=[MASK]", "--checkpoint is missing and runs/ holds no pretrained run"),
        ("fill-mask --text=[MASK] --top_k=0", "--top_k=0"),
        ("fill-mask --text=[MASK] --checkpoint=nowhere", "there is no checkpoint"),
        ("fill-mask --input=nowhere", "--input=nowhere cannot be read: [Errno 2] No such file"),
        (
            "fill-mask --input=latin1",
            "--input=latin1 is not a UTF-8 text file ('utf-8' codec can't decode byte 0xfc",
        ),
        ("fill-mask --input=.", "--input=. cannot be read: [Errno 21] Is a directory"),
        (
            "fill-mask --input=archive",
            "--input=archive is no text file but a zip archive, as .docx",
        ),
        ("fill-mask --input=blank", "--input=blank has white space only; write one text a line."),
        ("next-sentence --text=a", "--next is missing: the sentence that may follow --text."),
        ("next-sentence --input=tabs", "--input=tabs: no tab between two sentences in 'one only'."),
        ("features --text=a", "--output is missing: the .npy or .parquet file to write"),
        ("features --text=a --output=no/where.npy", "--output=no/where.npy: there is no folder no; create"),
        ("features --text=a --output=a.txt", "--output=a.txt"),
        ("tag --text=a", "--checkpoint is missing and runs/ holds no fine-tuned run"),
        ("tag --text=a --output=no/where.jsonl", "--output=no/where.jsonl: there is no folder no; create"),
        ("features --text=a --output=a --pooling=max", "--pooling=max is not valid"),
        ("features --text=a --output=a --checkpont=x", "Did you mean: checkpoint"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_code_2(predict, tmp_path, arguments, message):
    (tmp_path / "latin1").write_bytes("so für".encode("latin1"))
    (tmp_path / "blank").write_text("\n \n")
    (tmp_path / "archive").write_bytes(b"PK\3\4\0\0")
    (tmp_path / "tabs").write_text("one\ttwo\none only\n")
    code, out, err = predict(*arguments.split())
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_text_without_a_mask_names_the_text(predict, loaded_once):
    code, _, err = predict("fill-mask", "--checkpoint=x", "--text=so it was")
    assert (code, loaded_once) == (2, ["fill_mask"])
    assert err == "error: text 'so it was' has no [MASK]: put it where a word is to be guessed.\n"
