"""BERT-medium (8 layers, 512 hidden; Turc et al., 2019): one GPU.

    make pretrain CONFIG=bert_medium
    make pretrain CONFIG=bert_medium ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

Use your own text: a model of this size memorises the embedded corpus, which is small. Rows hold up to
four sequences, so that short documents leave almost no padding. Not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=8,
        hidden_size=512,
        num_attention_heads=8,
        intermediate_size=2048,
        vocab_size=16384,
        max_position_embeddings=512,
    )
    config.data.update(
        source="corpus:",
        held_out_fraction=0.03,
        max_seq_length=128,
        global_batch_size=128,
        max_sequences_per_row=4,
    )
    config.optimizer.update(learning_rate=5e-4, warmup_steps=1000)
    config.train.update(
        num_steps=20_000, log_every=100, eval_every=1000, eval_batches=32, checkpoint_every=1000
    )
    return config
