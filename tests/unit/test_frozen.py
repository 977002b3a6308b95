import dataclasses
import logging
import types
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bert_jax
from bert_jax import predict
from bert_jax.errors import UserError
from bert_jax.inference.pretrained import batch_of, load
from bert_jax.tasks import frozen
from bert_jax.tasks.classification import Classification, Example
from bert_jax.tasks.config import FinetuneConfig, TaskConfig, TaskData
from bert_jax.tasks.finetuning import Splits, open_init_from
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.registry import make_task
from bert_jax.tasks.token_classification import Sentence, TokenClassification
from tests.saved import LONGEST, save, save_finetuned, wordpiece
from tests.tiny import MODERN

ALL = "logistic_regression, naive_bayes,neural_network"
TITLES = ["logistic regression, frozen", "naive Bayes, frozen", "neural network, frozen"]
TEXTS = ["The union.", "", "we govern governments so it was", "free (people)!", "god", "a great state " * 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save(folder, wordpiece())
    return folder


@pytest.fixture(scope="module")
def init_from(folder):
    return open_init_from(str(folder))


@pytest.fixture(scope="module")
def bert(folder):
    return bert_jax.load(folder)


def config(name="classification", frozen=ALL, seed=0, slots=3, **task):
    return FinetuneConfig(
        task=TaskConfig(name=name, frozen=frozen, **task),
        data=TaskData(train="made-up", max_seq_length=LONGEST, max_sequences_per_row=slots),
        train=dataclasses.replace(FinetuneConfig().train, seed=seed),
    )


def example(text, pair=None, label=None):
    return Example(text, pair, label, "here")


def some_texts(count, seed):
    """Texts of words that are of one class each, with words of both between."""
    rng = np.random.default_rng(seed)
    own = {"church": ["god", "trust", "we"], "state": ["union", "govern", "people"]}
    examples = []
    for label in rng.choice(list(own), count):
        words = [*rng.choice(own[label], 4), *rng.choice(["the", "of", "is", "so"], 2)]
        examples.append(example(" ".join(rng.permutation(words)), label=str(label)))
    return examples


def some_sentences(count, seed):
    """Two entities of fixed words, in sentences of other words; one of them has none at all."""
    rng = np.random.default_rng(seed)
    tags = {"god": "B-PER", "union": "B-LOC", "the": "O", "of": "O", "free": "O", "governments": "O"}
    sentences = [rng.choice(list(tags), rng.integers(1, 9)).tolist() for _ in range(count)]
    sentences.insert(1, [])
    return [Sentence(words, [tags[word] for word in words], "here") for words in sentences]


def splits_of(some, train=120, eval=40, test=40):
    return Splits(some(train, 1), some(eval, 2), some(test, 3), "")


def learned(task, splits):
    task.fit(splits.train)
    return task


def texts_and_task():
    splits = splits_of(some_texts)
    return splits, learned(Classification(TaskConfig(), config().data), splits)


def features_of(config, task, init_from, examples):
    packed = PackedExamples(task, examples, init_from.tokenizer, config.data)
    return frozen.frozen_features(config, task, init_from)(packed)


def test_every_classifier_learns_to_tell_texts_apart(init_from, caplog):
    splits, task = texts_and_task()
    with caplog.at_level(logging.INFO, "bert_jax"):
        scores = frozen.train(config(), task, splits, init_from)
    assert list(scores) == [*TITLES, "naive Bayes on words"]
    for title, found in scores.items():
        assert list(found) == ["eval", "test"]
        for values in found.values():
            assert list(values) == list(task.metrics)
            assert values["accuracy"] >= 0.95, title
    lines = [record.getMessage() for record in caplog.records if " with " in record.getMessage()]
    assert [line.split(": ")[0] for line in lines] == list(scores)
    assert all(
        f"eval accuracy {scores[line.split(':')[0]]['eval']['accuracy']:.4f}" in line for line in lines
    )


def test_every_classifier_learns_to_tell_words_apart(init_from):
    splits = splits_of(some_sentences)
    task = learned(TokenClassification(TaskConfig(), config().data), splits)
    assert task.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]  # of which two never come
    scores = frozen.train(config("token_classification", layer=0), task, splits._replace(test=[]), init_from)
    assert list(scores) == TITLES
    for title, found in scores.items():
        assert list(found) == ["eval"]
        assert found["eval"]["f1"] >= 0.9, title


