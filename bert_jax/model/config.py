"""The shape of the network: the `model` section of a config."""

import dataclasses
from typing import Any, Self

from bert_jax.errors import UserError
from bert_jax.settings import check, setting

ACTIVATIONS = ("gelu", "gelu_tanh")
POSITION_INITIALIZERS = ("normal", "sinusoidal")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a BERT encoder. Names and defaults are those of BERT-base (Devlin et al., 2019).

    Raises:
        UserError: if the sizes do not fit together.
    """

    num_hidden_layers: int = setting(12, least=1)
    hidden_size: int = setting(768, least=1)
    num_attention_heads: int = setting(12, least=1)
    intermediate_size: int = setting(3072, least=1)
    vocab_size: int = setting(30522, least=1)
    max_position_embeddings: int = setting(512, least=1)
    type_vocab_size: int = setting(2, least=1)
    # gelu: with erf, as published in 2018; Google's code changed to gelu_tanh in 2019
    hidden_act: str = setting("gelu", known=ACTIVATIONS)
    hidden_dropout: float = setting(0.1, least=0, below=1, by_phase=True)
    # Published 0.1; fused kernels have none.
    attention_dropout: float = setting(0.0, least=0, below=1, by_phase=True)
    initializer_range: float = setting(0.02, above=0, below=1)
    # sinusoidal: short runs learn to look at neighbours sooner
    position_initializer: str = setting("normal", known=POSITION_INITIALIZERS)
    layer_norm_eps: float = setting(1e-12, above=0, below=1)

    def __post_init__(self):
        check("model", self)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size={self.hidden_size} is not divisible by "
                f"model.num_attention_heads={self.num_attention_heads}; change one of them."
            )

    @classmethod
    def from_checkpoint(cls, values: dict[str, Any], origin: Any) -> Self:
        """Reads the `model` section of a checkpoint; fields that are missing there take their defaults.

        Raises:
            UserError: for fields of a newer version; `origin` names the checkpoint.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if newer := sorted(values.keys() - known):
            raise UserError(
                f"{origin} was written by a newer version of bert_jax: it has "
                f"{', '.join(f'model.{name}' for name in newer)}; upgrade bert_jax to use it."
            )
        return cls(**values)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads
