import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model.encoder import Compute
from bert_jax.tasks.classification import Classification, Example, Regression
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.packed import Rows
from tests.saved import WORDS, wordpiece
from tests.tiny import MODEL

PAIRS = TaskData(text_pair="text_pair")


def examples(*labels, text="so it is", pair=None):
    return [Example(text, pair, label, f"line {number}") for number, label in enumerate(labels, 1)]


def guesses(*values):
    return [{"prediction": value} for value in values]


def classes(*labels, pairs=False):
    return Classification(TaskConfig(), TaskData(), {"pairs": pairs, "labels": list(labels)})


def regression(mean=2.0, deviation=0.5):
    return Regression(TaskConfig(), TaskData(), {"pairs": False, "mean": mean, "deviation": deviation})


def read(tmp_path, content, kind=Classification, data=TaskData(), **kwargs):  # noqa: B008
    (tmp_path / "a.tsv").write_text(content)
    return kind(TaskConfig(), data).read(str(tmp_path / "a.tsv"), "data.train", **kwargs)


def test_single_texts_and_pairs(tmp_path):
    content = "text\ttext_pair\tlabel\nOne\tTwo\tyes\n"
    place = f"{tmp_path}/a.tsv, line 2"
    (single,), (pair,) = read(tmp_path, content), read(tmp_path, content, data=PAIRS)
    assert single == ("One", None, "yes", place)
    assert pair == ("One", "Two", "yes", place)
    assert single.split_key == "One"
    assert pair.split_key == "One\tTwo"
    assert read(tmp_path, "text\nOne\n", labelled=False) == [("One", None, None, place)]


def test_columns_by_number(tmp_path):
    data = TaskData(text="3", label="1", header=False)  # as CoLA has them
    assert read(tmp_path, "gj04\t1\t\tOne\n", data=data) == [("One", None, "1", f"{tmp_path}/a.tsv, line 1")]


