"""Export a checkpoint as a Hugging Face directory, which AutoModel and AutoTokenizer load as it is.

    python -m bert_jax.export --input=runs/bert_tiny --output=exported/bert_tiny

A fine-tuned checkpoint keeps its head: it becomes a BertForSequenceClassification or the like.

What was written is read again and must give the same tokens and the same logits, with Transformers if that
and PyTorch are installed. Otherwise nothing is left behind.
"""

import importlib
import importlib.util
import json
import logging
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
import tokenizers
from absl import flags
from flax import nnx

from bert_jax import command
from bert_jax.convert import folder_flag
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.files import new_folder
from bert_jax.inference.finetuned import Finetuned, load_finetuned
from bert_jax.inference.pretrained import Pretrained, Row, batch_of, load
from bert_jax.interop import heads, huggingface, tokenizer_json
from bert_jax.interop.heads import HEADS
from bert_jax.interop.model_card import model_card
from bert_jax.model.config import ModelConfig
from bert_jax.training.checkpoint import open_checkpoint
from bert_jax.training.step import abstract_model

TOLERANCE, RELATIVE = 1e-4, 1e-5  # of a logit; more of large ones, which regression may have
SENTENCES = (
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Call me Ishmael. Some years ago, never mind how long precisely, I went to sea.",
    "The President shall from time to time give to the Congress information of the state of the Union.",
    "Élodie a trouvé l'œuvre naïve, mais très agréable à lire.",
    "春はあけぼの。やうやう白くなりゆく山ぎは。",
    "Straße, Łódź, İstanbul: 3½ km, 20 °C … 😀",
)
log = logging.getLogger("bert_jax")


def main() -> None:
    source, output = folder_flag("input"), folder_flag("output")
    with new_folder(output) as folder:
        export(source, folder)
    log.info("wrote %s", output)


class Network(NamedTuple):
    """A network with the head of a task, as in `heads`."""

    task: str
    facts: dict[str, Any]
    model: ModelConfig
    params: Any


def export(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the best checkpoint of `source` into the folder `output` and checks what was written.

    Raises:
        UserError: if there is no checkpoint, or what was written is not the same network and tokenizer.
    """
    bert, network = _load(source)
    longest = bert.config.data.max_seq_length
    # Transformers asks what the file was written for.
    weights = safetensors.numpy.save(_tensors(network), metadata={"format": "pt"})
    (output / "model.safetensors").write_bytes(weights)
    special = {key: value for key, value in tokenizer_json.settings(bert.tokenizer, longest).items()
               if key.endswith("_token")}  # fmt: skip
    config = huggingface.write_config(network.model, bert.tokenizer.pad_id, network.task, network.facts)
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_json.settings(bert.tokenizer, longest)),
        ("special_tokens_map.json", special),
    ):
        (output / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name, file in bert.tokenizer.files().items():
        if not (output / name).exists():  # of WordPiece it holds less than what is there
            (output / name).write_bytes(file)
    tokenizer_json.build(bert.tokenizer).save(str(output / "tokenizer.json"))
    card = model_card(source, bert.config, network.task, network.facts, bert.meta)
    (output / "README.md").write_text(card)
    check(network, bert.tokenizer, longest, output)


def check(network: Network, tokenizer: Tokenizer, longest: int, output: pathlib.Path) -> None:
    """Raises UserError if the written tokens are others, or a logit differs by more than `TOLERANCE`."""
    ids = tokenizer.encode(SENTENCES)
    written = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    theirs = written.encode_batch(SENTENCES, add_special_tokens=False)
    for sentence, expected, found in zip(SENTENCES, ids, theirs, strict=True):
        if found.ids != expected:
            raise UserError(
                f"--output: tokenizer.json splits {sentence!r} in another way; nothing is written."
            )
    batch = _batch(ids, tokenizer, longest)
    real = batch["sequence_ids"] > 0
    ours = _flat(_logits(network, batch), real)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        reader, again = "Transformers", _transformers_logits(output, HEADS[network.task], batch)
    else:
        read = huggingface.read(output)
        reader = "convert (no Transformers here)"
        again = _logits(Network(read.task, read.facts, read.model, read.params), batch)
    differences = np.abs(ours - _flat(again, real))
    if not np.all(differences <= TOLERANCE + RELATIVE * np.abs(ours)):  # nor if it is not a number
        raise UserError(
            f"--output: {reader} computes logits that differ by {differences.max():.2g}; nothing is written."
        )
    log.info(
        "checked with %s: %d sentences, logits differ by %.1e", reader, len(SENTENCES), differences.max()
    )


def _load(source: pathlib.Path) -> tuple[Pretrained | Finetuned, Network]:
    _, meta = open_checkpoint(source, "--input")
    if "task" not in meta["config"]:
        pretrained = load(source)
        return pretrained, Network(heads.PRETRAINING, {}, pretrained.config.model, pretrained.params)
    tuned = load_finetuned(source)
    return tuned, Network(tuned.config.task.name, tuned.task.label_info, tuned.config.model, tuned.params)


def _tensors(network: Network) -> dict[str, np.ndarray]:
    """What model.safetensors is to hold; a regression's output is in the units of the data there."""
    params = network.params
    if network.task == "regression":
        params = heads.unstandardised(params, network.facts)
    return huggingface.from_params(params, HEADS[network.task])


def _batch(ids: list[list[int]], tokenizer: Tokenizer, longest: int) -> dict[str, np.ndarray]:
    """Each sentence as a row [CLS] … [SEP]; every position asks for its logits."""
    rows = [[tokenizer.cls_id, *row[: longest - 2], tokenizer.sep_id] for row in ids]
    shape = len(rows), max(map(len, rows))
    batch = batch_of([Row(row, len(row)) for row in rows], shape, tokenizer.pad_id)
    return batch | {"masked_lm_positions": batch["position_ids"]}


def _logits(network: Network, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Logits of every token [B, T, …] or of the sequence [B, …], whichever the head has."""
    head, facts = HEADS[network.task], network.facts
    structure, _ = abstract_model(head.build(network.model, heads.num_labels(network.task, facts)))
    with jax.default_matmul_precision("highest"):
        outputs = jax.jit(lambda params, batch: nnx.merge(structure, params)(batch))(network.params, batch)
    arrays = [np.asarray(x) for x in (outputs if isinstance(outputs, tuple) else (outputs,))]
    if network.task == "regression":
        arrays = [x * facts["deviation"] + facts["mean"] for x in arrays]
    return [x[:, 0] if x.shape[1] == 1 else x for x in arrays]  # a row is one sequence of several tokens


def _transformers_logits(
    folder: pathlib.Path, head: heads.Head, batch: dict[str, np.ndarray]
) -> list[np.ndarray]:
    # Not of our requirements, so imported only where it happens to be.
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    network = getattr(transformers, head.architecture).from_pretrained(folder).eval()
    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "sequence_ids"}
    with torch.no_grad():
        out = network(**{theirs: torch.from_numpy(batch[ours]).long() for theirs, ours in names.items()})
    if "start_logits" in out:
        return [np.stack([out.start_logits.numpy(), out.end_logits.numpy()], axis=-1)]
    return [x.numpy() for x in out.to_tuple()]


def _flat(logits: list[np.ndarray], real: np.ndarray) -> np.ndarray:
    """All logits but those of padding in one axis; `real` is bool [B, T]."""
    return np.concatenate([(x[real] if x.ndim == 3 else x).ravel() for x in logits])


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "A run's folder or one of its checkpoints.")
    flags.DEFINE_string("output", None, "The folder to write; it must not exist.")
    command.run(main)
