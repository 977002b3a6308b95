"""Prepare a dataset: raw text to tokenizer, token ids and index. Done once; `pretrain` finds it.

    python -m bert_jax.prepare --config=bert_tiny
    python -m bert_jax.prepare --config=bert_base --config.data.source='text:~/corpus/*.txt.gz'

The last line is the digest of the documents' contents: the same text and settings give the same digest.
"""

from absl import flags
from etils import epath

from bert_jax import command
from bert_jax.config import Config
from bert_jax.corpus.dataset import PreparedDataset, find, prepare
from bert_jax.errors import UserError


def dataset_for(config: Config, data_dir: epath.PathLike) -> PreparedDataset:
    """The prepared dataset of a config, built first if this process is the only one.

    Raises:
        UserError: if it is missing and there are several processes (with the command that makes it), or if it
            cannot be made.
    """
    import jax  # here, since preparing needs no accelerator

    if jax.process_count() == 1:
        return prepare(config.data, config.model.vocab_size, data_dir)
    dataset = find(config.data, config.model.vocab_size, data_dir)
    if dataset is None:
        name = command.config_typed()
        raise UserError(
            f"--data_dir={data_dir} holds no dataset of this config, and {jax.process_count()} processes "
            f"must not build it at once: first run python -m bert_jax.prepare --config={name} "
            f"--data_dir={data_dir} with the same overrides."
        )
    return dataset


def main() -> None:
    config = command.resolved_config()
    dataset = prepare(config.data, config.model.vocab_size, flags.FLAGS.data_dir)
    print(f"dataset_sha256: {dataset.sha256}")


if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    flags.DEFINE_enum("runner", "local", ["local"], "Where to prepare: on the cores of this machine.")
    command.run(main)
