"""The characters of a text: whether all are valid, and what the pieces of a vocabulary have of them."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from bert_jax.errors import UserError

# Share of the characters of a text that a trained vocabulary has; the rest becomes [UNK]. SentencePiece's own
# default, 0.9995, leaves colons and brackets out of English.
CHARACTER_COVERAGE = 0.9999
NO_CHARACTERS = "data.source has no characters that a tokenizer could learn; give other text."
BYTE_FALLBACK = re.compile("<0x([0-9A-F]{2})>")  # how vocabularies write a byte of a rare character
WORD_START = "▁"  # U+2581, how SentencePiece writes a space
Span = tuple[int, int]  # [start, end)
# Of scripts that put no spaces between words: Thai, Lao, Burmese and Khmer, Chinese and Japanese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# The beginnings of their UTF-8, as far as they are no other script's.
UNSPACED_BYTES = re.compile(rb"\xe0[\xb8-\xbb]|\xe1[\x80-\x82\x9e\x9f]|[\xe3-\xe9]|\xf0[\xa0-\xbf]")


def valid(texts: Sequence[str]) -> Sequence[str]:
    """Returns the texts as they are.

    Raises:
        UserError: for a text with half of a surrogate pair, which is no character. Python puts one in place
            of each byte of the command line that is not UTF-8, and JSON can write one.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = repr(text) if len(text) <= 60 else f"{text[:60]!r}…"
            raise UserError(f"text {shown} is not valid Unicode ({error.reason}); give UTF-8.") from None
    return texts


def is_unspaced(surface: bytes) -> bool:
    """Tells whether a piece is a word by itself, since its script has no spaces and so no words to see.

    It begins with a character of such a script, and not with an accent or vowel sign, which goes on with what
    is before it.

    Args:
        surface: the bytes of the piece without the space before it; they may begin or end inside a character.
    """
    first = surface.decode(errors="replace")[:1]
    if first == "\ufffd":
        return UNSPACED_BYTES.match(surface) is not None
    return UNSPACED.match(first) is not None and unicodedata.category(first)[0] != "M"


def character_spans(text: str, pieces: Sequence[Any]) -> list[Span]:
    """Converts SentencePiece's spans in bytes to characters, without white space around a word."""
    character_at, byte = {}, 0
    for number, character in enumerate(text):
        character_at[byte] = number
        byte += len(character.encode())
    character_at[byte] = len(text)
    spans: list[Span] = []
    reached = 0  # a character may become several words (ﷺ); the space between them does not precede it
    for piece in pieces:
        start, end = character_at[piece.begin], character_at[piece.end]
        surface, bare = text[start:end], piece.piece.lstrip(WORD_START)
        start, end = end - len(surface.lstrip()), start + len(surface.rstrip())
        if bare and start >= end and (not surface or bare != piece.piece):
            end = start + 1  # of what a character becomes, SentencePiece gives it to the last piece alone
        reached = max(reached, start, end)
        spans.append((start, reached))
    return spans