def test_the_same_seed_gives_the_same_scores(init_from):
    splits, task = texts_and_task()
    hard = splits._replace(train=[e._replace(text=e.text.split()[0]) for e in splits.train[:20]])
    first, again, other = (frozen.train(config(seed=seed), task, hard, init_from) for seed in (1, 1, 2))
    assert first == again
    assert first[TITLES[0]] == other[TITLES[0]]  # the only one that has no chance in it


def test_a_label_of_one_example_is_no_obstacle(init_from):
    splits = splits_of(some_texts, train=30)
    splits.train.append(example("a strong state", label="rare"))
    task = learned(Classification(TaskConfig(), config().data), splits)
    assert len(frozen.train(config(), task, splits, init_from)) == 4


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_are_those_of_a_pretrained_checkpoint(init_from, bert, pooling, layer):
    task = Classification(TaskConfig(), config().data, {"labels": ["a", "b"], "pairs": True})
    pairs = [("so it was", "we are free"), ("god", "the union and the state")]
    examples = [*map(example, TEXTS), *(example(*pair) for pair in pairs)] * 40  # more than a batch
    setting = config(pooling=pooling, layer=layer)
    assert PackedExamples(task, examples, init_from.tokenizer, setting.data).rows.num_rows > 2048 // LONGEST
    actual = features_of(setting, task, init_from, examples)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, bert.features([*TEXTS, *pairs] * 40, pooling, layer), atol=1e-5)


def test_long_texts_are_cut_as_in_fine_tuning(init_from, bert):
    task = Classification(TaskConfig(), config().data, {"labels": ["a", "b"], "pairs": False})
    actual = features_of(config(), task, init_from, [example("we are " * 40)])
    np.testing.assert_allclose(actual, bert.features(["we are " * 15]), atol=1e-5)


def test_the_feature_of_a_word_is_the_state_of_its_first_token(init_from, bert):
    sentences = [["Governments", "are", "free"], ["we", "trust", "governments", "so"], ["god"]]
    states = bert.encode([" ".join(words) for words in sentences])
    expected = [states[0][[1, 4, 5]], states[1][[1, 2, 3, 6]], states[2][[1]]]
    task = TokenClassification(TaskConfig(), config().data, {"labels": ["O", "B-X"]})
    examples = [Sentence(words, ["O"] * len(words), "here") for words in sentences]
    actual = features_of(config("token_classification"), task, init_from, examples)
    np.testing.assert_allclose(actual, np.concatenate(expected), atol=1e-5)


def test_random_weights_are_those_of_the_seed(init_from):
    task = Classification(TaskConfig(), config().data, {"labels": ["a", "b"], "pairs": False})
    examples = [example("so it was")]
    trained, random, again, other = (
        features_of(config(random_weights=weights, seed=seed), task, init_from, examples)
        for weights, seed in ((False, 0), (True, 0), (True, 0), (True, 1))
    )
    np.testing.assert_array_equal(random, again)
    assert not np.allclose(random, other, atol=1e-2)
    assert not np.allclose(random, trained, atol=1e-2)


