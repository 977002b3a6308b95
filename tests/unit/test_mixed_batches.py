import dataclasses

import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data import mixed_batches
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.mixed_batches import MixedBatches, exposure, phase_batches
from bert_jax.data.mixture import Turns
from bert_jax.training.config import TrainConfig
from tests.fakes import FakeTokenizer, MemoryStore, random_documents

VOCABULARY = 60_000
TOKENIZER = FakeTokenizer(VOCABULARY, np.arange(VOCABULARY) % 3 > 0)
BIG, SMALL = (
    MemoryStore(random_documents(60), VOCABULARY),
    MemoryStore(random_documents(6, seed=1), VOCABULARY),
)
SMALL._text += BIG.index.num_tokens  # so that a token tells its source
FIRST_OF_SMALL = 5 + BIG.index.num_tokens
DATA = DataConfig(
    source="text:big@0.7,text:small@0.3", max_seq_length=64, global_batch_size=16, max_sequences_per_row=3,
    masking="whole_word",
)  # fmt: skip
PHASES = (
    {"num_steps": 9, "data": {"mask_rate": 0.3, "final_mask_rate": 0.1}},
    {"num_steps": 5, "data": {"max_seq_length": 128, "global_batch_size": 4}},
    {"num_steps": 7, "data": {"source": "text:big@1,text:small@3", "global_batch_size": 8}},
    {"num_steps": 5, "data": {"source": "text:big@0,text:small@1"}},
)


def config_of(data=DATA, phases=PHASES):
    return Config(data=data, train=TrainConfig(num_steps=0 if phases else 50, seed=5), phases=phases)


def batches_of(phase):
    return phase_batches([BIG, SMALL], TOKENIZER, phase)


def unmasked(batch):
    ids = batch["input_ids"].copy()
    row, slot = np.nonzero(batch["masked_lm_weights"])
    ids[row, batch["masked_lm_positions"][row, slot]] = batch["masked_lm_ids"][row, slot]
    return ids


def sources_of(batch):
    """The source of each row, by its tokens, which are all of one."""
    ids = unmasked(batch)
    text = ids > FakeTokenizer.mask_id
    small = (text & (ids >= FIRST_OF_SMALL)).sum(axis=1)
    assert set(small / text.sum(axis=1)) <= {0.0, 1.0}
    return (small > 0).astype(int)


