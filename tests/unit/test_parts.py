"""Parts of a large split: what an epoch holds does not depend on them, and a small split has one."""

import dataclasses
import itertools

import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import Index
from bert_jax.data import batches as batches_lib
from bert_jax.data import parts
from bert_jax.data.batches import Batches
from bert_jax.errors import UserError

DATA = DataConfig(max_seq_length=16, global_batch_size=4, short_sequence_rate=0.0, second_objective="none")


class Tokenizer:
    pad_id, cls_id, sep_id, mask_id = 0, 1, 2, 3
    maskable = word_starts = np.ones(1000, bool)


class Store:
    """Documents whose tokens say which document they are from."""

    def __init__(self, index: Index):
        self.index = index

    def read(self, documents):
        starts = self.index.token_starts
        return [np.full(starts[n + 1] - starts[n], 10 + n, np.uint16) for n in documents]


@pytest.fixture
def index(monkeypatch) -> Index:
    """103 documents in blocks of 4, in parts of about 20."""
    for name, value in (("WHOLE_DOCUMENTS", 50), ("PART_DOCUMENTS", 20), ("BLOCK_DOCUMENTS", 4)):
        monkeypatch.setattr(parts, name, value)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 4, 103)
    return Index.from_lengths(rng.integers(1, 9, counts.sum()), counts)


def test_a_split_that_is_not_large_is_one_part():
    index = Index.from_lengths(np.array([3, 4]), np.array([1, 1]))
    assert parts.num_parts(index) == 1
    whole = parts.part_of(index, seed=0, number=7)
    assert whole.index is index
    assert whole.in_split(np.array([1, 0])).tolist() == [1, 0]
    assert (parts.WHOLE_DOCUMENTS, parts.WHOLE_TOKENS) == (16_777_216, 8_589_934_592)


def test_an_epoch_has_every_document_in_one_part_and_the_next_epoch_in_others(index):
    assert parts.num_parts(index) == 6
    epochs = []
    for epoch in range(2):
        of_epoch = []
        for number in range(6 * epoch, 6 * epoch + 6):
            part = parts.part_of(index, 0, number)
            numbers = part.in_split(np.arange(part.index.num_documents))
            of_epoch.append(numbers.tolist())
            for local, number_in_split in enumerate(numbers):
                lengths = [
                    of.sentence_lengths[of.sentence_starts[n] : of.sentence_starts[n + 1]].tolist()
                    for of, n in ((part.index, local), (index, number_in_split))
                ]
                assert lengths[0] == lengths[1]
        assert sorted(itertools.chain(*of_epoch)) == list(range(103))
        epochs.append(of_epoch)
    assert epochs[0] != epochs[1]
    assert max(map(len, epochs[0])) <= 20


def test_a_part_may_be_one_block(index, monkeypatch):
    """As in a corpus of few and very long documents."""
    monkeypatch.setattr(parts, "PART_DOCUMENTS", 4)
    parts.num_parts.cache_clear()
    assert parts.num_parts(index) == 26
    found = [parts.part_of(index, 0, number) for number in range(26)]
    numbers = [part.in_split(np.arange(part.index.num_documents)).tolist() for part in found]
    assert sorted(itertools.chain(*numbers)) == list(range(103))


def test_an_epoch_of_batches_holds_every_token_once(index):
    batches = Batches(Store(index), DATA, Tokenizer(), seed=0)
    rows = batches.rows_per_epoch()
    sequences, _ = batches.sequences(np.arange(rows))
    seen = np.zeros(103, np.int64)
    np.add.at(seen, sequences.document_a, sequences.length_a)
    np.testing.assert_array_equal(seen, np.diff(index.token_starts))
    assert rows == sum(batches_lib._part_rows(index, batches._planned[1], 0, part) for part in range(6))
    assert batches.origin(rows - 1) == (0, rows - 1)
    assert batches.origin(rows) == (1, 0)
    assert batches.seen(rows)[1] == pytest.approx(1.0)


def test_a_batch_reads_the_documents_that_its_sequences_name(index):
    batches = Batches(Store(index), dataclasses.replace(DATA, mask_rate=0.01), Tokenizer(), seed=0)
    sequences, _ = batches.sequences(np.arange(4))
    tokens = batches.tokens(sequences)
    np.testing.assert_array_equal(tokens, 10 + np.repeat(sequences.document_a, sequences.length_a))


def test_a_damaged_index_is_found_in_the_part_that_reads_it(index):
    lengths = index.sentence_lengths.copy()
    lengths[5] += 1
    damaged = Index(lengths, index.sentence_starts, index.token_starts)
    found = []
    for number in range(6):
        try:
            parts.part_of(damaged, 0, number)
        except UserError as error:
            found.append(str(error))
    assert found == ["the dataset's index is damaged; delete the dataset and run prepare again."]
