"""The heads of Hugging Face's BERT: the architecture of each task of ours, and what config.json says of it.

A task is one of `bert_jax.tasks.config.TASKS`, or `PRETRAINING`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining, BertForSequences, BertForTokens

PRETRAINING = "none"
POOLER = "encoder/pooler"


class Head(NamedTuple):
    """An architecture of theirs and the module of ours that computes the same."""

    architecture: str
    auto_class: str  # that users load it with
    pipeline: str  # of the model hub
    module: Callable[..., nnx.Module]  # of ours
    names: dict[str, str]  # of the modules that are not the encoder's: ours -> theirs
    optional: tuple[str, ...] = ()  # modules of ours that a file need not have
    problem_type: str | None = None

    @property
    def pooled(self) -> bool:
        """Whether their architecture has a pooler; ours always do."""
        return self.module is not BertForTokens

    def build(self, model: ModelConfig, num_labels: int) -> Callable[[nnx.Rngs], nnx.Module]:
        """What makes the module; `num_labels` does not matter to pretraining."""
        sizes = (model,) if self.module is BertForPreTraining else (model, num_labels)
        return lambda rngs: self.module(*sizes, rngs)


PRETRAINING_NAMES = {
    "masked_lm": "cls.predictions",
    "masked_lm/transform": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
}
CLASSIFIER = {"classifier": "classifier"}
SEQUENCES = ("BertForSequenceClassification", "AutoModelForSequenceClassification", "text-classification")
HEADS = {
    PRETRAINING: Head("BertForPreTraining", "AutoModelForMaskedLM", "fill-mask", BertForPreTraining,
                      PRETRAINING_NAMES, (POOLER, "masked_lm", "next_sentence")),
    "classification": Head(*SEQUENCES, BertForSequences, CLASSIFIER,
                           problem_type="single_label_classification"),
    "regression": Head(*SEQUENCES, BertForSequences, CLASSIFIER, problem_type="regression"),
    "question_answering": Head("BertForQuestionAnswering", "AutoModelForQuestionAnswering",
                               "question-answering", BertForTokens, {"classifier": "qa_outputs"}, (POOLER,)),
    "token_classification": Head("BertForTokenClassification", "AutoModelForTokenClassification",
                                 "token-classification", BertForTokens, CLASSIFIER, (POOLER,)),
}  # fmt: skip
PREFIXES = ("cls.", "classifier.", "qa_outputs.")  # of the tensors of any head
NUM_LABELS = {PRETRAINING: 0, "regression": 1, "question_answering": 2}  # where no labels say it
# Facts that config.json has no key of its own for: our export puts them under `task_specific_params`.
STATED = {"classification": ("pairs",), "regression": ("pairs",), "question_answering": ("version_2",)}


def num_labels(task: str, facts: Mapping[str, Any]) -> int:
    """Outputs of the classifier."""
    return len(facts["labels"]) if "labels" in facts else NUM_LABELS[task]


def recognised(settings: Mapping[str, Any]) -> str:
    """The task of a config.json, by its architecture; `PRETRAINING` where that is of none."""
    match settings.get("architectures"):
        case [str(architecture), *_]:
            tasks = [task for task, head in HEADS.items() if head.architecture == architecture]
        case _:
            tasks = []
    if "regression" in tasks:  # and classification: both are of one architecture
        labels = settings.get("id2label")
        one = isinstance(labels, dict) and len(labels) == 1
        problem = settings.get("problem_type") or ("regression" if one else "")
        return "regression" if problem == "regression" else "classification"
    return tasks[0] if tasks else PRETRAINING


def read_facts(
    task: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    stated: Mapping[str, bool],
    origin: pathlib.Path,
) -> dict[str, Any]:
    """The facts of a task (see `Downstream`) as a config.json has them.

    Args:
        settings, tensors: of the directory `origin`.
        stated: facts by which the user overrules the file, `pairs` or `version_2`.

    Raises:
        UserError: for labels that are not distinct names, several labels at a time, or facts that the task
            does not have.
    """
    names = STATED.get(task, ())
    if foreign := [name for name in stated if name not in names]:
        raise UserError(f"--{foreign[0]} says nothing about --task={task}; leave it out.")
    written = settings.get("task_specific_params")
    written = written.get(task) if isinstance(written, dict) else None
    written = written if isinstance(written, dict) else {}
    facts: dict[str, Any] = {name: stated.get(name, written.get(name) is True) for name in names}
    if task == "regression":
        facts |= {"mean": 0.0, "deviation": 1.0}  # folded into the classifier
    elif task not in NUM_LABELS:
        facts["labels"] = _labels(settings, tensors, origin)
    return facts


def write_settings(task: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json is to say of the head: what `recognised` and `read_facts` read."""
    head = HEADS[task]
    settings: dict[str, Any] = {"architectures": [head.architecture]}
    if task == PRETRAINING:
        return settings
    labels = facts.get("labels") or [f"LABEL_{number}" for number in range(num_labels(task, facts))]
    settings["id2label"] = {str(number): label for number, label in enumerate(labels)}
    settings["label2id"] = {label: number for number, label in enumerate(labels)}
    if head.problem_type:
        settings["problem_type"] = head.problem_type
    if task in STATED:
        settings["task_specific_params"] = {task: {name: facts[name] for name in STATED[task]}}
    return settings


def unstandardised(params: Any, facts: Mapping[str, Any]) -> Any:
    """Parameters of a regression whose output is in the units of the data: output·deviation + mean."""
    kernel, bias = (np.asarray(params["classifier"][name], np.float64) for name in ("kernel", "bias"))
    classifier = {"kernel": kernel * facts["deviation"], "bias": bias * facts["deviation"] + facts["mean"]}
    return params | {"classifier": {name: array.astype(np.float32) for name, array in classifier.items()}}


def _labels(
    settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], origin: pathlib.Path
) -> list[str]:
    if settings.get("problem_type") == "multi_label_classification":
        raise UserError(
            f"{origin}/config.json: problem_type='multi_label_classification'; only one label a text can be "
            "imported. --task=none takes the encoder alone."
        )
    names, bias = settings.get("id2label"), tensors.get("classifier.bias")
    if names is None:  # Transformers does not write the two names that it makes up, and Google none
        names = {str(number): f"LABEL_{number}" for number in range(2 if bias is None else bias.size)}
    labels = [names.get(str(number)) for number in range(len(names))] if isinstance(names, dict) else []
    known = [label for label in labels if isinstance(label, str)]
    if not len(labels) == len(set(known)) >= 2:
        raise UserError(
            f"{origin}/config.json: id2label={names!r} must name two classes or more, from '0' on, each in "
            "another way."
        )
    return known
