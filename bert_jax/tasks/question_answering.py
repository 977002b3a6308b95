"""Extractive question answering: the span of a paragraph that answers (Devlin et al., 2019, section 4.2)."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.objectives import SpanExtraction
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.downstream import SPECIALS, Downstream, Encoded, HubHead, Outputs, Predictions
from bert_jax.tasks.squad import Question, exact_match_and_f1, read_squad

ASKING = ("what", "who", "when", "where", "which", "why", "how")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows(Encoded):
    """Sequences [CLS] question [SEP] window of the paragraph [SEP].

    Attributes:
        begin: int64 [N], the token of the paragraph that a window begins with.
        offsets: of each example's paragraph, int32 [its tokens, 2], characters [start, end) of each token.
    """

    begin: np.ndarray
    offsets: list[np.ndarray]


class Span(NamedTuple):
    """Tokens first … last of a paragraph; none if last < first."""

    score: float  # logit of the start plus logit of the end
    first: int
    last: int


class QuestionAnswering(Downstream):
    """SQuAD 1.1, and 2.0 with questions that the paragraph does not answer."""

    name = "question_answering"
    verb = "answer"
    per_token = True
    num_outputs = 2
    hub = HubHead("ForQuestionAnswering", "question-answering", "qa_outputs", extra_keys=("version_2",))
    too_long = "questions are longer than task.max_question_tokens"

    def __init__(self, task: TaskConfig, data: TaskData, label_info: dict[str, Any] | None = None):
        super().__init__(task, data, label_info or {"version_2": False})

    @property
    def metrics(self) -> tuple[str, ...]:
        of_version_2 = ("has_answer_f1", "no_answer_accuracy") if self.label_info["version_2"] else ()
        return "f1", "exact_match", *of_version_2

    def read(self, source: str, key: str, labelled: bool = True) -> list[Question]:
        return read_squad(source, key, labelled)

    def example(self, text: str, second: str | None = None) -> Question:
        if second is None:
            raise UserError("this checkpoint answers questions: give the paragraph too, as the second text.")
        return Question("", text, second, (), "")

    def _infer_label_info(self, train: Sequence[Question]) -> dict[str, Any]:
        """Returns whether some training questions have no answer, as in SQuAD 2.0."""
        if not any(example.span for example in train):
            raise UserError(
                f"{train[0].place}: neither this nor any other training question has an answer at its "
                "answer_start; nothing can be learned. Correct answer_start in the file."
            )
        return {"version_2": any(not example.answers for example in train)}

    def _check(self, example: Question) -> None:
        if not example.answers and not self.label_info["version_2"]:
            raise UserError(
                f"{example.place} has no answer, but every training question has one; leave it out, or train "
                "on questions without an answer too, as in SQuAD 2.0."
            )

    def encode(self, examples: Sequence[Question], tokenizer: Tokenizer, max_seq_length: int) -> Windows:
        """Truncates long questions and splits long paragraphs into windows, `task.doc_stride` tokens apart.

        Target positions count from [CLS], and are 0 if a window does not hold the whole answer.
        `span_weights` is 0 if the question has no answer to learn, because it is unknown or not in the
        paragraph; such windows are for evaluation only.

        Raises:
            UserError: if `task.max_question_tokens` leaves no room for a paragraph.

        Source: `convert_examples_to_features` of google-research/bert, run_squad.py.
        """
        limit, stride = self._task.max_question_tokens, self._task.doc_stride
        if limit + SPECIALS >= max_seq_length:
            raise UserError(
                f"task.max_question_tokens={limit} leaves no room for a paragraph in "
                f"data.max_seq_length={max_seq_length}; shorten questions or lengthen sequences."
            )
        questions = tokenizer.encode([example.text for example in examples])
        texts = list(dict.fromkeys(example.paragraph for example in examples))
        ids_of = dict(zip(texts, tokenizer.encode_with_offsets(texts), strict=True))
        paragraphs = [ids_of[example.paragraph] for example in examples]
        length_a = np.array([min(len(ids), limit) for ids in questions], np.int64)
        length = np.array([len(ids) for ids, _ in paragraphs], np.int64)
        example, begin, length_b = windows(length, max_seq_length - SPECIALS - length_a, stride)
        parts = [
            part
            for number, start, count in zip(example, begin, length_b, strict=True)
            for part in (questions[number][:limit], paragraphs[number][0][start : start + count])
        ]
        encoded = Windows(
            tokens=np.fromiter(itertools.chain(*parts), np.int32),
            length_a=length_a[example],
            length_b=length_b,
            example=example,
            num_cut=sum(len(ids) > limit for ids in questions),
            begin=begin,
            offsets=[offsets for _, offsets in paragraphs],
        )
        return dataclasses.replace(encoded, sequence_targets=self._targets(examples, encoded))

    def _targets(self, examples: Sequence[Question], encoded: Windows) -> dict[str, np.ndarray]:
        spans = [tokens_of(e.span, offsets) for e, offsets in zip(examples, encoded.offsets, strict=True)]
        first, last = np.array(spans, np.int64).reshape(-1, 2).T
        none = np.array([self.label_info["version_2"] and not e.answers for e in examples], bool)
        learned = (first <= last) | none
        first, last = first[encoded.example], last[encoded.example]
        end = encoded.begin + encoded.length_b
        inside = (encoded.begin <= first) & (first <= last) & (last < end)
        # From the number of a token in the paragraph to its position in the sequence.
        shift = encoded.length_a + SPECIALS - 1 - encoded.begin
        return {
            "start_positions": np.where(inside, first + shift, 0).astype(np.int32),
            "end_positions": np.where(inside, last + shift, 0).astype(np.int32),
            "span_weights": learned[encoded.example].astype(np.float32),
        }

    def objective(self) -> SpanExtraction:
        return SpanExtraction()

    def decode(self, outputs: Outputs, encoded: Encoded, examples: Sequence[Question]) -> Predictions:
        """Returns {"prediction": text, "start", "end": its characters, "score": sum of logits}.

        The text is part of the paragraph; "" is no answer. Version 2 predicts no answer if
        "null_score_diff", the score of [CLS] (the least over all windows) minus that of the answer, is above
        `task.null_threshold`, as run_squad.py does.
        """
        assert isinstance(encoded, Windows)
        bounds = np.searchsorted(encoded.example, np.arange(len(examples) + 1))
        best = functools.partial(best_span, max_tokens=self._task.max_answer_tokens)
        find: Callable[..., Span] = best if self._task.decoding == "best_span" else independent_span
        results = []
        for number, example in enumerate(examples):
            of_example = range(bounds[number], bounds[number + 1])
            starts, ends = ([outputs[side][n] for n in of_example] for side in ("start", "end"))
            null = min(float(start[0]) + float(end[0]) for start, end in zip(starts, ends, strict=True))
            passages = [slice(-1 - encoded.length_b[n], -1) for n in of_example]
            span = Span(null, 0, -1)
            if len(offsets := encoded.offsets[number]):
                inner = ([x[part] for x, part in zip(side, passages, strict=True)] for side in (starts, ends))
                span = find(*inner, encoded.begin[of_example.start : of_example.stop])
            results.append(self._prediction(example, span, null, offsets))
        return results

    def _prediction(self, example: Question, span: Span, null: float, offsets: np.ndarray) -> dict[str, Any]:
        version_2, start, end = self.label_info["version_2"], 0, 0
        if span.first <= span.last and not (version_2 and null - span.score > self._task.null_threshold):
            start, end = int(offsets[span.first, 0]), int(offsets[span.last, 1])
        result = {"prediction": example.paragraph[start:end], "start": start, "end": end}
        result["score"] = round(span.score, 6)
        return result | ({"null_score_diff": round(null - span.score, 6)} if version_2 else {})

    def score(self, predictions: Sequence[Any], examples: Sequence[Question]) -> dict[str, float]:
        """Computes the official metrics of SQuAD as shares, from 0 to 1 (see `exact_match_and_f1`).

        Version 2 adds the F1 of questions with an answer, and the share of right predictions for questions
        without one; 0 if there is no such question.
        """
        exact, f1, answered = self._agreement(predictions, examples)
        result = {"f1": float(f1.mean()), "exact_match": float(exact.mean())}
        if self.label_info["version_2"]:
            result["has_answer_f1"] = float(f1[answered].mean()) if answered.any() else 0.0
            result["no_answer_accuracy"] = float(exact[~answered].mean()) if not answered.all() else 0.0
        return result

    def _agreement(
        self, predictions: Sequence[Any], examples: Sequence[Question]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns exact match and F1 of each example, and whether it has an answer."""
        version_2 = self.label_info["version_2"]
        both = [
            exact_match_and_f1(found["prediction"], [answer.text for answer in example.answers], version_2)
            for found, example in zip(predictions, examples, strict=True)
        ]
        exact, f1 = np.array(both).T
        return exact, f1, np.array([bool(example.answers) for example in examples])

    def tables(self, predictions: Sequence[Any], examples: Sequence[Question]) -> list[dict[str, Any]]:
        exact, f1, answered = self._agreement(predictions, examples)
        asking = [next((w for w in e.text.lower().split() if w in ASKING), "other") for e in examples]
        kinds = {word: np.array(asking) == word for word in (*ASKING, "other")}
        if self.label_info["version_2"]:
            kinds = {"with an answer": answered, "without": ~answered} | kinds
        rows = [
            [name, int(of_kind.sum()), f"{exact[of_kind].mean():.1%}", f"{f1[of_kind].mean():.1%}"]
            for name, of_kind in kinds.items()
            if of_kind.any()
        ]
        columns = ["questions", "number", "exact match", "F1"]
        return [{"title": "By kind of question", "columns": columns, "rows": rows}]


