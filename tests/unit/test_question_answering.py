import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.model.encoder import Compute
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.packed import Rows
from bert_jax.tasks.question_answering import (
    QuestionAnswering,
    Span,
    best_span,
    independent_span,
    max_context,
    windows,
)
from bert_jax.tasks.squad import Answer, Question
from tests import tiny

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "sat", "the", "cat", "on", "a", "mat", ".",
              "cafe", "##s", "東", "京", "old", "in", "?"]  # fmt: skip
TOKENIZER = WordPieceTokenizer(VOCABULARY, lowercase=True)
ID = {piece: token for token, piece in enumerate(VOCABULARY)}
CAT = "The cat sat on the mat."  # tokens the cat sat on the mat .


def task_of(version_2=False, **task):
    return QuestionAnswering(TaskConfig(**task), TaskData(), {"version_2": version_2})


def question(paragraph=CAT, answers=(), text="who sat", number=0):
    """A question whose answers are texts, each where the paragraph has it first."""
    found = tuple(
        answer if isinstance(answer, Answer) else Answer(answer, paragraph.index(answer))
        for answer in answers
    )
    return Question(f"q{number}", text, paragraph, found, f"place {number}")


# What is learned


def test_questions_without_answers_make_it_version_2():
    task = QuestionAnswering(TaskConfig(), TaskData())
    task.fit([question(answers=["cat"])])
    assert task.label_info == {"version_2": False}
    assert task.metrics == ("f1", "exact_match")
    with pytest.raises(UserError, match=r"place 3 has no answer, but every training question has one"):
        task.fit([question(answers=["cat"])], [question(answers=["cat"]), question(number=3)])
    task.fit([question(answers=["cat"]), question(number=3)], [question(number=4)])
    assert task.label_info == {"version_2": True}
    assert task.metrics == ("f1", "exact_match", "has_answer_f1", "no_answer_accuracy")
    assert QuestionAnswering(TaskConfig(), TaskData(), task.label_info).metrics == task.metrics


@pytest.mark.parametrize("answers", [[], [Answer("dog", 4)]])
def test_questions_without_any_answer_teach_nothing(answers):
    with pytest.raises(UserError, match=r"place 0: neither this nor any other .* answer_start"):
        QuestionAnswering(TaskConfig(), TaskData()).fit([question(answers=answers)])


def test_questions_on_one_paragraph_are_held_out_together():
    assert question(text="who").split_key == question(text="on ?").split_key == CAT


# Windows


def test_windows_go_on_by_the_stride_until_the_end_is_reached():
    example, begin, length = windows(np.array([10, 4, 0, 5]), np.array([4, 4, 3, 4]), 3)
    assert example.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert begin.tolist() == [0, 3, 6, 0, 0, 0, 3]
    assert length.tolist() == [4, 4, 4, 4, 0, 4, 2]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30))
def test_every_token_is_in_a_window_whatever_the_stride(tokens, room, stride):
    _, begin, length = windows(np.array([tokens]), np.array([room]), stride)
    assert set(range(tokens)) == {b + i for b, n in zip(begin, length, strict=True) for i in range(n)}
    assert (length[:-1] == room).all()
    assert (np.diff(begin) == min(stride, room)).all()
    assert length[-1] > 0 or tokens == 0


def test_targets_count_from_cls_and_are_cls_where_the_answer_is_not_whole():
    """[CLS] who [SEP] and 4 tokens of: the cat sat on the mat . | in sequences of 8, 2 tokens apart."""
    questions = [question(answers=["sat on"], text="who"), question(answers=["mat."], text="who", number=1)]
    encoded = task_of(doc_stride=2, max_question_tokens=1).encode(questions, TOKENIZER, 8)
    assert encoded.example.tolist() == [0, 0, 0, 1, 1, 1]
    assert encoded.begin.tolist() == [0, 2, 4, 0, 2, 4]
    assert encoded.lengths.tolist() == [8, 8, 7, 8, 8, 7]
    assert encoded.sequence_targets["start_positions"].tolist() == [5, 3, 0, 0, 0, 4]
    assert encoded.sequence_targets["end_positions"].tolist() == [6, 4, 0, 0, 0, 5]
    assert encoded.sequence_targets["span_weights"].tolist() == [1] * 6
    second = [ID[piece] for piece in ("who", "sat", "on", "the", "mat")]
    assert encoded.tokens[5:10].tolist() == second
    rows = Rows(encoded, TOKENIZER, 8, 1)
    placed = rows.sequences(np.arange(6), 0, 0)
    ids = rows.batch(np.arange(6), 0, 0)["input_ids"][placed.number.tolist().index(1)]
    assert ids.tolist() == [2, ID["who"], 3, *second[1:], 3]


