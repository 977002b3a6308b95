"""Every task from a file to predictions and back, by the commands, on data that can be learned in seconds."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import ONE_DEVICE
from tests.saved import WORDS, save, wordpiece
from tests.tiny import EURO, MODERN

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch/local.py"
NAMES = ("god", "union")  # what is to be tagged, and asked for


def command(folder, verb, *words, processes=1):
    """Exit code and output of a command given in the folder, on one device in each process."""
    environment = os.environ | ONE_DEVICE
    start = ["-m", f"bert_jax.{verb}"]
    if processes > 1:
        start = [str(LAUNCHER), f"--processes={processes}", f"--module=bert_jax.{verb}"]
    result = subprocess.run(
        [sys.executable, *start, *words],
        cwd=folder, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    return result.returncode, result.stdout + result.stderr


def finetune(folder, name, *words, config="finetune/classification", base="base", processes=1):
    shape = (
        "data.max_seq_length=32", "data.global_batch_size=8", "data.max_sequences_per_row=2",
        "optimizer.learning_rate=1e-2", "task.max_question_tokens=8", "task.random_weights=true",
    )  # fmt: skip
    overrides = [f"--config.{word}" for word in (*shape, "task.hidden_dropout=0.0", *words)]
    where = f"--config={config}", f"--config.init_from={base}", f"--workdir={name}"
    return command(folder, "finetune", *where, *overrides, processes=processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base of random weights; texts that say "free" or not, sentences with names, questions for them."""
    folder = tmp_path_factory.mktemp("finetune")
    save(folder / "base", wordpiece())
    save(folder / "modern", wordpiece(), MODERN | {"classifier_pooling": "mean"})
    save(folder / "euro", wordpiece(), EURO | {"classifier_pooling": "late"})
    rng = np.random.default_rng(0)
    others = [word for word in WORDS if word not in (*NAMES, "free")]

    def text():
        return rng.choice(others, rng.integers(3, 7)).tolist()

    texts = [(rng.random() < 0.5, text()) for _ in range(160)]
    rows = [("yes\t" if free else "no\t") + " ".join(["free"] * free + words) for free, words in texts]
    (folder / "texts.tsv").write_text("label\ttext\n" + "\n".join(rows))
    tagged = [[*text(), rng.choice(NAMES), *text()] for _ in range(120)]
    (folder / "names.conll").write_text(
        "\n\n".join("\n".join(f"{w} {'B-name' if w in NAMES else 'O'}" for w in words) for words in tagged)
    )
    paragraphs = [
        {
            "context": " ".join(words),
            "qas": [{
                "id": str(number), "question": "who is it",
                "answers": [{"text": (name := next(w for w in words if w in NAMES)),
                             "answer_start": " ".join(words).index(name)}],
            }],
        }
        for number, words in enumerate(tagged)
    ]  # fmt: skip
    squad = {"version": "1.1", "data": [{"title": "names", "paragraphs": paragraphs}]}
    (folder / "names.json").write_text(json.dumps(squad))
    return folder


def scores_of(workdir):
    return json.loads((workdir / "results.json").read_text())["scores"]


@pytest.mark.slow
def test_cross_validation(folder):
    """Two folds: together their predictions are of every text once; each run can go on by itself."""
    words = (
        "data.train=texts.tsv", "data.num_folds=2", "train.num_epochs=4.0", "task.frozen=logistic_regression",
    )  # fmt: skip
    code, output = finetune(folder, "folds", *words)
    assert code == 0, output
    assert "fine-tuned, 2 runs" in output
    assert "logistic regression, frozen, 2 runs" in output
    tested = [
        json.loads(line)["text"]
        for fold in (0, 1)
        for line in (folder / f"folds/fold_{fold}/predictions_test.jsonl").read_text().splitlines()
    ]
    texts = [line.split("\t")[1] for line in (folder / "texts.tsv").read_text().splitlines()[1:]]
    assert sorted(tested) == sorted(texts)
    kept = json.loads((folder / "folds/scores.json").read_text())
    assert [len(runs) for runs in kept.values()] == [2, 2, 2]
    ours = [scores_of(folder / f"folds/fold_{fold}") for fold in (0, 1)]
    assert kept["fine-tuned"] == ours

    code, output = finetune(folder, "folds", *words, "data.fold=1", "task.frozen=")
    assert code == 0, output
    assert "resumed at step" in output
    assert list(json.loads((folder / "folds/fold_1/scores.json").read_text())) == ["fine-tuned"]


