"""BERT-large as published (Devlin et al., 2019): Wikipedia and books, 1,000,000 steps of 256 rows.

    make pretrain CONFIG=bert_large DATA_DIR=gs://bucket/data WORKDIR=gs://bucket/bert_large
    make pretrain CONFIG=bert_large ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

900,000 steps of 128 tokens, then 100,000 of 512; the learning rate falls over all of them. Rows of 512 tokens
hold up to eight sequences, since most documents are shorter; held-out text is evaluated in such rows.

Corpus: English Wikipedia and PG-19 books from TFDS, about 31 GB of text; plan for 100 GB of disk.
Download it once: tfds build wikipedia/20230601.en --file_format=array_record, and the same for pg19.
Time: published four days on 16 Cloud TPUs (64 chips); a single GPU takes weeks, a CPU years.
Deviations: PG-19 replaces BookCorpus, which is no longer distributed; dropout on attention probabilities is 0
(published 0.1); rows of 512 tokens are packed (published: a sequence each).
Published: GLUE average 82.1 after fine-tuning; not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=24, hidden_size=1024, num_attention_heads=16, intermediate_size=4096
    )
    config.data.update(
        source="tfds:wikipedia/20230601.en:train:text,tfds:pg19:train:book_text",
        tokenizer="wordpiece:bert_uncased",
        held_out_fraction=0.001,
        max_seq_length=512,
        global_batch_size=256,
        max_sequences_per_row=8,
    )
    config.optimizer.update(learning_rate=1e-4, warmup_steps=10_000)
    config.train.update(num_steps=0)
    config.phases = (
        {"num_steps": 900_000, "data": {"max_seq_length": 128, "max_sequences_per_row": 1}},
        {"num_steps": 100_000},
    )
    return config
