"""The tasks of GLUE (Wang et al., 2019) by name, from TFDS.

    tfds build glue/mrpc --file_format=array_record
    make finetune CONFIG=finetune/glue:mrpc INIT_FROM=runs/bert_base

GLUE's test labels are not public: scores are those of its validation split. Published for BERT-base, test:
MNLI 84.6, QQP 71.2, QNLI 90.5, SST-2 93.5, CoLA 52.1, STS-B 85.8, MRPC 88.9, RTE 66.4; not measured here.
"""

from bert_jax.errors import UserError
from bert_jax.tasks.config import default_config

# Name -> first text, second text, metric, and the classes if their order matters (F1 is that of the second).
# Columns and classes have TFDS's names.
TASKS = {
    "cola": ("sentence", "", "matthews", ""),
    "sst2": ("sentence", "", "accuracy", ""),
    "mrpc": ("sentence1", "sentence2", "f1", "not_equivalent,equivalent"),
    "stsb": ("sentence1", "sentence2", "spearman", ""),
    "qqp": ("question1", "question2", "f1", "not_duplicate,duplicate"),
    "mnli": ("premise", "hypothesis", "accuracy", ""),
    "qnli": ("question", "sentence", "accuracy", ""),
    "rte": ("sentence1", "sentence2", "accuracy", ""),
    "wnli": ("sentence1", "sentence2", "accuracy", ""),
}


def get_config(name: str = "mrpc"):
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"--config=finetune/glue:{name}: there is no such task; use one of {known}.")
    text, text_pair, metric, labels = TASKS[name]
    config = default_config()
    config.task.update(name="regression" if name == "stsb" else "classification", metric=metric)
    config.data.update(
        train=f"tfds:glue/{name}:train",
        eval=f"tfds:glue/{name}:validation{'_matched' if name == 'mnli' else ''}",
        text=text,
        text_pair=text_pair,
        labels=labels,
        max_seq_length=128,
        global_batch_size=32,
    )
    config.optimizer.update(learning_rate=3e-5)
    config.train.update(num_epochs=3.0)
    return config
