"""Classification of texts or of pairs: one label for each, in files of your own.

    make finetune CONFIG=finetune/classification INIT_FROM=runs/bert_tiny \\
        ARGS="--config.data.train=train.tsv --config.data.text=sentence --config.data.label=label"

Give data.text_pair for pairs, data.eval and data.test for files of their own; without them a tenth of the
texts, chosen by hash, is held out to choose the best checkpoint. Several short texts share a row.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(name="classification")
    config.data.update(max_seq_length=128, global_batch_size=8, max_sequences_per_row=8)
    config.optimizer.update(learning_rate=5e-5)
    config.train.update(num_epochs=3.0)
    return config
