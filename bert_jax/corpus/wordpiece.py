"""WordPiece from a vocab.txt, as BERT has it."""

import json
import pathlib
import re
import types

import numpy as np
import pyarrow as pa
import tokenizers
from etils import epath

from bert_jax.corpus.tokenizer import SPECIAL_PIECES, Tokenizer
from bert_jax.errors import UserError

STOP = "."  # a piece of its own wherever it stands, and what no other character becomes
WORDS_AT_ONCE = 100
COMBINING_MARKS = re.compile("[\u0300-\u036f]*")


class WordPieceTokenizer(Tokenizer):
    """BERT's WordPiece, equal to Hugging Face's BertTokenizerFast but for special pieces written in a text.

    Args:
        vocabulary: the pieces; a piece's place is its id.
        lowercase: lowercase and strip accents, as uncased vocabularies need it.
        name: for errors.
        rules: `RULES` of BERT's normalizer that differ from the default, e.g. `tokenize_chinese_chars=False`.

    Raises:
        UserError: if a special piece is missing or a line is empty or repeated.
    """

    FILE = "vocab.txt"
    SETTINGS = "tokenizer_config.json"  # both as Hugging Face names them
    RULES = types.MappingProxyType({  # names in SETTINGS -> those of tokenizers' BertNormalizer
        "do_lower_case": "lowercase", "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars", "clean_text": "clean_text",
    })  # fmt: skip

    def __init__(self, vocabulary: list[str], lowercase: bool, name: str = "the vocabulary", **rules: bool):
        ids = {piece: token for token, piece in enumerate(vocabulary)}
        if missing := [piece for piece in SPECIAL_PIECES if piece not in ids]:
            raise UserError(f"{name} has no piece {', '.join(missing)}; a BERT vocabulary has one per line.")
        if len(ids) != len(vocabulary) or "" in ids:
            line = next(i for i, piece in enumerate(vocabulary) if not piece or piece in vocabulary[:i])
            raise UserError(f"{name}: line {line + 1} ({vocabulary[line]!r}) is empty or repeated.")
        self.vocab_size = len(vocabulary)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(
            ids.__getitem__, SPECIAL_PIECES
        )
        self._stop_id = ids.get(STOP)
        self.settings, self._vocabulary = {"do_lower_case": lowercase} | rules, vocabulary
        self.word_starts = np.array([not piece.startswith("##") for piece in vocabulary]) | self.unspaced
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
            **{self.RULES[rule]: value for rule, value in self.settings.items()}
        )
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._tokenizer.decoder = tokenizers.decoders.WordPiece()

    @property
    def keeps_accents(self) -> bool:
        """Whether é stays é; BERT strips accents where it lowercases, unless a rule says otherwise."""
        strips = self.settings.get("strip_accents")
        return not (self.settings["do_lower_case"] if strips is None else strips)

    def _encode_distinct(self, words):
        if self._stop_id is None:
            return super()._encode_distinct(words)
        # A text takes the library as long as several words, so words are joined, with a stop behind each.
        joined = [
            f" {STOP} ".join([*words[start : start + WORDS_AT_ONCE], ""])
            for start in range(0, len(words), WORDS_AT_ONCE)
        ]
        found = self._tokenizer.encode_batch_fast(joined, add_special_tokens=False)
        ids = np.concatenate([np.array(text.ids, np.int32) for text in found])
        stops = np.cumsum([word.count(STOP) + 1 for word in words]) - 1  # the last behind each word
        ends = np.flatnonzero(ids == self._stop_id)[stops]
        bounds = np.concatenate([[0], ends - np.arange(len(ends))])
        return pa.LargeListArray.from_arrays(bounds, np.delete(ids, ends))

    def _encode_words(self, words):
        return [word.ids for word in self._tokenizer.encode_batch_fast(words, add_special_tokens=False)]

    def _encode_with_spans(self, words):
        for word, found in zip(
            words, self._tokenizer.encode_batch(words, add_special_tokens=False), strict=True
        ):
            # A combining accent at the end of a word, which the normalizer strips, belongs to its character.
            yield found.ids, [(start, COMBINING_MARKS.match(word, end).end()) for start, end in found.offsets]

    def decode(self, ids):
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    def piece(self, token):
        return self._vocabulary[int(token)]

    def backend(self) -> tokenizers.Tokenizer:
        """Returns a copy of the `tokenizers.Tokenizer` inside."""
        return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

    def files(self):
        vocabulary = "\n".join(self._vocabulary) + "\n"
        settings = json.dumps(self.settings) + "\n"
        return {self.FILE: vocabulary.encode(), self.SETTINGS: settings.encode()}


def read_pieces(path: epath.Path | pathlib.Path, name: str) -> list[str]:
    """Reads a vocab.txt, which has a piece per line; raises UserError, which begins with `name`."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a UTF-8 text file ({error}); save it as UTF-8.") from None
    return text.removesuffix("\n").split("\n")
