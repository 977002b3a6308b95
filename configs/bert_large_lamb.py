"""BERT-large with LAMB in 8,601 steps of large batches (You et al., 2020, "BERT in 76 minutes").

    make pretrain CONFIG=bert_large_lamb DATA_DIR=gs://bucket/data WORKDIR=gs://bucket/bert_large_lamb
    make plan CONFIG=bert_large_lamb TOPOLOGY=v5p:4x4x4

7,038 steps of 65,536 rows of 128 tokens, then 1,563 of 32,768 rows of 512. Each phase warms up over a part of
its steps to its own rate, which falls by a line to 0.

Corpus: that of bert_large, English Wikipedia.
Time: published 76 minutes on 1,024 TPU v3 chips; `make plan` estimates others. Where batches do not fit,
raise train.gradient_accumulation_steps; the 8 here fit 64 chips of v5p, by its compiler.
Deviations: no BookCorpus; dropout on attention probabilities is 0 (published 0.1); rows of 512 tokens are
packed (published: a sequence each). Rates and warm-ups (28.4 and 12.8% of the steps) are those of NVIDIA's
DeepLearningExamples, which repeats the run.
Published: SQuAD 1.1 F1 90.58 after fine-tuning; not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096
    )
    config.data.update(
        source="wikipedia:en",
        tokenizer="wordpiece:bert_uncased",
        held_out_fraction=0.001,
        max_seq_length=512,
        global_batch_size=32_768,
        max_sequences_per_row=8,
    )
    config.optimizer.update(name="lamb", learning_rate=4e-3, warmup_steps=200, weight_decay=0.01)
    config.train.update(num_steps=0, log_every=10, eval_every=500, eval_batches=1, checkpoint_every=500)
    config.train.update(gradient_accumulation_steps=8)
    config.phases = (
        {
            "num_steps": 7_038,
            "data": {"max_seq_length": 128, "global_batch_size": 65_536, "max_sequences_per_row": 1},
            "optimizer": {"learning_rate": 6e-3, "warmup_steps": 2_000},
        },
        {"num_steps": 1_563, "optimizer": {"learning_rate": 4e-3, "warmup_steps": 200}},
    )
    return config