@pytest.mark.slow
def test_classification_with_seeds_and_frozen_features(folder):
    words = (
        "data.train=texts.tsv", "data.test_fraction=0.1", "train.num_epochs=10.0", "train.num_seeds=2",
        "task.frozen=logistic_regression",
    )  # fmt: skip
    code, output = finetune(folder, "classes", *words)
    assert code == 0, output
    assert "fine-tuned, 2 runs" in output
    assert "logistic regression" in output
    for seed in (0, 1):
        assert scores_of(folder / f"classes/seed_{seed}")["test"]["accuracy"] > 0.9
    assert "Confusion" in (folder / "classes/seed_0/report.html").read_text()

    (folder / "new.txt").write_text("free we are\nit was so\n")
    code, output = command(
        folder, "predict", "classify", "--checkpoint=classes/seed_1", "--input=new.txt", "--output=new.jsonl"
    )
    assert code == 0, output
    predictions = [json.loads(line) for line in (folder / "new.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in predictions] == ["yes", "no"]
    assert predictions[0]["probabilities"]["yes"] > 0.5

    for mode, message in (("tag", "was fine-tuned for classification, not for token_classification"),
                          ("fill-mask", "fine-tuned")):  # fmt: skip
        code, output = command(
            folder, "predict", mode, "--checkpoint=classes/seed_1", "--text=we [MASK] free"
        )
        assert code == 2
        assert message in output


@pytest.mark.slow
def test_several_processes_train_and_judge_as_one(folder):
    words = "data.train=texts.tsv", "data.test_fraction=0.1", "train.num_epochs=2.0"
    for processes in (1, 2):
        code, output = finetune(folder, f"on_{processes}", *words, processes=processes)
        assert code == 0, output
        assert len((folder / f"on_{processes}/starts.jsonl").read_text().splitlines()) == 1, output
    assert "2 × cpu in 2 processes" in output
    rows = [
        [json.loads(line) for line in (folder / f"on_{n}/predictions_test.jsonl").read_text().splitlines()]
        for n in (1, 2)
    ]
    assert len(rows[0]) > 5
    for one, two in zip(*rows, strict=True):
        assert one["text"] == two["text"]
        assert one["probabilities"] == pytest.approx(two["probabilities"], abs=1e-4)


def test_token_classification(folder):
    words = ("data.train=names.conll", "train.num_epochs=12.0", "task.patience=6")
    code, output = finetune(folder, "tags", *words, config="finetune/token_classification")
    assert code == 0, output
    assert scores_of(folder / "tags")["eval"]["f1"] > 0.9
    code, output = command(folder, "predict", "tag", "--checkpoint=tags", "--text=we trust god")
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["prediction"] == ["O", "O", "B-name"]


@pytest.mark.slow
def test_question_answering(folder):
    words = ("data.train=names.json", "train.num_epochs=15.0")
    code, output = finetune(folder, "answers", *words, config="finetune/squad")
    assert code == 0, output
    assert scores_of(folder / "answers")["eval"]["exact_match"] > 0.9
    code, output = command(
        folder, "predict", "answer", "--checkpoint=answers", "--text=who is it", "--next=It was, in God; so."
    )
    assert code == 0, output
    answer = json.loads(output.splitlines()[-1])
    assert answer["prediction"] == "God"


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("modern", "ModernBert"),
        pytest.param("euro", "EuroBert", marks=[pytest.mark.slow, pytest.mark.variant]),
    ],
)
def test_classification_of_pairs_without_pooler_and_segments(folder, base, name):
    rows = [line.split("\t") for line in (folder / "texts.tsv").read_text().splitlines()]
    pairs = [(*row, "pair" if number == 0 else "so it was") for number, row in enumerate(rows)]
    (folder / "pairs.tsv").write_text("\n".join("\t".join(row) for row in pairs))
    words = ("data.train=pairs.tsv", "data.text_pair=pair", "train.num_epochs=10.0")
    code, output = finetune(folder, f"of_{base}", *words, base=base)
    assert code == 0, output
    assert f"exports as {name}ForSequenceClassification" in output
    assert scores_of(folder / f"of_{base}")["eval"]["accuracy"] > 0.9
    text = "--text=free we are", "--next=so it was"
    code, output = command(folder, "predict", "classify", f"--checkpoint=of_{base}", *text)
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["prediction"] == "yes"


