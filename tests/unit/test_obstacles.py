import os
from types import SimpleNamespace

import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data import obstacles as obstacles_lib
from bert_jax.data.obstacles import not_next_share, obstacles
from bert_jax.training.config import TrainConfig
from tests.fakes import FakeTokenizer, MemoryStore, prepared, random_documents

DATA = {"max_seq_length": 32, "global_batch_size": 4}


def found(train, held_out=(), unknown=0, phases=(), **data):
    """The obstacles of two splits, given by the lengths of their sentences: (message, hopeless)."""
    splits = {"train": MemoryStore(train), "heldout": MemoryStore(held_out)}
    for store in splits.values():
        tokens = store.index.num_tokens
        store.unigram_counts = np.bincount([1] * unknown + [5] * (tokens - unknown), minlength=1000)
    sources = prepared({"": splits}, FakeTokenizer())
    config = Config(
        data=DataConfig(**DATA | data), phases=phases, train=TrainConfig(num_steps=0 if phases else 1)
    )
    return [tuple(each) for each in obstacles(sources, config.parts())]


def document(tokens, sentence=8):
    return [sentence] * (tokens // sentence)


GOOD = random_documents(40)


def test_good_text_has_no_obstacles():
    assert found(GOOD, random_documents(20, seed=1)) == []
    assert found(GOOD) == []


@pytest.mark.parametrize("sizes", [[4000], [4000, 1], [40_000, 80]])
def test_text_without_pairs_of_two_documents_is_hopeless(sizes):
    ((message, hopeless),) = found([document(size, min(8, size)) for size in sizes])
    assert hopeless
    count = "1 document" if len(sizes) == 1 else "2 documents"
    assert message.startswith(f"the text to train on is {count}: 0.")
    assert "has nothing to learn. In text files a blank line ends a document" in message
    assert message.endswith("or set data.second_objective=none.")


@pytest.mark.parametrize("planned_tokens", [0, 1 << 22])
def test_one_document_with_most_of_the_text_leaves_little_to_learn(monkeypatch, planned_tokens):
    monkeypatch.setattr(obstacles_lib, "PLANNED_TOKENS", planned_tokens)
    ((message, hopeless),) = found([document(40_000), *[document(400)] * 10])
    assert not hopeless
    assert message.startswith("the text to train on is 11 documents: ")
    assert "has little to learn" in message
    ((message, hopeless),) = found([document(80_000), document(160)])
    assert hopeless
    assert message.startswith("the text to train on is 2 documents: 0.")


def test_without_pairs_one_document_is_enough():
    assert found([document(4000)], [document(400)], second_objective="none") == []


def test_one_document_has_an_order():
    assert found([document(4000)], [document(400)], second_objective="sentence_order") == []
    ((message, hopeless),) = found([[1]] * 500, second_objective="sentence_order")
    assert hopeless
    assert message.startswith("data.second_objective='sentence_order' needs documents of several sentences")


def test_documents_of_one_sentence():
    assert found([[1]] * 500)[0] == (
        "data.second_objective='next_sentence' needs documents of several sentences, but every document has "
        "one; set data.second_objective=none.",
        True,
    )
    ((message, hopeless),) = found(GOOD, [[9]] * 50)
    assert hopeless
    assert message.startswith("held-out text: data.second_objective='next_sentence' needs documents")
    assert found([[9]] * 500, second_objective="none") == []


def test_one_held_out_document():
    assert found(GOOD, [document(4000)]) == [
        (
            "the held-out text is 1 document without NotNext pairs, so that its next-sentence accuracy says "
            "nothing; raise data.held_out_fraction=0.01 or add documents.",
            False,
        )
    ]


def test_unknown_words():
    tokens = MemoryStore(GOOD).index.num_tokens
    assert found(GOOD, unknown=tokens // 2) == []
    ((message, hopeless),) = found(GOOD, unknown=tokens * 3 // 4, tokenizer="wordpiece:vocab.txt")
    assert message.startswith(
        "75% of the tokens to train on are [UNK]: data.tokenizer='wordpiece:vocab.txt' "
    )
    assert not hopeless


def test_a_batch_that_repeats_the_text():
    """Two documents of 30 and 15 tokens: a row each, or both in one of 64."""
    documents = [[10, 10, 10], [5, 10]]
    two_rows = (
        "the text to train on fills 2 rows, so that a batch of 8 repeats it 4.0 times; add text or lower "
    )
    one_row = (
        "the text to train on fills 1 rows, so that a batch of 2 repeats it 2.0 times; add text or lower "
    )
    settings = {"second_objective": "none", "short_sequence_rate": 0.0}
    remedy = "data.global_batch_size."
    assert found(documents, **settings, global_batch_size=8) == [(two_rows + remedy, False)]
    assert found(documents, **settings, global_batch_size=2) == []
    packed = {"max_seq_length": 64, "max_sequences_per_row": 8}
    assert found(documents, **settings, **packed, global_batch_size=2) == [(one_row + remedy, False)]


@pytest.mark.parametrize("largest", [0, 1000, 10_000, 50_000, 200_000])
def test_shares_of_small_and_large_splits_agree(monkeypatch, largest):
    """A large split is not planned, and its share is that of its plan."""
    index = MemoryStore([document(largest), *[document(400)] * 100]).index
    counted = not_next_share(index, DataConfig(), seed=0)
    monkeypatch.setattr(obstacles_lib, "PLANNED_TOKENS", 0)
    assert not_next_share(index, DataConfig(), seed=0) == pytest.approx(counted, abs=0.03)


def test_a_file_that_several_sources_name():
    def told(*sources, drop_duplicates="none", folder=str):
        settings = {"drop_duplicates": drop_duplicates}
        datasets = {
            f"s{number}": SimpleNamespace(
                directory=folder(number),
                manifest={"sources": [{"spec": spec, "paths": paths}], "settings": settings},
            )
            for number, (spec, paths) in enumerate(sources)
        }
        return [obstacle.message for obstacle in obstacles(SimpleNamespace(datasets=datasets), {})]

    assert told(("text:*", ["a", "b", "c"]), ("text:./a", ["./a"]), ("jsonl:b", ["b"])) == [
        "data.source names files more than once, so that their text is trained on as often; name each once: "
        f"{os.path.abspath('a')}, {os.path.abspath('b')}."
    ]
    assert told(("text:*", ["a", "b"]), ("text:c", ["c"]), ("text:gs://a", ["gs://a"])) == []
    assert told(("tfds:a:train[:9]", ["a"]), ("tfds:a:train[9:]", ["a"])) == []  # parts of one file
    assert len(told(("text:a,text:a", ["a", "a"]))) == 1
    assert told(("text:a,text:a", ["a", "a"]), drop_duplicates="documents") == []
    assert told(("text:a", ["a"]), ("text:copy", ["a"]), ("text:b", ["b"]), folder=lambda n: str(n // 2)) == [
        "sources s0 and s1 have the same text, which is trained on as often; leave one."
    ]


def test_words_of_scripts_without_spaces_are_pieces(monkeypatch):
    monkeypatch.setattr(FakeTokenizer, "unspaced", np.arange(1000) == 5, raising=False)
    ((message, hopeless),) = found(GOOD, random_documents(20, seed=1), unknown=100, masking="whole_word")
    assert not hopeless
    assert "of the tokens to train on are of scripts without spaces between words" in message
    assert "data.masking=whole_word takes each of them for a word." in message
    assert found(GOOD, random_documents(20, seed=1), unknown=100) == []
    monkeypatch.setattr(FakeTokenizer, "unspaced", np.arange(1000) == 6)
    assert found(GOOD, random_documents(20, seed=1), unknown=100, masking="whole_word") == []


def test_the_text_of_every_phase_is_looked_at_and_nothing_is_told_twice():
    phases = (
        {"num_steps": 1},
        {"num_steps": 1, "data": {"second_objective": "next_sentence"}},
        {"num_steps": 1, "data": {"second_objective": "next_sentence", "mask_rate": 0.3}},
    )
    assert found([[9]] * 500, phases=phases, second_objective="none") == [
        (
            "phases[1]: data.second_objective='next_sentence' needs documents of several sentences, but "
            "every document has one; set data.second_objective=none.",
            True,
        )
    ]
