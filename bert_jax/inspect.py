"""Print the batch of a step as a person reads it: pairs, labels, and what is masked.

python -m bert_jax.inspect --config=bert_tiny --step=100
python -m bert_jax.inspect --config=bert_tiny --step=100 --rows=256
"""

from collections.abc import Iterator, Mapping

import numpy as np
from absl import flags

from bert_jax import command, prepare
from bert_jax.data.batches import Batches
from bert_jax.errors import UserError

FATES = ("masked", "replaced", "kept")  # of a token that is to be predicted


def main() -> None:
    config, step = command.resolved_config(), flags.FLAGS.step
    phase = next((phase for phase in config.phases() if phase.first_step <= step < phase.last_step), None)
    if phase is None:
        end = config.phases()[-1].last_step
        raise UserError(f"--step={step} is not a step of the run, which ends at {end}.")
    dataset = prepare.dataset_for(config, flags.FLAGS.data_dir)
    data, seed = phase.config.data, phase.config.train.seed
    batch = Batches(dataset.split("train"), data, dataset.tokenizer, seed)(step - phase.first_step)
    print(f"step {step}: {summary(batch, dataset.tokenizer)}")
    rows, all_rows = flags.FLAGS.rows, data.global_batch_size
    for row in range(min(rows, all_rows)):
        for lines in sequences(batch, row, dataset.tokenizer):
            print(f"\n{lines}")
    if rows < all_rows:
        print(f"\n… and {all_rows - rows} more rows; --rows={all_rows} prints all.")


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


if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    flags.DEFINE_integer("step", 0, "The step whose batch is printed.", lower_bound=0)
    flags.DEFINE_integer("rows", 8, "How many rows of it.", lower_bound=1)
    command.run(main)
