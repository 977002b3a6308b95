"""scikit-learn classifiers on frozen features: the encoder is not trained.

    make finetune CONFIG=finetune/features INIT_FROM=runs/bert_tiny ARGS="--config.data.train=train.tsv"

Any other classification config trains them besides fine-tuning with --config.task.frozen=logistic_regression.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(frozen="logistic_regression,naive_bayes,neural_network", pooling="mean")
    config.data.update(max_seq_length=128, global_batch_size=8, max_sequences_per_row=8)
    config.train.update(num_epochs=0.0)
    return config
