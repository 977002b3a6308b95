"""Uses a fine-tuned checkpoint: `bert_jax.load_finetuned(path)` classifies, answers, tags.

trec = bert_jax.load_finetuned("runs/trec")
trec.predict(trec.task.read("questions.tsv", "input", labelled=False))
"""

import json
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config import from_checkpoint
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.encoder import DEFAULT_COMPUTE
from bert_jax.model.features import TOKENS
from bert_jax.tasks.config import TASKS, FinetuneConfig
from bert_jax.tasks.downstream import Downstream
from bert_jax.tasks.finetuning import TASK
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.registry import make_task
from bert_jax.training.opening import OpenedCheckpoint, first_device_mesh, open_checkpoint
from bert_jax.training.step import make_evaluation_step


def load_finetuned(checkpoint: epath.PathLike, tasks: Sequence[str] = TASKS) -> "Finetuned":
    """Loads a fine-tuned checkpoint on one device, whatever it was trained on.

    Args:
        checkpoint: a run's folder (its best checkpoint) or `checkpoints/STEP`.
        tasks: what it may have been fine-tuned for.

    Raises:
        UserError: if there is no checkpoint, it is damaged, or it is of another task.
    """
    opened = open_checkpoint(checkpoint)
    if not opened.is_finetuned:
        raise UserError(
            f"checkpoint {opened.folder} is a pretraining checkpoint; fine-tune it first: make finetune "
            f"INIT_FROM={checkpoint}"
        )
    if (name := opened.meta["config"]["task"]["name"]) not in tasks:
        raise UserError(
            f"checkpoint {opened.folder} was fine-tuned for {name}, not for {' or '.join(tasks)}; give "
            "another --checkpoint."
        )
    return Finetuned.of(opened)


class Finetuned:
    """A fine-tuned network with its tokenizer and task.

    Attributes:
        config: what it was trained with.
        task: reads examples, and scores predictions.
        tokenizer: text to ids and back.
        params: nested dict of arrays.
        meta: of the checkpoint (step, versions, digest of the data).
    """

    def __init__(
        self,
        config: FinetuneConfig,
        task: Downstream,
        tokenizer: Tokenizer,
        structure: nnx.GraphDef,
        params: Any,
        meta: dict[str, Any],
    ):
        self.config, self.task, self.tokenizer = config, task, tokenizer
        self.params, self.meta = params, meta
        self._step = make_evaluation_step(structure, task.objective())

    @classmethod
    def of(cls, opened: OpenedCheckpoint) -> Self:
        """Loads a checkpoint that has been opened; raises UserError when it is damaged."""
        config = from_checkpoint(opened.meta["config"], FinetuneConfig, opened.folder)
        task = make_task(config.task, config.data, json.loads((opened.folder / TASK).read_bytes()))
        build = task.objective().build
        structure, params = opened.network(lambda rngs: build(config.model, rngs, DEFAULT_COMPUTE))
        return cls(config, task, opened.tokenizer, structure, params, opened.meta)

    def predict(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Predicts for each example of `task.read`; returns JSON, see `task.decode`."""
        if not examples:
            return []
        packed = PackedExamples(self.task, examples, self.tokenizer, self.config.data)
        size = max(1, TOKENS // self.config.data.max_seq_length)
        with jax.set_mesh(first_device_mesh()):
            outputs = [
                jax.device_get(self._step(self.params, batch)[1])
                for batch in packed.batches(size, np.arange(size))
            ]
        return packed.predictions(outputs, size)
