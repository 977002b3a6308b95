"""Pretrain a BERT-like encoder: masked language model and next sentence prediction.

    python -m bert_jax.pretrain --config=bert_tiny
    python -m bert_jax.pretrain --config=bert_base --config.data.source='text:~/corpus/*.txt'

The same command again resumes. Everything of the run is kept in --workdir.
"""

from absl import flags

from bert_jax import command, prepare
from bert_jax.data.sources.files import MissingInput
from bert_jax.errors import UserError
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.loop import train


def main() -> int:
    config = command.resolved_config()
    workdir = flags.FLAGS.workdir or f"runs/{command.config_file().stem}"
    try:
        dataset = prepare.dataset_for(config, flags.FLAGS.data_dir)
    except MissingInput as missing:
        # What a config needs is told by its docstring: corpus, disk, time, and how to use one's own text.
        raise UserError(f"{missing}\n\n{command.config_docstring()}") from None
    return train(config, Pretraining(config, dataset), workdir)


if __name__ == "__main__":
    command.define_config_flags()
    flags.DEFINE_string("workdir", None, "The run's folder (default: runs/CONFIG).")
    command.run(main)
