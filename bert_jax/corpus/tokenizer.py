"""The interface of all tokenizers."""

import abc
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from bert_jax.corpus.characters import WORD_START, Span, is_unspaced, valid

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Of the special pieces in tokenizer_config.json, in the order of `Tokenizer.special_ids`.
ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
MASK = SPECIAL_PIECES[-1]  # how a text for `encode_with_masks` writes the mask of any vocabulary
# Replaces a mask where the text behind it is encoded: a private-use character that is in no vocabulary.
# Without it SentencePiece would start a new word at the full stop of "[MASK].".
STAND_IN = "\U0010fffd"


class Tokenizer(abc.ABC):
    """Encodes text as token ids and decodes them. Picklable. A text's "[SEP]" never becomes a special id.

    Attributes:
        vocab_size: V.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the five special pieces.
        special_ids: the five, in this order.
        word_starts: bool [V], whether a piece starts a word (special pieces other than [UNK] do, and pieces
            that are `unspaced`).
        gap: what is put before a sentence or word that follows another but is encoded by itself: a space,
            if a text without it would be encoded as if none preceded; else nothing.
    """

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray
    gap = ""
    _words_are_independent = True  # no piece crosses a space, so words are encoded one by one

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @property
    def maskable(self) -> np.ndarray:
        """Returns bool [V], the pieces that a text can have: all but the special ones."""
        return ~np.isin(np.arange(self.vocab_size), self.special_ids)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, without special tokens."""
        ids, lengths = self.encode_flat(texts)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(texts) else []

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes many texts, every distinct word once, because natural text repeats its words.

        For a unigram model this is twice as fast as SentencePiece's own batches, for BPE and WordPiece
        several times as fast.

        Returns:
            int32 [tokens], ids of all texts one after the other; int64 [texts], tokens of each text.

        Raises:
            UserError: for a text that is not valid Unicode, here and in `encode_with_offsets`.
        """
        if not len(texts):
            return np.empty(0, np.int32), np.empty(0, np.int64)
        words, words_per_text = pa.array(valid(texts), pa.large_string()), np.ones(len(texts), np.int64)
        if self._words_are_independent:
            split = pc.split_pattern(words, " ")
            words, words_per_text = split.flatten(), split.value_lengths().to_numpy()
        words = words.dictionary_encode()
        pieces = self._encode_distinct(words.dictionary.to_pylist()).take(words.indices)
        ids, ends = pieces.flatten().to_numpy(), np.cumsum(pieces.value_lengths().to_numpy())
        return ids, np.diff(ends[np.cumsum(words_per_text) - 1], prepend=0)

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Encodes texts as `encode` does, and finds the characters that each token stands for.

        Returns:
            For each text its ids, and int32 [n, 2]: [start, end) in the text as given, not as normalised.
            Neither starts nor ends decrease. If one character becomes several tokens (½ becomes 1⁄2), all
            have that character. Spans leave out white space around a word, so a token of white space alone
            has start == end.
        """
        words = [text.split(" ") if self._words_are_independent else [text] for text in valid(texts)]
        distinct = list(dict.fromkeys(itertools.chain(*words)))
        encoded = {
            word: (ids, np.array(spans, np.int32).reshape(-1, 2))
            for word, (ids, spans) in zip(distinct, self._encode_with_spans(distinct), strict=True)
        }
        results = []
        for parts in words:
            begins = np.cumsum([0, *(len(word) + 1 for word in parts[:-1])], dtype=np.int32)
            counts = [len(encoded[word][0]) for word in parts]
            offsets = np.concatenate([encoded[word][1] for word in parts])
            ids = [token for word in parts for token in encoded[word][0]]
            results.append((ids, offsets + np.repeat(begins, counts)[:, None]))
        return results

    def encode_with_masks(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes texts in which `MASK` is the mask, which replaces one piece with the space before it."""
        segments = [
            segment.rstrip() for text in texts for segment in text.replace(MASK, MASK + STAND_IN).split(MASK)
        ]
        parts, result = iter(self.encode_with_offsets(segments)), []
        for text in texts:
            ids, _ = next(parts)
            for _ in range(text.count(MASK)):
                # SentencePiece joins unknown characters to the stand-in before them: a piece that ends later.
                behind = zip(*next(parts), strict=True)
                ids += [self.mask_id, *(token for token, (_, end) in behind if end > len(STAND_IN))]
            result.append(ids)
        return result

    def _encode_distinct(self, words: list[str]) -> pa.LargeListArray:
        """Returns the ids of each word."""
        return pa.array(self._encode_words(words), pa.large_list(pa.int32()))

    @abc.abstractmethod
    def _encode_words(self, words: list[str]) -> list[list[int]]: ...

    @abc.abstractmethod
    def _encode_with_spans(self, words: list[str]) -> Iterable[tuple[list[int], list[Span]]]:
        """Encodes words with spans; if words are not independent, they are whole texts."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, with special pieces written out."""

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """Returns the piece of one token id, as in the vocabulary."""

    def bare_piece(self, token: int) -> str:
        """Returns a piece as people read it, without the mark of a word's start or of its continuation."""
        piece = self.piece(token)
        return piece.removeprefix("##").removeprefix(WORD_START) or piece

    def surface(self, token: int) -> bytes:
        """Returns the UTF-8 of the text that a piece stands for, without the space before it."""
        return self.bare_piece(token).encode()

    @functools.cached_property
    def unspaced(self) -> np.ndarray:
        """Returns bool [V], the pieces of scripts without spaces, each of which counts as a word."""
        found = [is_unspaced(self.surface(token)) for token in range(self.vocab_size)]
        return np.array(found) & self.maskable

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns names and contents of the files that `load_tokenizer` reads."""

    def save(self, directory: epath.PathLike) -> None:
        """Writes the files that `load_tokenizer` reads."""
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (epath.Path(directory) / name).write_bytes(content)
