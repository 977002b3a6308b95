"""Writes a checkpoint as a Hugging Face directory, which AutoModel and AutoTokenizer load as it is."""

import json
import logging
import pathlib
from typing import Any

import safetensors.numpy

from bert_jax.files import write
from bert_jax.inference.finetuned import Finetuned
from bert_jax.inference.pretrained import Pretrained
from bert_jax.interop import heads, huggingface, tokenizer_json
from bert_jax.interop.families import family_of
from bert_jax.interop.heads import HEADS
from bert_jax.interop.model_card import model_card
from bert_jax.interop.tensors import Network, from_params
from bert_jax.interop.verify import Exported, check
from bert_jax.training.opening import open_checkpoint

log = logging.getLogger("bert_jax")


def export(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the best checkpoint of `source` into the folder `output` and checks what was written.

    Raises:
        UserError: if there is no checkpoint, or the files do not give the same tokens and logits again.
    """
    opened = open_checkpoint(source, "--input")
    bert = Finetuned(opened) if opened.is_finetuned else Pretrained(opened)
    model, params, task, label_info = bert.config.model, bert.params, heads.PRETRAINING, {}
    if isinstance(bert, Finetuned):
        task, label_info = bert.config.task.name, bert.task.label_info
    family, head, longest = family_of(model), HEADS[task], bert.config.longest_row
    head.check(family)
    # Their regression has its output in the units of the data.
    theirs = heads.fold_standardisation(params, label_info) if task == "regression" else params
    network = Network(family, model, head, heads.num_labels(task, label_info))
    tensors = from_params(theirs, network)
    # Transformers refuses a file without this entry.
    weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    settings = tokenizer_json.settings(bert.tokenizer, longest, model.type_vocab_size > 0)
    config = huggingface.write_config(model, bert.tokenizer, task, label_info)
    files: dict[str, bytes | str] = {
        **bert.tokenizer.files(),
        "model.safetensors": weights,
        "config.json": _json(config),
        "tokenizer_config.json": _json(settings),  # replaces that of the tokenizer, which has other keys
        "special_tokens_map.json": _json({k: v for k, v in settings.items() if k.endswith("_token")}),
        "tokenizer.json": tokenizer_json.content(bert.tokenizer),
        "README.md": model_card(opened, bert.config, task, label_info),
    }
    for name, content in files.items():
        write(output / name, content)
    log.info(huggingface.exports_as(model, task))
    check(Exported(task, label_info, model, params), bert.tokenizer, longest, output)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
