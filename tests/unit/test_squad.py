"""SQuAD's files and its official metrics."""

import gzip
import json
import logging

import pytest
import zstandard

from bert_jax.errors import UserError
from bert_jax.tasks.squad import Answer, Question, exact_match_and_f1, normalized
from tests.unit.test_question_answering import CAT, TOKENIZER, task_of


def squad(*paragraphs):
    """The object of a file with one article; a paragraph is its text and its questions."""
    return {"data": [{"title": "T", "paragraphs": [{"context": c, "qas": qas} for c, qas in paragraphs]}]}


def qa(number, *answers, **more):
    answers = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": f"q{number}", "question": "Who sat?", "answers": answers} | more


def written(folder, content, name="squad.json"):
    content = content if isinstance(content, str) else json.dumps(content)
    path = folder / name
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content.encode()))
    return str(path)


def test_files_of_squad_name_the_place_of_every_question(tmp_path):
    file = squad((CAT, [qa(0, ("cat", 4), ("The cat", 0))]), ("On it.", [qa(1), qa(2, is_impossible=True)]))
    for name in ("squad.json", "squad.json.gz", "squad.json.zst", "SQUAD.JSON"):
        path = written(tmp_path, file, name)
        place = f"{path}, data[0].paragraphs"
        assert task_of().read(path, "data.train") == [
            Question("q0", "Who sat?", CAT, (Answer("cat", 4), Answer("The cat", 0)), f"{place}[0].qas[0]"),
            Question("q1", "Who sat?", "On it.", (), f"{place}[1].qas[0]"),
            Question("q2", "Who sat?", "On it.", (), f"{place}[1].qas[1]"),
        ]


def test_records_have_their_answers_by_column(tmp_path):
    answers = {"text": ["cat", "The cat"], "answer_start": [4, 0]}
    record = {"id": 7, "title": "T", "context": CAT, "question": "Who?", "answers": answers}
    path = written(tmp_path, json.dumps(record) + "\n", "squad.jsonl")
    (found,) = task_of().read(path, "data.train")
    assert found == Question("7", "Who?", CAT, (Answer("cat", 4), Answer("The cat", 0)), f"{path}, line 1")


def test_without_labels_answers_are_not_read(tmp_path):
    bare = {"id": "q0", "question": "Who sat?"}
    (found,) = task_of().read(written(tmp_path, squad((CAT, [bare]))), "data", labelled=False)
    assert found[:4] == ("q0", "Who sat?", CAT, ())
    wrong = squad((CAT, [qa(0, ("dog", 99), is_impossible=True)]))
    assert task_of().read(written(tmp_path, wrong), "data", labelled=False)[0].answers == ()


