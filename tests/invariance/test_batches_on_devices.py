"""The global batch of a step is the same on any number of devices and input workers."""

import itertools

import jax
import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.data.batches import Batches, iterate
from bert_jax.training.mesh import process_rows, to_global
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import mesh_of

DATA = DataConfig(max_seq_length=64, global_batch_size=16, max_sequences_per_row=4, masking="whole_word")
STEPS = 6


@pytest.fixture(scope="module")
def batches():
    word_starts = np.arange(1000) % 3 > 0
    return Batches(MemoryStore(random_documents(300)), DATA, FakeTokenizer(word_starts=word_starts), seed=3)


def on_devices(batches, axes, workers, first_step=0):
    """The arrays of some steps, as the training step gets them."""
    mesh = mesh_of(**axes)
    rows = process_rows(mesh, DATA.global_batch_size)
    source = iterate(batches, first_step, rows, workers, prefetch=2)
    result = [to_global(mesh, batch) for batch in itertools.islice(source, STEPS - first_step)]
    source.close()
    return result


@pytest.fixture(scope="module")
def expected(batches):
    return on_devices(batches, {"data": 1}, workers=1)


def test_every_step_has_another_batch(expected):
    for name in ("input_ids", "masked_lm_positions", "next_sentence_labels"):
        assert len({np.asarray(batch[name]).tobytes() for batch in expected}) == STEPS
    assert np.max(expected[0]["sequence_ids"]) > 1  # packed


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_devices_and_workers_change_nothing(batches, expected, axes, workers):
    for actual, batch in zip(on_devices(batches, axes, workers), expected, strict=True):
        assert actual.keys() == batch.keys()
        for name, array in actual.items():
            assert (array.shape, array.dtype) == (batch[name].shape, batch[name].dtype)
            whole = np.asarray(batch[name])
            assert {shard.device for shard in array.addressable_shards} == set(array.sharding.device_set)
            for shard in array.addressable_shards:  # what each device really holds
                np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_resuming_goes_on_with_the_same_batches(batches, expected):
    resumed = on_devices(batches, {"data": 8}, workers=4, first_step=4)
    for actual, batch in zip(resumed, expected[4:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual, batch)
