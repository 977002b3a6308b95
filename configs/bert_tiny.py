"""BERT-tiny (2 layers, 128 hidden; Turc et al., 2019) on the embedded corpus: the first run, on a laptop.

    make pretrain

A recipe for less than five minutes of training on two cores, not the published one; docs/recipes.md has the
trials that it comes from. Muon, short rows and a causal phase at first, more masks, no dropout, and initial
values with which few steps suffice (larger, sinusoidal positions, token frequencies in the bias).
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
    # Held-out text is evaluated with these values, so with the published rate of masks.
    config.data.update(source="corpus:", held_out_fraction=0.03, max_seq_length=64, global_batch_size=32)
    config.optimizer.update(name="muon", learning_rate=6e-3, warmup_steps=100, beta2=0.98)
    config.train.update(
        num_steps=0,  # that of the phases
        log_every=50,
        eval_every=400,
        eval_batches=48,
        checkpoint_every=400,
        unigram_bias=True,
    )
    # Attention finds the neighbours sooner among few tokens, and where every token has one to predict.
    short = {"max_seq_length": 16, "global_batch_size": 128, "second_objective": "none"}
    config.phases = (
        {"num_steps": 250, "data": {"objective": "causal", **short}},
        {"num_steps": 1050, "data": {"mask_rate": 0.3}},
    )
    return config