def test_a_checkpoint_remembers_whether_it_is_of_pairs(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\ttext_pair\nOne\tTwo\n")
    for pairs, second in ((False, None), (True, "Two")):
        task = Classification(TaskConfig(), PAIRS, {"pairs": pairs, "labels": ["a", "b"]})
        assert task.read(str(path), "--data", labelled=False) == [("One", second, None, f"{path}, line 2")]
    with pytest.raises(UserError, match=r"data.text_pair='': .*line 2 has no such column"):
        classes("a", "b", pairs=True).read(str(path), "--data", labelled=False)


def test_an_example_of_plain_text():
    assert classes().example("One") == regression().example("One") == ("One", None, None, "")
    assert classes(pairs=True).example("One", "Two") == ("One", "Two", None, "")
    with pytest.raises(UserError, match="fine-tuned on single texts, not pairs"):
        classes().example("One", "Two")
    with pytest.raises(UserError, match="fine-tuned on pairs: give the second text too"):
        classes(pairs=True).example("One")


@pytest.mark.parametrize(
    ("kind", "data", "content", "message"),
    [
        (
            Classification,
            {},
            "sentence\tlabel\na\t1\n",
            "data.text='text': .*line 2 has no such column; it has",
        ),
        (
            Classification,
            {},
            "text\tclass\na\t1\n",
            "data.label='label': .*line 2 has no such column",
        ),
        (Classification, {}, "text\tlabel\na\t1\nb\t\n", "line 3 has no label in column data.label='label'"),
        (Classification, {"text_pair": "b"}, "text\tlabel\na\t1\n", "data.text_pair='b': .*no such column"),
        (Classification, {}, "text\tlabel\na\n", "line 2 has 1 columns and the first has 2"),
        (Classification, {}, "", "data.train=.*a.tsv is empty"),
        (
            Regression,
            {},
            "text\tlabel\na\thigh\n",
            "line 2 has 'high' in column data.label='label', which is",
        ),
        (Regression, {}, "text\tlabel\na\tnan\n", "line 2 has 'nan' .*which is not a number"),
        (Regression, {}, "text\tlabel\na\tinf\n", "line 2 has 'inf' .*which is not a number"),
        (
            Regression,
            {"label": "score"},
            "text\tlabel\na\t1\n",
            "data.label='score': .*no such column",
        ),
    ],
)
def test_errors_of_files(tmp_path, kind, data, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content, kind, TaskData(**data))


def test_classes_are_those_of_the_examples_sorted():
    learner = Classification(TaskConfig(), PAIRS)
    learner.fit(examples("no", "yes", "maybe", "no"))
    assert learner.label_info == {"pairs": True, "labels": ["maybe", "no", "yes"]}


def test_the_config_may_name_the_classes():
    learner = Classification(TaskConfig(), TaskData(labels="yes, no,maybe"))
    learner.fit(examples("no", "no"))
    assert learner.label_info == {"pairs": False, "labels": ["yes", "no", "maybe"]}


@pytest.mark.parametrize(
    ("labels", "found", "message"),
    [
        ("", ["no", "no"], "data.label='label': every example has the label 'no'; nothing can be learned"),
        ("no", ["no", "yes"], "data.labels='no' names one class; name all of them, separated by commas, or"),
        ("a,b", ["b", "c"], "line 2: the label 'c' is unknown; the classes are a, b. Correct the file, or"),
    ],
)
def test_errors_of_classes(labels, found, message):
    with pytest.raises(UserError, match=message):
        Classification(TaskConfig(), TaskData(labels=labels)).fit(examples(*found))


def test_an_unknown_class_of_a_test_file():
    with pytest.raises(UserError, match="line 2: the label 'c' is unknown; the classes are a, b"):
        Classification(TaskConfig(), TaskData()).fit(examples("a", "b"), examples("a", "c"))


def words(encoded):
    """The sequences as text, A and B apart."""
    pieces = iter([wordpiece().piece(token) for token in encoded.tokens])
    return [
        tuple(" ".join(next(pieces) for _ in range(length)) for length in pair)
        for pair in zip(encoded.length_a, encoded.length_b, strict=True)
    ]


def test_long_texts_are_cut_as_google_cuts_them():
    # Eight tokens leave room for five of a pair, six of a single text.
    pairs = [
        ("we trust", "so it was"),
        ("the state of union is strong", "and free people"),
        ("we are", "the state of union is strong"),
        ("so it was", "we are free"),
        ("the state of union is strong and free", ""),
        ("", "the state of union is strong"),
    ]
    encoded = classes("a", "b").encode([Example(text, pair, "b", "") for text, pair in pairs], wordpiece(), 8)
    assert words(encoded) == [
        ("we trust", "so it was"),
        ("the state of", "and free"),
        ("we are", "the state of"),
        ("so it was", "we are"),
        ("the state of union is strong", ""),
        ("", "the state of union is"),
    ]
    assert encoded.num_cut == 5
    assert encoded.lengths.tolist() == [8, 8, 8, 8, 8, 8]
    assert encoded.example.tolist() == list(range(6))


def truncate_seq_pair(tokens_a, tokens_b, max_length):
    """Google's _truncate_seq_pair (google-research/bert, run_classifier.py)."""
    while True:
        total_length = len(tokens_a) + len(tokens_b)
        if total_length <= max_length:
            break
        if len(tokens_a) > len(tokens_b):
            tokens_a.pop()
        else:
            tokens_b.pop()


def test_cutting_is_google_s_for_all_lengths():
    lengths = [(a, b) for a in range(12) for b in range(1, 12)]
    some = [Example(" ".join(WORDS[:a]), " ".join(WORDS[:b]), "a", "") for a, b in lengths]
    encoded = classes("a", "b").encode(some, wordpiece(), 12)
    for (a, b), length_a, length_b in zip(lengths, encoded.length_a, encoded.length_b, strict=True):
        tokens_a, tokens_b = list(range(a)), list(range(b))
        truncate_seq_pair(tokens_a, tokens_b, 12 - 3)
        assert (length_a, length_b) == (len(tokens_a), len(tokens_b))
    assert encoded.num_cut == sum(a + b > 9 for a, b in lengths)


def test_targets():
    encoded = classes("b", "a").encode(examples("a", "b", None), wordpiece(), 8)
    assert encoded.sequence_targets["labels"].tolist() == [1, 0, 0]
    assert encoded.sequence_targets["labels"].dtype == np.int32
    encoded = regression().encode(examples(2.5, 1.0, 2.0), wordpiece(), 8)
    assert encoded.sequence_targets["labels"].tolist() == [1.0, -2.0, 0.0]
    assert encoded.sequence_targets["labels"].dtype == np.float32


def test_predictions_of_classes():
    outputs = {"probabilities": [np.float32([0.2, 0.7, 0.1]), np.float32([0.5, 0.25, 0.25])]}
    assert classes("x", "y", "z").decode(outputs, None, examples("x", "y")) == [
        {"prediction": "y", "probabilities": {"x": 0.2, "y": 0.7, "z": 0.1}},
        {"prediction": "x", "probabilities": {"x": 0.5, "y": 0.25, "z": 0.25}},
    ]


def test_rows_of_the_prediction_file():
    single, pair = Example("One", None, None, ""), Example("One", "Two", "yes", "")
    assert classes().row(single, {"prediction": "no"}) == {"text": "One", "prediction": "no"}
    assert classes().row(pair, {"prediction": "no"}) == {
        "text": "One",
        "text_pair": "Two",
        "label": "yes",
        "prediction": "no",
    }


@pytest.mark.filterwarnings("error")
def test_scores_of_two_classes():
    score = classes("bad", "good").score(
        guesses("good", "good", "bad", "bad", "good"), examples("good", "good", "good", "bad", "bad")
    )
    # Of good 2 found, 1 missed, 1 wrong; of bad 1, 1 and 1.
    expected = {"accuracy": 3 / 5, "f1": 2 / 3, "macro_f1": (2 / 3 + 1 / 2) / 2, "matthews": 1 / 6}
    assert score == pytest.approx(expected)
    assert tuple(score) == Classification.metrics


@pytest.mark.filterwarnings("error")
def test_scores_of_three_classes():
    score = classes("a", "b", "c").score(guesses("a", "b", "b", "b"), examples("a", "a", "b", "c"))
    macro = (2 / 3 + 1 / 2 + 0) / 3
    expected = {"accuracy": 2 / 4, "f1": macro, "macro_f1": macro, "matthews": 3 / 60**0.5}
    assert score == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("label", "f1"), [("a", 0.0), ("b", 1.0)])