class Fixed(ClassifierMixin, BaseEstimator):
    """A classifier that is right about a share of the examples, whose labels all are "a".

    `partial_fit` takes the next of `shares`.
    """

    def __init__(self, share=0.0, other=0.0, shares=(), batch_size=1):
        self.share, self.other, self.shares, self.batch_size = share, other, shares, batch_size

    def fit(self, inputs, labels):
        assert len(inputs) == len(labels) == 20  # never the held-out examples
        warnings.warn("lbfgs failed to converge.\nIncrease it.", ConvergenceWarning, stacklevel=1)
        self.fitted_ = True
        return self

    def partial_fit(self, *_, **__):
        self.share, *self.shares = self.shares
        self.fitted_ = True

    def predict(self, inputs):
        right = round(self.share * len(inputs))
        return [0] * right + [1] * (len(inputs) - right)


def selected(classifier, grid):
    """Accuracies on ten held-out and five test examples with the setting that is chosen."""
    task = Classification(TaskConfig(), config().data, {"labels": ["a", "b"], "pairs": False})
    sizes = {"train": 20, "eval": 10, "test": 5}
    parts = {name: [example("", label="a")] * count for name, count in sizes.items()}
    labels = {name: np.zeros(count, np.int32) for name, count in sizes.items()}
    inputs = {name: np.zeros((count, 2), np.float32) for name, count in sizes.items()}
    selection = frozen.ModelSelection(task, "accuracy", parts, labels)
    found = selection.run("title", make_pipeline(StandardScaler(), classifier), grid, inputs)
    return found["eval"]["accuracy"], found["test"]["accuracy"]


@pytest.mark.filterwarnings("error")
def test_the_best_setting_on_the_held_out_examples_is_chosen(caplog):
    with caplog.at_level(logging.INFO, "bert_jax"):
        assert selected(Fixed(), {"other": [1, 2], "share": [0.2, 0.8, 0.4]}) == (0.8, 0.8)
    warning, line = (record.getMessage() for record in caplog.records)
    assert warning == "title: lbfgs failed to converge."  # six times
    assert line.startswith("title: eval accuracy 0.8000 with other=1, share=0.8, ")  # the first of equals


def test_the_best_epoch_on_the_held_out_examples_is_kept(caplog):
    network = Fixed(shares=[0.2, 0.8, 0.4, 0.8, *[0.6] * 100, 1.0])
    with caplog.at_level(logging.INFO, "bert_jax"):
        assert selected(network, {}) == (0.8, 0.8)
    assert "title: eval accuracy 0.8000 with epochs=2, " in caplog.text
    assert len(network.shares) == 105 - (2 + frozen.PATIENCE)


@pytest.mark.parametrize(
    ("task", "examples", "message"),
    [
        (
            {"name": "regression"},
            [],
            "frozen features are for classification and token_classification, not for regr",
        ),
        ({"name": "question_answering"}, [], "not for question_answering; leave it empty"),
        ({"layer": 3}, ["so"], r"task.layer=3 does not exist: 0 is the embeddings, 2 \(or -1\) the last"),
        ({"frozen": "svm"}, [], "task.frozen='svm': 'svm' is unknown; use some of logistic_regression"),
        ({"pooling": "max"}, [], "task.pooling='max' is unknown; use one of mean, cls"),
        ({}, ["so", "it"], "data.train=made-up: every training example has the same label"),
    ],
)
def test_errors(init_from, task, examples, message):
    examples = [example(text, label="a") for text in examples]
    label_info = {"labels": ["a", "b"], "pairs": False, "version_2": False}
    splits = Splits(examples, examples, [], "")

    def run():
        setting = config(**task)
        frozen.train(setting, make_task(setting.task, setting.data, label_info), splits, init_from)

    with pytest.raises(UserError, match=message):
        run()


def test_texts_without_a_word(init_from):
    examples = [example(" ", label=label) for label in "abab"]
    task = Classification(TaskConfig(), config().data, {"labels": ["a", "b"], "pairs": False})
    with pytest.raises(UserError, match=r"data.text: no training text has a word"):
        frozen.train(config(frozen="naive_bayes"), task, Splits(examples, examples, [], ""), init_from)


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fine_tuned")
    network = save_finetuned(folder, wordpiece(), "classification", {"labels": ["a", "b"], "pairs": False})
    return network, bert_jax.load(folder)


