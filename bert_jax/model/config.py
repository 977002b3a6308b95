"""The shape of the network: the `model` section of a config."""

import dataclasses
from typing import Any, Self

from bert_jax.errors import UserError
from bert_jax.settings import check, setting

ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
POSITION_INITIALIZERS = ("normal", "sinusoidal")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of an encoder. Defaults are those of BERT-base (Devlin et al., 2019).

    Any combination is a network; `configs/` has the published ones.

    Raises:
        UserError: if the sizes or settings do not fit together.
    """

    num_hidden_layers: int = setting(12, least=1)
    hidden_size: int = setting(768, least=1)
    num_attention_heads: int = setting(12, least=1)
    num_key_value_heads: int = setting(0, least=0)  # shared by groups of heads; 0: one for each head
    intermediate_size: int = setting(3072, least=1)
    vocab_size: int = setting(30522, least=2)
    max_position_embeddings: int = setting(512, least=1)
    type_vocab_size: int = setting(2, least=0)  # 0: no segment embeddings
    # gelu: with erf, as published in 2018; Google's code changed to gelu_tanh in 2019
    hidden_act: str = setting("gelu", known=ACTIVATIONS)
    # gated: the activation is multiplied by a second projection (Shazeer, 2020)
    feed_forward: str = setting("plain", known=("plain", "gated"))
    linear_bias: bool = True  # of attention, feed-forward and the masked-LM transform

    # learned: an embedding of each position; rotary: queries and keys are turned by it (Su et al., 2021)
    positions: str = setting("learned", known=("learned", "rotary"))
    rope_theta: float = setting(10_000.0, above=0, by_phase=True)  # of the slowest turn, of global layers
    local_rope_theta: float = setting(0.0, least=0, by_phase=True)  # of local layers; 0: as rope_theta
    rotary_share: float = setting(1.0, above=0, most=1)  # of each head's features, from the first
    # Of a local layer: a token sees itself and local_attention // 2 tokens to each side. Every n-th layer,
    # from the first, is global.
    local_attention: int = setting(0, least=0)
    global_attn_every_n_layers: int = setting(1, least=1)

    norm: str = setting("layer", known=("layer", "rms"))
    # after: of the sum of a block and its residual, as BERT; before: of what a block reads, and at the end
    norm_position: str = setting("after", known=("after", "before"))
    norm_bias: bool = True
    layer_norm_eps: float = setting(1e-12, above=0, below=1)
    # False: the first block reads normalised embeddings, but the residual stream begins with them as they are
    normalize_embeddings: bool = True

    pooler: bool = True  # what next sentence prediction and classification read; False: they cannot, or pool
    # Of networks without a pooler. late: the mean of all tokens after the classifier's dense layer
    classifier_pooling: str = setting("cls", known=("cls", "mean", "late"))
    head_transform: bool = True  # dense, activation and norm before the masked-LM head's vocabulary
    tie_word_embeddings: bool = True  # the head's matrix is the token embeddings
    decoder_bias: bool = True  # of the masked-LM head, one for each word

    hidden_dropout: float = setting(0.1, least=0, below=1, by_phase=True)
    # Of what attention adds to the residual stream; -1: hidden_dropout
    attention_output_dropout: float = setting(-1.0, least=-1, below=1, by_phase=True)
    # Published 0.1; fused kernels have none.
    attention_dropout: float = setting(0.0, least=0, below=1, by_phase=True)
    initializer_range: float = setting(0.02, above=0, below=1)
    # depth_scaled: matrices that write to the residual stream have initializer_range / sqrt(2 × layers)
    initializer: str = setting("normal", known=("normal", "depth_scaled"))
    # sinusoidal: short runs learn to look at neighbours sooner
    position_initializer: str = setting("normal", known=POSITION_INITIALIZERS)

    def __post_init__(self):
        check("model", self)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.hidden_size={self.hidden_size} is not divisible by "
                f"model.num_attention_heads={self.num_attention_heads}; change one of them."
            )
        if self.num_attention_heads % self.key_value_heads:
            raise UserError(
                f"model.num_attention_heads={self.num_attention_heads} is not divisible by "
                f"model.num_key_value_heads={self.num_key_value_heads}; change one of them."
            )
        if self.norm_position == "after" and not self.normalize_embeddings:
            raise UserError(
                "model.normalize_embeddings=False keeps embeddings as they are in the residual stream, which "
                "model.norm_position='after' normalises; use norm_position='before' or leave it at True."
            )
        if self.positions == "rotary" and self.position_initializer != "normal":
            raise UserError(
                f"model.position_initializer={self.position_initializer!r} is for learned positions, and "
                "model.positions='rotary' has none; leave it at 'normal'."
            )
        if self.positions == "rotary" and (self.rotary_size < 2 or self.rotary_size % 2):
            raise UserError(
                f"model.rotary_share={self.rotary_share} of heads of {self.head_size} features is "
                f"{self.rotary_size}; rotary positions turn pairs, so it must be an even number."
            )
        if self.local_attention == 1:
            raise UserError("model.local_attention=1 lets a token see itself alone; use 2 or more, or 0.")
        if self.global_attn_every_n_layers > 1 and not self.local_attention:
            raise UserError(
                f"model.global_attn_every_n_layers={self.global_attn_every_n_layers} makes the other layers "
                "local; set model.local_attention to their window, e.g. 128."
            )
        if self.local_attention and self.global_attn_every_n_layers == 1:
            raise UserError(
                f"model.local_attention={self.local_attention} has no effect with "
                "model.global_attn_every_n_layers=1, which makes every layer global; use e.g. 3."
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

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        """Features of each head that rotary positions turn."""
        return round(self.rotary_share * self.head_size)

    @property
    def group_size(self) -> int:
        """Layers in the pattern that repeats: one global layer, then local ones."""
        return self.global_attn_every_n_layers

    @property
    def num_local_layers(self) -> int:
        return self.num_hidden_layers - -(-self.num_hidden_layers // self.group_size)
