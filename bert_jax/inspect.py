"""Print the batch of a step for people: pairs, labels, and the tokens to predict.

python -m bert_jax.inspect --config=bert_tiny --step=100
python -m bert_jax.inspect --config=bert_tiny --step=100 --rows=256
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    flags.DEFINE_integer("step", 0, "Number of the step to print.", lower_bound=0)
    flags.DEFINE_integer("rows", 8, "How many of its rows to print.", lower_bound=1)
    command.run(command.main_of("bert_jax.inspect"))


from bert_jax.corpus.mixture import prepare
from bert_jax.data.mixed_batches import MixedBatches, phase_batches
from bert_jax.data.shown import sequences, shares_of_sources, summary
from bert_jax.errors import UserError


def main() -> None:
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