def test_a_fine_tuned_checkpoint_gives_features(fine_tuned):
    network, bert = fine_tuned
    assert list(bert.params) == ["encoder"]
    for text in ("so it was", ("so it was", "we are free")):
        (row,) = bert._rows([text])
        batch = batch_of([row], (1, row.length), bert.tokenizer)
        np.testing.assert_allclose(bert.encode([text])[0], network.encoder(batch)[0], atol=1e-6)
    assert bert.features(TEXTS).shape == (len(TEXTS), 16)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda bert: bert.fill_mask(["[MASK]"]),
            "fill_mask needs the heads of pretraining, and this checkp",
        ),
        (lambda bert: bert.next_sentence([("a", "b")]), "next_sentence .* was fine-tuned for classification"),
        (lambda bert: bert.encode(["so " * 31]), "data.max_seq_length=32; shorten"),
        (lambda bert: bert.encode(["so"], 3), "layer=3 does not exist"),
    ],
)
def test_errors_of_a_fine_tuned_checkpoint(fine_tuned, call, message):
    with pytest.raises(UserError, match=message):
        call(fine_tuned[1])


def test_a_fine_tuned_network_of_one_segment_knows_no_pairs(fine_tuned, monkeypatch):
    _, bert = fine_tuned
    model = dataclasses.replace(bert.config.model, type_vocab_size=1)
    monkeypatch.setattr(bert, "config", dataclasses.replace(bert.config, model=model))
    with pytest.raises(
        UserError, match=r"does not support pairs; it was trained with model.type_vocab_size=1"
    ):
        bert.encode([("so", "it")])


def test_a_fine_tuned_network_without_segments_takes_pairs(tmp_path):
    facts = {"pairs": True, "labels": ["no", "yes"]}
    save_finetuned(tmp_path, wordpiece(), "classification", facts, MODERN)
    (states,) = load(tmp_path).encode([("so", "it")])
    assert states.shape == (5, 16)


def write_features(monkeypatch, folder, output, **changed):
    values = {"checkpoint": str(folder), "text": None, "input": "texts.txt", "output": output,
              "pooling": "mean", "layer": -1, "with_text": False}  # fmt: skip
    flags = types.SimpleNamespace(FLAGS=types.SimpleNamespace(**values | changed))
    monkeypatch.setattr(predict, "flags", flags)
    predict.features()


def test_features_as_parquet(folder, bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("so it was\n\nwe are free\n")
    texts = ["so it was", "", "we are free"]
    for with_text in (False, True):
        write_features(monkeypatch, folder, "out.parquet", with_text=with_text)
        table = pq.read_table("out.parquet")
        assert table.column_names == (["text", "features"] if with_text else ["features"])
        assert str(table.schema.field("features").type) == "fixed_size_list<element: float>[16]"
        vectors = np.stack(table["features"].to_numpy())
        np.testing.assert_array_equal(vectors, bert.features(texts))
    assert table["text"].to_pylist() == texts
    write_features(monkeypatch, folder, "out.npy")
    np.testing.assert_array_equal(np.load("out.npy"), vectors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "out.parquet", "texts.txt"]


@pytest.mark.parametrize(
    ("output", "changed", "message"),
    [
        ("out.csv", {}, "--output=out.csv must end in .npy or .parquet"),
        ("out", {}, "--output=out must end in"),
        (None, {}, "--output is missing"),
        (
            "out.npy",
            {"with_text": True},
            "--with_text: out.npy would be an array without text; give --output=",
        ),
    ],
)
def test_errors_of_features(tmp_path, monkeypatch, output, changed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("so it was\n")
    with pytest.raises(UserError, match=message):
        write_features(monkeypatch, "no checkpoint", output, **changed)
