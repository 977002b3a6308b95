"""Adds words to a tokenizer: the ids of its pieces stay, the new ones follow."""

import pathlib
from collections.abc import Mapping, Sequence

import sentencepiece
import tokenizers

from bert_jax.corpus.characters import WORD_START
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import ModelProto, SentencePieceTokenizer
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError

# SentencePiece gives this score to its user-defined pieces, so that no other pieces are better. A reader that
# knows scores only, as the tokenizers library does, then finds the same.
CERTAIN = -0.1


def read_words(path: pathlib.Path) -> list[str]:
    """Reads a text file with a word a line; empty lines and white space around a word do not count.

    Raises:
        UserError: if there is no such file, it is not UTF-8, a line has several words, or none has one.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"--add_words={path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--add_words={path} is not a UTF-8 text file ({error}); save it as UTF-8.") from None
    for number, line in enumerate(lines, 1):
        if len(line.split()) > 1:
            raise UserError(
                f"--add_words={path}, line {number} ({line!r}) has several words; give one a line."
            )
    if not (words := [line.strip() for line in lines if line.strip()]):
        raise UserError(f"--add_words={path} holds no word; give a word a line.")
    return words


def add_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[Tokenizer, dict[int, list[int]]]:
    """Makes one token of each word that is several; text without these words keeps its ids.

    WordPiece and SentencePiece also find it where a longer word begins with it, as they find any piece; a
    tokenizer.json finds whole words.

    Returns:
        The tokenizer with the new pieces behind the old ones, and for each new id those that the word has
        without it. A network may have rows behind the old pieces already.

    Raises:
        UserError: if no word is new, or one cannot be a single token.
    """
    spaced = [f" {word}" for word in words]  # in vocabularies of bytes the space belongs to the word
    ids = dict(zip(words, tokenizer.encode(spaced), strict=True))
    new: dict[str, str] = {}  # by what they are after normalisation
    for word, pieces in ids.items():
        if len(pieces) != 1 or pieces[0] == tokenizer.unk_id:
            new.setdefault(_normalised(tokenizer, word), word)
    if not new:
        raise UserError(f"--add_words: each of the {len(words)} words is one token already; give new ones.")
    old = {"", *map(tokenizer.piece, range(tokenizer.vocab_size))}
    impossible = [word for piece, word in new.items() if piece in old]
    if not impossible:
        extended = _extended(tokenizer, new)
        found = extended.encode([f" {word}" for word in new.values()])
        impossible = [
            word
            for word, numbers in zip(new.values(), found, strict=True)
            if len(numbers) > 1 or extended.piece(numbers[0]) in old
        ]
    if impossible:
        raise UserError(
            f"--add_words: {', '.join(impossible[:5])} cannot be a token, because this tokenizer splits "
            "words at such characters or uses the piece otherwise; take it out of the list."
        )
    return extended, {numbers[0]: ids[word] for numbers, word in zip(found, new.values(), strict=True)}


def _normalised(tokenizer: Tokenizer, word: str) -> str:
    """Returns the piece that stands for a word."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.files()[tokenizer.FILE]
        normalised = sentencepiece.SentencePieceProcessor(model_proto=model).normalize(word)
        return WORD_START + normalised.lstrip(WORD_START)
    normalizer = _library(tokenizer).normalizer
    return normalizer.normalize_str(word) if normalizer else word


def _library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if isinstance(tokenizer, WordPieceTokenizer):
        return tokenizer.backend()
    assert isinstance(tokenizer, JsonTokenizer)
    return tokenizers.Tokenizer.from_str(tokenizer.files()[tokenizer.FILE].decode())


def _extended(tokenizer: Tokenizer, words: Mapping[str, str]) -> Tokenizer:
    """Adds words, given by their pieces."""
    if isinstance(tokenizer, WordPieceTokenizer):
        rules = dict(tokenizer.settings)
        vocabulary = [*map(tokenizer.piece, range(tokenizer.vocab_size)), *words]
        return WordPieceTokenizer(vocabulary, rules.pop("do_lower_case"), "--add_words", **rules)
    if isinstance(tokenizer, SentencePieceTokenizer):
        proto = ModelProto.FromString(tokenizer.files()[tokenizer.FILE])
        for piece in words:
            proto.pieces.add(piece=piece, score=CERTAIN, type=ModelProto.SentencePiece.USER_DEFINED)
        return SentencePieceTokenizer(proto.SerializeToString(deterministic=True))
    library = _library(tokenizer)
    whole = [tokenizers.AddedToken(word, single_word=True, lstrip=True) for word in words.values()]
    library.add_tokens(whole)
    assert isinstance(tokenizer, JsonTokenizer)
    size = max(tokenizer.vocab_size, 1 + max(library.get_vocab().values()))
    return JsonTokenizer(library.to_str().encode(), tokenizer.roles, vocab_size=size)
