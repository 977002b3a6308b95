"""Uses a fine-tuned checkpoint: `bert_jax.load_finetuned(path)` classifies, answers, tags.

trec = bert_jax.load_finetuned("runs/trec")
trec.predict(trec.task.read("questions.tsv", "input", labelled=False))
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from bert_jax.config import from_checkpoint
from bert_jax.errors import UserError
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.tasks.finetuning import TASK
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.registry import make_task
from bert_jax.training.opening import (
    OpenedCheckpoint,
    first_device_compute,
    first_device_mesh,
    open_checkpoint,
)
from bert_jax.training.step import make_evaluation_step


def load_finetuned(checkpoint: epath.PathLike, tasks: Sequence[str] = ()) -> "Finetuned":
    """Loads a fine-tuned checkpoint on one device, whatever it was trained on.

    Args:
        checkpoint: a run's folder (its best checkpoint) or `checkpoints/STEP`.
        tasks: names of the tasks that it may have been fine-tuned for; empty for any.

    Raises:
        UserError: if there is no checkpoint, it is damaged, or it is of another task.
    """
    opened = open_checkpoint(checkpoint)
    if not opened.is_finetuned:
        raise UserError(
            f"checkpoint {opened.folder} is a pretraining checkpoint; fine-tune it first: make finetune "
            f"INIT_FROM={checkpoint}"
        )
    if (name := opened.meta["config"]["task"]["name"]) not in (tasks or (name,)):
        raise UserError(
            f"checkpoint {opened.folder} was fine-tuned for {name}, not for {' or '.join(tasks)}; give "
            "another --checkpoint."
        )
    return Finetuned(opened)


class Finetuned:
    """A fine-tuned network with its tokenizer and task.

    Args:
        opened: the checkpoint.

    Attributes:
        config: what it was trained with.
        task: reads examples, and scores predictions.
        tokenizer: text to ids and back.
        params: nested dict of arrays.
        meta: of the checkpoint (step, versions, digest of the data).

    Raises:
        UserError: if the checkpoint is damaged.
    """

    def __init__(self, opened: OpenedCheckpoint):
        self.tokenizer, self.meta = opened.tokenizer, opened.meta
        self.config = config = from_checkpoint(opened.meta["config"], FinetuneConfig, opened.folder)
        self.task = make_task(config.task, config.data, json.loads((opened.folder / TASK).read_bytes()))
        objective, compute = self.task.objective(), first_device_compute()
        structure, self.params = opened.network(lambda rngs: objective.build(config.model, rngs, compute))
        self._step = make_evaluation_step(structure, objective)

    def predict(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Predicts for each example of `task.read`; returns JSON, see `task.decode`."""
        if not examples:
            return []
        packed = PackedExamples(self.task, examples, self.tokenizer, self.config.data)
        with jax.set_mesh(first_device_mesh()):
            outputs = packed.run(lambda batch: self._step(self.params, batch)[1])
        return self.task.decode(outputs, packed.encoded, examples)
