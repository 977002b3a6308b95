"""Ettin encoders as published (Weller et al., 2025): networks like ModernBERT of 17 million weights and more.

    make pretrain CONFIG=ettin:17m DATA_DIR=gs://bucket/data WORKDIR=gs://bucket/ettin_17m
    make pretrain CONFIG=ettin:150m ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

Sizes: 17m, 32m, 68m, 150m, 400m, 1b. 1,700 billion tokens in rows of 1,024 at a constant rate; 250 billion in
rows of 8,192 with a higher rotary base, while the rate falls to half by one minus a square root; 50 billion
with 15% masks instead of 30%, while it falls to a fiftieth. Held-out text: as `modernbert_base`.

Corpus: that of bert_base. The published one is open (jhu-clsp on Hugging Face), with other text in each part.
Time: `make plan CONFIG=ettin:17m TOPOLOGY=v5e:4x4` estimates it.
Deviations: rows of 8,192 tokens, which the TPU's kernels take (published 7,999); rows are packed (published:
a text each); the rate warms up by steps, not by tokens.
Published: GLUE average 88.9 (150m) and 90.8 (400m) after fine-tuning; not measured here.
"""

from typing import NamedTuple

from bert_jax.config import load_config
from bert_jax.errors import UserError

TOKENS, LONG_TOKENS, DECAY_TOKENS = 1_700_000_000_000, 250_000_000_000, 50_000_000_000  # of the three parts
ROWS = 4608  # of 1,024 and of 8,192 tokens


class Size(NamedTuple):
    """What differs between the sizes; heads have 64 features."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    learning_rate: float
    weight_decay: float
    warmup_tokens: int


SIZES = {
    "17m": Size(7, 256, 384, 3e-3, 3e-4, 4_000_000_000),
    "32m": Size(10, 384, 576, 3e-3, 3e-4, 4_000_000_000),
    "68m": Size(19, 512, 768, 3e-3, 3e-4, 3_000_000_000),
    "150m": Size(22, 768, 1152, 8e-4, 1e-5, 3_000_000_000),
    "400m": Size(28, 1024, 2624, 5e-4, 1e-5, 2_000_000_000),
    "1b": Size(28, 1792, 3840, 5e-4, 5e-5, 2_000_000_000),
}


def get_config(size="150m"):
    if size not in SIZES:
        raise UserError(f"--config=ettin:{size}: there is no such size; use one of {', '.join(SIZES)}.")
    layers, hidden_size, intermediate_size, rate, weight_decay, warmup_tokens = SIZES[size]
    _, config = load_config("modernbert_base")
    config.model.update(
        num_hidden_layers=layers,
        hidden_size=hidden_size,
        num_attention_heads=hidden_size // 64,
        intermediate_size=intermediate_size,
    )
    config.data.update(global_batch_size=ROWS)
    config.optimizer.update(
        learning_rate=rate, weight_decay=weight_decay, warmup_steps=warmup_tokens // (1024 * ROWS)
    )
    config.train.update(gradient_accumulation_steps=48)
    long = {"max_seq_length": 8192, "max_sequences_per_row": 32}
    steps, decay_steps = LONG_TOKENS // (8192 * ROWS), DECAY_TOKENS // (8192 * ROWS)
    falling = {"schedule": "trapezoid", "decay_shape": "one_minus_sqrt"}
    config.phases = (
        {"num_steps": TOKENS // (1024 * ROWS), "data": {"mask_rate": 0.3}},
        {
            "num_steps": steps,
            "data": {**long, "mask_rate": 0.3},
            "model": {"rope_theta": 160_000.0, "local_rope_theta": 10_000.0 if size == "17m" else 160_000.0},
            "optimizer": {**falling, "decay_steps": steps, "final_learning_rate": rate / 2},
        },
        {
            "num_steps": decay_steps,
            "data": {**long, "mask_rate": 0.15},
            "model": {"rope_theta": 160_000.0, "local_rope_theta": 160_000.0},
            "optimizer": {
                **falling,
                "learning_rate": rate / 2,
                "decay_steps": decay_steps,
                "final_learning_rate": rate / 50,
            },
        },
    )
    return config
