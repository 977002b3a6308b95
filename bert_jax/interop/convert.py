"""Converts a Hugging Face or Google directory to a checkpoint."""

import json
import logging
import pathlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.errors import UserError
from bert_jax.interop import huggingface
from bert_jax.interop.heads import PRETRAINING, known_architectures
from bert_jax.tasks.config import FinetuneConfig, TaskConfig, TaskData
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.fingerprints import params_digest
from bert_jax.training.step import TrainState
from bert_jax.training.workdir import versions

log = logging.getLogger("bert_jax")


def convert(
    source: pathlib.Path,
    output: pathlib.Path,
    hidden_act: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, bool] | None = None,
    leave_out: Sequence[str] = (),
) -> None:
    """Writes the weights and the vocabulary of `source` as `output`/checkpoints/0, and logs what was chosen.

    Args and Raises as `huggingface.read`.
    """
    if not source.is_dir():
        raise UserError(f"--input={source} is not a folder; give one with config.json and the weights.")
    read = huggingface.read(source, hidden_act, task, overrides, leave_out)
    log_choices(read, "--task" if task else "its config", "--hidden_act" if hidden_act else "its config")
    digest = params_digest(read.params)
    meta = {
        "config": config_of(read).to_dict(),
        "versions": versions(),
        "imported": {
            "from": source.name,
            "params_digest": digest,
            "initialised": read.initialised,
            "left_out": read.left_out,
        },
    }
    files = {f"tokenizer/{name}": content for name, content in read.tokenizer.files().items()}
    if read.task != PRETRAINING:
        files["task.json"] = (json.dumps(read.label_info, indent=1, ensure_ascii=False) + "\n").encode()
    checkpoints = Checkpoints(output / "checkpoints", files, keep_last=1, keep_every=0)
    state = TrainState(jnp.int32(0), read.params, {"count": jnp.int32(0)})
    checkpoints.save(state, meta)
    checkpoints.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(read.params))
    log.info("%s parameters, params_digest %s", f"{count:,}", digest)


def config_of(read: huggingface.Source) -> Config | FinetuneConfig:
    """Makes the config of the checkpoint: of pretraining, or of fine-tuning where a task was read."""
    if read.task == PRETRAINING:
        pairs = "next_sentence" if read.model.type_vocab_size > 1 else "none"
        data = DataConfig("imported", max_seq_length=read.max_length, second_objective=pairs)
        return Config(read.model, data)
    second = "text_pair" if read.label_info.get("pairs") else ""
    texts = TaskData(text_pair=second, max_seq_length=read.max_length)
    return FinetuneConfig(model=read.model, task=TaskConfig(read.task), data=texts)


def log_choices(read: huggingface.Source, by_task: str, by_act: str) -> None:
    """Logs what was read; `by_task` and `by_act` say what decided the task and the activation."""
    log.info("weights: %s", read.origin)
    log.info("network: %s", read.family.name)
    known = known_architectures(read.family)
    if read.architecture not in (None, *known):
        log.warning(
            "architecture: %s is not known, only its encoder and what belongs to pretraining were read; "
            "known: %s",
            read.architecture, ", ".join(known),
        )  # fmt: skip
    if read.task == PRETRAINING:
        log.info("task: none (%s), a checkpoint of pretraining", by_task)
    else:
        label_info = ", ".join(f"{name} {value}" for name, value in read.label_info.items())
        log.info("task: %s (%s), a fine-tuned checkpoint; %s", read.task, by_task, label_info)
    kinds = {"gelu": "exact, with erf", "gelu_tanh": "approximated with tanh", "silu": "x · sigmoid(x)"}
    kind = kinds[read.model.hidden_act]
    log.info("hidden_act: %s (%s), from %s", read.model.hidden_act, kind, by_act)
    sample = " ".join(read.tokenizer.piece(token) for token in read.tokenizer.encode(["Hello, World"])[0])
    log.info('vocabulary: %d pieces; "Hello, World" is %s', read.tokenizer.vocab_size, sample)
    log.info("initialised: %s", f"{', '.join(read.initialised)} (not in the file; untrained)"
             if read.initialised else "nothing; every head is in the file")  # fmt: skip
    if read.ignored:
        log.info("not imported: %s (of another task)", ", ".join(read.ignored))
    if read.left_out:
        log.info("not imported: %s (--leave_out)", ", ".join(read.left_out))
