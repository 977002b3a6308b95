"""BERT-tiny (2 layers, 128 hidden; Turc et al., 2019) on the embedded corpus: the first run, on a laptop.

    make pretrain

A recipe for six minutes of training on two cores, not the published one: short rows, more masks, no dropout,
and initial values with which few steps suffice (larger, sinusoidal positions, token frequencies in the bias).
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=2,
        intermediate_size=512,
        vocab_size=8192,
        max_position_embeddings=128,
        hidden_dropout=0.0,
        initializer_range=0.08,
        position_initializer="sinusoidal",
    )
    config.data.update(
        source="corpus:", held_out_fraction=0.03, max_seq_length=64, global_batch_size=32, mask_rate=0.3
    )
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100, beta2=0.98)
    config.train.update(
        num_steps=1700,
        log_every=50,
        eval_every=400,
        eval_batches=48,
        checkpoint_every=400,
        unigram_bias=True,
    )
    return config
