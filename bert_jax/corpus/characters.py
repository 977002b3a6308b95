"""The characters of a text: whether all are valid, and which of them a SentencePiece token stands for."""

from collections.abc import Sequence
from typing import Any

from bert_jax.errors import UserError

# Share of the characters of a text that a trained vocabulary has; the rest becomes [UNK]. SentencePiece's own
# default, 0.9995, leaves colons and brackets out of English.
CHARACTER_COVERAGE = 0.9999
WORD_START = "▁"  # U+2581, how SentencePiece writes a space
Span = tuple[int, int]  # [start, end)


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
