"""Tokenizers with one interface: SentencePiece, trained here or given, and WordPiece from a vocab.txt."""

import abc
import io
import itertools
import json
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sentencepiece
import tokenizers
from etils import epath
from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2

from bert_jax.corpus.characters import WORD_START, Span, character_spans, valid
from bert_jax.corpus.config import TRAINED, DataConfig
from bert_jax.corpus.sources.files import MissingInput
from bert_jax.errors import UserError

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARIES = pathlib.Path(__file__).parent / "vocabularies"
# Fixed: the number of threads decides in which order the expectations of a unigram model are added.
TRAINING_THREADS = 16
# The rest becomes [UNK]. SentencePiece's own default, 0.9995, leaves colons and brackets out of English.
CHARACTER_COVERAGE = 0.9999
# protobuf creates both classes at import.
ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
SentencePieceText = sentencepiece_pb2.SentencePieceText  # type: ignore[attr-defined]
MODEL_START = re.compile(b"\n.{1,3}\n", re.DOTALL)  # of a ModelProto: its first piece, and in it the text
COMBINING_MARKS = re.compile("[\u0300-\u036f]*")


class Tokenizer(abc.ABC):
    """Encodes text as token ids and decodes them. Picklable. A text's "[SEP]" never becomes a special id.

    Attributes:
        vocab_size: V.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the five special pieces.
        special_ids: the five, in this order.
        word_starts: bool [V], whether a piece starts a word (special pieces other than [UNK] do).
    """

    vocab_size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    word_starts: np.ndarray
    _words_are_independent = True  # no piece crosses a space, so words are encoded one by one

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

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
        distinct = pa.array(self._encode_words(words.dictionary.to_pylist()), pa.large_list(pa.int32()))
        pieces = distinct.take(words.indices)
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

    @abc.abstractmethod
    def files(self) -> dict[str, bytes]:
        """Returns names and contents of the files that `load_tokenizer` reads."""

    def save(self, directory: epath.PathLike) -> None:
        """Writes the files that `load_tokenizer` reads."""
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (epath.Path(directory) / name).write_bytes(content)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model (unigram or BPE) with the special pieces of BERT.

    Args:
        model: serialized ModelProto with pieces [CLS], [SEP], [MASK], a pad piece and an unknown piece.
        name: for errors.

    Raises:
        UserError: if it is not a SentencePiece model, or a special piece is missing.
    """

    FILE = "sentencepiece.model"

    def __init__(self, model: bytes, name: str = "the SentencePiece model"):
        proto = ModelProto()
        try:
            proto.ParseFromString(model)
        except Exception as error:  # protobuf's DecodeError, whose module is not public
            raise UserError(f"{name} is not a SentencePiece model ({error}); give a .model file.") from None
        ids = {piece.piece: token for token, piece in enumerate(proto.pieces)}
        kind = ModelProto.SentencePiece
        unknown = [token for token, piece in enumerate(proto.pieces) if piece.type == kind.UNKNOWN]
        pad = "<pad>" if "<pad>" in ids else "[PAD]"
        missing = [piece for piece in (pad, "[CLS]", "[SEP]", "[MASK]") if piece not in ids]
        if missing or not unknown:
            raise UserError(
                f"{name} has no piece {', '.join(missing) or '[UNK]'}; train it with --pad_id=0 "
                "--pad_piece=[PAD] --unk_id=1 --bos_id=-1 --eos_id=-1 --control_symbols=[CLS],[SEP],[MASK]."
            )
        self.vocab_size = len(proto.pieces)
        self.pad_id, self.unk_id = ids[pad], unknown[0]
        self.cls_id, self.sep_id, self.mask_id = ids["[CLS]"], ids["[SEP]"], ids["[MASK]"]
        for token in {*self.special_ids} - {self.unk_id}:
            proto.pieces[token].type = kind.CONTROL  # user-defined pieces would be found in plain text
        self.word_starts = np.array([piece.piece.startswith(WORD_START) for piece in proto.pieces])
        self.word_starts[[self.pad_id, self.cls_id, self.sep_id, self.mask_id]] = True
        spec = proto.normalizer_spec
        self._words_are_independent = (
            spec.add_dummy_prefix
            and spec.remove_extra_whitespaces
            and spec.escape_whitespaces
            and not proto.trainer_spec.treat_whitespace_as_suffix
            and not any(WORD_START in piece.piece[1:] for piece in proto.pieces)
        )
        self._model = proto.SerializeToString(deterministic=True)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)

    @classmethod
    def train(cls, word_counts: Mapping[str, int], kind: str, vocab_size: int, lowercase: bool) -> Self:
        """Trains on words and their counts, with the same result on any number of cores.

        Training on words takes half the time of training on sentences. `SPECIAL_PIECES` have the ids 0 to 4.

        Args:
            word_counts: words (as split at white space) with their counts.
            kind: unigram or bpe.
            lowercase: casefold with NFKC, or NFKC alone.

        Raises:
            UserError: if the text has too many characters for `vocab_size` or too few pieces to fill it.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word}\t{count}" for word, count in sorted(word_counts.items())),
                input_format="tsv", max_sentence_length=1 << 16, model_writer=model, minloglevel=2,
                model_type=kind, vocab_size=vocab_size, character_coverage=CHARACTER_COVERAGE,
                normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
                num_threads=TRAINING_THREADS, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
                pad_piece="[PAD]", unk_piece="[UNK]", control_symbols="[CLS],[SEP],[MASK]",
            )  # fmt: skip
        except RuntimeError as error:
            raise _vocab_size_error(str(error), vocab_size) or error from None
        return cls(model.getvalue())

    def _encode_words(self, words):
        return self._processor.encode(words, num_threads=1)

    def _encode_with_spans(self, words):
        # Not out_type="immutable_proto", which SentencePiece 0.2.3 no longer has.
        for word, proto in zip(
            words, self._processor.encode(words, out_type="serialized_proto", num_threads=1), strict=True
        ):
            pieces = SentencePieceText.FromString(proto).pieces
            yield [piece.id for piece in pieces], character_spans(word, pieces)

    def decode(self, ids):
        runs = itertools.groupby(map(int, ids), key=set(self.special_ids).__contains__)
        texts = (
            " ".join(map(self.piece, run)) if special else self._processor.decode(list(run))
            for special, run in runs
        )
        return " ".join(filter(None, texts))

    def piece(self, token):
        return self._processor.id_to_piece(int(token))

    def files(self):
        return {self.FILE: self._model}


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
        self.word_starts = np.array([not piece.startswith("##") for piece in vocabulary])
        self.settings, self._vocabulary = {"do_lower_case": lowercase} | rules, vocabulary
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
        self._tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
            **{self.RULES[rule]: value for rule, value in self.settings.items()}
        )
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._tokenizer.decoder = tokenizers.decoders.WordPiece()

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


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote.

    Raises:
        UserError: if there is no tokenizer.
    """
    directory = epath.Path(directory)
    if (path := directory / SentencePieceTokenizer.FILE).exists():
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    if (path := directory / WordPieceTokenizer.FILE).exists():
        settings = json.loads((directory / WordPieceTokenizer.SETTINGS).read_bytes())
        lowercase = settings.pop("do_lower_case")
        pieces = path.read_bytes().decode().removesuffix("\n").split("\n")
        return WordPieceTokenizer(pieces, lowercase, str(path), **settings)
    files = f"{SentencePieceTokenizer.FILE} or {WordPieceTokenizer.FILE}"
    raise UserError(f"{directory} holds no tokenizer ({files}).")


def tokenizer_file(data: DataConfig) -> str | None:
    """Finds the file that `data.tokenizer` names; returns None if the tokenizer is to be trained.

    `wordpiece:bert_uncased` is the published uncased vocabulary of 30,522 pieces, which this package ships.

    Raises:
        MissingInput: if there is no such file.
    """
    kind, _, name = data.tokenizer.partition(":")
    if kind in TRAINED:
        return None
    path, shipped = os.path.expanduser(name), VOCABULARIES / f"{name}.txt"
    if kind == "wordpiece" and not epath.Path(path).exists() and shipped.exists():
        path = str(shipped)
    if not name or not epath.Path(path).is_file():
        names = ", ".join(f"wordpiece:{file.stem}" for file in VOCABULARIES.glob("*.txt"))
        raise MissingInput(f"data.tokenizer={data.tokenizer!r}: there is no such file; shipped: {names}.")
    return path


def read_pieces(path: epath.Path | pathlib.Path, name: str) -> list[str]:
    """Reads a vocab.txt, which has a piece per line; raises UserError, which begins with `name`."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not a UTF-8 text file ({error}); save it as UTF-8.") from None
    return text.removesuffix("\n").split("\n")


