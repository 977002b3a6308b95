import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from bert_jax.errors import UserError
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.packed import Rows
from bert_jax.tasks.token_classification import Sentence, TokenClassification, to_iob2
from tests.saved import WORDS, sentencepiece, wordpiece

UNK = 1
LABELS = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
COLUMNS = TaskData(text="tokens", label="tags")


def task(labels=LABELS, data=COLUMNS):
    return TokenClassification(TaskConfig(), data, {"labels": labels})


def sentence(words, tags=None):
    return Sentence(words.split(), tags.split() if tags else None, "here")


def read(tmp_path, content, name="a.conll", **kwargs):
    (tmp_path / name).write_text(content)
    return TokenClassification(TaskConfig(), COLUMNS).read(str(tmp_path / name), "data.train", **kwargs)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", ""),
        ("O O", "O O"),
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),  # IOB1
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("B-PER I-PER B-PER O", "B-PER I-PER B-PER O"),  # IOB2 stays
        ("B-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),  # forbidden in IOB2
        ("B-PER I-PER E-PER S-PER S-LOC O", "B-PER I-PER I-PER B-PER B-LOC O"),  # BIOES
        ("E-PER I-PER O E-LOC", "B-PER B-PER O B-LOC"),  # forbidden in BIOES
        ("B-PER L-PER U-LOC I-LOC", "B-PER I-PER B-LOC B-LOC"),  # BILOU
        ("B-work-of-art I-work-of-art", "B-work-of-art I-work-of-art"),
    ],
)
def test_every_scheme_becomes_iob2(tags, expected):
    assert to_iob2(tags.split()) == expected.split()
    assert to_iob2(expected.split()) == expected.split()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in "XY")])))
def test_the_entities_are_those_of_the_scorer(tags):
    assert get_entities(to_iob2(tags)) == get_entities(tags)


@pytest.mark.parametrize(
    "content",
    [
        "We O\nare O\n\nGod I-PER\n",
        "\n-DOCSTART- -X- O O\n\nWe PRP B-NP O\nare VBP B-VP O\n \n\nGod NNP B-NP B-PER",
        "# sent_id = 1\nWe\tO\r\nare\tO\r\n\r\n# text = God\nGod\tS-PER\r\n",
        "\ufeffWe  O\nare  O\n\nGod  U-PER\n\n\n",
    ],
)
def test_columns(tmp_path, content):
    read_sentences = read(tmp_path, content)
    assert [(s.words, s.tags) for s in read_sentences] == [(["We", "are"], ["O", "O"]), (["God"], ["B-PER"])]


def test_the_place_is_the_first_line_of_the_sentence(tmp_path):
    places = [s.place for s in read(tmp_path, "-DOCSTART- O\n\nWe O\nare O\n\n# x\nGod I-PER\n")]
    assert places == [f"{tmp_path}/a.conll, line 3", f"{tmp_path}/a.conll, line 7"]


def test_a_number_sign_may_be_a_word_and_a_tab_keeps_spaces(tmp_path):
    (one,) = read(tmp_path, "#\tO\nNew York\tB-LOC\n\xa0\tO\n")
    assert one.words == ["#", "New York", "\xa0"]
    assert one.tags == ["O", "B-LOC", "O"]


def test_unlabelled_columns_may_be_words_alone(tmp_path):
    assert [(s.words, s.tags) for s in read(tmp_path, "# no tag\nWe\n#are\n\nGod\n", labelled=False)] == [
        (["We", "#are"], None),
        (["God"], None),
    ]


