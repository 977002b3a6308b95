import json
import logging
import pathlib
import random
import types

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import pretrain
from bert_jax.config import Config, from_dict
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.report.charts import curves
from bert_jax.report.report import _tiles
from bert_jax.tasks import probes
from bert_jax.tasks.probes import Probe, read_probes
from bert_jax.training import hosts
from bert_jax.training.loop import Run
from bert_jax.training.step import abstract_model, with_shardings
from tests.saved import LONGEST, WORDS, save, wordpiece
from tests.tiny import mesh_of

OWN = {"church": ["god", "trust", "we"], "state": ["union", "govern", "people"]}
SIMILARITY = {"kind": "similarity", "text_pair": "second", "label": "score"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("bert")
    save(folder, wordpiece())
    return bert_jax.load(folder)


def write(name, *rows):
    """Writes a TSV file; the first row has the columns."""
    pathlib.Path(name).write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n")


def topics(count=600, seed=0):
    """Texts of words that are of one class each, with words of both between; three fifths are of one."""
    rng = np.random.default_rng(seed)
    for label in rng.choice(list(OWN), count, p=[0.6, 0.4]):
        yield " ".join(rng.permutation([*rng.choice(OWN[label], 4), *rng.choice(WORDS, 3)])), label


def alike(count=100):
    """Pairs whose score is the number of words that they share."""
    rng = np.random.default_rng(0)
    for score in rng.integers(0, 9, count):
        first = rng.choice(WORDS, 8)
        yield " ".join(first), " ".join([*first[:score], *rng.choice(WORDS, 8 - score)]), score


def config_of(*entries, **train):
    return from_dict({"train": {"probes": entries, **train}}, Config)


def read(*entries, **train):
    config = config_of(*entries, **train)
    return read_probes(config.train, config.model)


def probe_of(bert, **entry):
    config = config_of(entry)
    (examples,) = read_probes(config.train, bert.config.model)
    return Probe(examples, bert.tokenizer, 5, LONGEST)


def run_of(bert, **axes):
    """The program of a run on a mesh of these axes, and the checkpoint's parameters on it."""
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(bert.config.model, rngs))
    mesh = mesh_of(**axes)
    params = jax.tree.map(
        lambda value, leaf: jax.device_put(value, leaf.sharding), bert.params, with_shardings(abstract, mesh)
    )
    return types.SimpleNamespace(structure=structure, mesh=mesh), params


def scores_of(probe, bert, **axes):
    program, params = run_of(bert, **axes)
    with jax.set_mesh(program.mesh):
        return probe.run(program, params)


def test_texts_of_two_classes_are_told_apart(bert, caplog):
    write("topics.tsv", ("text", "label"), *topics())
    with caplog.at_level(logging.INFO, "bert_jax"):
        scores = scores_of(probe_of(bert, file="topics.tsv"), bert)
    assert scores.keys() == {"accuracy", "majority"}
    assert scores["accuracy"] > 0.9
    assert 0.55 < scores["majority"] < 0.65
    line = rf"probe topics: accuracy {scores['accuracy']:.3f} (majority {scores['majority']:.2f}), 4"
    assert line in caplog.text
    assert " of 600 examples, " in caplog.text


def test_pairs_that_share_words_are_more_alike(bert, caplog):
    write("alike.tsv", ("text", "second", "score"), *alike())
    with caplog.at_level(logging.INFO, "bert_jax"):
        scores = scores_of(probe_of(bert, file="alike.tsv", **SIMILARITY), bert)
    assert scores.keys() == {"spearman"}
    assert scores["spearman"] > 0.6
    assert f"probe alike: spearman {scores['spearman']:.3f}, 100 of 100 pairs, " in caplog.text


