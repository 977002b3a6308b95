"""Classification of single texts and of pairs, and regression: one dense layer over the pooled [CLS]."""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
import sklearn.metrics

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.objectives import SequenceClassification, SequenceRegression
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.downstream import SPECIALS, Downstream, Encoded, HubHead, Outputs, Predictions
from bert_jax.tasks.records import read_records, text_column

SEQUENCES = ("BertForSequenceClassification", "text-classification")  # of the hub


class Example(NamedTuple):
    text: str
    pair: str | None
    label: Any  # a class's name, a number, or None
    place: str

    @property
    def split_key(self) -> str:
        return self.text if self.pair is None else f"{self.text}\t{self.pair}"

    def display_fields(self) -> dict[str, Any]:
        pair = {} if self.pair is None else {"text_pair": self.pair}
        label = {} if self.label is None else {"label": self.label}
        return {"text": self.text} | pair | label


class _Sequences(Downstream):
    """Base class of classification and regression: one label for each sequence."""

    verb = "classify"

    def __init__(self, task: TaskConfig, data: TaskData, label_info: dict[str, Any] | None = None):
        super().__init__(task, data, label_info or {"pairs": bool(data.text_pair)})

    def read(self, source: str, key: str, labelled: bool = True) -> list[Example]:
        records = read_records(source, key, self._data.header)
        columns = self._data
        texts = text_column(records, columns.text, "data.text")
        pairs: Sequence[str | None] = [None] * len(texts)
        if self.label_info["pairs"]:
            pairs = text_column(records, columns.text_pair, "data.text_pair")
        labels: Sequence[Any] = [None] * len(texts)
        if labelled:
            labels = [self._label(record.values.get(columns.label), record.place) for record in records]
        places = [record.place for record in records]
        return [Example(*values) for values in zip(texts, pairs, labels, places, strict=True)]

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
            token_targets={},
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

    @property
    def labels(self) -> list[str]:
        return self.label_info["labels"]

    def _infer_label_info(self, train: Sequence[Example]) -> dict[str, Any]:
        """Returns the classes of the training examples, unless the config names the classes."""
        named = self._data.class_names
        found = sorted({example.label for example in train})
        if len(named or found) < 2:
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
        if value is None or value == "":
            raise UserError(f"{place} has no label in column data.label={self._data.label!r}.")
        return str(value)

    def _targets(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        number = {label: index for index, label in enumerate(self.labels)}
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
        truth = [example.label for example in examples]
        guess = [prediction["prediction"] for prediction in predictions]
        macro = sklearn.metrics.f1_score(truth, guess, labels=self.labels, average="macro", zero_division=0)
        f1 = macro
        if len(self.labels) == 2:
            f1 = sklearn.metrics.f1_score(truth, guess, pos_label=self.labels[1], zero_division=0)
        # scikit-learn warns if it sees one class only.
        matthews = sklearn.metrics.matthews_corrcoef(truth, guess) if len({*truth, *guess}) > 1 else 0.0
        values = sklearn.metrics.accuracy_score(truth, guess), f1, macro, matthews
        return dict(zip(self.metrics, map(float, values), strict=True))

    def tables(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        truth = [example.label for example in examples]
        guess = [prediction["prediction"] for prediction in predictions]
        precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
            truth, guess, labels=self.labels, zero_division=0
        )
        by_label = [
            [label, *(f"{value:.1%}" for value in (precision[n], recall[n], f1[n])), int(support[n])]
            for n, label in enumerate(self.labels)
        ]
        confusion = sklearn.metrics.confusion_matrix(truth, guess, labels=self.labels)
        return [
            {"title": "By label", "columns": ["label", "precision", "recall", "F1", "examples"],
             "rows": by_label},
            {"title": "Confusion: truth by row, prediction by column", "columns": ["", *self.labels],
             "rows": [[label, *map(int, row)] for label, row in zip(self.labels, confusion, strict=True)],
             "shaded": True},
        ]  # fmt: skip


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

    def _label(self, value: Any, place: str) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if not np.isfinite(number):
            raise UserError(
                f"{place} has {value!r} in column data.label={self._data.label!r}, which is not a number."
            )
        return number

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
        truth = [example.label for example in examples]
        guess = [prediction["prediction"] for prediction in predictions]
        if len(set(guess)) < 2 or len(set(truth)) < 2:
            return dict.fromkeys(self.metrics, 0.0)
        return {
            "spearman": float(scipy.stats.spearmanr(truth, guess).statistic),
            "pearson": float(scipy.stats.pearsonr(truth, guess).statistic),
        }

    def tables(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[dict[str, Any]]:
        errors = np.array([p["prediction"] - e.label for p, e in zip(predictions, examples, strict=True)])
        rows = [
            ["mean absolute error", f"{np.abs(errors).mean():.4g}"],
            ["largest", f"{np.abs(errors).max():.4g}"],
        ]
        return [{"title": "Errors", "columns": ["", "in the units of the data"], "rows": rows}]
