"""SQuAD (Rajpurkar et al., 2016 and 2018): questions on paragraphs, and the official metrics."""

import collections
import logging
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bert_jax.errors import UserError
from bert_jax.tasks.input import read_text, suffix_of
from bert_jax.tasks.records import LINES_OF_TEXT, Record, parse_json, read_records

log = logging.getLogger("bert_jax")
WORDS = {list: "a list", str: "a text", int: "a number"}
ANSWER = ("text", "answer_start")
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
    text: str
    start: int  # the paragraph's character that it begins with


class Question(NamedTuple):
    id: str
    text: str
    paragraph: str
    answers: tuple[Answer, ...]  # empty: the paragraph has no answer, or the answer is unknown
    place: str

    @property
    def split_key(self) -> str:
        """The paragraph, so that all of its questions are in one split."""
        return self.paragraph

    def display_fields(self) -> dict[str, Any]:
        known = {"id": self.id, "question": self.text, "answers": [answer.text for answer in self.answers]}
        return {name: value for name, value in known.items() if value or name == "question"}

    def holds(self, answer: Answer) -> bool:
        """Returns whether the paragraph has the answer's text at the answer's start."""
        return bool(answer.text) and answer.start >= 0 and self.paragraph.startswith(*answer)

    @property
    def span(self) -> tuple[int, int] | None:
        """Characters [start, end) of the first answer that the paragraph holds."""
        found = next(filter(self.holds, self.answers), None)
        return (found.start, found.start + len(found.text)) if found else None


def read_squad(source: str, key: str, labelled: bool) -> list[Question]:
    """Reads the questions of SQuAD's FILE.json, or records with id, context, question and answers.

    Records come from FILE.jsonl or tfds:NAME[:SPLIT]; their answers are {"text": list, "answer_start":
    list}. Logs how many answers are not at their answer_start.

    Args:
        source: the file or dataset; `key` is the config key or flag that gave it.
        labelled: whether to read answers.

    Raises:
        UserError: for data of another format, naming the place.
    """
    is_dataset, suffix = source.startswith("tfds:"), suffix_of(source)
    if not is_dataset and suffix not in (".json", ".jsonl"):
        raise UserError(
            f"{key}={source}: this task reads SQuAD's .json, .jsonl (also .gz, .xz, .zst, .bz2) and "
            f"tfds:NAME; {LINES_OF_TEXT}: question, tab, paragraph."
        )
    from_json = suffix == ".json" and not is_dataset
    records = _file_records(source, key) if from_json else read_records(source, key)
    questions = [_question(record, labelled) for record in records]
    if not questions:
        raise UserError(f"{key}={source} has no question.")
    places: dict[str, str] = {}
    for question in questions:
        if (first := places.setdefault(question.id, question.place)) != question.place:
            raise UserError(f"{question.place} has the id {question.id!r} of {first}; ids must differ.")
    if lost := [q.place for q in questions for answer in q.answers if not q.holds(answer)]:
        log.warning(
            "%s: %d answers are not at their answer_start and are not learned; the first: %s",
            source, len(lost), lost[0],
        )  # fmt: skip
    return questions


def _file_records(source: str, key: str) -> Iterator[Record]:
    content, _ = read_text(source, key)
    try:
        file = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}={source} is not JSON ({error}).") from None
    for a, article in enumerate(_field(file, "data", list, source)):
        in_article = f"{source}, data[{a}]"
        for p, paragraph in enumerate(_field(article, "paragraphs", list, in_article)):
            in_paragraph = f"{in_article}.paragraphs[{p}]"
            context = _field(paragraph, "context", str, in_paragraph)
            for q, question in enumerate(_field(paragraph, "qas", list, in_paragraph)):
                place = f"{in_paragraph}.qas[{q}]"
                _field(question, "question", str, place)  # so it is an object
                yield Record(place, question | {"context": context})


def _question(record: Record, labelled: bool) -> Question:
    place, values = record
    identity = values.get("id")
    return Question(
        str(identity) if type(identity) is int else _field(values, "id", str, place),
        _field(values, "question", str, place),
        _field(values, "context", str, place),
        _answers(values, place) if labelled else (),
        place,
    )


def _answers(values: dict[str, Any], place: str) -> tuple[Answer, ...]:
    found, within = values.get("answers"), f"{place}.answers"
    if isinstance(found, dict):  # by column, as TFDS stores them
        columns = [_field(found, name, list, within) for name in ANSWER]
        if len(columns[0]) != len(columns[1]):
            raise UserError(f"{within} has {len(columns[0])} texts and {len(columns[1])} times answer_start.")
        found = [dict(zip(ANSWER, column, strict=True)) for column in zip(*columns, strict=True)]
    else:
        found = _field(values, "answers", list, place)
    answers = tuple(
        Answer(_field(answer, "text", str, within), _field(answer, "answer_start", int, within))
        for answer in found
    )
    impossible = values.get("is_impossible")
    if impossible is not None and bool(impossible) == bool(answers):
        raise UserError(
            f"{place} has is_impossible={bool(impossible)}, but {len(answers)} answers; correct the file."
        )
    return answers


def _field(values: Any, name: str, kind: type, place: str) -> Any:
    value = values.get(name) if isinstance(values, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        found = "" if value is None else f", but {repr(value)[:60]}"
        raise UserError(f"{place} has no {name} ({WORDS[kind]}){found}; give data in SQuAD's format.")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write
            raise UserError(f"{place}: {name} is not a text ({error}); correct the file.") from None
    return value


def normalized(answer: str) -> str:
    """Removes case, punctuation, articles and repeated spaces from an answer.

    Source: `normalize_answer` of SQuAD's evaluate-v1.1.py and evaluate-v2.0.py.
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact_match_and_f1(prediction: str, answers: Sequence[str], version_2: bool) -> tuple[float, float]:
    """Compares a prediction with the true answer that it agrees with best: equality, and F1 of the words.

    Args:
        prediction: "" for no answer.
        answers: the true answers; empty if the question has none, which version 2 may predict.
        version_2: whether to count as evaluate-v2.0.py does, rather than evaluate-v1.1.py.
    """
    truths = [normalized(answer) for answer in answers]
    if version_2:
        truths = [truth for truth in truths if truth] or [""]
    guess = normalized(prediction)
    exact = max((float(truth == guess) for truth in truths), default=0.0)
    if truths == [""] and version_2:
        return exact, exact
    return exact, max((_f1(guess.split(), truth.split()) for truth in truths), default=0.0)


def _f1(guess: list[str], truth: list[str]) -> float:
    same = (collections.Counter(guess) & collections.Counter(truth)).total()
    return 2 * same / (len(guess) + len(truth)) if same else 0.0