def test_jsonl(tmp_path):
    lines = [
        {"tokens": ["We", "are"], "tags": ["I-PER", "O"]},
        {"tokens": [], "tags": []},
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    labelled = read(tmp_path, content, "a.jsonl")
    assert [tuple(s) for s in labelled] == [
        (["We", "are"], ["B-PER", "O"], f"{tmp_path}/a.jsonl, line 1"),
        ([], [], f"{tmp_path}/a.jsonl, line 2"),
    ]
    unlabelled = read(tmp_path, '{"tokens": ["We"]}', "b.jsonl", labelled=False)
    assert [tuple(s) for s in unlabelled] == [(["We"], None, f"{tmp_path}/b.jsonl, line 1")]


def test_white_space_around_a_tag_makes_no_other_type(tmp_path):
    content = '{"tokens": ["a", "b", "c"], "tags": ["B-PER ", " I-PER", "\\u00a0O"]}'
    (one,) = read(tmp_path, content, "A.JSONL")
    assert one.tags == ["B-PER", "I-PER", "O"]


def test_a_sentence_of_plain_text():
    assert task().example(" We  are\tfree ! ") == (["We", "are", "free", "!"], None, "")
    with pytest.raises(UserError, match="fine-tuned on single sentences, not pairs"):
        task().example("We", "are")
    with pytest.raises(UserError, match="the text ' ' has no words"):
        task().example(" ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "We O\nare\n",
            r"a.txt, line 2 has one column, 'are'; it must have a word and, in the last,",
        ),
        ("a.txt", "We O\n\tO\n", r"a.txt, line 2 has one column, '\\tO'"),
        ("a.txt", "We\tO\n\tO\n", r"a.txt, line 2 has no word in its first column"),
        ("a.txt", "We\tNN\tO\nare\tO\t\n", r"a.txt, line 2 has no tag in its last column"),
        ("a.conll", "We O\rare O\r", r"data.train=.*a.conll: its lines end in \\r .carriage return. alone;"),
        ("a.conll", "We O\nare B-X\xa0\n", r"a.conll, line 2: 'B-X\\xa0' in the last column is not a tag"),
        ("a.conll", "We\tO\nare\tB- X\n", r"a.conll, line 2: 'B- X' in the last column is not a tag"),
        ("a.tsv", "word\ttag\nWe\tO\n", r"a.tsv, line 1: 'tag' in the last column is not a tag of IOB"),
        ("a.iob", "We O\n\nare B-\n", r"a.iob, line 3: 'B-' in the last column is not a tag"),
        ("a.conll", "-DOCSTART- O\n\n", r"data.train=.*a.conll has no words"),
        ("a.conll", "\n", r"data.train=.*a.conll has white space only"),
        ("a.jsonl", '{"tokens": ["a"]}', r"data.label='tags': .*line 1 has no such column; it has 'tokens'"),
        ("a.jsonl", '{"text": ["a"]}', r"data.text='tokens': .*line 1 has no such column; it has 'text'"),
        ("a.jsonl", '{"tokens": "a b", "tags": ["O"]}', r"line 1 has 'a b', which is no list of texts"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": [3]}',
            r"data.label='tags': .*\[3\], which is no list of texts",
        ),
        ("a.jsonl", '{"tokens": ["a"], "tags": [null]}', r"line 1 has \[None\], which is no list of texts"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [NaN]}', r"line 1 has \[nan\], which is no list of texts"),
        ("a.jsonl", '{"tokens": ["a"], "tags": NaN}', r"line 1 has nan, which is no list of texts"),
        ("a.jsonl", '{"tokens": ["a", null], "tags": ["O", "O"]}', r"\['a', None\], which is no list of te"),
        ("a.jsonl", '{"tokens": [["a"]], "tags": ["O"]}', r"line 1 has \[\['a'\]\], which is no list of te"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [""]}', r"line 1: '' in data.label='tags' is not a tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": [" "]}', r"line 1: '' in data.label='tags' is not a tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["B- "]}', r"line 1: 'B-' in data.label='tags' is not a tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": []}', r"line 1 has 1 words and 0 tags"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["NN"]}', r"line 1: 'NN' in data.label='tags' is not a tag"),
        ("a.jsonl", '{"tokens": [], "tags": []}', r"a.jsonl has no words"),
    ],
)
def test_errors_of_files(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content, name)


def test_both_tags_of_every_type_are_labels():
    learner = TokenClassification(TaskConfig(), COLUMNS)
    held_out = [sentence("a b", "B-LOC I-LOC")]  # I-LOC is not in the training examples
    learner.fit([sentence("a b", "O B-PER"), sentence("c", "B-LOC")], held_out)
    assert learner.label_info == {"labels": LABELS}


def test_the_config_may_name_the_labels():
    learner = TokenClassification(TaskConfig(), dataclasses.replace(COLUMNS, labels="B-PER, I-PER,O"))
    learner.fit([sentence("a b", "O B-PER")])
    assert learner.label_info == {"labels": ["B-PER", "I-PER", "O"]}


@pytest.mark.parametrize(
    ("labels", "tags", "message"),
    [
        ("", "O O", "every word has the tag 'O'; nothing can be learned from one tag"),
        ("", "B-X B-X", "every word has the tag 'B-X'"),
        ("O,PER", "O B-PER", "data.labels: 'PER' is not a tag of IOB2; use e.g. O,B-PER,I-PER"),
        ("O,B-PER", "O B-LOC", "here: the tag 'B-LOC' of 'b' is unknown; the tags are O, B-PER"),
    ],
)
def test_errors_of_labels(labels, tags, message):
    learner = TokenClassification(TaskConfig(), dataclasses.replace(COLUMNS, labels=labels))
    with pytest.raises(UserError, match=message):
        learner.fit([sentence("a b", tags)])