def test_every_row_is_a_row_of_its_source_and_all_of_its_text_with_not_next_is_too():
    (phase,) = config_of(phases=()).phase_list()
    mixed = batches_of(phase)
    alone = [Batches(store, DATA, TOKENIZER, seed) for store, seed in ((BIG, 5), (SMALL, 5 + 2**32))]
    not_next = 0
    for step in (0, 3, 11):
        batch = mixed(step)
        sources, numbers = Turns([*mixed_batches.parse(DATA.source).weights])(16 * step + np.arange(16))
        assert sources_of(batch).tolist() == sources.tolist()
        not_next += batch["next_sentence_labels"].sum()
        for row in range(16):
            expected = alone[sources[row]](int(numbers[row]) // 16, np.array([numbers[row] % 16]))
            assert batch.keys() == expected.keys()
            for name, values in expected.items():
                np.testing.assert_array_equal(batch[name][row], values[0], err_msg=name)
                assert batch[name].dtype == values.dtype
    assert not_next > 10


def test_one_source_with_a_weight_has_the_batches_of_that_source():
    (phase,) = config_of(dataclasses.replace(DATA, source="text:big@3"), ()).phase_list()
    batch, expected = phase_batches([BIG], TOKENIZER, phase)(2), Batches(BIG, DATA, TOKENIZER, 5)(2)
    for name, values in expected.items():
        np.testing.assert_array_equal(batch[name], values)


def test_rows_asked_for_in_shares_steps_at_once_and_interruptions_change_nothing(monkeypatch):
    (phase,) = config_of(phases=()).phase_list()
    whole = [batches_of(phase)(step) for step in range(12)]
    some = np.array([9, 0, 15, 4])
    monkeypatch.setattr(mixed_batches, "STEPS_AT_ONCE", 5)
    for workers, first_step, rows in ((1, 0, some), (4, 7, slice(4, 8))):
        stream = iterate(batches_of(phase), first_step, rows, workers, prefetch=3)
        for step in range(first_step, 12):
            for name, values in next(stream).items():
                np.testing.assert_array_equal(values, whole[step][name][rows], err_msg=name)
        stream.close()


def test_an_epoch_of_a_source_holds_its_tokens_once_however_often_the_phase_changes():
    """Phases 1, 3 and 4 cut and pack alike: their rows of a source follow each other through its epochs."""
    rows = [[], []]
    for phase in config_of().phase_list():
        if phase.index != 1:
            for step in range(phase.num_steps):
                batch = batches_of(phase)(step)
                for source, ids in zip(sources_of(batch), unmasked(batch), strict=True):
                    rows[source].append(ids[ids > FakeTokenizer.mask_id])
    small = Batches(SMALL, DATA, TOKENIZER, 5 + 2**32)
    lengths = [small.rows_per_epoch(epoch) for epoch in range(2)]
    assert len(rows[1]) > sum(lengths)
    for epoch in range(2):
        text = np.concatenate(rows[1][epoch * lengths[0] :][: lengths[epoch]])
        np.testing.assert_array_equal(np.sort(text), FIRST_OF_SMALL + np.arange(SMALL.index.num_tokens))
    big = np.concatenate(rows[0])
    assert len(np.unique(big)) == len(big)  # of its first epoch


def test_the_rate_of_masks_follows_the_steps_of_the_phase():
    phase = config_of().phase_list()[0]
    shares = [batches_of(phase)(step)["masked_lm_weights"].sum() for step in (0, 8)]
    assert shares[0] / shares[1] == pytest.approx(3, rel=0.15)


def exposure_at(step, batches=batches_of):
    return exposure(("big", "small"), config_of().phase_list(), batches, step)


def test_exposure_is_what_the_batches_hold():
    rows, tokens = {0: 0, 1: 0}, np.zeros(2)
    phase = config_of().phase_list()[0]
    for step in range(9):
        batch = batches_of(phase)(step)
        for source, length in zip(sources_of(batch), (batch["sequence_ids"] > 0).sum(axis=1), strict=True):
            rows[source] += 1
            tokens[source] += length
        found = exposure_at(step + 1)
        assert found["share_big"] == round(rows[0] / sum(rows.values()), 6)
        assert found["share_small"] == round(1 - rows[0] / sum(rows.values()), 6)
        assert abs(rows[1] - 0.3 * sum(rows.values())) < 1
    assert found["token_share_small"] == pytest.approx(tokens[1] / tokens.sum(), abs=0.01)
    epoch = Batches(SMALL, DATA, TOKENIZER, 5 + 2**32).rows_per_epoch()
    assert found["epochs_small"] == pytest.approx(rows[1] / epoch, abs=1e-6)


def test_exposure_at_the_edges_of_phases():
    """Of small there are 43 of 144 rows, then 6 of 20 rows of other epochs, 42 of 56, and all of 80."""
    small = Batches(SMALL, DATA, TOKENIZER, 5 + 2**32)
    long = Batches(SMALL, dataclasses.replace(DATA, max_seq_length=128), TOKENIZER, 5 + 2**32)
    assert exposure_at(0)["epochs_small"] == 0
    of_long = 6 / long.rows_per_epoch()
    assert exposure_at(14)["share_small"] == 0.3
    assert exposure_at(14)["epochs_small"] == pytest.approx(small._parts.epochs(43) + of_long, abs=1e-6)
    assert exposure_at(21)["share_small"] == 0.75
    third = small._parts.epochs(43 + 42) + of_long
    assert exposure_at(21)["epochs_small"] == pytest.approx(third, abs=1e-6)
    last = exposure_at(26)
    assert (last["share_big"], last["share_small"]) == (0, 1)
    assert last["epochs_small"] == pytest.approx(small._parts.epochs(43 + 42 + 80) + of_long, abs=1e-6)
    assert last["epochs_big"] == exposure_at(21)["epochs_big"] > 0


def test_origins_are_rows_of_epochs():
    """Before step 2 of the last phase there are 43 + 42 + 32 = 117 rows of small, whose epoch 0 has 76."""
    mixed = batches_of(config_of().phase_list()[3])
    assert isinstance(mixed, MixedBatches)
    assert mixed.sources[1].rows_per_epoch(0) == 76
    assert mixed.origins(2) == [(1, 1, 41 + row) for row in range(16)]
    first = batches_of(config_of(phases=()).phase_list()[0])
    assert first.origins(0)[:5] == [(0, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 2), (0, 0, 3)]
