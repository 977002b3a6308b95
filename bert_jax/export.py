"""Export a checkpoint as a Hugging Face directory, which AutoModel and AutoTokenizer load as it is.

    python -m bert_jax.export --input=runs/bert_tiny --output=exported/bert_tiny

What was written is read again and must give the same tokens and the same logits, with Transformers if that
and PyTorch are installed. Otherwise nothing is left behind.
"""

import importlib
import importlib.util
import json
import logging
import pathlib
import runpy
import shlex
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import tokenizers
from absl import flags
from flax import nnx

from bert_jax import __version__, command
from bert_jax.config import Config, find_config, from_dict
from bert_jax.convert import folder_flag
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import huggingface, tokenizer_json
from bert_jax.interop.folders import new_folder
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.pretrained import Pretrained, load
from bert_jax.training.step import abstract_model

TOLERANCE = 1e-4  # of a logit
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


def export(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the newest checkpoint of `source` into the folder `output` and checks what was written.

    Raises:
        UserError: if there is no checkpoint, or what was written is not the same network and tokenizer.
    """
    bert = load(source)
    model, longest = bert.config.model, bert.max_length
    tensors = huggingface.from_params(bert.params)
    # Transformers asks what the file was written for.
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (output / "model.safetensors").write_bytes(weights)
    special = {key: value for key, value in tokenizer_json.settings(bert.tokenizer, longest).items()
               if key.endswith("_token")}  # fmt: skip
    for name, content in (
        ("config.json", huggingface.write_config(model, bert.tokenizer.pad_id)),
        ("tokenizer_config.json", tokenizer_json.settings(bert.tokenizer, longest)),
        ("special_tokens_map.json", special),
    ):
        (output / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for name, file in bert.tokenizer.files().items():
        if not (output / name).exists():  # of WordPiece it holds less than what is there
            (output / name).write_bytes(file)
    tokenizer_json.build(bert.tokenizer).save(str(output / "tokenizer.json"))
    (output / "README.md").write_text(model_card(bert, source))
    check(bert, output)


def check(bert: Pretrained, output: pathlib.Path) -> None:
    """Raises UserError if the written tokens are others, or a logit differs by more than `TOLERANCE`."""
    ids = bert.tokenizer.encode(SENTENCES)
    tokenizer = tokenizers.Tokenizer.from_file(str(output / "tokenizer.json"))
    theirs = tokenizer.encode_batch(SENTENCES, add_special_tokens=False)
    for sentence, expected, found in zip(SENTENCES, ids, theirs, strict=True):
        if found.ids != expected:
            raise UserError(
                f"--output: tokenizer.json splits {sentence!r} in another way; nothing is written."
            )
    batch = _batch(ids, bert.tokenizer, bert.max_length)
    ours = _logits(bert.config.model, bert.params, batch)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("torch"):
        reader, written = "Transformers", _transformers_logits(output, batch)
    else:
        read = huggingface.read(output)
        reader, written = "convert (no Transformers here)", _logits(read.model, read.params, batch)
    real = batch["sequence_ids"] > 0
    difference = max(
        float(np.abs(ours[0] - written[0])[real].max()), float(np.abs(ours[1] - written[1]).max())
    )
    if not difference <= TOLERANCE:  # nor if it is not a number
        raise UserError(
            f"--output: {reader} computes logits that differ by {difference:.2g}; nothing is written."
        )
    log.info("checked with %s: %d sentences, logits differ by %.1e", reader, len(SENTENCES), difference)


def model_card(bert: Pretrained, source: pathlib.Path) -> str:
    """README.md: where the weights come from, how good they are, how to make and to use them. No text."""
    config, step = bert.config, bert.meta.get("step", 0)
    lines = ["---", "library_name: transformers", "pipeline_tag: fill-mask", "tags: [bert, jax]", "---", ""]
    lines += [
        f"# {source.resolve().name}",
        "",
        f"BERT, written by bert_jax {__version__} after step {step}.",
        "",
    ]
    lines += [
        "## Data",
        "",
        f"`{config.data.source}`, sha256 `{bert.meta.get('data_digest', 'not known')}`",
        "",
    ]
    if imported := bert.meta.get("imported"):
        untrained = ", ".join(imported["initialised"]) or "none"
        lines += [f"Imported from {imported['from']}; heads without training: {untrained}.", ""]
    else:
        lines += ["## Command", "", "```bash", _command(config), "```", ""]
    if metrics := _metrics(source, step):
        lines += ["## Metrics, held-out text", "", "| name | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()] + [""]
    lines += ["## Use", "", "```python", "from transformers import AutoModelForMaskedLM, AutoTokenizer", ""]
    lines += ['AutoModelForMaskedLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")', "```", ""]
    return "\n".join(lines)


def _command(config: Config) -> str:
    """A command that trains with this config: what differs from a shipped one, whatever file it came from."""
    shipped = runpy.run_path(str(find_config("bert_base")))["get_config"]()
    base = from_dict(shipped.to_dict()).flat()
    changed = {key: value for key, value in config.flat().items() if value != base[key]}
    words = [f"--config.{key}={shlex.quote(str(value))}" for key, value in changed.items()]
    return " \\\n    ".join(["python -m bert_jax.pretrain --config=bert_base", *words])


def _metrics(source: pathlib.Path, step: int) -> dict[str, float]:
    """The last held-out numbers up to a step, from the metrics.jsonl of the run; {} without one."""
    paths = [folder / "metrics.jsonl" for folder in (source, *list(source.resolve().parents)[:2])]
    rows = [json.loads(line) for path in paths if path.is_file() for line in path.read_text().splitlines()]
    held_out = [row for row in rows if row["step"] <= step and "eval_loss" in row]
    return {name: x for name, x in held_out[-1].items() if name.startswith("eval_")} if held_out else {}


def _batch(ids: list[list[int]], tokenizer: Tokenizer, longest: int) -> dict[str, np.ndarray]:
    """Each sentence as a row [CLS] … [SEP]; every position asks for its logits."""
    rows = [[tokenizer.cls_id, *row[: longest - 2], tokenizer.sep_id] for row in ids]
    shape = len(rows), max(map(len, rows))
    batch = {name: np.zeros(shape, np.int32) for name in ("token_type_ids", "sequence_ids")}
    batch["input_ids"] = np.full(shape, tokenizer.pad_id, np.int32)
    for number, row in enumerate(rows):
        batch["input_ids"][number, : len(row)] = row
        batch["sequence_ids"][number, : len(row)] = 1
    batch["position_ids"] = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    batch["masked_lm_positions"] = batch["position_ids"]
    batch["cls_positions"] = np.zeros((shape[0], 1), np.int32)
    return batch


def _logits(model: ModelConfig, params: Any, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every token [B, T, V] and of the next sentence [B, 2]."""
    structure, _ = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
    with jax.default_matmul_precision("highest"):
        words, follows = jax.jit(lambda params, batch: nnx.merge(structure, params)(batch))(params, batch)
    return np.asarray(words), np.asarray(follows)[:, 0]


def _transformers_logits(folder: pathlib.Path, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    # Not of our requirements, so imported only where it happens to be.
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    network = transformers.AutoModelForPreTraining.from_pretrained(folder).eval()
    names = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "sequence_ids"}
    with torch.no_grad():
        out = network(**{theirs: torch.from_numpy(batch[ours]).long() for theirs, ours in names.items()})
    return out.prediction_logits.numpy(), out.seq_relationship_logits.numpy()


if __name__ == "__main__":
    flags.DEFINE_string("input", None, "A run's folder or one of its checkpoints.")
    flags.DEFINE_string("output", None, "The folder to write; it must not exist.")
    command.run(main)
