"""Import published weights: a directory of Hugging Face or of Google becomes a checkpoint of ours.

    python -m bert_jax.convert --input=bert-base-uncased --output=imported/bert_base
    python -m bert_jax.predict fill-mask --checkpoint=imported/bert_base --text="A [MASK] day."

A directory with the head of a task, e.g. a BertForSequenceClassification, becomes a fine-tuned checkpoint;
--task=none imports its encoder alone, to train it further.

    python -m bert_jax.convert --input=runs/bert_tiny --output=imported/extended --add_words=words.txt

--add_words adds the words of a text file, one a line, to the vocabulary of published weights or of a run.
The embedding of a word is the mean of those of the pieces that it had.

No code in the files is executed, and neither PyTorch nor TensorFlow is needed.
"""

from absl import flags

from bert_jax import command
from bert_jax.model.config import ACTIVATIONS

if __name__ == "__main__":
    flags.DEFINE_string("input", None, "The folder to read: config, weights and vocabulary; or a run.")
    flags.DEFINE_string("output", None, "The folder to write; new or empty.")
    flags.DEFINE_string("task", None, "The task whose head is imported, or none (default: as in its config).")
    flags.DEFINE_boolean(
        "pairs", None, "For classification and regression: texts come in pairs (default: no)."
    )
    flags.DEFINE_boolean(
        "version_2", None, "For question answering: some questions have no answer (default: no)."
    )
    flags.DEFINE_enum(
        "hidden_act", None, ACTIVATIONS, "The activation, where that of its config is not known or wrong."
    )
    flags.DEFINE_list(
        "leave_out",
        None,
        "Tensors that the network does not have: names, or what they begin with before a dot.",
    )
    flags.DEFINE_string("add_words", None, "A text file with a word a line, to add to the vocabulary.")
    command.run(command.main_of("bert_jax.convert"))

import logging
import pathlib

from bert_jax.corpus.new_words import read_words
from bert_jax.errors import UserError
from bert_jax.files import new_folder
from bert_jax.interop.convert import convert
from bert_jax.interop.heads import HEADS

log = logging.getLogger("bert_jax")


def main() -> None:
    source, output = command.folder_flag("input"), command.folder_flag("output")
    values = {name: flags.FLAGS[name].value for name in ("pairs", "version_2")}
    overrides = {name: value for name, value in values.items() if value is not None}
    file = flags.FLAGS.add_words
    words = read_words(pathlib.Path(file).expanduser()) if file else ()
    left_out, act, task = flags.FLAGS.leave_out or (), flags.FLAGS.hidden_act, flags.FLAGS.task
    if task not in (None, *HEADS):
        raise UserError(f"--task={task} is not valid; give one of {', '.join(HEADS)}.")
    with new_folder(output) as folder:
        convert(source, folder, act, task, overrides, left_out, words)
    log.info("wrote %s; --checkpoint and --config.init_from take it", output / "checkpoints" / "0")
