"""Use a checkpoint: fill masks, judge whether a sentence follows, write features; classify, answer, tag.

    python -m bert_jax.predict fill-mask --text="It was the [MASK] of times."
    python -m bert_jax.predict next-sentence --text="He went to sea." --next="The ship was old."
    python -m bert_jax.predict features --input=sentences.txt --output=features.npy

    python -m bert_jax.predict classify --checkpoint=runs/finetune/trec --text="Who wrote Emma?"
    python -m bert_jax.predict answer --checkpoint=runs/finetune/squad --text="Who?" --next="A paragraph."
    python -m bert_jax.predict tag --checkpoint=runs/finetune/ner --input=sentences.txt --output=tags.jsonl

With --input, every line of the file is a text; the two texts of a pair (next-sentence; question and
paragraph) have a tab between them. A blank line has an empty result, so that result n is that of line n.
--input=- reads standard input. The last three also read the kinds of files that fine-tuning reads, without
labels: .txt, standard input and pipes hold lines of text, except that tag reads .txt with tags as columns.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A run's folder or one of its checkpoints (default: the newest).")
    flags.DEFINE_string("text", None, "The text; [MASK] marks a word to guess.")
    flags.DEFINE_string("next", None, "The sentence that may follow --text.")
    flags.DEFINE_string("input", None, "A file with one text a line, instead of --text; - is standard input.")
    flags.DEFINE_string(
        "output",
        None,
        "The file to write: .npy or .parquet for features (row n is line n), .jsonl for predictions.",
    )
    flags.DEFINE_bool("with_text", False, "For features in .parquet: write the texts too.")
    flags.DEFINE_enum(
        "pooling",
        None,
        ["mean", "cls"],
        "For features: mean over all tokens, or the state of [CLS] (default: mean; without a pooler as "
        "model.classifier_pooling).",
    )
    flags.DEFINE_integer("layer", -1, "For features: 0 is the embeddings, -1 the last layer.")
    flags.DEFINE_integer("top_k", 5, "Guesses for each mask.", lower_bound=1)
    command.run(command.main_of("bert_jax.predict"), takes_mode=True)

import contextlib
import functools
import json
import logging
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bert_jax import files
from bert_jax.errors import UserError, reason
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.inference.pretrained import load
from bert_jax.tasks.downstream import Downstream, TaskExample
from bert_jax.tasks.input import is_stream, read_lines, suffix_of
from bert_jax.tasks.registry import VERBS
from bert_jax.training.checkpoint import find_checkpoint

log = logging.getLogger("bert_jax")


def main(mode: str) -> None:
    if mode not in MODES:
        given = f", not {mode!r}" if mode else ""
        raise UserError(f"the first argument must be one of {', '.join(MODES)}{given}.")
    for handler in log.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # standard output is for results
    if (flags.FLAGS.text is None) == (flags.FLAGS.input is None):
        raise UserError("give either --text or --input: what to predict from.")
    if flags.FLAGS.input is not None and flags.FLAGS.next is not None:
        raise UserError(
            "--next goes with --text; a line of --input holds both texts, with a tab between them."
        )
    command.check_flags(mode, TAKEN_BY)
    MODES[mode]()


def fill_mask() -> None:
    texts = _filled(_texts())
    bert = load(_checkpoint())
    results = _for_each(texts, lambda filled: bert.fill_mask(filled, flags.FLAGS.top_k))
    for text, masks in zip(texts, results, strict=True):
        print(text or "")
        for number, guesses in enumerate(masks or [], 1):
            shown = "  ".join(f"{token} {probability:.1%}" for token, probability in guesses)
            print(f"  mask {number}: {shown}")


def next_sentence() -> None:
    """Prints what the head has learned to judge: whether the second text follows, or the two are in order."""
    pairs = _pairs()
    bert = load(_checkpoint())
    judged = "in order" if bert.judges_order else "follows"
    for pair, probability in zip(pairs, _for_each(pairs, bert.next_sentence), strict=True):
        print("" if pair is None else f"{judged}: {probability:.1%}  {pair[0]} | {pair[1]}")


def features() -> None:
    """Writes one vector for each text: an array (.npy) or a Parquet table."""
    texts, output, with_text = _texts(), _output(), flags.FLAGS.with_text
    kind = output.suffix.lower()
    if kind not in (".npy", ".parquet"):
        raise UserError(f"--output={output} must end in .npy or .parquet.")
    if with_text and kind == ".npy":
        raise UserError(f"--with_text: {output} would be an array without text; give --output=NAME.parquet.")
    bert = load(_checkpoint())
    pooling = flags.FLAGS.pooling or bert.pooling
    array = bert.features(texts, pooling, flags.FLAGS.layer)
    if kind == ".npy":
        _write(output, lambda file: files.write_array(file, array))
    else:
        vectors = pa.FixedSizeListArray.from_arrays(array.ravel(), array.shape[1])
        table = pa.table(({"text": texts} if with_text else {}) | {"features": vectors})
        _write(output, lambda file: pq.write_table(table, file))
    print(f"{output}: {array.shape[0]} × {array.shape[1]} {array.dtype}, pooling {pooling}")


def fine_tuned(*tasks: str) -> None:
    """Predicts with a checkpoint that was fine-tuned for one of these tasks; a JSON object for each input."""
    output = None if flags.FLAGS.output is None else _output()
    bert = load_finetuned(_checkpoint(fine_tuned=True), tasks)
    examples = _examples(bert.task)
    pairs = list(zip(examples, _for_each(examples, bert.predict), strict=True))
    blank = next(_blank_row(*pair) for pair in pairs if pair[0] is not None)
    rows = [blank if pair[0] is None else bert.task.row(*pair) for pair in pairs]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if output is None:
        print(content, end="")
    else:
        _write(output, content)
        if not files.is_stream(output):
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


def _texts() -> list[str]:
    """Reads --text, or the lines of --input."""
    if flags.FLAGS.text is not None:
        return [flags.FLAGS.text]
    return read_lines(flags.FLAGS.input, "--input")


def _filled(texts: list[str]) -> list[str | None]:
    """Replaces blank lines of --input by None."""
    return [text if text.strip() or flags.FLAGS.input is None else None for text in texts]


def _pairs() -> list[tuple[str, str] | None]:
    """Reads --text and --next, or the two texts in each line of --input; None for a blank line."""
    texts = _texts()
    if flags.FLAGS.text is not None:
        if flags.FLAGS.next is None:
            raise UserError("--next is missing: the sentence that may follow --text.")
        return [(texts[0], flags.FLAGS.next)]
    pairs: list[tuple[str, str] | None] = []
    for line in _filled(texts):
        first, tab, second = (line or "").partition("\t")
        if line and not tab:
            raise UserError(f"--input={flags.FLAGS.input}: no tab between two sentences in {line[:60]!r}.")
        pairs.append((first, second) if line else None)
    return pairs


def _examples(task: Downstream) -> list[Any]:
    """Reads --text and --next, lines of text, or a file of the task; None for a blank line."""
    if (source := flags.FLAGS.input) is None:
        text, _, second = flags.FLAGS.text.partition("\t")
        return [task.example(text, (second or None) if flags.FLAGS.next is None else flags.FLAGS.next)]
    if is_stream(source) or suffix_of(source) == ".txt":
        return task.from_lines(_texts(), f"--input={source}")
    return task.read(source, "--input", labelled=False)


def _for_each(items: Sequence[Any], compute: Callable[[list[Any]], Iterable[Any]]) -> list[Any]:
    """Computes the results of all items but None, which is a blank line and whose result is None."""
    filled = [item for item in items if item is not None]
    if blank := len(items) - len(filled):
        log.info("%d of %d lines of --input are blank; their results are empty", blank, len(items))
    results = iter(compute(filled))
    return [None if item is None else next(results) for item in items]


def _blank_row(example: TaskExample, prediction: dict[str, Any]) -> dict[str, Any]:
    """Returns the row of a blank line: the keys of another row, with empty texts and null as predictions."""
    return {name: type(text)() for name, text in example.display_fields().items()} | dict.fromkeys(prediction)


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
TAKEN_BY = {  # flags that only some modes take
    "next": ("next-sentence", *VERBS),
    "output": ("features", *VERBS),
    **dict.fromkeys(("with_text", "pooling", "layer"), ("features",)),
    "top_k": ("fill-mask",),
}