def test_scores_where_all_is_of_one_class(label, f1):
    score = classes("a", "b").score(guesses(label, label), examples(label, label))
    assert score == {"accuracy": 1.0, "f1": f1, "macro_f1": 0.5, "matthews": 0.0}


@pytest.mark.filterwarnings("error")
def test_scores_of_a_model_that_always_says_the_same():
    for labels in ("ab", "abc"):
        score = classes(*labels).score(guesses("a", "a", "a", "a"), examples("a", "b", "a", "b"))
        assert score["accuracy"] == 0.5
        assert score["macro_f1"] == pytest.approx(2 / 3 / len(labels))
        assert score["f1"] == (0.0 if labels == "ab" else score["macro_f1"])
        assert score["matthews"] == 0.0


@pytest.mark.filterwarnings("error")
def test_tables_of_classes():
    by_label, confusion = classes("a", "b", "c").tables(
        guesses("a", "b", "b", "b"), examples("a", "a", "b", "c")
    )
    assert by_label == {
        "title": "By label",
        "columns": ["label", "precision", "recall", "F1", "examples"],
        "rows": [
            ["a", "100.0%", "50.0%", "66.7%", 2],
            ["b", "33.3%", "100.0%", "50.0%", 1],
            ["c", "0.0%", "0.0%", "0.0%", 1],
        ],
    }
    assert confusion == {
        "title": "Confusion: truth by row, prediction by column",
        "columns": ["", "a", "b", "c"],
        "rows": [["a", 1, 1, 0], ["b", 0, 1, 0], ["c", 0, 1, 0]],
        "shaded": True,
    }


