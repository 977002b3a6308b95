"""SentencePiece models, unigram and BPE, trained here or given."""

import io
import itertools
import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import sentencepiece
from google.protobuf.runtime_version import VersionError

from bert_jax.corpus.characters import (
    BYTE_FALLBACK,
    CHARACTER_COVERAGE,
    NO_CHARACTERS,
    WORD_START,
    character_spans,
)
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError

try:
    from sentencepiece import sentencepiece_model_pb2, sentencepiece_pb2
except VersionError as error:
    raise UserError(
        f"sentencepiece needs a newer protobuf ({error}): pip install 'protobuf>=7.36.1', or "
        "'sentencepiece<0.2.3' beside Apache Beam."
    ) from None

# Fixed: the number of threads decides in which order the expectations of a unigram model are added.
TRAINING_THREADS = 16
# protobuf creates both classes at import.
ModelProto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
SentencePieceText = sentencepiece_pb2.SentencePieceText  # type: ignore[attr-defined]


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
        starts = [piece.piece.startswith(WORD_START) for piece in proto.pieces]
        self.word_starts = np.array(starts) | self.unspaced
        self.word_starts[[self.pad_id, self.cls_id, self.sep_id, self.mask_id]] = True

    @classmethod
    def train(
        cls,
        word_counts: Mapping[str, int],
        kind: str,
        vocab_size: int,
        lowercase: bool,
        character_coverage: float = CHARACTER_COVERAGE,
        byte_fallback: bool = False,
    ) -> Self:
        """Trains on words and their counts, with the same result on any number of cores.

        Training on words takes half the time of training on sentences. `SPECIAL_PIECES` have the ids 0 to 4.

        Args:
            word_counts: words (as split at white space) with their counts.
            kind: unigram or bpe.
            lowercase: casefold with NFKC, or NFKC alone.
            character_coverage: share of the characters that become pieces, the most frequent ones; 0.98 to 1.
            byte_fallback: write the others as the bytes of their UTF-8, for which there are 256 pieces.

        Raises:
            UserError: if the text has too many characters for `vocab_size` or too few pieces to fill it.
        """
        model = io.BytesIO()
        # Not given at its default, which would then stand in the model and change its digest.
        options: dict[str, Any] = {"byte_fallback": True} if byte_fallback else {}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word}\t{count}" for word, count in sorted(word_counts.items())),
                input_format="tsv", max_sentence_length=1 << 16, model_writer=model, minloglevel=2,
                model_type=kind, vocab_size=vocab_size, character_coverage=character_coverage,
                normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
                num_threads=TRAINING_THREADS, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
                pad_piece="[PAD]", unk_piece="[UNK]", control_symbols="[CLS],[SEP],[MASK]", **options,
            )  # fmt: skip
        except RuntimeError as error:
            raise _training_error(str(error), vocab_size) or error from None
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

    def surface(self, token):
        if match := BYTE_FALLBACK.fullmatch(self.piece(token)):
            return bytes.fromhex(match[1])
        return super().surface(token)

    def files(self):
        return {self.FILE: self._model}


def _training_error(message: str, vocab_size: int) -> UserError | None:
    """Translates an error of SentencePiece's trainer into the terms of the config; None if unknown."""
    if "all_chars_count" in message or "sentences_.empty()" in message:
        return UserError(NO_CHARACTERS)
    for pattern, remedy in (
        (r"Vocabulary size too high .* <= (\d+)", "more than this text can fill: use at most"),
        (r"smaller than required_chars. \d+ vs (\d+)", "too small for this text's characters: use at least"),
    ):
        if match := re.search(pattern, message):
            return UserError(f"model.vocab_size={vocab_size} is {remedy} {match[1]}.")
    return None
