"""The shape of the network: the `model` section of a config."""

import dataclasses

from bert_jax.errors import UserError, check_known, check_least

ACTIVATIONS = ("gelu", "gelu_tanh")
POSITION_INITIALIZERS = ("normal", "sinusoidal")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of a BERT encoder. Names and defaults are those of BERT-base (Devlin et al., 2019).

    Raises:
        UserError: if the sizes do not fit together.
    """

    num_hidden_layers: int = 12
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu"  # erf as published in 2018; Google's code changed to gelu_tanh in 2019
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.0  # published 0.1; fused attention kernels have none
    initializer_range: float = 0.02
    position_initializer: str = "normal"  # sinusoidal: short runs learn to look at neighbours sooner
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        check_least("model", self, 1, "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size",
                    "intermediate_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size={self.hidden_size} is not divisible by "
                f"model.num_attention_heads={self.num_attention_heads}; change one of them."
            )
        check_known("model", self, hidden_act=ACTIVATIONS, position_initializer=POSITION_INITIALIZERS)
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"model.{name}={getattr(self, name)} must be in [0, 1).")
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise UserError(f"model.{name}={getattr(self, name)} must be in (0, 1).")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads
