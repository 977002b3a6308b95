"""Use a checkpoint: fill masks, judge whether a sentence follows, write features; classify, answer, tag.

    python -m bert_jax.predict fill-mask --text="It was the [MASK] of times."
    python -m bert_jax.predict next-sentence --text="He went to sea." --next="The ship was old."
    python -m bert_jax.predict features --input=sentences.txt --output=features.npy

    python -m bert_jax.predict classify --checkpoint=runs/finetune/trec --text="Who wrote Emma?"
    python -m bert_jax.predict answer --checkpoint=runs/finetune/squad --text="Who?" --next="A paragraph."
    python -m bert_jax.predict tag --checkpoint=runs/finetune/ner --input=sentences.txt --output=tags.jsonl

With --input, every line of the file is a text; the two texts of a pair (next-sentence; question and
paragraph) have a tab between them. The last three also read the kinds of
files that fine-tuning reads, without labels.
"""

import contextlib
import functools
import json
import logging
import pathlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags

from bert_jax import command, files
from bert_jax.errors import UserError, reason
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.inference.pretrained import load
from bert_jax.tasks.registry import VERBS
from bert_jax.training.checkpoint import find_checkpoint

log = logging.getLogger("bert_jax")


def main(mode: str) -> None:
    if flags.FLAGS.input is not None and flags.FLAGS.next is not None:
        raise UserError(
            "--next goes with --text; a line of --input holds both texts, with a tab between them."
        )
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
    """Writes one vector for each text: an array (.npy) or a Parquet table."""
    texts, output, with_text = _texts(blank_lines=True), _output(), flags.FLAGS.with_text
    if output.suffix not in (".npy", ".parquet"):
        raise UserError(f"--output={output} must end in .npy or .parquet.")
    if with_text and output.suffix == ".npy":
        raise UserError(f"--with_text: {output} would be an array without text; give --output=NAME.parquet.")
    array = load(_checkpoint()).features(texts, flags.FLAGS.pooling, flags.FLAGS.layer)
    if output.suffix == ".npy":
        _write(output, lambda file: np.save(file, array))
    else:
        vectors = pa.FixedSizeListArray.from_arrays(array.ravel(), array.shape[1])
        table = pa.table(({"text": texts} if with_text else {}) | {"features": vectors})
        _write(output, lambda file: pq.write_table(table, file))
    print(f"{output}: {array.shape[0]} × {array.shape[1]} {array.dtype}, pooling {flags.FLAGS.pooling}")


def fine_tuned(*tasks: str) -> None:
    """Predicts with a checkpoint that was fine-tuned for one of these tasks; a JSON object for each input."""
    output = None if flags.FLAGS.output is None else _output()
    bert = load_finetuned(_checkpoint(fine_tuned=True), tasks)
    if flags.FLAGS.input and pathlib.Path(flags.FLAGS.input).suffix != ".txt":
        examples = bert.task.read(flags.FLAGS.input, "--input", labelled=False)
    else:
        lines = [line.partition("\t") for line in _texts()]
        pairs = [(text, second or None) for text, _, second in lines]
        if flags.FLAGS.next is not None:
            pairs = [(pairs[0][0], flags.FLAGS.next)]
        examples = [bert.task.example(*pair) for pair in pairs]
    predictions = bert.predict(examples)
    rows = [bert.task.row(*pair) for pair in zip(examples, predictions, strict=True)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        print(content, end="")
    else:
        _write(output, content)
        print(f"{output}: {len(rows)} predictions")


def newest_checkpoint(fine_tuned: bool = False, folder: str = "runs") -> pathlib.Path:
    """Finds the checkpoint of the newest pretrained or fine-tuned run; raises UserError if there is none."""
    found = pathlib.Path(folder).glob("**/checkpoints/*/checksums.json")
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        with contextlib.suppress(OSError, ValueError, KeyError):
            config = json.loads((path.parent / "meta" / "metadata").read_text())["config"]
            if ("task" in config) == fine_tuned:
                return path.parents[1] / find_checkpoint(path.parents[2]).name  # relative, as people type it
    kind, verb = ("fine-tuned", "finetune") if fine_tuned else ("pretrained", "pretrain")
    raise UserError(
        f"--checkpoint is missing and {folder}/ holds no {kind} run; give a run's folder, or {verb} first: "
        f"python -m bert_jax.{verb} --help"
    )


def _checkpoint(fine_tuned: bool = False) -> str:
    if flags.FLAGS.checkpoint is None:
        log.info("checkpoint: %s", newest := newest_checkpoint(fine_tuned))
        return str(newest)
    return flags.FLAGS.checkpoint


def _texts(blank_lines: bool = False) -> list[str]:
    """Reads --text, or the lines of --input."""
    text, path = flags.FLAGS.text, flags.FLAGS.input
    if (text is None) == (path is None):
        raise UserError("give either --text or --input: what to predict from.")
    if text is not None:
        return [text]
    try:
        content = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={path} cannot be read: {error}. Check the path and the file.") from None
    if not content.strip():
        raise UserError(f"--input={path} is empty; write one text a line.")
    lines = content.removesuffix("\n").split("\n")
    return [line for line in lines if blank_lines or line.strip()]


def _pairs() -> list[tuple[str, str]]:
    """Reads --text and --next, or the two texts in each line of --input."""
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
    """Checks --output, before anything is computed."""
    if flags.FLAGS.output is None:
        raise UserError("--output is missing: the .npy or .parquet file to write, one row for each text.")
    output = pathlib.Path(flags.FLAGS.output)
    if not output.parent.is_dir():
        raise UserError(f"--output={output}: there is no folder {output.parent}; create it first.")
    return output


def _write(output: pathlib.Path, content: files.Content) -> None:
    try:
        files.write(output, content)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {reason(error)}; give another.") from None


MODES: dict[str, Callable[[], None]] = {
    "fill-mask": fill_mask,
    "next-sentence": next_sentence,
    "features": features,
    **{verb: functools.partial(fine_tuned, *tasks) for verb, tasks in VERBS.items()},
}

if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's folder or one of its checkpoints (default: the newest).")
    flags.DEFINE_string("text", None, "The text; [MASK] marks a word to guess.")
    flags.DEFINE_string("next", None, "The sentence that may follow --text.")
    flags.DEFINE_string("input", None, "A file with one text a line, instead of --text.")
    flags.DEFINE_string(
        "output",
        None,
        "The file to write: .npy or .parquet for features (row n is line n), .jsonl for predictions.",
    )
    flags.DEFINE_bool("with_text", False, "For features in .parquet: write the texts too.")
    flags.DEFINE_enum(
        "pooling", "mean", ["mean", "cls"], "For features: mean over all tokens, or the state of [CLS]."
    )
    flags.DEFINE_integer("layer", -1, "For features: 0 is the embeddings, -1 the last layer.")
    flags.DEFINE_integer("top_k", 5, "Guesses for each mask.", lower_bound=1)
    command.run(main, modes=tuple(MODES))
