"""BERT-base as one GPU of 80 GB trains it in a day: today's recipe for the network of 2018.

    make pretrain CONFIG=bert_base_24h ACCELERATOR=cuda12 ARGS=--download

Whole-word masks at a rate of 0.3 that falls to 0.15, no second objective, packed rows, and a trapezoid: 4% of
the steps warm up, 15% fall. 148,000 steps of 1,024 rows of 128 tokens are 19 billion tokens and 1.08e19 FLOPs
(as `plan` counts them): 24 hours at 40% of the bfloat16 peak of an A100 (312 TF/s), 7.6 of an H100.

Corpus: that of bert_base, English Wikipedia; data.source='text:…' takes your own.
Not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.data.update(
        source="wikipedia:en",
        tokenizer="wordpiece:bert_uncased",
        held_out_fraction=0.001,
        max_seq_length=128,
        global_batch_size=1024,
        max_sequences_per_row=4,
        second_objective="none",
        masking="whole_word",
        mask_rate=0.3,
        final_mask_rate=0.15,
    )
    config.optimizer.update(
        learning_rate=5e-4, warmup_steps=6_000, schedule="trapezoid", decay_steps=22_200, beta2=0.98
    )
    config.train.update(num_steps=148_000)
    return config
