"""Tokenizers of a few words, and checkpoints of random weights, made in no time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.tokenizer import SPECIAL_PIECES
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.interop.heads import HEADS, num_labels
from bert_jax.model.heads import BertForPreTraining
from bert_jax.tasks.config import FinetuneConfig, TaskConfig, TaskData
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.step import TrainState, abstract_model, with_shardings
from tests.tiny import MODEL, mesh_of

WORDS = [
    *("the", "state", "of", "union", "is", "strong", "and", "free", "a", "great", "people", "we", "are"),
    *("in", "god", "trust", "so", "it", "was"),
]
PIECES = 72
LONGEST = 32  # tokens of a row


def sentencepiece() -> SentencePieceTokenizer:
    counts = dict.fromkeys([*WORDS, *(f"{word}." for word in WORDS), "so,", "(free)"], 5)
    return SentencePieceTokenizer.train(counts, "bpe", PIECES, lowercase=True)


def wordpiece(more=(), lowercase=True, **rules) -> WordPieceTokenizer:
    pieces = [*SPECIAL_PIECES, *WORDS, *".,!()s", "##s", "##ment", "govern", *more]
    return WordPieceTokenizer(pieces, lowercase, **rules)


def save(folder, tokenizer, changes=None, files=None, **axes):
    """A checkpoint of random weights, trained (as it were) on a mesh of these axes; returns its network.

    `changes` are of `MODEL`; `files` are what it carries beside the tokenizer.
    """
    model = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size, **changes or {})
    pairs = "next_sentence" if model.pooler and model.type_vocab_size > 1 else "none"
    config = Config(model=model, data=DataConfig(max_seq_length=LONGEST, second_objective=pairs))
    return _save(folder, tokenizer, config, lambda rngs: BertForPreTraining(model, rngs), files or {}, axes)


def save_finetuned(folder, tokenizer, task, facts, changes=None, **data):
    """A fine-tuned checkpoint of random weights, with what the task remembers; returns its network.

    `changes` are of `MODEL`.
    """
    model = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size, **changes or {})
    settings = TaskConfig(task)
    if task == "question_answering":  # leave room for a paragraph
        settings = dataclasses.replace(settings, max_question_tokens=LONGEST // 4)
    config = FinetuneConfig(model=model, task=settings, data=TaskData(max_seq_length=LONGEST, **data))
    build = HEADS[task].build(model, num_labels(task, facts))
    return _save(
        folder, tokenizer, config, build, {"task.json": json.dumps(facts, ensure_ascii=False).encode()}, {}
    )


def _save(folder, tokenizer, config, build, files, axes):
    structure, abstract = abstract_model(build)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jax.device_put(rng.normal(0.0, 0.3, leaf.shape).astype(np.float32), leaf.sharding),
        with_shardings(abstract, mesh_of(**axes)),
    )
    files = files | {f"tokenizer/{name}": content for name, content in tokenizer.files().items()}
    checkpoints = Checkpoints(folder / "checkpoints", files, 1, 0)
    state = TrainState(jnp.int32(0), params, {"count": jnp.int32(0)})
    checkpoints.save(state, json.loads(json.dumps({"config": config.to_dict()})))
    checkpoints.close()
    return nnx.merge(structure, params)
