import hashlib
import runpy
import threading
import types

import numpy as np
import pytest

from bert_jax.config import Config, find_config, from_dict
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.data import chunks
from bert_jax.data.batch import assemble
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.epoch_plan import Sequences
from bert_jax.data.mixed_batches import phase_batches
from bert_jax.errors import UserError
from tests.fakes import FakeTokenizer, MemoryStore, random_documents

VOCABULARY = 60_000  # more than the tokens of the splits below, so that every token is another one
CONFIGS = {
    "unpacked": DataConfig(max_seq_length=128, global_batch_size=16),
    "packed": DataConfig(
        max_seq_length=128, global_batch_size=16, max_sequences_per_row=6, masking="whole_word"
    ),
    "no pairs": DataConfig(
        max_seq_length=64, global_batch_size=8, max_sequences_per_row=2, second_objective="none"
    ),
    "ordered": DataConfig(
        max_seq_length=64,
        global_batch_size=8,
        max_sequences_per_row=3,
        second_objective="sentence_order",
        masking="span",
    ),
    "short": DataConfig(max_seq_length=8, global_batch_size=64, max_sequences_per_row=2, mask_rate=0.4),
}


@pytest.fixture(params=CONFIGS)
def data(request):
    return CONFIGS[request.param]


def make(data, documents=None, seed=0):
    tokenizer = FakeTokenizer(VOCABULARY, np.arange(VOCABULARY) % 3 > 0)
    store = MemoryStore(random_documents(60) if documents is None else documents, VOCABULARY)
    return Batches(store, data, tokenizer, seed)


def unmasked(batch):
    ids = batch["input_ids"].copy()
    row, slot = np.nonzero(batch["masked_lm_weights"])
    ids[row, batch["masked_lm_positions"][row, slot]] = batch["masked_lm_ids"][row, slot]
    return ids


def assert_same(one, other):
    assert list(one) == list(other)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_assembling_two_sequences_and_one_without_b():
    sequences = Sequences(
        row=np.array([1, 1, 0]),
        slot=np.array([0, 1, 0]),
        document_a=np.array([0, 1, 2]),
        start_a=np.array([0, 0, 0]),
        length_a=np.array([2, 1, 1]),
        document_b=np.array([0, 2, 2]),
        start_b=np.array([2, 1, 0]),
        length_b=np.array([1, 2, 0]),
        not_next=np.array([False, True, False]),
    )
    tokenizer = types.SimpleNamespace(cls_id=2, sep_id=3, pad_id=9)
    tokens = np.array([10, 11, 12, 20, 21, 22, 30])
    batch = assemble(sequences, tokens, (2, 13, 3), tokenizer, {"labels": tokens - 10})
    expected = {
        "input_ids": [[2, 30, 3] + [9] * 10, [2, 10, 11, 3, 12, 3, 2, 20, 3, 21, 22, 3, 9]],
        "token_type_ids": [[0] * 13, [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0]],
        "sequence_ids": [[1, 1, 1] + [0] * 10, [1] * 6 + [2] * 6 + [0]],
        "position_ids": [[0, 1, 2] + [0] * 10, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]],
        "cls_positions": [[0, 0, 0], [0, 6, 0]],
        "labels": [
            [-1, 20, -1] + [-1] * 10,
            [-1, 0, 1, -1, 2, -1, -1, 10, -1, 11, 12, -1, -1],
        ],
    }
    assert_same(batch, {name: np.array(values) for name, values in expected.items()})


def test_shapes_and_types_are_the_same_at_every_step(data):
    batches = make(data)
    B, T, S, M = (
        data.global_batch_size, data.max_seq_length, data.max_sequences_per_row, batches.max_predictions,
    )  # fmt: skip
    for step in (0, 1, 1000):
        assert {name: (values.shape, values.dtype) for name, values in batches(step).items()} == {
            "input_ids": ((B, T), np.int32),
            "token_type_ids": ((B, T), np.int32),
            "sequence_ids": ((B, T), np.int32),
            "position_ids": ((B, T), np.int32),
            "masked_lm_positions": ((B, M), np.int32),
            "masked_lm_ids": ((B, M), np.int32),
            "masked_lm_weights": ((B, M), np.float32),
            "cls_positions": ((B, S), np.int32),
            "next_sentence_labels": ((B, S), np.int32),
            "next_sentence_weights": ((B, S), np.float32),
        }


