"""Classification: one label for each text or pair of texts, from your own files.

    make finetune CONFIG=finetune/classification INIT_FROM=runs/bert_tiny \\
        ARGS="--config.data.train=train.tsv --config.data.text=sentence --config.data.label=label"

Set data.text_pair for pairs. Set data.eval and data.test if you have files for them; otherwise a hash of the
text holds out a tenth of the examples to choose the best checkpoint. Several short texts share a row.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(name="classification")
    config.data.update(max_seq_length=128, global_batch_size=8, max_sequences_per_row=8)
    config.optimizer.update(learning_rate=5e-5)
    config.train.update(num_epochs=3.0)
    return config