def test_the_first_answer_that_is_there_is_learned():
    answers = [Answer("cat", 5), Answer("mat", 19), Answer("cat", 4)]
    encoded = task_of().encode([question(answers=answers, text="who")], TOKENIZER, 128)
    assert encoded.sequence_targets["start_positions"].tolist() == [3 + 5]


def test_no_answer_is_cls_and_is_learned_in_version_2_alone():
    for version_2 in (False, True):
        encoded = task_of(version_2).encode([question(), question(answers=["cat"])], TOKENIZER, 128)
        assert encoded.sequence_targets["start_positions"].tolist() == [0, 5]
        assert encoded.sequence_targets["end_positions"].tolist() == [0, 5]
        assert encoded.sequence_targets["span_weights"].tolist() == [float(version_2), 1.0]


def test_long_questions_are_cut_at_their_end():
    questions = [
        question(text="who sat on the mat ?", answers=["cat"]),
        question(text="who", answers=["cat"]),
    ]
    encoded = task_of(max_question_tokens=3).encode(questions, TOKENIZER, 32)
    assert encoded.length_a.tolist() == [3, 1]
    assert encoded.tokens[:3].tolist() == [ID["who"], ID["sat"], ID["on"]]
    assert encoded.num_cut == 1
    assert encoded.sequence_targets["start_positions"].tolist() == [6, 4]


def test_questions_must_leave_room_for_the_paragraph():
    task = task_of(max_question_tokens=29)
    with pytest.raises(UserError, match=r"task\.max_question_tokens=29 leaves .* data\.max_seq_length=32"):
        task.encode([question()], TOKENIZER, 32)
    assert task.encode([question(text="who " * 29)], TOKENIZER, 33).lengths.tolist() == [33] * 7


# Decoding


def perfect(encoded, height=5.0):
    """The outputs of a network that knows the targets."""
    return {
        side: [
            np.where(np.arange(length) == position, height, 0.0).astype(np.float32)
            for length, position in zip(
                encoded.lengths, encoded.sequence_targets[f"{side}_positions"], strict=True
            )
        ]
        for side in ("start", "end")
    }


@pytest.mark.parametrize("decoding", ["best_span", "argmax"])
def test_right_logits_give_the_answers_as_the_paragraph_writes_them(decoding):
    paragraph = "😀 The CAFÉS, the cafe\u0301s: 東京 ½ — “cat”\u00a0sat\tin\u3000old 京 👩\u200d👧."
    answers = [
        "CAFÉS",
        "cafe\u0301s",
        "東京",
        "京 👩\u200d👧",
        "cat",
        "old",
        "The CAFÉS, the cafe\u0301s",
        "sat\tin",
        "½",
    ]
    questions = [question(paragraph, [answer], "who", n) for n, answer in enumerate(answers)]
    task = task_of(doc_stride=7, max_question_tokens=2, decoding=decoding)
    encoded = task.encode(questions, TOKENIZER, 14)
    assert len(encoded.lengths) > 2 * len(questions)
    predictions = task.decode(perfect(encoded), encoded, questions)
    assert [prediction["prediction"] for prediction in predictions] == answers
    for prediction in predictions:
        assert paragraph[prediction["start"] : prediction["end"]] == prediction["prediction"]
    assert task.score(predictions, questions) == {"f1": 1.0, "exact_match": 1.0}


@pytest.mark.parametrize("decoding", ["best_span", "argmax"])
def test_a_paragraph_without_tokens_has_no_answer(decoding):
    questions = [question(" \u200b ", text="who"), question(answers=["cat"], text="who", number=1)]
    for version_2 in (False, True):
        task = task_of(version_2, decoding=decoding)
        encoded = task.encode(questions, TOKENIZER, 128)
        assert encoded.lengths.tolist() == [3, 11]
        empty, found = task.decode(perfect(encoded), encoded, questions)
        assert (empty["prediction"], empty["start"], empty["end"]) == ("", 0, 0)
        assert found["prediction"] == "cat"
        json.dumps(empty, allow_nan=False)


def test_the_best_span_is_joint_and_the_independent_one_is_not():
    start = [np.array([0.0, 1.0, 5.0, 2.0])]
    end = [np.array([1.0, 4.0, 0.0, 1.5])]
    begin = np.array([0])
    assert best_span(start, end, begin, 30) == Span(6.5, 2, 3)
    assert best_span(start, end, begin, 1) == Span(5.0, 1, 1)
    assert independent_span(start, end, begin) == Span(9.0, 2, 1)


