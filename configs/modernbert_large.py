"""ModernBERT-large as published (Warner et al., 2024): 2 trillion tokens, 0.3 of them in rows of 8,192.

    make pretrain CONFIG=modernbert_large DATA_DIR=gs://bucket/data WORKDIR=gs://bucket/modernbert_large
    make pretrain CONFIG=modernbert_large ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

The recipe of `modernbert_base` with other rates and batches: the rate is 5e-4 for 900 billion tokens, then
5e-5. In the first 10 billion tokens the batch grows from 448 rows to 4,928.

Corpus: that of bert_base; the published one is not available.
Time: `make plan CONFIG=modernbert_large TOPOLOGY=v5p:4x4x4` estimates it.
Deviations: the rate warms up by steps, not by tokens; batches of 640 rows of 8,192 tokens (published 616), so
that 64 chips can share them; random initial values (published: the base model's, tiled).
Published: GLUE average 90.5 after fine-tuning; not measured here.
"""

from bert_jax.config import load_config

# Tokens at the first rate, at the second one, in long rows, and while the rate falls.
TOKENS, LOW_TOKENS, LONG_TOKENS, DECAY_TOKENS = (n * 1_000_000_000 for n in (900, 819, 250, 50))
ROWS, LONG_ROWS = 4928, 640  # of 1,024 and of 8,192 tokens
UNIT, GROWTH_TOKENS = 448, 10_000_000_000  # the batch grows by so many rows, over so many tokens


def get_config():
    _, config = load_config("modernbert_base")
    config.model.update(
        num_hidden_layers=28, hidden_size=1024, num_attention_heads=16, intermediate_size=2624
    )
    config.data.update(global_batch_size=UNIT)
    config.optimizer.update(learning_rate=5e-4, warmup_steps=1_663)  # 2 billion tokens
    config.train.update(remat="dots", gradient_accumulation_steps=1)
    sizes = range(UNIT, ROWS, UNIT)
    updates = GROWTH_TOKENS // (1024 * sum(sizes))
    growing = [
        {"num_steps": updates, "data": {"global_batch_size": size, "mask_rate": 0.3}} for size in sizes
    ]
    whole = {"data": {"global_batch_size": ROWS, "mask_rate": 0.3}}
    low = {"optimizer": {"learning_rate": 5e-5}}
    last = config.phases[-1]
    long = {"data": {**last["data"], "global_batch_size": LONG_ROWS}, "model": last["model"]}
    decay_steps = DECAY_TOKENS // (8192 * LONG_ROWS)
    decay = {"learning_rate": 5e-5, "final_learning_rate": 5e-8, "decay_steps": decay_steps}
    config.phases = (
        *growing,
        {"num_steps": (TOKENS - GROWTH_TOKENS) // (1024 * ROWS), **whole},
        {"num_steps": LOW_TOKENS // (1024 * ROWS), **low, **whole},
        {"num_steps": LONG_TOKENS // (8192 * LONG_ROWS), **low, **long},
        {"num_steps": decay_steps, "optimizer": {**last["optimizer"], **decay}, **long},
    )
    return config
