"""Trains tokenizers with the `tokenizers` library: byte-level BPE as GPT-2's, and BERT's WordPiece.

Both are the same for the same words on any number of threads: the library adds up counts in any order, and
breaks ties by ids, which are given here before it starts.
"""

import collections
import itertools
from collections.abc import Iterator, Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax.corpus.characters import CHARACTER_COVERAGE, NO_CHARACTERS
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.tokenizer import MASK, SPECIAL_PIECES
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError

AT_A_TIME = 1000  # copies of a word that the trainer reads as one text


def train_byte_bpe(word_counts: Mapping[str, int], vocab_size: int, lowercase: bool) -> JsonTokenizer:
    """Trains BPE on the bytes of words and the space before them: no text has an unknown piece.

    `SPECIAL_PIECES` have the ids 0 to 4, the bytes 5 to 260. Text is split as by GPT-2 after NFC, and
    lowercased if asked for.

    Raises:
        UserError: if `vocab_size` is too small for the bytes, or more than the words can fill.
    """
    _check_least(vocab_size, len(SPECIAL_PIECES) + 256)
    result = tokenizers.Tokenizer(models.BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    result.normalizer = normalizers.Sequence(steps)
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    special = [tokenizers.AddedToken(piece, lstrip=piece == MASK) for piece in SPECIAL_PIECES]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    result.train_from_iterator(_texts(word_counts), trainer)
    _check_filled(result, vocab_size)
    ids = [(piece, SPECIAL_PIECES.index(piece)) for piece in ("[CLS]", "[SEP]")]
    result.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ids
    )
    return JsonTokenizer(result.to_str(pretty=True).encode(), {})


def train_wordpiece(
    word_counts: Mapping[str, int],
    vocab_size: int,
    lowercase: bool,
    character_coverage: float = CHARACTER_COVERAGE,
) -> WordPieceTokenizer:
    """Trains a vocabulary for BERT's WordPiece; `SPECIAL_PIECES` have the ids 0 to 4.

    Words with characters beyond `character_coverage`, the most frequent ones, become [UNK].

    Raises:
        UserError: if `vocab_size` is too small for the characters, or more than the words can fill, or if
            these have no characters.
    """
    rules = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    for text, count in word_counts.items():
        for word, _ in rules[1].pre_tokenize_str(rules[0].normalize_str(text)):
            counts[word] += count
    if not counts:
        raise UserError(NO_CHARACTERS)
    covered = _covered(counts, character_coverage)
    counts = collections.Counter({word: count for word, count in counts.items() if covered.issuperset(word)})
    # Else the trainer gives these ids in the order of a hash table.
    inner = sorted({f"##{character}" for word in counts for character in word[1:]})
    _check_least(vocab_size, len(SPECIAL_PIECES) + len(inner) + len(covered))
    result = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_PIECES, *inner], show_progress=False
    )
    result.train_from_iterator(_texts(counts), trainer)
    _check_filled(result, vocab_size)
    vocabulary = result.get_vocab()
    return WordPieceTokenizer(sorted(vocabulary, key=vocabulary.__getitem__), lowercase)


def _texts(word_counts: Mapping[str, int]) -> Iterator[str]:
    """Yields every word as often as it is counted, with a space before it."""
    for word, count in sorted(word_counts.items()):
        for start in range(0, count, AT_A_TIME):
            yield f" {word}" * min(AT_A_TIME, count - start)


def _covered(word_counts: Mapping[str, int], coverage: float) -> set[str]:
    """Finds the most frequent characters that make up a share of the text."""
    counts: collections.Counter[str] = collections.Counter()
    for word, count in word_counts.items():
        for character in word:
            counts[character] += count
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    before = itertools.accumulate((counts[character] for character in ordered), initial=0)
    most = coverage * counts.total()
    return {character for character, total in zip(ordered, before, strict=False) if total < most}


def _check_least(vocab_size: int, least: int) -> None:
    if vocab_size < least:
        raise UserError(
            f"model.vocab_size={vocab_size} is too small for this text's characters: use at least {least}."
        )


def _check_filled(trained: tokenizers.Tokenizer, vocab_size: int) -> None:
    if (size := trained.get_vocab_size()) < vocab_size:
        raise UserError(f"model.vocab_size={vocab_size} is more than this text can fill: use at most {size}.")