@pytest.mark.parametrize(
    ("kind", "layer", "pooling"), [("classification", -1, "mean"), ("similarity", 1, "cls")]
)
@pytest.mark.parametrize("axes", [{}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_features_are_those_of_the_checkpoint_on_any_mesh(bert, axes, kind, layer, pooling):
    write("pairs.tsv", ("text", "second", "score"), *alike(300))
    entry = SIMILARITY | {"kind": kind, "layer": layer, "pooling": pooling, "file": "pairs.tsv"}
    probe = probe_of(bert, **entry)
    examples = [*probe._examples.train, *probe._examples.held_out]
    texts = [(example.text, example.pair) for example in examples]
    if kind == "similarity":
        texts = [first for first, _ in texts] + [second for _, second in texts]
    program, params = run_of(bert, **axes)
    with jax.set_mesh(program.mesh):
        vectors = probe.features(program, params)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, bert.features(texts, pooling, layer), atol=1e-6)


def test_the_network_is_compiled_once(bert):
    write("topics.tsv", ("text", "label"), *topics())
    probe = probe_of(bert, file="topics.tsv")
    program, params = run_of(bert, data=2)
    with jax.set_mesh(program.mesh):
        first = probe.run(program, params)
        compiled = probes._vectors._cache_size()
        assert probe.run(program, params) == first
    assert probes._vectors._cache_size() == compiled


def test_spearman_of_given_vectors(bert):
    """Angles grow from pair to pair, as the scores fall but for the last two."""
    write("alike.tsv", ("text", "second", "score"), *((f"so {n}", f"it {n}", n) for n in range(20)))
    probe = probe_of(bert, file="alike.tsv", **SIMILARITY)
    scores = np.array([example.label for example in probe._examples.held_out])
    angles = -0.05 * np.where(scores >= 18, 37 - scores, scores)
    ones = np.ones_like(angles)
    vectors = np.concatenate(
        [np.stack([ones, 0 * ones], 1), 7 * np.stack([np.cos(angles), np.sin(angles)], 1)]
    )
    # Falling with the score: -1 but for one pair of neighbours that has changed places.
    assert probe._spearman(vectors)["spearman"] == pytest.approx(-(1 - 6 * 2 / (20 * (20**2 - 1))))
    assert probe._spearman(np.ones((40, 3)))["spearman"] == 0.0


def test_examples_are_chosen_by_a_hash_of_their_text():
    rows = list(topics(2000))
    write("topics.tsv", ("text", "label"), *rows)
    (examples,) = read({"file": "topics.tsv"}, probe_examples=100)
    assert (len(examples.train), len(examples.held_out), examples.available) == (80, 20, 2000)
    assert not {e.text for e in examples.train} & {e.text for e in examples.held_out}
    write("shuffled.tsv", ("text", "label"), *random.Random(0).sample(rows, len(rows)))
    (shuffled,) = read({"file": "shuffled.tsv"}, probe_examples=100)
    assert [e.text for e in shuffled.train] == [e.text for e in examples.train]
    assert [e.text for e in shuffled.held_out] == [e.text for e in examples.held_out]
    assert shuffled.digest != examples.digest


def test_held_out_examples_of_their_own_file():
    write("train.tsv", ("text", "label"), *topics(50))
    write("test.tsv", ("text", "label"), *topics(30, seed=1))
    (examples,) = read({"file": "train.tsv", "eval": "test.tsv"}, probe_examples=100)
    assert (len(examples.train), len(examples.held_out), examples.available) == (50, 20, 80)
    assert {e.text for e in examples.held_out} <= {text for text, _ in topics(30, seed=1)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probe_that_fails_is_a_warning(bert, monkeypatch, caplog, value):
    write("topics.tsv", ("text", "label"), *topics())
    probe = probe_of(bert, file="topics.tsv")
    monkeypatch.setattr(probe, "features", lambda *_: np.full((600, 4), value, np.float32))
    assert probe.run(None, None) == {}
    (message,) = caplog.messages
    assert message.startswith("probe topics failed, and training goes on without its metrics: ValueError: ")


def test_a_probe_that_fails_on_another_process_fails_here(bert, monkeypatch, caplog):
    write("topics.tsv", ("text", "label"), *topics())
    probe = probe_of(bert, file="topics.tsv")
    monkeypatch.setattr(hosts, "gather", lambda text: [json.loads(text), ["MemoryError: no room", {}]])
    assert scores_of(probe, bert) == {}
    assert caplog.messages[-1].endswith("MemoryError: no room")


def test_every_process_has_the_scores_of_the_first(bert, monkeypatch):
    write("topics.tsv", ("text", "label"), *topics())
    first = {"accuracy": 0.5, "majority": 0.25}
    monkeypatch.setattr(hosts, "gather", lambda text: [["", first], json.loads(text)])
    assert scores_of(probe_of(bert, file="topics.tsv"), bert) == first


def test_a_step_whose_probes_all_fail_has_no_row():
    rows = []
    failing = types.SimpleNamespace(name="probe_a", run=lambda *_: {})
    state = types.SimpleNamespace(params=None)
    program = types.SimpleNamespace(after=lambda _: None)
    run = types.SimpleNamespace(program=program, state=state, file=types.SimpleNamespace(write=rows.append))
    Run.evaluate(run, 5, [failing])
    assert rows == []


@pytest.mark.parametrize(("text", "part"), [("of", "train on"), ("the", "hold out")])
def test_equal_texts_stay_together(text, part):
    write("same.tsv", ("text", "label"), *[(text, label) for label in "ab" * 20])
    with pytest.raises(UserError) as error:
        read({"file": "same.tsv"})
    assert str(error.value) == (
        f"train.probes[0].file=same.tsv leaves no example to {part}: copies of a text go to one part. "
        "Give more different texts, or a file as train.probes[0].eval."
    )


BAD = [  # changes of a probe of one.tsv, and the error after "train.probes[0]."
    ({"file": ""}, "file is missing: a file of labelled texts, or tfds:NAME."),
    ({"file": "none.tsv"}, "file=none.tsv cannot be read: "),
    ({"file": "text.txt"}, "file=text.txt: this task reads .tsv, .csv, .jsonl"),
    ({"file": "few.tsv"}, "file=few.tsv has 19 examples; a probe needs 20 or more."),
    ({}, "label='label': every example of one.tsv to train on has the label 'a'; a probe needs two "),
    ({"text": "body"}, "text='body': one.tsv, line 2 has no such column; it has 'text', 'label', 'score', "),
    ({"label": "class"}, "label='class': one.tsv, line 2 has no such column"),
    ({"text_pair": "word"}, "text_pair='word': model.type_vocab_size=1 has no segment for the second text; "),
    ({**SIMILARITY, "text_pair": "word"}, "label='score': every pair of one.tsv has the score 3; nothing can "
                                          "be compared with that. Is it the right column?"),
    ({**SIMILARITY, "text_pair": ""}, "text_pair is missing: the column with the second text of each pair."),
    ({**SIMILARITY, "eval": "one.tsv"}, "eval=one.tsv: a probe of similarity trains nothing and"),
    ({"layer": 13}, "layer=13 does not exist: 0 is the embeddings, 12 (or -1) the last."),
    ({"layer": "last"}, "layer='last' is of type str; it must be int."),
    ({"kind": "tagging"}, "kind='tagging' is unknown; use one of classification, similarity."),
    ({"pooling": "max"}, "pooling='max' is unknown; use one of mean, cls."),
    ({"name": "a/b"}, "name='a/b' must be letters, digits and underscores."),
    ({"texts": "a"}, "texts does not exist; the keys of a probe are kind, file, eval, text, text_pair,"),
]  # fmt: skip


@pytest.fixture
def one():
    """one.tsv, of one class and one score."""
    rows = [(f"text {n}", "a", 3, "x", "") for n in range(40)]
    write("one.tsv", ("text", "label", "score", "word", "empty"), *rows)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(("changes", "message"), BAD, ids=str)
def test_bad_input_is_one_line(changes, message):
    write("few.tsv", ("text", "label"), *topics(19))
    write("text.txt", *topics(30))
    values = {"probes": [{"file": "one.tsv"} | changes]}
    model = {"type_vocab_size": 1 if changes.get("text_pair") else 2}
    with pytest.raises(UserError) as error:
        read_probes(from_dict({"train": values}, Config).train, ModelConfig(**model))
    assert str(error.value).startswith(f"train.probes[0].{message}")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("one")
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"label": "empty"},
            "one.tsv, line 2 has no label in column train.probes[0].label='empty'; write one, or remove the "
            "example.",
        ),
        (
            {**SIMILARITY, "text_pair": "word", "label": "word"},
            "one.tsv, line 2 has 'x' in column train.probes[0].label='word', which is not a number.",
        ),
    ],
)
def test_bad_lines_are_named(entry, message):
    with pytest.raises(UserError) as error:
        read({"file": "one.tsv"} | entry)
    assert str(error.value) == message