def windows(tokens: np.ndarray, room: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places windows of at most `room` tokens over paragraphs, `stride` tokens apart but never further than
    they are long, until one reaches the end. A paragraph without tokens has one window.

    Args:
        tokens, room: int64 [examples], the tokens of each paragraph and of its windows.

    Returns:
        Example, first token, and number of tokens of each window.
    """
    apart = np.minimum(stride, room)
    counts = 1 + np.maximum(0, -((room - tokens) // apart))  # the ceiling of what is left over strides
    example = np.repeat(np.arange(len(tokens)), counts)
    begin = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * apart[example]
    return example, begin, np.minimum(room[example], tokens[example] - begin)


def tokens_of(span: tuple[int, int] | None, offsets: np.ndarray) -> tuple[int, int]:
    """Returns the first and last token that overlap a span of characters; (0, -1) if there is no span."""
    if span is None:
        return 0, -1
    starts, ends = offsets.T
    return int(np.searchsorted(ends, span[0], "right")), int(np.searchsorted(starts, span[1], "left")) - 1


def best_span(
    starts: Sequence[np.ndarray], ends: Sequence[np.ndarray], begin: np.ndarray, max_tokens: int
) -> Span:
    """Finds the span of at most `max_tokens` tokens with the highest sum of logits.

    A token in several windows counts as a start only in the window that gives it the most context.

    Args:
        starts, ends: for each window over a paragraph the logits of its tokens, float [length].
        begin: ints [windows], the token that it begins with.

    Source: `write_predictions` of google-research/bert, run_squad.py; it tries the 20 best starts and ends.
    """
    best = Span(-np.inf, 0, -1)
    owner = max_context(begin, np.array([len(start) for start in starts]))
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        most = min(max_tokens, len(end))
        padded = np.concatenate([end, np.full(most - 1, -np.inf)])
        end_from = np.lib.stride_tricks.sliding_window_view(padded, most)  # [length, most]
        total = start + end_from.max(axis=1)
        total[owner[begin[number] :][: len(start)] != number] = -np.inf
        if (score := total[first := int(np.argmax(total))]) > best.score:
            token = int(begin[number]) + first
            best = Span(float(score), token, token + int(np.argmax(end_from[first])))
    return best


def independent_span(starts: Sequence[np.ndarray], ends: Sequence[np.ndarray], begin: np.ndarray) -> Span:
    """Finds the best start and the best end independently, over all windows; arguments as `best_span`."""
    token = np.concatenate([np.arange(len(start)) + at for start, at in zip(starts, begin, strict=True)])
    start, end = np.concatenate(starts), np.concatenate(ends)
    first, last = np.argmax(start), np.argmax(end)
    return Span(float(start[first] + end[last]), int(token[first]), int(token[last]))


def max_context(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Returns the window with the most context for each token, int64 [tokens]; the first of equals.

    The context of a token is the smaller of its distances to both ends, plus 1% of the window's length.

    Source: `_check_is_max_context` of google-research/bert, run_squad.py.
    """
    token = np.arange(np.max(begin + length))
    least = np.minimum(token - begin[:, None], (begin + length)[:, None] - 1 - token)
    return np.argmax(np.where(least >= 0, 100 * least + length[:, None], -1), axis=0)
