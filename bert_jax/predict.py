"""Ask a checkpoint: fill masks, judge whether a sentence follows, or write features.

python -m bert_jax.predict fill-mask --text="It was the [MASK] of times."
python -m bert_jax.predict next-sentence --text="He went to sea." --next="The ship was old."
python -m bert_jax.predict features --input=sentences.txt --output=features.npy
"""

import pathlib

import numpy as np
from absl import flags

from bert_jax import command
from bert_jax.errors import UserError
from bert_jax.pretrained import Pretrained, load

MODES = ("fill-mask", "next-sentence", "features")


def main(mode: str) -> None:
    bert = load(flags.FLAGS.checkpoint or newest_run())
    {"fill-mask": fill_mask, "next-sentence": next_sentence, "features": features}[mode](bert)


def newest_run(folder: str = "runs") -> pathlib.Path:
    """The run below `folder` whose checkpoint is the newest; raises UserError if there is none."""
    found = list(pathlib.Path(folder).glob("*/checkpoints/*/checksums.json"))
    if not found:
        raise UserError(
            f"--checkpoint is missing and there is no run in {folder}/; pretrain first: make pretrain"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def fill_mask(bert: Pretrained) -> None:
    for text in _texts():
        (masks,) = bert.fill_mask([text], flags.FLAGS.top_k)
        print(text)
        for number, guesses in enumerate(masks, 1):
            shown = ", ".join(f"{token} {probability:.1%}" for token, probability in guesses)
            print(f"  mask {number}: {shown}")


def next_sentence(bert: Pretrained) -> None:
    if flags.FLAGS.next is None:
        raise UserError("--next is missing: the sentence that may follow --text.")
    for text in _texts():
        (probability,) = bert.next_sentence([(text, flags.FLAGS.next)])
        print(f"follows: {probability:.1%}")


def features(bert: Pretrained) -> None:
    output = flags.FLAGS.output
    if output is None:
        raise UserError("--output is missing: the .npy file to write, one row for each text.")
    array = bert.features(_texts(), flags.FLAGS.pooling)
    np.save(output, array)
    print(f"{output}: {array.shape[0]} × {array.shape[1]} {array.dtype}, pooling {flags.FLAGS.pooling}")


def _texts() -> list[str]:
    """--text, or the lines of --input."""
    if flags.FLAGS.text is not None:
        return [flags.FLAGS.text]
    if flags.FLAGS.input is None:
        raise UserError("--text or --input is missing: what to predict from.")
    try:
        lines = pathlib.Path(flags.FLAGS.input).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={flags.FLAGS.input} cannot be read: {error}.") from None
    if not any(lines):
        raise UserError(f"--input={flags.FLAGS.input} is empty.")
    return [line for line in lines if line]


if __name__ == "__main__":
    flags.DEFINE_string(
        "checkpoint", None, "A run's folder or one of its checkpoints (default: the newest run)."
    )
    flags.DEFINE_string("text", None, "The text; [MASK] marks what to guess.")
    flags.DEFINE_string("next", None, "The sentence that may follow --text.")
    flags.DEFINE_string("input", None, "A file with one text a line, instead of --text.")
    flags.DEFINE_string("output", None, "The .npy file for features.")
    flags.DEFINE_string("pooling", "mean", "Of features: mean or cls.")
    flags.DEFINE_integer("top_k", 5, "Guesses for each mask.")
    command.run(main, modes=MODES)
