"""Prepare a dataset once: raw text to tokenizer, token ids and index. `pretrain` finds it.

    python -m bert_jax.prepare --config=bert_tiny
    python -m bert_jax.prepare --config=bert_large --download    # English Wikipedia, 27 GB
    python -m bert_jax.prepare --config=bert_base --config.data.source='text:~/corpus/*.txt.gz'
    python -m bert_jax.prepare --config=bert_base --data_dir=gs://BUCKET/data --runner=beam \\
        --beam_options='--runner=DataflowRunner --project=PROJECT --region=REGION --temp_location=gs://BUCKET/tmp'

The last line is a digest of the documents' contents: the same text and settings give the same digest. The
line before it names the dataset's card, a page that says what the dataset holds.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    command.define_download_flag()
    flags.DEFINE_enum(
        "runner",
        "local",
        ["local", "beam"],
        "Where documents are encoded; local: on the cores of this machine, beam: by an Apache Beam pipeline.",
    )
    flags.DEFINE_string("beam_options", "", "Options of the pipeline: '--runner=DataflowRunner --region=…'.")
    command.run(command.main_of("bert_jax.prepare"))

import logging
import shlex

from bert_jax.corpus.card import PAGE
from bert_jax.corpus.mixture import dataset_for
from bert_jax.data.obstacles import obstacles
from bert_jax.errors import UserError

log = logging.getLogger("bert_jax")


def main() -> None:
    command.keep_going()
    config = command.resolved_config()
    try:
        options = shlex.split(flags.FLAGS.beam_options)
    except ValueError as error:
        raise UserError(
            f"--beam_options={flags.FLAGS.beam_options} is no list of options ({error}); correct the quotes."
        ) from None
    beam_options = options if flags.FLAGS.runner == "beam" else None
    if options and beam_options is None:
        raise UserError("--beam_options are those of --runner=beam; give that, too, or leave them out.")
    dataset = dataset_for(
        config.data,
        config.model.vocab_size,
        flags.FLAGS.data_dir,
        processes=1,
        config=command.config_argument(),
        agreed=flags.FLAGS.download,
        beam_options=beam_options,
    )
    for obstacle in obstacles(dataset, config.parts()):
        log.warning(obstacle.message)
    for one in dataset.datasets.values():
        if (page := one.directory / PAGE).exists():
            print(f"dataset_card: {page}")
    print(f"dataset_sha256: {dataset.sha256}")
