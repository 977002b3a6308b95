"""Print the batch of a step for people: pairs, labels, and the tokens to predict. Or how the vocabulary fits.

python -m bert_jax.inspect --config=bert_tiny --step=100
python -m bert_jax.inspect --config=bert_tiny --step=100 --rows=256
python -m bert_jax.inspect --config=bert_tiny --what=vocabulary
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    flags.DEFINE_enum(
        "what", "batch", ["batch", "vocabulary"], "What to print: vocabulary for held-out text."
    )
    flags.DEFINE_integer("step", 0, "Number of the step to print.", lower_bound=0)
    flags.DEFINE_integer("rows", 8, "How many of its rows to print.", lower_bound=1)
    command.run(command.main_of("bert_jax.inspect"))


from bert_jax.corpus.mixture import prepare
from bert_jax.corpus.vocabulary_fit import fit, scripts, used_together
from bert_jax.data.mixed_batches import MixedBatches, phase_batches
from bert_jax.data.shown import sequences, shares_of_sources, summary
from bert_jax.errors import UserError
from bert_jax.report.text_table import text_table

HEADER = ("source", "language", "tokens", "pieces/word", "pieces/character", "unknown", "vocabulary used")


def main() -> None:
    {"batch": print_batch, "vocabulary": print_vocabulary}[flags.FLAGS.what]()


def print_vocabulary() -> None:
    """Prints how the vocabulary fits the held-out text of each source."""
    config = command.resolved_config()
    prepared = prepare(config.data, config.model.vocab_size, flags.FLAGS.data_dir)
    shares = scripts(prepared.tokenizer).items()
    print(
        "vocabulary by script: "
        + ", ".join(f"{name} {share:.1%}" for name, share in shares if share >= 0.001)
    )
    fits = {name: fit(dataset) for name, dataset in prepared.datasets.items()}
    rows = [
        (
            *(name, one.language, f"{one.tokens:,}"),
            "–" if one.pieces_per_word is None else f"{one.pieces_per_word:.2f}",
            *(f"{one.pieces_per_character:.2f}", f"{one.unknown:.2%}", f"{one.used:.1%}"),
        )
        for name, one in fits.items()
    ]
    print(f"\n{text_table(rows, HEADER, left=2)}")
    if len(rows) > 1:
        print(f"vocabulary used by all sources together: {used_together(prepared.datasets.values()):.1%}")
    print()
    for name, one in fits.items():
        print(f"longest words of {name}: {', '.join(one.longest) or '–'}")
    if trained_on := [name for name, one in fits.items() if one.split == "train"]:
        print(f"Nothing is held out of {', '.join(trained_on)}: counted on the text to train on.")


def print_batch() -> None:
    """Prints the batch of a step."""
    config, step = command.resolved_config(), flags.FLAGS.step
    phases = config.phase_list()
    phase = next((phase for phase in phases if phase.first_step <= step < phase.last_step), None)
    if phase is None:
        end = phases[-1].last_step
        raise UserError(f"--step={step} is not a step of the run, which ends at {end}.")
    data = phase.config.data
    dataset = prepare(config.data, config.model.vocab_size, flags.FLAGS.data_dir)
    batches = phase_batches(dataset.stores("train"), dataset.tokenizer, phase)
    batch = batches(step - phase.first_step)
    of = f", step {step - phase.first_step} of phase {phase.index + 1}" if len(phases) > 1 else ""
    print(f"step {step}{of}: {summary(batch, dataset.tokenizer, data)}")
    origins = batches.origins(step - phase.first_step) if isinstance(batches, MixedBatches) else []
    if origins:
        print(shares_of_sources(batch, [origin.source for origin in origins], dataset.names))
    rows, all_rows = flags.FLAGS.rows, data.global_batch_size
    for row in range(min(rows, all_rows)):
        if origins:
            source, epoch, number = origins[row]
            print(f"\nrow {row} is row {number} of epoch {epoch} of {dataset.names[source]}")
        for lines in sequences(batch, row, dataset.tokenizer, data):
            print(f"\n{lines}")
    if rows < all_rows:
        print(f"\n… and {all_rows - rows} more rows; --rows={all_rows} prints all.")
