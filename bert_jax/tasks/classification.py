"""Classification of single texts and of pairs, and regression: one dense layer over the pooled [CLS]."""

import abc
import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.objectives import SequenceClassification, SequenceRegression
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.downstream import SPECIALS, Downstream, Encoded, HubHead, Outputs, Predictions
from bert_jax.tasks.records import column, read_records, text_column
from bert_jax.tasks.tables import confusion, scores_by_class

SEQUENCES = ("ForSequenceClassification", "text-classification")  # of the hub


class Example(NamedTuple):
    text: str
    pair: str | None
    label: Any  # a class's name, a number, or None
    place: str

    @property
    def split_key(self) -> str:
        return self.text if self.pair is None else f"{self.text}\t{self.pair}"

    def display_fields(self) -> dict[str, Any]:
        known = {"text": self.text, "text_pair": self.pair, "label": self.label}
        return {name: value for name, value in known.items() if value is not None}


class _Sequences(Downstream):
    """Base class of classification and regression: one label for each sequence."""

    verb = "classify"

    def __init__(self, task: TaskConfig, data: TaskData, label_info: dict[str, Any] | None = None):
        super().__init__(task, data, label_info or {"pairs": bool(data.text_pair)})

    def read(self, source: str, key: str, labelled: bool = True) -> list[Example]:
        records = read_records(source, key, self._data.header)
        columns = self._data
        texts = text_column(records, columns.text, "data.text")
        pairs = [None] * len(texts)
        if self.label_info["pairs"]:
            pairs = text_column(records, columns.text_pair, "data.text_pair")
        if labelled:
            column(records[:1], columns.label, "data.label")  # one that no row has is misspelt
        return [
            Example(text, pair, self._label(values.get(columns.label), place) if labelled else None, place)
            for text, pair, (place, values) in zip(texts, pairs, records, strict=True)
        ]

    def example(self, text: str, second: str | None = None) -> Example:
        if (second is not None) != self.label_info["pairs"]:
            kind = "single texts, not pairs" if second is not None else "pairs: give the second text too"
            raise UserError(f"this checkpoint was fine-tuned on {kind}.")
        return Example(text, second, None, "")

    @abc.abstractmethod
    def _label(self, value: Any, place: str) -> Any:
        """Converts the value of a column to a label; raises UserError if it is not one."""

    def encode(self, examples: Sequence[Example], tokenizer: Tokenizer, max_seq_length: int) -> Encoded:
        """Truncates texts that are longer than a row; of a pair the longer text, token by token.

        Source: `_truncate_seq_pair` of google-research/bert, run_classifier.py.
        """
        ids_a = tokenizer.encode([example.text for example in examples])
        ids_b = tokenizer.encode([example.pair or "" for example in examples])
        num_cut = 0
        for a, b in zip(ids_a, ids_b, strict=True):
            surplus = len(a) + len(b) + (SPECIALS if b else SPECIALS - 1) - max_seq_length
            num_cut += surplus > 0
            for _ in range(surplus):
                (a if len(a) > len(b) else b).pop()
        return Encoded(
            tokens=np.array([token for a, b in zip(ids_a, ids_b, strict=True) for token in a + b], np.int32),
            length_a=np.array([len(a) for a in ids_a], np.int64),
            length_b=np.array([len(b) for b in ids_b], np.int64),
            example=np.arange(len(examples)),
            sequence_targets=self._targets(examples),
            num_cut=num_cut,
        )

    @abc.abstractmethod
    def _targets(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns the `labels` [N] to learn; any value for an example without a label."""


class Classification(_Sequences):
    """Single-label classification (Devlin et al., 2019, section 4.1)."""

    name = "classification"
    metrics = ("accuracy", "f1", "macro_f1", "matthews")
    frozen = True
    hub = HubHead(*SEQUENCES, problem_type="single_label_classification", extra_keys=("pairs",))

    def _infer_label_info(self, train: Sequence[Example]) -> dict[str, Any]:
        """Returns the classes of the training examples, unless the config names the classes."""
        named = self._data.class_names
        found = sorted({example.label for example in train})
        if len(named) == 1:
            raise UserError(
                f"data.labels={self._data.labels!r} names one class; name all of them, separated by commas, "
                "or leave it empty."
            )
        if not named and len(found) < 2:
            raise UserError(
                f"data.label={self._data.label!r}: every example has the label {found[0]!r}; nothing can be "
                "learned from one class. Is it the right column?"
            )
        return {"labels": named or found}

    def _check(self, example: Example) -> None:
        if example.label not in self.labels:
            raise UserError(
                f"{example.place}: the label {example.label!r} is unknown; the classes are "
                f"{', '.join(self.labels[:20])}. Correct the file, or name all classes in data.labels."
            )

    def _label(self, value: Any, place: str) -> str:
        return class_label(value, place, f"data.label={self._data.label!r}")

    def _targets(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        number = self.label_numbers
        return {"labels": np.array([number.get(example.label, 0) for example in examples], np.int32)}

    def objective(self) -> SequenceClassification:
        return SequenceClassification(len(self.labels))

    def decode(self, outputs: Outputs, _encoded: Encoded, _examples: Sequence[Any]) -> Predictions:
        """Returns {"prediction": the most probable class, "probabilities": by class}."""
        predictions = []
        for values in outputs["probabilities"]:
            shares = {label: round(float(p), 6) for label, p in zip(self.labels, values, strict=True)}
            predictions.append({"prediction": self.labels[int(np.argmax(values))], "probabilities": shares})
        return predictions

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Computes accuracy, F1, the mean F1 over classes, and Matthews' correlation.

        F1 is that of the second class if there are two classes, else the mean.
        """
        from sklearn import metrics  # here, since importing it takes a second

        truth, guess = _labels(predictions, examples)
        macro = metrics.f1_score(truth, guess, labels=self.labels, average="macro", zero_division=0)
        f1 = macro
        if len(self.labels) == 2:
            f1 = metrics.f1_score(truth, guess, pos_label=self.labels[1], zero_division=0)
        # scikit-learn warns if it sees one class only.
        matthews = metrics.matthews_corrcoef(truth, guess) if len({*truth, *guess}) > 1 else 0.0
        values = metrics.accuracy_score(truth, guess), f1, macro, matthews
        return dict(zip(self.metrics, map(float, values), strict=True))

    def tables(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        from sklearn import metrics

        truth, guess = _labels(predictions, examples)
        scores = metrics.precision_recall_fscore_support(truth, guess, labels=self.labels, zero_division=0)
        columns = ["label", "precision", "recall", "F1", "examples"]
        return [
            scores_by_class("By label", columns, self.labels, scores),
            confusion("Confusion: truth by row, prediction by column", self.labels, truth, guess),
        ]


class Regression(_Sequences):
    """One number for a text or a pair, learned by squared error on standardised targets."""

    name = "regression"
    metrics = ("spearman", "pearson")
    num_outputs = 1
    hub = HubHead(*SEQUENCES, problem_type="regression", extra_keys=("pairs",))

    def _infer_label_info(self, train: Sequence[Example]) -> dict[str, Any]:
        """Returns mean and standard deviation of the training numbers."""
        values = np.array([example.label for example in train])
        if not values.std() > 0:
            raise UserError(
                f"data.label={self._data.label!r}: every example has the number {values[0]:g}; "
                "nothing can be learned from that. Is it the right column?"
            )
        return {"mean": float(values.mean()), "deviation": float(values.std())}

    def _check(self, example: Example) -> None:
        """Accepts every example: `read` refuses what is not a number."""

    def _label(self, value: Any, place: str) -> float:
        return number_label(value, place, f"data.label={self._data.label!r}")

    def _targets(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        labels = np.array([example.label or 0.0 for example in examples])
        standardised = (labels - self.label_info["mean"]) / self.label_info["deviation"]
        return {"labels": standardised.astype(np.float32)}

    def objective(self) -> SequenceRegression:
        return SequenceRegression()

    def decode(self, outputs: Outputs, _encoded: Encoded, _examples: Sequence[Any]) -> Predictions:
        """Returns {"prediction": number in the units of the data}."""
        mean, deviation = self.label_info["mean"], self.label_info["deviation"]
        return [{"prediction": round(float(value) * deviation + mean, 6)} for value in outputs["values"]]

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Computes Spearman's and Pearson's correlation; 0 if all predictions are the same."""
        truth, guess = _labels(predictions, examples)
        if len(set(guess)) < 2 or len(set(truth)) < 2:
            return dict.fromkeys(self.metrics, 0.0)
        found = scipy.stats.spearmanr(truth, guess), scipy.stats.pearsonr(truth, guess)
        return {name: float(each.statistic) for name, each in zip(self.metrics, found, strict=True)}

    def tables(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        errors = np.abs(np.subtract(*_labels(predictions, examples)))
        rows = [["mean absolute error", f"{errors.mean():.4g}"], ["largest", f"{errors.max():.4g}"]]
        return [{"title": "Errors", "columns": ["", "in the units of the data"], "rows": rows}]


def class_label(value: Any, place: str, column: str) -> str:
    """Returns the name of a class: a text without the white space around it, a number, or True or False.

    JSON has NaN where pandas missed a value; CSV has an empty cell. Raises UserError if there is no label.
    """
    is_known = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    if not (is_known and (label := str(value).strip())):
        found = "" if value in (None, "") else f", but {repr(value)[:60]}"
        raise UserError(f"{place} has no label in column {column}{found}; write one, or remove the example.")
    return label


def number_label(value: Any, place: str, column: str) -> float:
    """Returns the number that a value of a `column` is; raises UserError if it is none."""
    number = np.nan
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        # Python would read true as 1, and 2020_01 as 202001.
        number = np.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    if not np.isfinite(number):
        raise UserError(f"{place} has {repr(value)[:60]} in column {column}, which is not a number.")
    return number


def _labels(predictions: Sequence[Any], examples: Sequence[Example]) -> tuple[list[Any], list[Any]]:
    """Returns the true and the predicted label of every example."""
    return [example.label for example in examples], [prediction["prediction"] for prediction in predictions]
