"""bert_jax: pretrain BERT-like encoders in JAX, from raw text to a fine-tuned model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_jax.pretrained import Pretrained, load

__all__ = ["Pretrained", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports JAX only when a checkpoint is to be used: preparing data does without."""
    if name in __all__:
        from bert_jax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'bert_jax' has no attribute {name!r}")