@pytest.mark.parametrize("values", [5, "one.tsv"])
def test_a_probe_is_a_dict(values):
    with pytest.raises(UserError, match=r"^train.probes\[0\]=.* must be a dict like {'file': 'FILE.tsv'}"):
        config_of(values)


def test_names_are_those_of_the_files_and_differ():
    entries = [
        {"file": "a/reviews.test.tsv.gz"},
        {"file": "tfds:glue/sst2:train"},
        {"file": "b.csv", "name": "b2"},
    ]
    assert [probe.name for probe in config_of(*entries).train.probes] == ["reviews", "sst2_train", "b2"]
    with pytest.raises(
        UserError, match=r"train.probes: 2 probes have the name 'reviews'; give each a `name`"
    ):
        config_of({"file": "reviews.tsv"}, {"file": "reviews.csv"})


def test_through_json_and_back():
    config = config_of({"file": "reviews.tsv", "layer": 3}, probe_every=7)
    assert config.train.probes[0].layer == 3
    assert from_dict(json.loads(json.dumps(config.to_dict())), Config) == config
    assert config.identity() == config_of().identity()


ROWS = [
    {"step": 5, "loss": 1.0},
    {"step": 5, "probe_a_accuracy": 0.5, "probe_a_majority": 0.625, "probe_b_c_spearman": -0.25},
    {"step": 9, "probe_a_accuracy": 0.75, "probe_a_majority": 0.625, "probe_b_c_spearman": 0.375},
]


