"""Export a checkpoint as a Hugging Face directory, which AutoModel and AutoTokenizer load as it is.

    python -m bert_jax.export --input=runs/bert_tiny --output=exported/bert_tiny

A fine-tuned checkpoint keeps its head: it becomes a BertForSequenceClassification or the like.

The files are read again, by Transformers if that and PyTorch are installed, and must give the same tokens and
logits; otherwise nothing is written.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    flags.DEFINE_string("input", None, "A run's folder or one of its checkpoints.")
    flags.DEFINE_string("output", None, "The folder to write; new or empty.")
    command.run(command.main_of("bert_jax.export"))

import logging

from bert_jax.files import new_folder
from bert_jax.interop.export import export

log = logging.getLogger("bert_jax")


def main() -> None:
    source, output = command.folder_flag("input"), command.folder_flag("output")
    with new_folder(output) as folder:
        export(source, folder)
    log.info("wrote %s", output)