def test_an_end_before_the_start_is_no_answer_for_argmax():
    examples = [question(answers=["cat"], text="who")]
    logits = {"start": np.array([[9, 9, 9, 0, 1, 5, 2, 0, 0, 0, 9]]),
              "end": np.array([[9, 9, 9, 0, 4, 0, 1.5, 0, 0, 0, 9]])}  # fmt: skip
    for decoding, expected in (
        ("argmax", {"prediction": "", "start": 0, "end": 0, "score": 9.0}),
        ("best_span", {"prediction": "sat on", "start": 8, "end": 14, "score": 6.5}),
    ):
        task = task_of(decoding=decoding)
        encoded = task.encode(examples, TOKENIZER, 128)
        assert task.decode(logits, encoded, examples) == [expected]


def test_a_span_counts_where_its_start_has_the_most_context():
    """Token 3 is the last of the first window and has a token on either side in the second."""
    begin = np.array([0, 2])
    assert max_context(begin, np.array([4, 4])).tolist() == [0, 0, 0, 1, 1, 1]
    zeros = np.zeros(4)
    high = np.array([0.0, 0.0, 0.0, 7.0])
    assert best_span([high, zeros], [zeros, zeros], begin, 3).score == 0.0
    assert best_span([zeros, high], [zeros, zeros], begin, 3) == Span(7.0, 5, 5)
    assert independent_span([high, zeros], [zeros, high], begin) == Span(14.0, 3, 5)


def official_max_context(begin, length, window, token):
    """`_check_is_max_context` of run_squad.py, as it stands there."""
    best_score = best = None
    for number, (start, count) in enumerate(zip(begin, length, strict=True)):
        end = start + count - 1
        if token < start or token > end:
            continue
        score = min(token - start, end - token) + 0.01 * count
        if best_score is None or score > best_score:
            best_score, best = score, number
    return window == best


def test_spans_are_those_of_trying_all():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tokens, room, stride, most = (int(rng.integers(1, high)) for high in (40, 15, 15, 8))
        _, begin, length = windows(np.array([tokens]), np.array([room]), stride)
        starts, ends = ([rng.normal(size=n) for n in length] for _ in range(2))
        tried = [
            (starts[w][i] + ends[w][j], int(begin[w]) + i, int(begin[w]) + j)
            for w, count in enumerate(length)
            for i in range(count)
            if official_max_context(begin, length, w, begin[w] + i)
            for j in range(i, min(count, i + most))
        ]
        assert best_span(starts, ends, begin, most) == pytest.approx(max(tried))


def test_no_answer_is_predicted_above_the_threshold_and_its_score_is_the_least_of_all_windows():
    """Two windows with [CLS] at 3 + 3 and 2 + 1; the best answer, cat, has 1.5 + 0.5: 3 - 2 = 1 above."""
    examples = [question(text="who")]
    logits = {"start": [np.zeros(8, np.float32), np.zeros(7, np.float32)],
              "end": [np.zeros(8, np.float32), np.zeros(7, np.float32)]}  # fmt: skip
    logits["start"][0][[0, 4]], logits["end"][0][[0, 4]] = (3.0, 1.5), (3.0, 0.5)
    logits["start"][1][0], logits["end"][1][0] = 2.0, 1.0
    cat = {"prediction": "cat", "start": 4, "end": 7, "score": 2.0}
    none = {"prediction": "", "start": 0, "end": 0, "score": 2.0}
    for threshold, expected in ((0.0, none), (0.99, none), (1.0, cat)):
        for decoding in ("best_span", "argmax"):
            task = task_of(
                True, doc_stride=4, max_question_tokens=1, null_threshold=threshold, decoding=decoding
            )
            encoded = task.encode(examples, TOKENIZER, 8)
            assert encoded.lengths.tolist() == [8, 7]
            assert task.decode(logits, encoded, examples) == [expected | {"null_score_diff": 1.0}]
    task = task_of(doc_stride=4, max_question_tokens=1)
    assert task.decode(logits, task.encode(examples, TOKENIZER, 8), examples) == [cat]


# Metrics


