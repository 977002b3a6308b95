"""Shows a batch as text: pieces instead of ids, labels by name, and the tokens to predict."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig

FATES = ("masked", "replaced", "kept")  # of a token to predict
# Names of labels 0 and 1 by second objective.
LABELS = {"next_sentence": ("IsNext", "NotNext"), "sentence_order": ("InOrder", "Swapped")}


class Target(NamedTuple):
    """A token to predict."""

    slot: int  # among the M of its row
    position: int  # in the row
    fate: str  # one of FATES
    truth: int  # its id
    shown: int  # the id that the model sees instead


def targets(batch: Mapping[str, np.ndarray], row: int, tokenizer) -> list[Target]:
    """Lists the tokens to predict of a row, by position."""
    slots = np.flatnonzero(batch["masked_lm_weights"][row])
    positions, truths = batch["masked_lm_positions"][row, slots], batch["masked_lm_ids"][row, slots]
    shown = batch["input_ids"][row, positions]
    fates = np.where(shown == tokenizer.mask_id, "masked", np.where(shown == truths, "kept", "replaced"))
    columns = (values.tolist() for values in (slots, positions, fates, truths, shown))
    return [Target(*values) for values in zip(*columns, strict=True)]


def piece_text(tokenizer, token: int, *, spaces: bool = False) -> str:
    """Returns the text of a piece without the tokenizer's marks of words.

    Args:
        tokenizer: its `bare_piece` and `word_starts`.
        token: an id.
        spaces: False marks a piece that continues a word with ## ("play", "##ing", ","); True puts a space
            before a piece that starts a word (" play", "ing", " ,"), so that pieces join to a text.
    """
    text = tokenizer.bare_piece(token)
    starts = bool(tokenizer.word_starts[token])
    if spaces:
        return f" {text}" if starts else text
    return text if starts or not text[:1].isalnum() else f"##{text}"


def summary(batch: Mapping[str, np.ndarray], tokenizer, data: DataConfig) -> str:
    """Returns two lines: shapes and fill; sequences, label 1 and the share of the text to predict by fate."""
    rows, tokens = batch["input_ids"].shape
    real = batch["sequence_ids"] > 0
    size = (
        f"{rows} rows of {tokens} tokens, {real.mean():.1%} filled, "
        f"{batch['masked_lm_ids'].shape[1]} slots for predictions in each\n"
        f"{batch['sequence_ids'].max(axis=1).sum()} sequences, "
    )
    if data.objective == "causal":
        return f"{size}{batch['masked_lm_weights'].sum():.0f} tokens to be predicted from those before them"
    not_next = batch["next_sentence_labels"][batch["next_sentence_weights"] > 0]
    fates = [target.fate for row in range(rows) for target in targets(batch, row, tokenizer)]
    visible = int(np.count_nonzero(real & ~np.isin(batch["input_ids"], tokenizer.special_ids)))
    text = visible + fates.count("masked")
    shares = [f"{fates.count(fate) / max(len(fates), 1):.1%} {fate}" for fate in FATES]
    return (
        f"{size}{not_next.sum() / max(len(not_next), 1):.1%} of the pairs {_labels(data)[1]}, "
        f"{len(fates) / max(text, 1):.1%} of the text to be predicted ({', '.join(shares)})"
    )


def shares_of_sources(batch: Mapping[str, np.ndarray], sources: Sequence[int], names: Sequence[str]) -> str:
    """Returns a line with each source's share of the rows and of the real tokens of a batch.

    Args:
        batch: arrays of a batch.
        sources: the source of each row.
        names: of the sources.
    """
    tokens = (batch["sequence_ids"] > 0).sum(axis=1)
    parts = []
    for number, name in enumerate(names):
        mine = np.array(sources) == number
        share = tokens[mine].sum() / tokens.sum()
        parts.append(f"{name} {mine.sum()} ({mine.mean():.1%}; {share:.1%} of the tokens)")
    return f"rows by source: {', '.join(parts)}"


def sequences(batch: Mapping[str, np.ndarray], row: int, tokenizer, data: DataConfig) -> Iterator[str]:
    """Yields each sequence of a row as lines: label and length, A, B, and the tokens to predict by fate.

    A token to predict appears as its position in the sequence and its piece, then in brackets the piece that
    replaces it. With `data.objective=causal` all but the first are to be predicted, and none is listed.
    """

    def text(token: int) -> str:
        return piece_text(tokenizer, token)

    of_row = [] if data.objective == "causal" else targets(batch, row, tokenizer)
    for number in range(1, int(batch["sequence_ids"][row].max()) + 1):
        inside = batch["sequence_ids"][row] == number
        label = "no B"
        if batch["next_sentence_weights"][row, number - 1]:
            label = _labels(data)[batch["next_sentence_labels"][row, number - 1]]
        lines = [f"row {row}, sequence {number}: {label}, {np.count_nonzero(inside)} tokens"]
        for segment, name in enumerate("AB"):
            ids = batch["input_ids"][row, inside & (batch["token_type_ids"][row] == segment)]
            if len(ids):
                lines.append(f"  {name:<10}{' '.join(map(text, ids.tolist()))}")
        for fate in FATES:
            words = [
                f"{batch['position_ids'][row, target.position]} {text(target.truth)}"
                + f" [{text(target.shown)}]" * (fate == "replaced")
                for target in of_row
                if target.fate == fate and inside[target.position]
            ]
            if words:
                lines.append(f"  {fate:<10}{', '.join(words)}")
        yield "\n".join(lines)


def _labels(data: DataConfig) -> tuple[str, str]:
    return LABELS.get(data.second_objective, LABELS["next_sentence"])


def example(
    tokenizer,
    batch: Mapping[str, np.ndarray],
    row: int,
    slot: int,
    guesses: np.ndarray,
    probabilities: np.ndarray,
    follows: np.ndarray,
) -> dict[str, Any]:
    """Returns one sequence with a model's guesses, JSON-able, as `Pretraining.examples` describes it.

    Args:
        tokenizer: of the batch.
        batch: arrays of a batch.
        row, slot: which sequence.
        guesses, probabilities: the best token of each prediction and its probability [B, M].
        follows: probability that B follows A [B, S].
    """

    def text(token: int) -> str:
        return piece_text(tokenizer, token, spaces=True)

    target_at = {target.position: target for target in targets(batch, row, tokenizer)}
    sentences: list[list[dict[str, Any]]] = [[], []]
    for position in np.flatnonzero(batch["sequence_ids"][row] == slot + 1).tolist():
        shown = int(batch["input_ids"][row, position])
        if shown in (tokenizer.cls_id, tokenizer.sep_id):
            continue
        token: dict[str, Any] = {"text": text(shown)}
        if target := target_at.get(position):
            token |= {
                "fate": target.fate,
                "truth": text(target.truth),
                "guess": text(int(guesses[row, target.slot])),
                "probability": round(float(probabilities[row, target.slot]), 4),
            }
        sentences[int(batch["token_type_ids"][row, position])].append(token)
    next_sentence = None
    if batch["next_sentence_weights"][row, slot]:
        next_sentence = {
            "truth": not batch["next_sentence_labels"][row, slot],
            "probability": round(float(follows[row, slot]), 4),
        }
    return {"sentences": [s for s in sentences if s], "next_sentence": next_sentence}
