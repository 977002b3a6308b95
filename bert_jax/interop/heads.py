"""The heads of Hugging Face's BERT: the architecture of each task, and its settings in config.json.

A task is the name of one of `TASK_CLASSES`, or `PRETRAINING`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.interop.family import Family, Place
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining, BertForSequences, BertForTokens
from bert_jax.tasks.registry import TASK_CLASSES

PRETRAINING = "none"
POOLER = "encoder/pooler"


class Head(NamedTuple):
    """An architecture of Transformers, and our module that computes the same.

    The first fields are those of `HubHead`; `classifier` is "" for the heads of pretraining, and
    `task_specific_params` of config.json holds the `extra_keys`.
    """

    kind: str  # the end of the architecture's name, e.g. ForSequenceClassification
    pipeline: str
    classifier: str = "classifier"
    problem_type: str | None = None
    extra_keys: tuple[str, ...] = ()
    num_outputs: int | None = None  # None: one for each label
    per_token: bool = False

    @property
    def auto_class(self) -> str:
        """What users load it with."""
        return f"AutoModel{self.kind if self.classifier else 'ForMaskedLM'}"

    def architecture(self, family: Family) -> str:
        """Returns the name of its class in Transformers, or in the code of the family's authors."""
        return family.architecture + (self.kind if self.classifier else family.masked_lm)

    def check(self, family: Family) -> None:
        """Raises UserError if the family has no such head, or one that computes otherwise."""
        if self.classifier and self.kind not in family.kinds:
            known = ", ".join(f"{family.architecture}{kind}" for kind in (family.masked_lm, *family.kinds))
            raise UserError(
                f"{self.architecture(family)} cannot be imported or exported; of {family.name} these can: "
                f"{known}."
            )

    def places(self, family: Family) -> dict[str, Place]:
        """Returns where the modules beside the encoder are."""
        return {"classifier": Place(self.classifier), **family.task_places} if self.classifier else {}

    @property
    def optional(self) -> tuple[str, ...]:
        """Modules of ours that a file need not have."""
        if not self.classifier:
            return (POOLER, "masked_lm", "next_sentence")
        return (POOLER,) if self.per_token else ()

    def build(self, model: ModelConfig, num_labels: int) -> Callable[[nnx.Rngs], nnx.Module]:
        """Returns what makes the module; pretraining has no use for `num_labels`."""
        if not self.classifier:
            return lambda rngs: BertForPreTraining(model, rngs)
        kind = BertForTokens if self.per_token else BertForSequences
        return lambda rngs: kind(model, num_labels, rngs)


HEADS = {PRETRAINING: Head("", "fill-mask", classifier="", num_outputs=0)} | {
    kind.name: Head(*kind.hub, num_outputs=kind.num_outputs, per_token=kind.per_token)
    for kind in TASK_CLASSES
}


def num_labels(task: str, label_info: Mapping[str, Any]) -> int:
    """Counts the outputs of the classifier."""
    outputs = HEADS[task].num_outputs
    return len(label_info["labels"]) if outputs is None else outputs


def architecture_of(settings: Mapping[str, Any]) -> str | None:
    """Returns the architecture that a config.json names, if it names any."""
    named = settings.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else None


def known_architectures(family: Family) -> list[str]:
    """Lists the architectures that are read as what they are."""
    ends = ("", "Model", "ForMaskedLM", family.masked_lm, *family.kinds)
    return [family.architecture + end for end in dict.fromkeys(ends)]


def detect_task(settings: Mapping[str, Any], family: Family) -> str:
    """Finds the task of a config.json by its architecture; `PRETRAINING` where it has no task's head."""
    architecture = architecture_of(settings)
    tasks = [task for task, head in HEADS.items() if head.architecture(family) == architecture]
    if "regression" in tasks:  # and classification: both are of one architecture
        labels = settings.get("id2label")
        one = isinstance(labels, dict) and len(labels) == 1
        problem = settings.get("problem_type") or ("regression" if one else "")
        return "regression" if problem == "regression" else "classification"
    return tasks[0] if tasks else PRETRAINING


def read_label_info(
    task: str,
    settings: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    overrides: Mapping[str, bool],
    path: pathlib.Path,
) -> dict[str, Any]:
    """Reads the `label_info` of a task (see `Downstream`) from a config.json.

    Args:
        settings, tensors: of a directory.
        path: of its config, for errors.
        overrides: values that replace those of the file, of `pairs` or `version_2`.

    Raises:
        UserError: for labels that are not distinct names, several labels at a time, or keys that the task
            does not have.
    """
    names = HEADS[task].extra_keys
    if foreign := [name for name in overrides if name not in names]:
        raise UserError(f"--{foreign[0]} is not a setting of --task={task}; leave it out.")
    written = settings.get("task_specific_params")
    written = written.get(task) if isinstance(written, dict) else None
    written = written if isinstance(written, dict) else {}
    label_info: dict[str, Any] = {name: overrides.get(name, written.get(name) is True) for name in names}
    if task == "regression":
        label_info |= {"mean": 0.0, "deviation": 1.0}  # folded into the classifier
    elif HEADS[task].num_outputs is None:
        label_info["labels"] = _labels(settings, tensors, path)
    return label_info


def write_settings(task: str, label_info: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Writes the settings of config.json that `detect_task` and `read_label_info` read."""
    head = HEADS[task]
    settings: dict[str, Any] = {"architectures": [head.architecture(family)]}
    if task == PRETRAINING:
        return settings
    labels = label_info.get("labels") or [f"LABEL_{number}" for number in range(num_labels(task, label_info))]
    settings["id2label"] = {str(number): label for number, label in enumerate(labels)}
    settings["label2id"] = {label: number for number, label in enumerate(labels)}
    if head.problem_type:
        settings["problem_type"] = head.problem_type
    if head.extra_keys:
        settings["task_specific_params"] = {task: {name: label_info[name] for name in head.extra_keys}}
    return settings


def fold_standardisation(params: Any, label_info: Mapping[str, Any]) -> Any:
    """Scales a regression's parameters so that the output is in the units of the data.

    The new output is output · deviation + mean.
    """
    kernel, bias = (np.asarray(params["classifier"][name], np.float64) for name in ("kernel", "bias"))
    classifier = {
        "kernel": kernel * label_info["deviation"],
        "bias": bias * label_info["deviation"] + label_info["mean"],
    }
    return params | {"classifier": {name: array.astype(np.float32) for name, array in classifier.items()}}


def _labels(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray], path: pathlib.Path) -> list[str]:
    if settings.get("problem_type") == "multi_label_classification":
        raise UserError(
            f"{path}: problem_type='multi_label_classification'; only one label a text can be "
            "imported. --task=none takes the encoder alone."
        )
    names, bias = settings.get("id2label"), tensors.get("classifier.bias")
    if names is None:  # Transformers does not write the two names that it makes up, and Google none
        names = {str(number): f"LABEL_{number}" for number in range(2 if bias is None else bias.size)}
    labels = [names.get(str(number)) for number in range(len(names))] if isinstance(names, dict) else []
    known = [label for label in labels if isinstance(label, str)]
    if not len(labels) == len(set(known)) >= 2:
        raise UserError(
            f"{path}: id2label={names!r} must name two classes or more, from '0' on, with distinct names."
        )
    return known
