"""bert_jax: pretrain BERT-like encoders in JAX, from raw text to a fine-tuned model."""

import importlib
from typing import TYPE_CHECKING, Any

from bert_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from bert_jax.inference.finetuned import Finetuned, load_finetuned
    from bert_jax.inference.pretrained import Pretrained, load

HOMES = {
    "Pretrained": "inference.pretrained",
    "load": "inference.pretrained",
    "Finetuned": "inference.finetuned",
    "load_finetuned": "inference.finetuned",
}
__all__ = ["Finetuned", "Pretrained", "load", "load_finetuned"]


def __getattr__(name: str) -> Any:
    """Imports JAX only when a checkpoint is to be used: preparing data does without."""
    if name in HOMES:
        return getattr(importlib.import_module(f"bert_jax.{HOMES[name]}"), name)
    raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")