def test_an_unknown_tag_of_a_test_file():
    learner = TokenClassification(TaskConfig(), COLUMNS)
    with pytest.raises(UserError, match="here: the tag 'B-ORG' of 'b' is unknown; the tags are O, B-LOC"):
        learner.fit([sentence("a b", "O B-LOC")], [sentence("a", "O"), sentence("a b", "O B-ORG")])


def test_the_first_token_of_a_word_has_its_label():
    tokenizer = wordpiece()
    piece = tokenizer.piece
    examples = [
        sentence("Governments trust (we) x.", "B-PER I-PER O O"),
        Sentence(["\u200b", "union", ""], ["B-LOC", "O", "O"], "here"),
    ]
    encoded = task().encode(examples, tokenizer, 16)
    assert [piece(token) for token in encoded.tokens] == [
        *("govern", "##ment", "##s", "trust", "(", "we", ")", "[UNK]", "."),
        *("[UNK]", "union", "[UNK]"),
    ]
    assert encoded.token_targets["labels"].tolist() == [3, -1, -1, 4, 0, -1, -1, 0, -1, 1, 0, 0]
    assert encoded.length_a.tolist() == [9, 3]
    assert encoded.length_b.tolist() == [0, 0]
    assert encoded.example.tolist() == [0, 1]
    assert encoded.num_cut == 0
    assert encoded.tokens.dtype == encoded.token_targets["labels"].dtype == np.int32
    assert encoded.length_a.dtype == encoded.length_b.dtype == encoded.example.dtype == np.int64


def test_words_are_encoded_as_they_are_alone():
    tokenizer = sentencepiece()
    encoded = task().encode([sentence("the union trust.")], tokenizer, 32)
    the, union, trust = tokenizer.encode(["the", "union", "trust."])
    assert encoded.tokens.tolist() == [*the, *union, *trust]


def test_words_without_a_tag_have_label_0():
    encoded = task().encode([sentence("governments are"), sentence("free", "B-LOC")], wordpiece(), 16)
    assert encoded.token_targets["labels"].tolist() == [0, -1, -1, 0, 1]


def test_a_long_sentence_goes_on_in_another_sequence():
    # 8 tokens a row leave 6: words of 3, 1, 3 and 2 tokens; a word of 7 that loses one.
    examples = [sentence("governments we governments so so!"), sentence("is ((((((( it")]
    encoded = task().encode(examples, wordpiece(), 8)
    assert encoded.length_a.tolist() == [4, 6, 1, 6, 1]
    assert encoded.example.tolist() == [0, 0, 1, 1, 1]
    assert encoded.num_cut == 1
    labels = [[0, -1, -1, 0], [0, -1, -1, 0, 0, -1], [0], [0, -1, -1, -1, -1, -1], [0]]
    assert encoded.token_targets["labels"].tolist() == [label for some in labels for label in some]


ANY_WORD = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["governments", "\u200b", "", "x", "so!"]),
    st.integers(1, 20).map(lambda length: "(" * length),
)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(ANY_WORD, max_size=30), min_size=1, max_size=5).filter(any),
    max_seq_length=st.integers(8, 20),
    slots=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_no_word_loses_its_prediction(texts, max_seq_length, slots, seed):
    rng = np.random.default_rng(seed)
    tags = [to_iob2([LABELS[n] for n in rng.integers(0, len(LABELS), len(words))]) for words in texts]
    examples = [Sentence(words, some, "here") for words, some in zip(texts, tags, strict=True)]
    encoded = task().encode(examples, wordpiece(), max_seq_length)
    assert encoded.lengths.max() <= max_seq_length
    assert encoded.lengths.min() > 2
    assert encoded.lengths.sum() == len(encoded.tokens) + 2 * len(encoded.lengths)
    predictions = decode_gold(examples, encoded, max_seq_length, slots)
    assert [prediction["prediction"] for prediction in predictions] == tags
    score = task().score(predictions, examples)
    assert score == dict.fromkeys(score, 1.0) or not any(tag != "O" for some in tags for tag in some)


def decode_gold(examples, encoded, max_seq_length, slots):
    """What `decode` makes of a model that is always right, its outputs taken the way of batches."""
    rows = Rows(encoded, wordpiece(), max_seq_length, slots)
    batches = [rows.batch(start + np.arange(3), 0, 0) for start in range(0, rows.num_rows, 3)]
    right = [
        {"label": batch["labels"], "probability": np.where(batch["labels"] >= 0, 0.75, 0.0)}
        for batch in batches
    ]
    return task().decode(rows.by_sequence(right, 3, True), encoded, examples)


