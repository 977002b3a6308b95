"""Words are encoded many at a time, and get the pieces that each has alone."""

import random
import sys

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer_files import read_tokenizer
from bert_jax.corpus.wordpiece import WORDS_AT_ONCE, WordPieceTokenizer

CHARACTERS = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
RULES = {"strip_accents": False, "tokenize_chinese_chars": False, "clean_text": False}


@pytest.fixture(scope="module")
def published():
    return read_tokenizer(DataConfig(tokenizer="wordpiece:bert_uncased"), 30522)


def assert_same(tokenizer, words):
    together, alone = tokenizer._encode_distinct(words).to_pylist(), tokenizer._encode_words(words)
    assert [*zip(words, together, strict=True)] == [*zip(words, alone, strict=True)]


@pytest.mark.parametrize("rules", [{}, RULES], ids=["published", "other rules"])
def test_no_character_is_taken_for_a_full_stop(published, rules):
    vocabulary = [published.piece(token) for token in range(published.vocab_size)]
    tokenizer = WordPieceTokenizer(vocabulary, lowercase=not rules, **rules)
    assert_same(tokenizer, [f"a{character}.b" for character in CHARACTERS[:0x30000]])


def test_words_with_full_stops_and_none(published):
    draw = random.Random(0)
    letters = [*"abcdefghij"] * 20 + ["."] * 40 + CHARACTERS[0x80:0x3000:7]
    words = ["".join(draw.choices(letters, k=draw.randint(0, 9))) for _ in range(20_000)]
    assert_same(published, ["", *words, "a" * 150, "..."])
    for count in (1, WORDS_AT_ONCE - 1, WORDS_AT_ONCE, WORDS_AT_ONCE + 1):
        assert_same(published, words[:count])


def test_a_vocabulary_without_a_full_stop():
    tokenizer = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ac", "##gt"], True)
    assert tokenizer.encode(["acgt ac.gt", "", "gt"]) == [[5, 6, 5, 1, 1], [], [1]]
