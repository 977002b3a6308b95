"""BERT-base as published (Devlin et al., 2019): Wikipedia, 1,000,000 steps of 256 rows.

    make pretrain CONFIG=bert_base                    # says what the download of the corpus takes
    make pretrain CONFIG=bert_base ARGS=--download    # downloads, prepares and trains
    make pretrain CONFIG=bert_base ARGS="--download --config.data.source='wikipedia:en,text:books/*.txt'"
    make pretrain CONFIG=bert_base ARGS="--config.data.source='text:corpus/*.txt'"    # your own text

900,000 steps of 128 tokens, then 100,000 of 512; the learning rate falls over all of them. Rows of 512 tokens
hold up to eight sequences, since most documents are shorter; held-out text is evaluated in such rows.

Corpus: English Wikipedia, the newest complete dump (wikipedia:en:YYYYMMDD names another): 27 GB to download,
about 20 GB of text; plan for 50 GB of disk. Books are a second source where you have them: text:, jsonl:, or
tfds:pg19:train:book_text once TFDS has built it.
Time: published four days on 4 Cloud TPUs (16 chips); at the rates of docs/performance.md,
which were measured with larger batches, about a day on one H200; a CPU takes years.
Deviations: no books, since BookCorpus is not distributed any more; dropout on attention probabilities is 0
(published 0.1); rows of 512 tokens are packed (published: a sequence each).
Published: GLUE average 79.6 after fine-tuning; not measured here.
"""

from bert_jax.config import default_config


def get_config():
    config = default_config()
    config.data.update(
        source="wikipedia:en",
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
