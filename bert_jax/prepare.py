"""Prepare a dataset once: raw text to tokenizer, token ids and index. `pretrain` finds it.

    python -m bert_jax.prepare --config=bert_tiny
    python -m bert_jax.prepare --config=bert_large --download    # English Wikipedia, 27 GB
    python -m bert_jax.prepare --config=bert_base --config.data.source='text:~/corpus/*.txt.gz'

The last line is a digest of the documents' contents: the same text and settings give the same digest. The
line before it names the dataset's card, a page that says what the dataset holds.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    command.define_download_flag()
    flags.DEFINE_enum("runner", "local", ["local"], "Where to prepare; local: on the cores of this machine.")
    command.run(command.main_of("bert_jax.prepare"))

import logging

from bert_jax.corpus.card import PAGE
from bert_jax.corpus.mixture import dataset_for
from bert_jax.data.obstacles import obstacles

log = logging.getLogger("bert_jax")


def main() -> None:
    config = command.resolved_config()
    dataset = dataset_for(
        config.data,
        config.model.vocab_size,
        flags.FLAGS.data_dir,
        processes=1,
        config=command.config_argument(),
        agreed=flags.FLAGS.download,
    )
    for obstacle in obstacles(dataset, config.data, config.train.seed):
        log.warning(obstacle.message)
    for one in dataset.datasets.values():
        if (page := one.directory / PAGE).exists():
            print(f"dataset_card: {page}")
    print(f"dataset_sha256: {dataset.sha256}")
