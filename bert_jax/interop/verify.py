"""Checks that an exported directory gives the same tokens and logits as the checkpoint."""

import importlib
import importlib.util
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from flax import nnx

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.pretrained import Row, batch_of
from bert_jax.interop import heads, huggingface
from bert_jax.interop.families import family_of
from bert_jax.interop.heads import HEADS
from bert_jax.model.config import ModelConfig
from bert_jax.training.step import abstract_model

TOLERANCE, RELATIVE = 1e-4, 1e-5  # of a logit; relative too, since a regression may have large ones
SENTENCES = (
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea.",
    "The President shall from time to time give to the Congress information of the state of the Union.",
    "Élodie a trouvé l'œuvre naïve, mais très agréable à lire.",
    "春はあけぼの。やうやう白くなりゆく山ぎは。",
    "Straße, Łódź, İstanbul: 3½ km, 20 °C … 😀",
)
MASKED = ("It was the [MASK] of times, the [MASK].", "[MASK] me un[MASK]able, [MASK] [MASK]ing")
log = logging.getLogger("bert_jax")


class Exported(NamedTuple):
    """A network with the head of a task, as in `heads`."""

    task: str
    label_info: dict[str, Any]
    model: ModelConfig
    params: Any


def check(network: Exported, tokenizer: Tokenizer, longest: int, output: pathlib.Path) -> None:
    """Raises UserError if the exported tokens differ, or a logit differs by more than the tolerance."""
    ids = tokenizer.encode(SENTENCES)
    written = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    mask = tokenizer.piece(tokenizer.mask_id)
    masked = [sentence.replace("[MASK]", mask) for sentence in MASKED]
    sentences, expected_ids = [*SENTENCES, *masked], [*ids, *tokenizer.encode_with_masks(MASKED)]
    theirs = written.encode_batch(sentences, add_special_tokens=False)
    for sentence, expected, found in zip(sentences, expected_ids, theirs, strict=True):
        if found.ids != list(expected):
            raise UserError(f"--output: tokenizer.json splits {sentence!r} differently; nothing is written.")
    batch = _batch(ids, tokenizer, longest)
    real = batch["sequence_ids"] > 0
    ours = _flat(_logits(network, batch), real)
    family = family_of(network.model)
    if not family.code and importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        reader, again = "Transformers", _transformers_logits(output, network, batch)
    else:
        read = huggingface.read(output)
        why = f"Transformers has no {family.name}" if family.code else "no Transformers here"
        reader = f"convert ({why})"
        again = _logits(Exported(read.task, read.label_info, read.model, read.params), batch)
    differences = np.abs(ours - _flat(again, real))
    if not np.all(differences <= TOLERANCE + RELATIVE * np.abs(ours)):  # also where it is NaN
        raise UserError(
            f"--output: {reader} computes logits that differ by {differences.max():.2g}; nothing is written."
        )
    log.info(
        "checked with %s: %d sentences, logits differ by %.1e", reader, len(SENTENCES), differences.max()
    )


def _batch(ids: list[list[int]], tokenizer: Tokenizer, longest: int) -> dict[str, np.ndarray]:
    """Builds a row [CLS] … [SEP] of each sentence, with a masked-LM prediction at every position."""
    rows = [Row(row[: longest - 2], []) for row in ids]
    batch = batch_of(rows, (len(rows), max(row.length for row in rows)), tokenizer)
    return batch | {"masked_lm_positions": batch["position_ids"]}


def _logits(network: Exported, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Computes the logits of every token [B, T, …] or of the sequence [B, …], as the head has them."""
    head, label_info = HEADS[network.task], network.label_info
    structure, _ = abstract_model(head.build(network.model, heads.num_labels(network.task, label_info)))
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(lambda params, batch: nnx.merge(structure, params)(batch))(network.params, batch)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    arrays = [np.asarray(x) for x in outputs if x is not None]
    if network.task == "regression":
        arrays = [x * label_info["deviation"] + label_info["mean"] for x in arrays]
    return [x[:, 0] if x.shape[1] == 1 else x for x in arrays]  # a row is one sequence of several tokens


def _transformers_logits(
    folder: pathlib.Path, exported: Exported, batch: dict[str, np.ndarray]
) -> list[np.ndarray]:
    # Not a requirement: imported only where it is installed.
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    architecture = HEADS[exported.task].architecture(family_of(exported.model))
    network = getattr(transformers, architecture).from_pretrained(folder).eval()
    names = {"input_ids": "input_ids", "attention_mask": "sequence_ids"}
    if exported.model.type_vocab_size:
        names["token_type_ids"] = "token_type_ids"
    with torch.no_grad():
        out = network(**{theirs: torch.from_numpy(batch[ours]).long() for theirs, ours in names.items()})
    if "start_logits" in out:
        return [np.stack([out.start_logits.numpy(), out.end_logits.numpy()], axis=-1)]
    return [x.numpy() for x in out.to_tuple()]


def _flat(logits: list[np.ndarray], real: np.ndarray) -> np.ndarray:
    """Puts all logits but those of padding into one axis; `real` is bool [B, T]."""
    return np.concatenate([(x[real] if x.ndim == 3 else x).ravel() for x in logits])
