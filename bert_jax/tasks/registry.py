"""The downstream tasks there are, by the name that `task.name` gives them."""

from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.classification import Classification, Regression
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.downstream import Downstream
from bert_jax.tasks.question_answering import QuestionAnswering
from bert_jax.tasks.token_classification import TokenClassification

TASK_CLASSES: tuple[type[Downstream], ...] = (
    Classification, Regression, QuestionAnswering, TokenClassification
)  # fmt: skip

VERBS = {  # mode of `predict` -> the tasks whose checkpoints it uses
    kind.verb: tuple(other.name for other in TASK_CLASSES if other.verb == kind.verb) for kind in TASK_CLASSES
}


def task_class(name: str) -> type[Downstream]:
    """Returns the class of a task; raises UserError for a `task.name` that does not exist."""
    kinds = {kind.name: kind for kind in TASK_CLASSES}
    if name not in kinds:
        raise UserError(f"task.name={name!r} is unknown; use one of {', '.join(kinds)}.")
    return kinds[name]


def make_task(task: TaskConfig, data: TaskData, label_info: dict[str, Any] | None = None) -> Downstream:
    """Makes the task of a config; see `Downstream` for the arguments."""
    return task_class(task.name)(task, data, label_info)
