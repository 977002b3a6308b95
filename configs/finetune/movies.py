"""Sentiment of film review snippets (Hutto and Gilbert, 2014), from imported MiniLM.

    make finetune CONFIG=finetune/movies

finetune/trec shows how to get data and MiniLM. The label is the sign of the rating. Test accuracy 0.859, in
about eight minutes on two CPU cores with other work on them.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.init_from = "imported/minilm"
    config.data.update(
        train="downstream/movies.tsv",
        test_fraction=0.1,
        max_seq_length=128,
        global_batch_size=8,
        max_sequences_per_row=16,
    )
    config.optimizer.update(learning_rate=1e-4)
    config.train.update(num_epochs=1.0)
    return config