def test_report_has_a_chart_and_tiles():
    charts = {chart["title"]: chart["lines"] for chart in curves(ROWS, [], [], False)["charts"]}
    assert [(line["name"], line["style"], line["points"]) for line in charts["Probes"]] == [
        ("a, accuracy", "s0", [(5, 0.5), (9, 0.75)]),
        ("b_c, spearman", "s1", [(5, -0.25), (9, 0.375)]),
        ("a, accuracy of the largest class", "s3 dashed", [(5, 0.625), (9, 0.625)]),
    ]
    assert [(tile["name"], tile["value"], tile["note"]) for tile in _tiles(ROWS[-1])] == [
        ("Probe a, accuracy", "0.750", "held-out; largest class 0.625"),
        ("Probe b_c, spearman", "0.375", "held-out"),
    ]
    assert "Probes" not in {chart["title"] for chart in curves(ROWS[:1], [], [], False)["charts"]}


def test_summary_of_a_run_has_the_probes(folder):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = pretrain.summary(folder).splitlines()
    assert [line.split() for line in lines if line.startswith("probe")] == [
        ["probe", "a,", "accuracy", "0.7500", "+0.125"],
        ["probe", "b_c,", "spearman", "0.3750"],
    ]


@pytest.mark.parametrize("pairs", [True, False])
def test_summary_of_a_run_without_pairs_has_no_score_of_them(folder, pairs):
    row = {"step": 9, "eval_mlm_accuracy": 0.5, "eval_nsp_accuracy": 0.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    text = pretrain.summary(folder, pairs)
    assert "masked-LM accuracy" in text
    assert ("sentence pairs" in text) == pairs
