"""Converts a Hugging Face or Google directory to a checkpoint."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bert_jax.config import Config
from bert_jax.corpus import new_words
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.finetuned import Finetuned
from bert_jax.inference.pretrained import Pretrained
from bert_jax.interop import huggingface
from bert_jax.interop.heads import PRETRAINING, known_architectures
from bert_jax.tasks.config import FinetuneConfig, TaskConfig, TaskData
from bert_jax.tasks.finetuning import TASK
from bert_jax.training import growing
from bert_jax.training.checkpoint import Checkpoints, is_checkpoint
from bert_jax.training.fingerprints import params_digest
from bert_jax.training.opening import open_checkpoint
from bert_jax.training.step import TrainState
from bert_jax.training.workdir import versions

log = logging.getLogger("bert_jax")


class Converted(NamedTuple):
    """What becomes a checkpoint."""

    config: Config | FinetuneConfig
    tokenizer: Tokenizer
    params: Any  # nested dict of arrays
    files: dict[str, bytes]  # of the task
    origin: str
    initialised: list[str]  # what is untrained
    left_out: list[str]  # tensors that the user left out


def convert(
    source: pathlib.Path,
    output: pathlib.Path,
    hidden_act: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, bool] | None = None,
    leave_out: Sequence[str] = (),
    words: Sequence[str] = (),
) -> None:
    """Writes the weights and the vocabulary of `source` as `output`/checkpoints/0, and logs what was chosen.

    Args:
        source: published weights, or a run or checkpoint of ours, to which words are added.
        hidden_act, task, overrides, leave_out: as in `huggingface.read`.
        words: to add to the vocabulary, see `new_words.add_words` and `growing.add_words`.

    Raises:
        UserError: as `huggingface.read` and `new_words.add_words`; for a checkpoint of ours without words.
    """
    if not source.is_dir():
        raise UserError(f"--input={source} is not a folder; give one with config.json and the weights.")
    if is_checkpoint(source):
        if not words:
            raise UserError(
                f"--input={source} is a checkpoint of bert_jax already; give --add_words to add words to its "
                "vocabulary."
            )
        found = _of_checkpoint(source)
    else:
        read = huggingface.read(source, hidden_act, task, overrides, leave_out)
        log_choices(read, "--task" if task else "its config", "--hidden_act" if hidden_act else "its config")
        found = _of_published(read, source.name)
    _write(_with_words(found, words) if words else found, output)


def _of_published(read: huggingface.Source, name: str) -> Converted:
    files = {}
    if read.task != PRETRAINING:
        files[TASK] = (json.dumps(read.label_info, indent=1, ensure_ascii=False) + "\n").encode()
    lists = list(read.initialised), read.left_out
    return Converted(config_of(read), read.tokenizer, read.params, files, name, *lists)


def _of_checkpoint(source: pathlib.Path) -> Converted:
    opened = open_checkpoint(source, "--input")
    bert = Finetuned(opened) if opened.is_finetuned else Pretrained(opened)
    files = {TASK: (opened.folder / TASK).read_bytes()} if opened.is_finetuned else {}
    return Converted(bert.config, opened.tokenizer, bert.params, files, str(source), [], [])


def _with_words(found: Converted, words: Sequence[str]) -> Converted:
    tokenizer, pieces = new_words.add_words(found.tokenizer, words)
    model = dataclasses.replace(found.config.model, vocab_size=tokenizer.vocab_size)
    log.info(
        "vocabulary: %d of %d words added, model.vocab_size=%d; the others are one token already",
        len(pieces), len(words), tokenizer.vocab_size,
    )  # fmt: skip
    return found._replace(
        config=dataclasses.replace(found.config, model=model),
        tokenizer=tokenizer,
        params=growing.add_words(found.params, pieces),
        initialised=[*found.initialised, f"{len(pieces)} words added to the vocabulary"],
    )


def _write(found: Converted, output: pathlib.Path) -> None:
    digest = params_digest(found.params)
    meta = {
        "config": found.config.to_dict(),
        "versions": versions(),
        "imported": {
            "from": found.origin,
            "params_digest": digest,
            "initialised": found.initialised,
            "left_out": found.left_out,
        },
    }
    files = {f"tokenizer/{name}": content for name, content in found.tokenizer.files().items()}
    checkpoints = Checkpoints(output / "checkpoints", files | found.files, keep_last=1, keep_every=0)
    state = TrainState(jnp.int32(0), found.params, {"count": jnp.int32(0)})
    checkpoints.save(state, json.loads(json.dumps(meta)))
    checkpoints.close()
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
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
