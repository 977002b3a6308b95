"""Answers as spans of a paragraph: SQuAD 1.1 and 2.0 (Rajpurkar et al., 2016, 2018), or files like theirs.

    make finetune CONFIG=finetune/squad INIT_FROM=runs/bert_base \\
        ARGS="--config.data.train=train-v1.1.json --config.data.eval=dev-v1.1.json"

From TFDS: --config.data.train=tfds:squad --config.data.eval=tfds:squad:validation. If the training file has
questions without an answer (2.0), the model learns to give none. Published for BERT-base, 1.1: F1 88.5; not
measured here.
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(name="question_answering")
    config.data.update(max_seq_length=384, global_batch_size=32)
    config.optimizer.update(learning_rate=3e-5)
    config.train.update(num_epochs=2.0)
    return config
