"""Ask a checkpoint: fill masks, judge whether a sentence follows, or write features.

    python -m bert_jax.predict fill-mask --text="It was the [MASK] of times."
    python -m bert_jax.predict next-sentence --text="He went to sea." --next="The ship was old."
    python -m bert_jax.predict features --input=sentences.txt --output=features.npy

With --input, every line is a text; for next-sentence a line holds two sentences with a tab between.
"""

import contextlib
import logging
import os
import pathlib

import numpy as np
from absl import flags

from bert_jax import command
from bert_jax.errors import UserError
from bert_jax.pretrained import load

log = logging.getLogger("bert_jax")


def main(mode: str) -> None:
    MODES[mode]()


def fill_mask() -> None:
    texts = _texts()
    bert = load(_checkpoint())
    for text, masks in zip(texts, bert.fill_mask(texts, flags.FLAGS.top_k), strict=True):
        print(text)
        for number, guesses in enumerate(masks, 1):
            shown = "  ".join(f"{token} {probability:.1%}" for token, probability in guesses)
            print(f"  mask {number}: {shown}")


def next_sentence() -> None:
    pairs = _pairs()
    probabilities = load(_checkpoint()).next_sentence(pairs)
    for (first, second), probability in zip(pairs, probabilities, strict=True):
        print(f"follows: {probability:.1%}  {first} | {second}")


def features() -> None:
    texts, output = _texts(blank_lines=True), _output()
    array = load(_checkpoint()).features(texts, flags.FLAGS.pooling, flags.FLAGS.layer)
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
        temporary.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"--output={output} cannot be written: {error.strerror}; give another.") from None
    print(f"{output}: {array.shape[0]} × {array.shape[1]} {array.dtype}, pooling {flags.FLAGS.pooling}")


def newest_checkpoint(folder: str = "runs") -> pathlib.Path:
    """The newest checkpoint of all runs in `folder`; raises UserError if there is none."""
    found = list(pathlib.Path(folder).glob("*/checkpoints/*/checksums.json"))
    if not found:
        raise UserError(
            f"--checkpoint is missing and {folder}/ holds no run; give a run's folder, or pretrain first: "
            "python -m bert_jax.pretrain --config=bert_tiny"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def _checkpoint() -> str:
    if flags.FLAGS.checkpoint is None:
        log.info("checkpoint: %s", newest := newest_checkpoint())
        return str(newest)
    return flags.FLAGS.checkpoint


def _texts(blank_lines: bool = False) -> list[str]:
    """--text, or the lines of --input."""
    text, path = flags.FLAGS.text, flags.FLAGS.input
    if (text is None) == (path is None):
        raise UserError("give either --text or --input: what to predict from.")
    if text is not None:
        return [text]
    try:
        content = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={path} cannot be read: {error}.") from None
    if not content.strip():
        raise UserError(f"--input={path} is empty; write one text a line.")
    lines = content.removesuffix("\n").split("\n")
    return [line for line in lines if blank_lines or line.strip()]


def _pairs() -> list[tuple[str, str]]:
    """--text and --next, or the halves of the lines of --input."""
    texts = _texts()
    if flags.FLAGS.text is not None:
        if flags.FLAGS.next is None:
            raise UserError("--next is missing: the sentence that may follow --text.")
        return [(texts[0], flags.FLAGS.next)]
    for line in texts:
        if "\t" not in line:
            raise UserError(f"--input={flags.FLAGS.input}: no tab between two sentences in {line[:60]!r}.")
    return [(first, second) for first, _, second in (line.partition("\t") for line in texts)]


def _output() -> pathlib.Path:
    """--output, checked before anything is computed."""
    if flags.FLAGS.output is None:
        raise UserError("--output is missing: the .npy file to write, one row for each text.")
    output = pathlib.Path(flags.FLAGS.output).expanduser()
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.parent}; create it first.")
    return output


MODES = {"fill-mask": fill_mask, "next-sentence": next_sentence, "features": features}

if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's folder or one of its checkpoints (default: the newest).")
    flags.DEFINE_string("text", None, "The text; [MASK] marks what to guess.")
    flags.DEFINE_string("next", None, "The sentence that may follow --text.")
    flags.DEFINE_string("input", None, "A file with one text a line, instead of --text.")
    flags.DEFINE_string("output", None, "The .npy file for features: row n is line n.")
    flags.DEFINE_enum("pooling", "mean", ["mean", "cls"], "Of features: over all tokens, or [CLS].")
    flags.DEFINE_integer("layer", -1, "Of features: 0 is the embeddings, -1 the last layer.")
    flags.DEFINE_integer("top_k", 5, "Guesses for each mask.", lower_bound=1)
    command.run(main, modes=tuple(MODES))
