"""Named entities of ten types in tweets, from imported MiniLM.

    make finetune CONFIG=finetune/tweets

finetune/trec shows how to get data and MiniLM. Test entity F1 0.466, in about ten minutes on two CPU cores
with other work on them; with a frozen encoder 0.285.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.init_from = "imported/minilm"
    config.task.update(name="token_classification")
    config.data.update(
        train="downstream/tweets.conll",
        test_fraction=0.1,
        max_seq_length=128,
        global_batch_size=4,
        max_sequences_per_row=8,
    )
    config.optimizer.update(learning_rate=2e-4)
    config.train.update(num_epochs=6.0)
    return config
