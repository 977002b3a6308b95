"""Regression: one number for each text or pair of texts (similarity, rating, price), from your own files.

    make finetune CONFIG=finetune/regression INIT_FROM=runs/bert_tiny \\
        ARGS="--config.data.train=pairs.tsv --config.data.text=first --config.data.text_pair=second \\
              --config.data.label=score"
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(name="regression")
    config.data.update(max_seq_length=128, global_batch_size=8, max_sequences_per_row=8)
    config.optimizer.update(learning_rate=5e-5)
    config.train.update(num_epochs=4.0)
    return config
