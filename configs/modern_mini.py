"""A small encoder like ModernBERT (Warner et al., 2024) on the embedded corpus, as `bert_mini` for BERT.

    make pretrain CONFIG=modern_mini

The recipe of `modern_tiny` for a larger network: about an hour on a laptop. Not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=4,
        hidden_size=256,
        num_attention_heads=4,
        intermediate_size=768,
        feed_forward="gated",
        vocab_size=8192,
        max_position_embeddings=128,
        positions="rotary",
        norm_position="before",
        norm_bias=False,
        linear_bias=False,
        layer_norm_eps=1e-5,
        type_vocab_size=0,
        pooler=False,
        hidden_dropout=0.0,
        initializer="depth_scaled",
        initializer_range=0.06,
    )
    config.data.update(
        source="corpus:",
        held_out_fraction=0.03,
        max_seq_length=64,
        global_batch_size=32,
        second_objective="none",
    )
    config.optimizer.update(name="muon", learning_rate=3e-3, warmup_steps=200, beta2=0.98)
    config.train.update(
        num_steps=0,  # that of the phases
        log_every=100,
        eval_every=600,
        eval_batches=48,
        checkpoint_every=600,
        unigram_bias=True,
    )
    short = {"max_seq_length": 16, "global_batch_size": 128}
    config.phases = (
        {"num_steps": 900, "data": {"objective": "causal", **short}},
        {"num_steps": 4200, "data": {"mask_rate": 0.3}},
    )
    return config
