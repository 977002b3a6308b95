"""Token classification: a tag for every word, e.g. named entities, from CoNLL files (word first, tag last).

    make finetune CONFIG=finetune/token_classification INIT_FROM=runs/bert_tiny \\
        ARGS="--config.data.train=train.conll --config.data.eval=valid.conll --config.data.test=test.conll"

CoNLL 2003 from TFDS: --config.data.train=tfds:conll2003 --config.data.eval=tfds:conll2003:dev
--config.data.test=tfds:conll2003:test --config.data.text=tokens --config.data.label=ner
"""

from bert_jax.tasks.config import default_config


def get_config():
    config = default_config()
    config.task.update(name="token_classification")
    config.data.update(
        text="tokens", label="tags", max_seq_length=128, global_batch_size=8, max_sequences_per_row=8
    )
    config.optimizer.update(learning_rate=5e-5)
    config.train.update(num_epochs=4.0)
    return config
