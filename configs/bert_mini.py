"""BERT-tiny (2 layers, 128 hidden) on the embedded corpus: the first run, on a laptop.

make pretrain                    # or: python -m bert_jax.pretrain --config=bert_tiny
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=2, hidden_size=128, num_attention_heads=2, intermediate_size=512, vocab_size=8192,
        max_position_embeddings=128, hidden_dropout=0.0,
    )  # fmt: skip
    config.data.update(source="corpus:", held_out_fraction=0.03, max_seq_length=128, global_batch_size=64)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=200)
    config.train.update(
        num_steps=2000, log_every=50, eval_every=500, eval_batches=16, checkpoint_every=500,
    )  # fmt: skip
    return config