def read_tokenizer(data: DataConfig, vocab_size: int) -> Tokenizer:
    """Reads the tokenizer from the file that `data.tokenizer` names.

    Raises:
        UserError: if the file holds no tokenizer with BERT's special pieces, or not `vocab_size` pieces.
    """
    path = epath.Path(tokenizer_file(data))
    name = f"data.tokenizer={data.tokenizer!r}"
    content, wordpiece = path.read_bytes(), data.tokenizer.startswith("wordpiece:")
    if wordpiece and MODEL_START.match(content):
        raise UserError(f"{name} is a SentencePiece model; use data.tokenizer=sentencepiece:{path}.")
    if not wordpiece and b"[MASK]" in content.splitlines():
        raise UserError(f"{name} is a vocabulary of a piece a line; use data.tokenizer=wordpiece:{path}.")
    tokenizer: Tokenizer
    if wordpiece:
        tokenizer = WordPieceTokenizer(read_pieces(path, name), data.lowercase, name)
    else:
        tokenizer = SentencePieceTokenizer(content, name)
    if (size := tokenizer.vocab_size) != vocab_size:
        raise UserError(f"{name} has {size} pieces, but model.vocab_size={vocab_size}: set it to {size}.")
    return tokenizer


def _vocab_size_error(message: str, vocab_size: int) -> UserError | None:
    """Translates an error of SentencePiece's trainer into the terms of the config; None if unknown."""
    for pattern, remedy in (
        (r"Vocabulary size too high .* <= (\d+)", "more than this text can fill: use at most"),
        (r"smaller than required_chars. \d+ vs (\d+)", "too small for this text's characters: use at least"),
    ):
        if match := re.search(pattern, message):
            return UserError(f"model.vocab_size={vocab_size} is {remedy} {match[1]}.")
    return None