def test_numbers_are_learned_standardised_and_predicted_in_their_units():
    learner = Regression(TaskConfig(), TaskData())
    some = examples(1.0, 2.0, 4.0, 5.0)
    learner.fit(some, examples(1e9))
    assert learner.label_info == {"pairs": False, "mean": 3.0, "deviation": pytest.approx(2.5**0.5)}
    targets = learner.encode(some, wordpiece(), 8).sequence_targets["labels"]
    np.testing.assert_allclose(targets, np.array([-2, -1, 1, 2]) / 2.5**0.5, rtol=1e-6)
    predictions = learner.decode({"values": list(targets)}, None, some)
    assert [p["prediction"] for p in predictions] == pytest.approx([1.0, 2.0, 4.0, 5.0], abs=2e-6)


def test_numbers_that_are_all_the_same():
    with pytest.raises(UserError, match="every example has the number 3; nothing can be learned from"):
        Regression(TaskConfig(), TaskData()).fit(examples(3.0, 3.0))


@pytest.mark.filterwarnings("error")
def test_scores_of_numbers():
    truth = examples(1.0, 2.0, 3.0, 4.0)
    expected = {"spearman": 1.0, "pearson": 25 / 645**0.5}
    assert regression().score(guesses(1.0, 4.0, 9.0, 16.0), truth) == pytest.approx(expected)
    expected = {"spearman": -0.8, "pearson": -0.8}
    assert regression().score(guesses(-1.0, -2.0, -4.0, -3.0), truth) == pytest.approx(expected)
    nothing = {"spearman": 0.0, "pearson": 0.0}
    assert regression().score(guesses(2.0, 2.0, 2.0, 2.0), truth) == nothing
    assert regression().score(guesses(1.0, 2.0), examples(3.0, 3.0)) == nothing


def test_table_of_errors():
    (table,) = regression().tables(guesses(1.0, 2.5, 1.0), examples(1.0, 2.0, 4.0))
    assert table["rows"] == [["mean absolute error", "1.167"], ["largest", "3"]]


@pytest.mark.parametrize("task", [classes("a", "b", "c"), regression()])
def test_packed_sequences_are_learned_as_if_each_had_a_row_of_its_own(task):
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], 12) if isinstance(task, Classification) else rng.normal(2, 1, 12)
    some = [
        Example(" ".join(rng.choice(WORDS, rng.integers(1, 6))), rng.choice(["", "so it was"]), label, "")
        for label in labels
    ]
    encoded = task.encode(some, wordpiece(), 24)
    config = dataclasses.replace(MODEL, vocab_size=wordpiece().vocab_size)
    objective = task.objective()
    model = objective.build(config, nnx.Rngs(0), Compute())
    ((name, weights),) = objective.losses.items()

    @jax.jit
    def compiled(batch):
        return *objective.evaluate(model, batch), objective.terms(model, batch, None)[name]

    found = []
    for slots in (1, 3):
        rows = Rows(encoded, wordpiece(), 24, slots)
        batch = rows.batch(np.arange(12), 0, 0)
        terms, outputs, training_term = compiled(batch)
        assert batch[weights].sum() == 12.0
        assert tuple(terms[name]) == tuple(training_term)  # there is no dropout
        found.append((terms[name], rows.by_sequence([jax.device_get(outputs)], 12, False)))
    assert rows.num_rows < 12
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    for key, values in found[0][1].items():
        np.testing.assert_allclose(found[1][1][key], values, rtol=1e-5, atol=1e-6)
    by_hand = {
        "class_loss": lambda p, label: -np.log(p["abc".find(label)]) if isinstance(label, str) else 0.0,
        "squared_error": lambda value, label: (value - (label - 2.0) / 0.5) ** 2,
    }[name]
    (outputs,) = found[0][1].values()
    expected = sum(by_hand(output, label) for output, label in zip(outputs, labels, strict=True))
    np.testing.assert_allclose(found[0][0], (expected, 12.0), rtol=1e-5)