def test_answers_that_are_elsewhere_are_logged_and_not_learned_but_still_count(tmp_path, caplog):
    qas = [qa(0, ("cat", 5), ("cat", 4)), qa(1, ("mat", 4)), qa(2, ("mat", -4)), qa(3, ("", 0), ("sat", 8))]
    path = written(tmp_path, squad((CAT, qas)))
    with caplog.at_level(logging.WARNING, "bert_jax"):
        questions = task_of().read(path, "data.train")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 4 answers are not at their answer_start and are not learned; "
        f"the first: {path}, data[0].paragraphs[0].qas[0]"
    ]
    assert [example.span for example in questions] == [(4, 7), None, None, (8, 11)]
    targets = task_of().encode(questions, TOKENIZER, 128).sequence_targets
    assert targets["start_positions"].tolist() == [6, 0, 0, 7]  # after [CLS] who sat ? [SEP] the
    assert targets["span_weights"].tolist() == [1, 0, 0, 1]
    assert task_of().score([{"prediction": "mat"}] * 4, questions)["exact_match"] == 0.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"data\.train=.*squad\.json is not JSON \(Expecting"),
        ("", r"data\.train=.*squad\.json is empty"),
        ("[]", r"squad\.json has no data \(a list\); give data in SQuAD's format"),
        ({"version": "1.1"}, r"squad\.json has no data \(a list\)"),
        ({"data": []}, r"data\.train=.*squad\.json has no question"),
        ({"data": [{}]}, r"squad\.json, data\[0\] has no paragraphs \(a list\)"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\]\.paragraphs\[0\] has no context \(a text\)"),
        ({"data": [{"paragraphs": [{"context": CAT}]}]}, r"data\[0\]\.paragraphs\[0\] has no qas \(a list\)"),
        (squad((CAT, ["who"])), r"paragraphs\[0\]\.qas\[0\] has no question \(a text\)"),
        (squad((CAT, [{"question": "who"}])), r"paragraphs\[0\]\.qas\[0\] has no id \(a text\)"),
        (squad((CAT, [{"id": "1", "question": "who"}])), r"qas\[0\] has no answers \(a list\)"),
        (squad((CAT, [qa(0) | {"answers": ["cat"]}])), r"qas\[0\]\.answers has no text \(a text\)"),
        (squad((CAT, [qa(0, ("cat", "4"))])), r"qas\[0\]\.answers has no answer_start \(a number\)"),
        (
            squad((CAT, [qa(0, is_impossible=False)])),
            r"qas\[0\] has is_impossible=False, but 0 answers; correct",
        ),
        (
            squad((CAT, [qa(0, ("cat", 4), is_impossible=True)])),
            r"qas\[0\] has is_impossible=True, but 1 ans",
        ),
        (
            squad((CAT, [qa(3)]), ("On.", [qa(4), qa(3)])),
            r"paragraphs\[1\]\.qas\[1\] has the id 'q3' of .*paragraphs\[0\]\.qas\[0\]; ids must differ",
        ),
        (
            squad((CAT, [qa(0, ("cat", 4.0))])),
            r"has no answer_start \(a number\), but 4.0; give data in SQuAD's",
        ),
        (squad((CAT, [qa(0, ("cat", float("nan")))])), r"has no answer_start \(a number\), but nan;"),
        (squad((CAT, [qa(0, ("cat", None))])), r"has no answer_start \(a number\); give"),
        (squad((CAT, [qa(0, ("cat", True))])), r"has no answer_start \(a number\), but True;"),
        (squad((CAT, [qa(0, (None, 4))])), r"qas\[0\]\.answers has no text \(a text\); give"),
        (squad((CAT, [qa(0, (float("nan"), 4))])), r"qas\[0\]\.answers has no text \(a text\), but nan;"),
        (
            squad((CAT, [qa(0, ("cat", 4)) | {"question": None}])),
            r"qas\[0\] has no question \(a text\); give",
        ),
        (squad((CAT, [qa(0) | {"question": float("nan")}])), r"has no question \(a text\), but nan;"),
        (squad((CAT, [qa(0) | {"id": True}])), r"qas\[0\] has no id \(a text\), but True;"),
        (squad((CAT, [qa(0) | {"answers": None}])), r"qas\[0\] has no answers \(a list\); give"),
        (squad((None, [qa(0)])), r"paragraphs\[0\] has no context \(a text\); give"),
        (squad((float("nan"), [qa(0)])), r"paragraphs\[0\] has no context \(a text\), but nan;"),
        (squad((["cat"], [qa(0)])), r"paragraphs\[0\] has no context \(a text\), but \['cat'\];"),
        ('{"data": [], "data": []}', r"squad\.json has no data \(a list\), but \(\[\], \[\]\);"),
        ("[" * 100_000, r"data\.train=.*squad\.json is not JSON \("),
        (squad(("\ud800", [qa(0)])), r"paragraphs\[0\]: context is not a text \(.*surrogates"),
    ],
)
def test_broken_files_are_one_line_that_names_the_place(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        task_of().read(path, "data.train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("a.jsonl", {"id": "1", "question": "who"}, r"a\.jsonl, line 1 has no context \(a text\)"),
        (
            "a.jsonl",
            {"id": "1", "question": "who", "context": CAT, "answers": {"text": ["cat"], "answer_start": []}},
            r"a\.jsonl, line 1\.answers has 1 texts and 0 times answer_start",
        ),
        (
            "a.jsonl",
            {"id": "1", "question": "who", "context": CAT, "answers": {"text": [None], "answer_start": [4]}},
            r"a\.jsonl, line 1\.answers has no text \(a text\); give",
        ),
        (
            "A.JSONL",
            {
                "id": "1",
                "question": "who",
                "context": CAT,
                "answers": {"text": ["cat"], "answer_start": [4.0]},
            },
            r"A\.JSONL, line 1\.answers has no answer_start \(a number\), but 4.0;",
        ),
        (
            "a.txt",
            {},
            r"and tfds:NAME; predict also reads \.txt, one text a line: question, tab, paragraph\.",
        ),
        ("a.tsv", {}, r"data\.eval=.*a\.tsv: this task reads SQuAD's \.json, \.jsonl .* and tfds:NAME"),
    ],
)
def test_broken_records(tmp_path, name, record, message):
    with pytest.raises(UserError, match=message):
        task_of().read(written(tmp_path, record, name), "data.eval")


# Metrics


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat,\tan  OLD cat.", "cat old cat"),
        ("U.S.A. (a)", "usa"),
        ("theatre and another", "theatre and another"),
        ("the-a", "thea"),  # punctuation goes before articles do
        ("東京 — “the cat”", "東京 — “ cat”"),  # only ASCII punctuation
        ("an", ""),
    ],
)
def test_normalized_as_the_official_scripts_do(answer, expected):
    assert normalized(answer) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "version_1", "version_2"),
    [
        ("the Cat!", ["cat"], (1, 1), (1, 1)),
        ("cat sat", ["the cat"], (0, 2 / 3), (0, 2 / 3)),  # 1 of 2 and 1 of 1
        ("cat cat sat on", ["cat sat cat", "dog"], (0, 6 / 7), (0, 6 / 7)),  # 3 of 4 and 3 of 3
        ("cat", ["dog", "cat sat", "cat"], (1, 1), (1, 1)),  # the best of the answers
        ("cat", ["dog"], (0, 0), (0, 0)),
        ("", ["cat"], (0, 0), (0, 0)),
        ("", [], (0, 0), (1, 1)),
        ("the", [], (0, 0), (1, 1)),  # normalised it is nothing
        ("cat", [], (0, 0), (0, 0)),
        ("the", ["a"], (1, 0), (1, 1)),  # 1.1 finds no common token; 2.0 leaves such answers out
        ("cat", ["a", "cat"], (1, 1), (1, 1)),
        ("", ["a", "cat"], (1, 0), (0, 0)),
    ],
)
def test_exact_match_and_f1_of_both_versions(prediction, answers, version_1, version_2):
    assert exact_match_and_f1(prediction, answers, False) == pytest.approx(version_1)
    assert exact_match_and_f1(prediction, answers, True) == pytest.approx(version_2)
