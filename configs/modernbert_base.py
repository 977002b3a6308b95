"""ModernBERT-base as published (Warner et al., 2024): 2 trillion tokens, 0.3 of them in rows of 8,192.

    make pretrain CONFIG=modernbert_base DATA_DIR=gs://bucket/data WORKDIR=gs://bucket/modernbert_base
    make pretrain CONFIG=modernbert_base ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

1,719 billion tokens in rows of 1,024 at a constant rate, 250 billion in rows of 8,192 with a higher rotary
base in global layers, and 50 billion over which the rate falls by one minus a square root. In the first 50
billion the batch grows from 768 rows to 4,608. 30% of the tokens are masked; held-out text is evaluated with
15%, in rows of 1,024 tokens.

Corpus: that of bert_base; the published one is not available.
Time: the TPU compiler estimates 102 hours on v5p:4x4x4 (with `train.remat=dots` and
`train.gradient_accumulation_steps=3`), and 960 on v5e:4x4, both of the program before attention turned
rotary positions; not measured here.
Deviations: the rate warms up by steps, not by tokens; the published model is a mean of checkpoints.
Published: GLUE average 88.5 after fine-tuning; not measured here.
"""

from bert_jax.config import default_config

TOKENS, LONG_TOKENS, DECAY_TOKENS = 1_719_000_000_000, 250_000_000_000, 50_000_000_000  # of the three parts
ROWS, LONG_ROWS = 4608, 576  # of 1,024 and of 8,192 tokens; both are batches of 4.7 million tokens
UNIT, GROWTH_TOKENS = 768, 50_000_000_000  # the batch grows by so many rows, over so many tokens


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=22,
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=1152,
        feed_forward="gated",
        vocab_size=50_368,
        max_position_embeddings=8192,
        positions="rotary",
        rope_theta=10_000.0,
        local_rope_theta=10_000.0,
        local_attention=128,
        global_attn_every_n_layers=3,
        norm_position="before",
        norm_bias=False,
        linear_bias=False,
        layer_norm_eps=1e-5,
        type_vocab_size=0,
        pooler=False,
        classifier_pooling="mean",
        hidden_dropout=0.0,
        attention_output_dropout=0.1,
        initializer="depth_scaled",
    )
    config.data.update(
        source="wikipedia:en",
        tokenizer="byte_bpe",
        lowercase=False,
        held_out_fraction=0.001,
        max_seq_length=1024,
        global_batch_size=UNIT,
        max_sequences_per_row=8,
        short_sequence_rate=0.0,
        second_objective="none",
    )
    config.optimizer.update(
        name="stable_adamw",
        learning_rate=8e-4,
        schedule="constant",
        warmup_steps=3_815,  # 3 billion tokens, of the smallest batch
        weight_decay=1e-5,
        weight_decay_mode="decoupled",
        beta2=0.98,
        clip_norm=0.0,
    )
    config.train.update(num_steps=0, remat="full", gradient_accumulation_steps=12)
    # Equally many updates with every size of a batch.
    sizes = range(UNIT, ROWS, UNIT)
    updates = GROWTH_TOKENS // (1024 * sum(sizes))
    growing = [
        {"num_steps": updates, "data": {"global_batch_size": size, "mask_rate": 0.3}} for size in sizes
    ]
    whole = {
        "num_steps": (TOKENS - GROWTH_TOKENS) // (1024 * ROWS),
        "data": {"global_batch_size": ROWS, "mask_rate": 0.3},
    }
    long = {
        "data": {
            "max_seq_length": 8192,
            "global_batch_size": LONG_ROWS,
            "max_sequences_per_row": 32,
            "mask_rate": 0.3,
        },
        "model": {"rope_theta": 160_000.0},
    }
    steps, decay_steps = LONG_TOKENS // (8192 * LONG_ROWS), DECAY_TOKENS // (8192 * LONG_ROWS)
    decay = {
        "learning_rate": 3e-4,
        "schedule": "trapezoid",
        "decay_steps": decay_steps,
        "decay_shape": "one_minus_sqrt",
        "final_learning_rate": 3e-7,
    }
    config.phases = (
        *growing,
        whole,
        {"num_steps": steps, "optimizer": {"learning_rate": 3e-4}, **long},
        {"num_steps": decay_steps, "optimizer": decay, **long},
    )
    return config