def test_an_epoch_of_batches_holds_every_token_once(data):
    batches = make(data)
    steps = -(-batches.rows_per_epoch() // data.global_batch_size)
    rows = np.concatenate([unmasked(batches(step)) for step in range(steps)])[: batches.rows_per_epoch()]
    text = np.sort(rows[rows > FakeTokenizer.mask_id])
    np.testing.assert_array_equal(text, 5 + np.arange(len(text)))
    assert len(text) == batches._store.index.num_tokens


def test_sequences_are_what_the_documents_say(data):
    batches = make(data)
    batch = batches(3)
    ids = unmasked(batch)
    labels = set()
    for row in range(data.global_batch_size):
        for slot in range(batch["sequence_ids"][row].max()):
            inside = batch["sequence_ids"][row] == slot + 1
            sequence, types = ids[row, inside], batch["token_type_ids"][row, inside]
            assert batch["cls_positions"][row, slot] == np.argmax(inside)
            np.testing.assert_array_equal(batch["position_ids"][row, inside], np.arange(len(sequence)))
            a, b = sequence[types == 0], sequence[types == 1]
            assert (a[0], a[-1]) == (FakeTokenizer.cls_id, FakeTokenizer.sep_id)
            assert (np.diff(a[1:-1]) == 1).all()
            assert batch["next_sentence_weights"][row, slot] == (len(b) > 0)
            if len(b) > 0:
                assert b[-1] == FakeTokenizer.sep_id
                assert (np.diff(b[:-1]) == 1).all()
                starts = batches._store.index.token_starts
                document_a, document_b = np.searchsorted(starts, [a[1] - 5, b[0] - 5], "right")
                is_next = batch["next_sentence_labels"][row, slot] == 0
                if is_next:
                    assert b[0] == a[-2] + 1
                elif data.second_objective == "sentence_order":
                    assert a[1] == b[-2] + 1
                else:
                    assert document_a != document_b
                labels.add(is_next)
    assert labels == (set() if data.second_objective == "none" else {True, False})


def test_masked_share_and_specials(data):
    batches = make(data, random_documents(300, sentences=8))  # some 50,000 tokens
    masked = text = 0
    for step in range(-(-batches.rows_per_epoch() // data.global_batch_size)):
        batch = batches(step)
        ids, used = unmasked(batch), batch["masked_lm_weights"] > 0
        assert (batch["masked_lm_ids"][used] > FakeTokenizer.mask_id).all()
        at = np.where(used, batch["masked_lm_positions"], -1 - np.arange(used.shape[1]))
        assert all(len(set(row)) == len(row) for row in at.tolist())
        assert (
            np.take_along_axis(batch["sequence_ids"], batch["masked_lm_positions"], axis=1)[used] > 0
        ).all()
        masked, text = masked + used.sum(), text + (ids > FakeTokenizer.mask_id).sum()
    if data.max_seq_length > 8:  # where rounding to whole tokens does not matter
        assert abs(masked / text - data.mask_rate) < 0.01


def test_rows_asked_for_in_shares_are_the_rows_of_the_whole(data):
    batches, count = make(data), data.global_batch_size
    whole = batches(5)
    shares = [batches(5, slice(first, first + count // 4)) for first in range(0, count, count // 4)]
    assert_same(whole, {name: np.concatenate([share[name] for share in shares]) for name in whole})
    some = np.array([count - 1, 0, 3])
    assert_same(make(data)(5, some), {name: values[some] for name, values in whole.items()})


def test_workers_and_interruptions_change_nothing(data):
    direct = [make(data)(step) for step in range(12)]
    for workers, first_step in ((1, 0), (4, 0), (4, 7)):
        stream = iterate(make(data), first_step, slice(0, 4), workers, prefetch=3)
        for step in range(first_step, 12):
            assert_same(next(stream), {name: values[:4] for name, values in direct[step].items()})
        stream.close()


def test_its_threads_end_with_the_iterator(data):
    before = set(threading.enumerate())
    stream = iterate(make(data), 0, slice(0, 4), workers=2, prefetch=3)
    next(stream)
    begun = set(threading.enumerate()) - before
    assert begun
    del stream
    for thread in begun:
        thread.join(20.0)
        assert not thread.is_alive()


def test_a_split_smaller_than_a_batch_goes_on_with_the_next_epochs():
    data = DataConfig(max_seq_length=32, global_batch_size=64)
    batches = make(data, [[10, 9], [8, 8, 8], [12, 5]])
    rows = batches.rows_per_epoch()
    assert rows < 8
    ids = unmasked(batches(0))
    epoch = ids[:rows]
    np.testing.assert_array_equal(np.sort(epoch[epoch > FakeTokenizer.mask_id]), 5 + np.arange(60))
    assert len(np.unique(ids, axis=0)) > rows  # the next epochs differ


def test_epochs_and_seeds_differ_in_masks_too():
    data = DataConfig(max_seq_length=128, global_batch_size=4, short_sequence_rate=0.0)
    batches = make(data, [[50, 50]] * 4)  # never cut
    first, second, other = batches(0), batches(1), make(data, [[50, 50]] * 4, seed=1)(0)
    for batch in (second, other):
        assert not np.array_equal(np.sort(unmasked(batch)), np.sort(unmasked(first)))
        assert not np.array_equal(batch["masked_lm_positions"], first["masked_lm_positions"])


def test_batches_of_a_split_share_their_plans():
    store = MemoryStore(random_documents(60), VOCABULARY)

    def plan(seed, config="packed"):
        return Batches(store, CONFIGS[config], FakeTokenizer(VOCABULARY), seed)._plan(0)

    assert plan(0) is plan(0)
    assert len({id(plan(0)), id(plan(1)), id(plan(0, "unpacked")), id(make(CONFIGS["packed"])._plan(0))}) == 4


def test_describe():
    batches = make(CONFIGS["packed"], random_documents(300))
    facts = batches.describe()
    assert facts["rows_per_epoch"] == batches.rows_per_epoch()
    assert facts["sequences_per_epoch"] > facts["rows_per_epoch"]
    assert 0.98 < facts["fill"] <= 1
    assert 0.4 < facts["not_next_share"] < 0.6
    assert facts["max_predictions"] == batches(0)["masked_lm_ids"].shape[1]
    assert make(CONFIGS["no pairs"]).describe()["not_next_share"] == 0


def test_what_cannot_be_trained_on_is_a_user_error():
    with pytest.raises(UserError, match=r"data\.second_objective=none"):
        make(DataConfig(), [[10], [7], []])
    make(DataConfig(second_objective="none", global_batch_size=2), [[10], [7], []])(0)
    with pytest.raises(UserError, match=r"data\.source"):
        make(DataConfig(), [[], []])
    batches = make(DataConfig(), [[10, 7], [5, 20]])
    batches._store.read = lambda documents: [np.arange(5)] * len(documents)
    with pytest.raises(UserError, match="run prepare again"):
        batches(0)


def digest_of(batches, steps):
    digest = hashlib.sha256()
    for step in steps:
        batch = batches(step)
        for name in sorted(batch):
            digest.update(name.encode() + batch[name].astype("<i4").tobytes())
    return digest.hexdigest()


def test_the_contract_does_not_drift():
    # When this fails, runs that resume see other batches than they would have: a breaking change.
    data = DataConfig(
        max_seq_length=64, global_batch_size=32, max_sequences_per_row=3, masking="whole_word", mask_rate=0.2
    )
    documents = [[1 + (7 * d + 3 * s) % 41 for s in range(1 + d % 37)] for d in range(40)]
    batches = make(data, documents, seed=42)
    assert digest_of(batches, [11]) == "6a6e759f44ac4ce98bb13f8aacceba0b2e73afa8c96d0fea38a6687e83c48056"


def test_the_batches_of_bert_tiny_do_not_drift(tmp_path):
    values = runpy.run_path(str(find_config("bert_tiny")))["get_config"]().to_dict()
    config = from_dict(values, Config)
    dataset = prepare(config.data, config.model.vocab_size, tmp_path)
    assert dataset.directory.name == "corpus-unigram-8192-b66d36425584"
    assert dataset.sha256 == "67a537b64ab5cab7fb9125e90fa184760383941d6c16e9cc6a218cbb87413620"
    store = dataset.split("train")
    digests = [
        digest_of(phase_batches([store], dataset.tokenizer, phase), [0, 1, phase.num_steps - 1])
        for phase in config.phase_list()
    ]
    assert digests == [
        "d691246e530bb3591741ad80a61143603524724f81128eee86c4545fbd17ebf8",
        "bdbe1330ec242abc5315ab13005bc09a12ea550074f669cbe70449e735a45580",
    ]


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    whole = make(CONFIGS["packed"])(2)
    monkeypatch.setattr(chunks, "BLOCK", 13)
    assert_same(make(CONFIGS["packed"])(2), whole)
