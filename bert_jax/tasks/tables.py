"""Tables of the report that several tasks show."""

from collections.abc import Sequence
from typing import Any


def scores_by_class(title: str, columns: Sequence[str], names: Sequence[str], scores: Any) -> dict[str, Any]:
    """Lists precision, recall, F1 and support of every class.

    Args:
        columns: the names of the five columns.
        names: of the classes.
        scores: four arrays [classes], what `precision_recall_fscore_support` returns for `average=None`.
    """
    rows = [
        [name, *(f"{value:.1%}" for value in values), int(support)]
        for name, *values, support in zip(names, *scores, strict=True)
    ]
    return {"title": title, "columns": list(columns), "rows": rows}


def confusion(title: str, names: Sequence[str], truth: Sequence[str], guess: Sequence[str]) -> dict[str, Any]:
    """Counts how often each class, by row, is predicted as each, by column."""
    from sklearn import metrics  # here, since importing it takes a second

    counts = metrics.confusion_matrix(truth, guess, labels=names)
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    return {"title": title, "columns": ["", *names], "rows": rows, "shaded": True}
