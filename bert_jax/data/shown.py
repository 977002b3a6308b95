"""A batch as a person reads it: pieces instead of ids, labels by name, and what is masked."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bert_jax.corpus.tokenizer import WORD_START, Tokenizer

FATES = ("masked", "replaced", "kept")  # of a token that is to be predicted


def summary(batch: Mapping[str, np.ndarray], tokenizer) -> str:
    """Two lines: shapes, fill, share of NotNext, share of the text to be predicted and what stands there."""
    rows, tokens = batch["input_ids"].shape
    real = batch["sequence_ids"] > 0
    not_next = batch["next_sentence_labels"][batch["next_sentence_weights"] > 0]
    fates = [fate for row in range(rows) for fate, *_ in _predictions(batch, row, tokenizer)]
    visible = int(np.count_nonzero(real & ~np.isin(batch["input_ids"], tokenizer.special_ids)))
    text = visible + fates.count("masked")
    shares = [f"{fates.count(fate) / max(len(fates), 1):.1%} {fate}" for fate in FATES]
    return (
        f"{rows} rows of {tokens} tokens, {real.mean():.1%} filled, "
        f"{batch['masked_lm_ids'].shape[1]} slots for predictions in each\n"
        f"{batch['sequence_ids'].max(axis=1).sum()} sequences, "
        f"{not_next.sum() / max(len(not_next), 1):.1%} of the pairs NotNext, "
        f"{len(fates) / max(text, 1):.1%} of the text to be predicted ({', '.join(shares)})"
    )


def sequences(batch: Mapping[str, np.ndarray], row: int, tokenizer) -> Iterator[str]:
    """Each sequence of a row: its label, the pieces of A and B as the model sees them, and the targets.

    A target is written as position in the sequence and piece; after it, in brackets, what replaces it.
    """
    predictions = _predictions(batch, row, tokenizer)
    for number in range(1, int(batch["sequence_ids"][row].max()) + 1):
        inside = batch["sequence_ids"][row] == number
        label = "no B"
        if batch["next_sentence_weights"][row, number - 1]:
            label = ("IsNext", "NotNext")[batch["next_sentence_labels"][row, number - 1]]
        lines = [f"row {row}, sequence {number}: {label}, {np.count_nonzero(inside)} tokens"]
        for segment, name in enumerate("AB"):
            ids = batch["input_ids"][row, inside & (batch["token_type_ids"][row] == segment)]
            if len(ids):
                lines.append(f"  {name:<10}{' '.join(map(tokenizer.piece, ids.tolist()))}")
        for fate in FATES:
            targets = [
                f"{batch['position_ids'][row, position]} {target}" + f" [{shown}]" * (fate == "replaced")
                for f, position, target, shown in predictions
                if f == fate and inside[position]
            ]
            if targets:
                lines.append(f"  {fate:<10}{', '.join(targets)}")
        yield "\n".join(lines)


def _predictions(batch: Mapping[str, np.ndarray], row: int, tokenizer) -> list[tuple[str, int, str, str]]:
    """(fate, position in the row, target piece, piece shown) of each token to be predicted."""
    used = batch["masked_lm_weights"][row] > 0
    positions = batch["masked_lm_positions"][row, used]
    targets, shown = batch["masked_lm_ids"][row, used], batch["input_ids"][row, positions]
    same = np.where(shown == targets, "kept", "replaced")
    fates = np.where(shown == tokenizer.mask_id, "masked", same)
    pieces = (map(tokenizer.piece, ids.tolist()) for ids in (targets, shown))
    return list(zip(fates.tolist(), positions.tolist(), *pieces, strict=True))


def example(
    tokenizer: Tokenizer,
    batch: dict[str, np.ndarray],
    row: int,
    slot: int,
    guesses: np.ndarray,
    probabilities: np.ndarray,
    follows: np.ndarray,
) -> dict[str, Any]:
    """One sequence, as `Pretraining.examples` returns it."""

    def text(token: int) -> str:
        piece = tokenizer.piece(token)
        bare = piece.removeprefix(WORD_START).removeprefix("##") or piece
        return f" {bare}" if tokenizer.word_starts[token] else bare

    ids, segments = batch["input_ids"][row].tolist(), batch["token_type_ids"][row].tolist()
    used = np.flatnonzero(batch["masked_lm_weights"][row])
    target_at = dict(zip(batch["masked_lm_positions"][row, used].tolist(), used.tolist(), strict=True))
    sentences: list[list[dict[str, Any]]] = [[], []]
    for position in np.flatnonzero(batch["sequence_ids"][row] == slot + 1).tolist():
        shown = ids[position]
        if shown in (tokenizer.cls_id, tokenizer.sep_id):
            continue
        token: dict[str, Any] = {"text": text(shown)}
        if (target := target_at.get(position)) is not None:
            truth = int(batch["masked_lm_ids"][row, target])
            token |= {
                "fate": "masked" if shown == tokenizer.mask_id else "kept" if shown == truth else "replaced",
                "truth": text(truth),
                "guess": text(int(guesses[row, target])),
                "probability": round(float(probabilities[row, target]), 4),
            }
        sentences[segments[position]].append(token)
    next_sentence = None
    if batch["next_sentence_weights"][row, slot]:
        next_sentence = {
            "truth": not batch["next_sentence_labels"][row, slot],
            "probability": round(float(follows[row, slot]), 4),
        }
    return {"sentences": [s for s in sentences if s], "next_sentence": next_sentence}