def test_a_prediction():
    examples = [sentence("god trust governments so", "B-PER I-PER B-LOC O"), sentence("we are", "O I-PER")]
    encoded = task().encode(examples, wordpiece(), 8)
    assert decode_gold(examples, encoded, 8, 2) == [
        {
            "prediction": ["B-PER", "I-PER", "B-LOC", "O"],
            "probabilities": [0.75] * 4,
            "entities": [
                {"type": "PER", "start": 0, "end": 2, "text": "god trust"},
                {"type": "LOC", "start": 2, "end": 3, "text": "governments"},
            ],
        },
        {
            "prediction": ["O", "I-PER"],
            "probabilities": [0.75] * 2,
            "entities": [{"type": "PER", "start": 1, "end": 2, "text": "are"}],
        },
    ]


@pytest.mark.parametrize(
    ("labels", "entities"),
    [
        (["NOUN", "VERB", "B-PER"], []),
        (["LABEL_0", "LABEL_1", "LABEL_2"], []),
        (["O", "PER", "LOC"], []),
        (["O", "PER-B", "PER-I"], []),
        (["I-PER", "B-PER", "O"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["U-PER", "U-PER", "O"], [("PER", 0, 1), ("PER", 1, 2)]),  # BILOU
        (["B-PER", "L-PER", "L-LOC"], [("PER", 0, 2), ("LOC", 2, 3)]),
        (["S-PER", "B-LOC", "E-LOC"], [("PER", 0, 1), ("LOC", 1, 3)]),  # BIOES
    ],
)
def test_labels_of_other_models(labels, entities, recwarn):
    """Imported ones, which may be parts of speech or have no names: the whole label is the prediction."""
    words = sentence("god trust we")
    outputs = {"label": [np.array([0, 0, 1, 2, 0])], "probability": [np.full(5, 0.5)]}
    tagger = task(labels)
    (prediction,) = tagger.decode(outputs, tagger.encode([words], wordpiece(), 8), [words])
    assert prediction["prediction"] == labels
    found = [(entity["type"], entity["start"], entity["end"]) for entity in prediction["entities"]]
    assert (found, len(recwarn)) == (entities, 0)


def test_rows_of_the_prediction_file():
    prediction = {"prediction": ["O"]}
    assert task().row(sentence("we"), prediction) == {"tokens": ["we"], "prediction": ["O"]}
    assert task().row(sentence("we", "B-PER"), prediction) == {
        "tokens": ["we"],
        "tags": ["B-PER"],
        "prediction": ["O"],
    }
    assert sentence("we are").split_key == "we are"


SCORED = [
    # truth, prediction: one of two right; a wrong type; a wrong end; one too many that begins with I-.
    ("B-PER I-PER O B-LOC", "B-PER I-PER O O"),
    ("B-LOC O", "B-PER O"),
    ("B-PER I-PER O", "B-PER O O"),
    ("O O", "O I-LOC"),
]


def scored():
    examples = [sentence("w " * len(truth.split()), truth) for truth, _ in SCORED]
    return [{"prediction": guess.split()} for _, guess in SCORED], examples


@pytest.mark.filterwarnings("error")
def test_scores():
    # 4 true entities, 4 predicted, 1 of both; 7 of 11 words.
    assert task().score(*scored()) == {
        "f1": 0.25,
        "precision": 0.25,
        "recall": 0.25,
        "token_accuracy": pytest.approx(7 / 11),
    }


@pytest.mark.filterwarnings("error")
def test_scores_where_there_is_no_entity():
    score = task().score([{"prediction": ["O"]}], [sentence("w", "O")])
    assert score == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "token_accuracy": 1.0}
    assert set(score) == set(task().metrics)
    tables = task().tables([{"prediction": ["O"]}], [sentence("w", "O")])
    assert [table["rows"] for table in tables] == [[]]


@pytest.mark.filterwarnings("error")
def test_tables():
    by_type, confusion = task().tables(*scored())
    assert by_type == {
        "title": "By type",
        "columns": ["type", "precision", "recall", "F1", "entities"],
        "rows": [["LOC", "0.0%", "0.0%", "0.0%", 2], ["PER", "33.3%", "50.0%", "40.0%", 2]],
    }
    assert confusion == {
        "title": "Confusion of words: truth by row, prediction by column",
        "columns": ["", "O", "LOC", "PER"],
        "rows": [["O", 4, 1, 0], ["LOC", 1, 0, 1], ["PER", 1, 0, 3]],
        "shaded": True,
    }


def test_of_many_types_there_is_no_table_of_confusion():
    tags = " ".join(f"B-T{number}" for number in range(25))
    tables = task().tables([{"prediction": tags.split()}], [sentence("w " * 25, tags)])
    assert [table["title"] for table in tables] == ["By type"]
