"""A fine-tuned checkpoint as something to use: `bert_jax.load_finetuned(path)` classifies, answers, tags.

trec = bert_jax.load_finetuned("runs/trec")
trec.predict(trec.task.read("questions.tsv", "input", labelled=False))
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config import from_dict
from bert_jax.corpus.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.pretrained import TOKENS
from bert_jax.model.encoder import PLAINLY
from bert_jax.tasks.config import TASKS, FinetuneConfig
from bert_jax.tasks.downstream import Downstream
from bert_jax.tasks.finetuning import TASK, TOKENIZER
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.registry import make_task
from bert_jax.training.checkpoint import open_checkpoint, restore_params
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh
from bert_jax.training.step import abstract_model, make_evaluation_step, with_shardings


def load_finetuned(checkpoint: epath.PathLike, tasks: Sequence[str] = TASKS) -> "Finetuned":
    """Loads a fine-tuned checkpoint on one device, whatever it was trained on.

    Args:
        checkpoint: a run's folder (its best checkpoint) or `checkpoints/STEP`.
        tasks: what it may have been fine-tuned for.

    Raises:
        UserError: if there is no checkpoint, it is damaged, or it is of another task.
    """
    folder, meta = open_checkpoint(checkpoint)
    if "task" not in meta["config"]:
        raise UserError(
            f"checkpoint {folder} is of pretraining; fine-tune it first: make finetune INIT_FROM={checkpoint}"
        )
    config = from_dict(meta["config"], FinetuneConfig)
    if config.task.name not in tasks:
        raise UserError(
            f"checkpoint {folder} was fine-tuned for {config.task.name}, not for {' or '.join(tasks)}; give "
            "another --checkpoint."
        )
    facts = json.loads((folder / TASK).read_text())
    downstream = make_task(config.task, config.data, facts)
    structure, abstract = abstract_model(
        lambda rngs: downstream.objective().build(config.model, rngs, PLAINLY)
    )
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
    params = restore_params(folder, meta, config.model, with_shardings(abstract, mesh))
    return Finetuned(config, downstream, load_tokenizer(folder / TOKENIZER), structure, params, meta)


class Finetuned:
    """A fine-tuned network with its tokenizer and task.

    Attributes:
        config: what it was trained with.
        task: reads examples, and scores predictions.
        tokenizer: text to ids and back.
        params: nested dict of arrays.
        meta: what the checkpoint says of itself.
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
        self._mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])

    def predict(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """The prediction for each example of `task.read`; JSON, as `task.decode` says."""
        if not examples:
            return []
        packed = PackedExamples(self.task, examples, self.tokenizer, self.config.data)
        size = max(1, TOKENS // self.config.data.max_seq_length)
        with jax.set_mesh(self._mesh):
            outputs = [
                jax.device_get(self._step(self.params, batch)[1])
                for batch in packed.batches(size, np.arange(size))
            ]
        return packed.predictions(outputs, size)
