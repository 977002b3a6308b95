"""Measures how a vocabulary fits the text of a dataset: pieces per word, unknown ones, the longest words."""

import collections
import re
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from bert_jax.corpus.dataset import DocumentStore, PreparedDataset
from bert_jax.corpus.tokenizer import Tokenizer

MOST_TOKENS = 1 << 20  # of a source, from documents spread over its text
MOSTLY = 0.5  # share of unspaced pieces from which on a text has no words to count
EXAMPLES = 5


class Fit(NamedTuple):
    """How a vocabulary fits the held-out text of a dataset, or that to train on if nothing is held out.

    Words are runs of letters and digits between spaces and signs, in whatever vocabulary.
    """

    language: str
    split: str
    tokens: int  # that were counted
    pieces_per_word: float | None  # "fertility"; None for text without spaces between words
    pieces_per_character: float  # without white space
    unknown: float  # share of the tokens
    used: float  # share of the vocabulary's pieces that are in the text to train on
    longest: tuple[str, ...]  # the words of most pieces, with | between them


def fit(dataset: PreparedDataset) -> Fit:
    """Measures a dataset from its stored tokens, in about a second."""
    tokenizer, train = dataset.tokenizer, dataset.split("train")
    split = "heldout" if dataset.split("heldout").index.num_tokens else "train"
    documents = _spread(dataset.split(split))
    ids = np.concatenate(documents)
    pieces = _Pieces(tokenizer)
    begin = np.zeros(len(ids), bool)
    begin[np.cumsum([0, *map(len, documents[:-1])])] = True
    words = _Words(ids, begin, tokenizer, pieces)
    unspaced = tokenizer.unspaced[ids].sum() > MOSTLY * pieces.letters[ids].sum()
    maskable = tokenizer.maskable
    return Fit(
        language=dataset.manifest["settings"]["language"],
        split=split,
        tokens=len(ids),
        pieces_per_word=None if unspaced else float(words.sizes.sum() / max(1, len(words.sizes))),
        pieces_per_character=float(len(ids) / max(1, pieces.characters[ids].sum())),
        unknown=float(np.mean(ids == tokenizer.unk_id)),
        used=float(np.mean(train.unigram_counts[maskable] > 0)),
        longest=words.longest(),
    )


def used_together(datasets: Collection[PreparedDataset]) -> float:
    """Returns the share of the vocabulary's pieces that are in the text of any dataset to train on."""
    maskable = next(iter(datasets)).tokenizer.maskable
    counts = sum(dataset.split("train").unigram_counts for dataset in datasets)
    return float(np.mean(np.asarray(counts)[maskable] > 0))


def scripts(tokenizer: Tokenizer) -> dict[str, float]:
    """Returns the share of the vocabulary's pieces by script, as Unicode names it; the largest first."""
    counts: collections.Counter[str] = collections.Counter()
    for token in np.flatnonzero(tokenizer.maskable).tolist():
        text = tokenizer.surface(token).decode(errors="ignore")
        letter = next((character for character in text if character.isalpha()), "")
        name = unicodedata.name(letter, "other") if letter else "no_letter"
        counts[re.split("[ -]", name)[0].lower().replace("_", " ")] += 1
    return {script: count / counts.total() for script, count in counts.most_common()}


def _spread(store: DocumentStore) -> list[np.ndarray]:
    """Reads every n-th document, about MOST_TOKENS at most."""
    every = 1 + store.index.num_tokens // MOST_TOKENS
    return store.read(np.arange(0, store.index.num_documents, every))


class _Pieces:
    """What the pieces of a vocabulary stand for."""

    def __init__(self, tokenizer: Tokenizer):
        surfaces = [tokenizer.surface(token) for token in range(tokenizer.vocab_size)]
        texts = [surface.decode(errors="replace") for surface in surfaces]
        # int64 [V], characters that begin in a piece; and bool [V], whether it is of a word. Parts of a
        # character, of which most are letters, and the unknown piece are.
        self.characters = np.array([sum(byte & 0xC0 != 0x80 for byte in surface) for surface in surfaces])
        self.letters = np.array([any(map(str.isalnum, text)) or "\ufffd" in text for text in texts])
        special = list(tokenizer.special_ids)
        self.characters[special], self.letters[special] = 1, False
        self.letters[tokenizer.unk_id] = True


class _Words:
    """The words of a text. A word goes on until a space, a sign or a piece that is a word by itself."""

    def __init__(self, ids: np.ndarray, begin: np.ndarray, tokenizer: Tokenizer, pieces: _Pieces):
        letters = pieces.letters[ids]
        goes_on = letters & np.roll(letters, 1) & ~begin & ~tokenizer.word_starts[ids]
        self._tokenizer, self._ids = tokenizer, ids
        self._first = np.flatnonzero(letters & ~goes_on)
        number = np.cumsum(letters & ~goes_on) - 1
        self.sizes = np.bincount(number[letters], minlength=len(self._first))  # pieces of each word

    def longest(self) -> tuple[str, ...]:
        """Returns the words with most pieces, each once and not those with unknown ones."""
        found: dict[str, None] = {}
        for word in np.argsort(-self.sizes, kind="stable"):
            ids = self._ids[self._first[word] :][: self.sizes[word]].tolist()
            if self._tokenizer.unk_id not in ids and not self._tokenizer.unspaced[ids].any():
                found["|".join(map(self._tokenizer.bare_piece, ids))] = None
            if len(found) == EXAMPLES:
                break
        return tuple(found)
