"""Writes a checkpoint as a Hugging Face directory, which AutoModel and AutoTokenizer load as it is."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from bert_jax.files import write
from bert_jax.inference.finetuned import Finetuned
from bert_jax.inference.pretrained import Pretrained
from bert_jax.interop import heads, huggingface, tokenizer_json
from bert_jax.interop.heads import HEADS
from bert_jax.interop.model_card import model_card
from bert_jax.interop.verify import Network, check
from bert_jax.training.opening import open_checkpoint


def export(source: pathlib.Path, output: pathlib.Path) -> None:
    """Writes the best checkpoint of `source` into the folder `output` and checks what was written.

    Raises:
        UserError: if there is no checkpoint, or the files do not give the same tokens and logits again.
    """
    opened = open_checkpoint(source, "--input")
    bert = Finetuned.of(opened) if opened.is_finetuned else Pretrained.of(opened)
    network = _network(bert)
    longest = bert.config.data.max_seq_length
    # Transformers refuses a file without this entry.
    weights = safetensors.numpy.save(_tensors(network), metadata={"format": "pt"})
    settings = tokenizer_json.settings(bert.tokenizer, longest)
    config = huggingface.write_config(network.model, bert.tokenizer.pad_id, network.task, network.label_info)
    files: dict[str, bytes | str] = {
        **bert.tokenizer.files(),
        "model.safetensors": weights,
        "config.json": _json(config),
        "tokenizer_config.json": _json(settings),  # replaces that of WordPiece, which has fewer keys
        "special_tokens_map.json": _json({k: v for k, v in settings.items() if k.endswith("_token")}),
        "tokenizer.json": tokenizer_json.build(bert.tokenizer).to_str(pretty=True),
        "README.md": model_card(opened, bert.config, network.task, network.label_info),
    }
    for name, content in files.items():
        write(output / name, content)
    check(network, bert.tokenizer, longest, output)


def _network(bert: Pretrained | Finetuned) -> Network:
    if isinstance(bert, Finetuned):
        return Network(bert.config.task.name, bert.task.label_info, bert.config.model, bert.params)
    return Network(heads.PRETRAINING, {}, bert.config.model, bert.params)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _tensors(network: Network) -> dict[str, np.ndarray]:
    """Makes the tensors of model.safetensors; a regression's output is in the units of the data there."""
    params = network.params
    if network.task == "regression":
        params = heads.fold_standardisation(params, network.label_info)
    return huggingface.from_params(params, HEADS[network.task])