def test_scores_are_means_over_questions():
    """Exact match 1, 0, 1, 0 and F1 1, 2/3, 1, 0; the last two questions have no answer."""
    examples = [question(answers=answers, number=n) for n, answers in enumerate((["cat"], ["cat"], [], []))]
    predictions = [{"prediction": text} for text in ("The cat", "cat sat", "", "mat")]
    assert task_of(True).score(predictions, examples) == pytest.approx(
        {"f1": 2 / 3, "exact_match": 0.5, "has_answer_f1": 5 / 6, "no_answer_accuracy": 0.5}
    )
    assert task_of().score(predictions[:2], examples[:2]) == pytest.approx({"f1": 5 / 6, "exact_match": 0.5})
    for part, missing in ((slice(2), "no_answer_accuracy"), (slice(2, 4), "has_answer_f1")):
        assert task_of(True).score(predictions[part], examples[part])[missing] == 0.0


def test_tables_count_by_kind_of_question_and_hold_no_text():
    asked = (["cat"], "Who sat?"), (["cat"], "In what?"), ([], "who ?"), ([], "Name it")
    examples = [question(answers=answers, text=text, number=n) for n, (answers, text) in enumerate(asked)]
    predictions = [{"prediction": text} for text in ("The cat", "cat sat", "", "mat")]
    (table,) = task_of(True).tables(predictions, examples)
    assert table["columns"] == ["questions", "number", "exact match", "F1"]
    assert table["rows"] == [
        ["with an answer", 2, "50.0%", "83.3%"],
        ["without", 2, "50.0%", "50.0%"],
        ["who", 2, "100.0%", "100.0%"],
        ["other", 2, "0.0%", "33.3%"],
    ]
    (table,) = task_of().tables(predictions[:1], examples[:1])
    assert table["rows"] == [["who", 1, "100.0%", "100.0%"]]


def test_a_row_of_the_predictions_holds_what_is_known():
    prediction = {"prediction": "cat", "start": 4, "end": 7, "score": 1.0}
    assert task_of().row(question(answers=["cat", "mat"]), prediction) == {
        "id": "q0", "question": "who sat", "answers": ["cat", "mat"], **prediction
    }  # fmt: skip
    assert task_of().row(task_of().example("who", CAT), prediction) == {"question": "who", **prediction}


def test_a_question_needs_a_paragraph():
    assert task_of().example("who", CAT)[:4] == ("", "who", CAT, ())
    with pytest.raises(UserError, match="give the paragraph too, as the second text"):
        task_of().example("who")


# Packing


def packed_questions():
    texts = [
        ("The cat sat on the mat.", "cat"),
        ("The old cat", "old cat"),
        ("In 東京.", "東京"),
        (CAT * 2, "mat"),
    ]
    return [question(paragraph, [answer], "who", n) for n, (paragraph, answer) in enumerate(texts)]


def test_sequences_that_share_a_row_have_the_losses_and_logits_that_they_have_alone():
    task = task_of(doc_stride=6, max_question_tokens=3)
    encoded = task.encode(packed_questions(), TOKENIZER, 20)
    config = dataclasses.replace(tiny.MODEL, num_hidden_layers=1, initializer_range=0.5)
    structure, params = nnx.split(task.objective().build(config, nnx.Rngs(0), Compute()))

    @jax.jit
    def gradient_and_evaluation(params, batch):
        def loss(params):
            terms, outputs = task.objective().evaluate(nnx.merge(structure, params), batch)
            return terms["span_loss"][0], (terms, outputs)

        return jax.grad(loss, has_aux=True)(params)

    found = []
    for tokens, slots in ((20, 1), (32, 4)):
        rows = Rows(encoded, TOKENIZER, tokens, slots)
        which = np.arange(rows.num_rows + 1)  # the last is padding
        gradient, (terms, arrays) = gradient_and_evaluation(params, rows.batch(which, 0, 0))
        outputs = rows.by_sequence([jax.device_get(arrays)], len(which), task.per_token)
        found.append((terms, outputs, gradient, rows.num_rows))
    alone, packed = found
    assert packed[3] < alone[3] == len(encoded.lengths)
    np.testing.assert_allclose(packed[0]["span_loss"], alone[0]["span_loss"], rtol=1e-6)
    np.testing.assert_array_equal(packed[0]["span_accuracy"], alone[0]["span_accuracy"])
    for side in ("start", "end"):
        for number, length in enumerate(encoded.lengths):
            assert packed[1][side][number].shape == (length,)
            np.testing.assert_allclose(packed[1][side][number], alone[1][side][number], atol=2e-6)
    for x, y in zip(jax.tree.leaves(packed[2]), jax.tree.leaves(alone[2]), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
        assert np.isfinite(x).all()