@pytest.mark.slow
@pytest.mark.parametrize("base", ["modern", pytest.param("euro", marks=pytest.mark.variant)])
def test_tags_and_answers_without_pooler_and_segments(folder, base):
    words = ("data.train=names.conll", "train.num_epochs=12.0")
    code, output = finetune(
        folder, f"tags_of_{base}", *words, config="finetune/token_classification", base=base
    )
    assert code == 0, output
    assert scores_of(folder / f"tags_of_{base}")["eval"]["f1"] > 0.9
    code, output = command(folder, "predict", "tag", f"--checkpoint=tags_of_{base}", "--text=we trust god")
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["prediction"] == ["O", "O", "B-name"]

    words = ("data.train=names.json", "train.num_epochs=15.0")
    code, output = finetune(folder, f"answers_of_{base}", *words, config="finetune/squad", base=base)
    assert code == 0, output
    assert ("cannot be imported or exported" in output) == (base == "euro")
    assert scores_of(folder / f"answers_of_{base}")["eval"]["exact_match"] > 0.9
    text = "--text=who is it", "--next=It was, in God; so."
    code, output = command(folder, "predict", "answer", f"--checkpoint=answers_of_{base}", *text)
    assert code == 0, output
    assert json.loads(output.splitlines()[-1])["prediction"] == "God"


def test_regression_of_pairs(folder):
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(160):
        free = int(rng.integers(0, 4))
        rows.append(f"{' '.join(['free'] * free + ['people'])}\t{' '.join(rng.choice(WORDS[:6], 3))}\t{free}")
    (folder / "pairs.csv").write_text("a,b,n\n" + "\n".join(row.replace("\t", ",") for row in rows))
    words = (
        "data.train=pairs.csv",
        "data.text=a",
        "data.text_pair=b",
        "data.label=n",
        "train.num_epochs=6.0",
    )
    code, output = finetune(folder, "numbers", *words, config="finetune/regression")
    assert code == 0, output
    assert scores_of(folder / "numbers")["eval"]["spearman"] > 0.8
    code, output = command(folder, "predict", "classify", "--checkpoint=numbers", "--text=free people")
    assert code == 2
    assert "fine-tuned on pairs: give the second text too" in output


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again_and_another_config_is_refused(folder):
    words = ("data.train=texts.tsv", "train.num_epochs=1.0")
    code, output = finetune(folder, "again", *words)
    assert code == 0, output
    first = json.loads((folder / "again/metrics.jsonl").read_text().splitlines()[-1])
    code, output = finetune(folder, "again", *words)
    assert code == 0, output
    assert "resumed at step" in output
    assert json.loads((folder / "again/metrics.jsonl").read_text().splitlines()[-1]) == first
    code, output = finetune(folder, "again", *words, "train.seed=5")
    assert code == 2
    assert "holds another run: train.seed is 0 there and 5 here" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.train=nowhere.tsv"], "error: data.train=nowhere.tsv cannot be read"),
        (
            ["data.train=texts.tsv", "task.metric=bleu"],
            "error: task.metric='bleu' is unknown",
        ),
        (["data.train=names.json"], "error: data.train=names.json: this task reads .tsv, .csv, .jsonl"),
        (["data.train=texts.tsv", "data.max_seq_length=64"], "is longer than the 32 positions of base"),
        (
            ["data.train=texts.tsv", "optimizer.schedule=trapezoid", "optimizer.decay_steps=999"],
            "error: optimizer.decay_steps=999 is more than the ",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_leaves_nothing(folder, words, message):
    code, output = finetune(folder, "mistake", *words)
    assert code == 2
    assert message in output
    assert not (folder / "mistake").exists()
