"""Writes our tokenizers as a `tokenizer.json`, for the `tokenizers` library and AutoTokenizer."""

import itertools
import re
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.corpus.characters import WORD_START
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import ModelProto, SentencePieceTokenizer
from bert_jax.corpus.tokenizer import ROLES, Tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
# What SentencePiece's rule nmt_nfkc does besides NFKC: it removes REMOVED and replaces SPACES by a space.
REMOVED = "[\x01-\x08\x0b\x0e-\x1f\x7f\u008f\u009f]"
SPACES = "[\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029\u2581\ufeff\ufffd]"
# Characters that the rule keeps and NFKC or lowercasing would change, and what replaces them meanwhile.
KEPT = {"～": "\uf8f0"}
KEPT_IN_FOLDING = {"İ": "\uf8f1"}
FOLDED = {"ς": "σ", "\u0345": "ι"}  # simple case folding where it is not lowercasing


def content(tokenizer: Tokenizer) -> str:
    """Makes the content of tokenizer.json; one that was read stays as it is, if it sets special pieces."""
    if isinstance(tokenizer, JsonTokenizer) and tokenizer.backend().post_processor is not None:
        return tokenizer.files()[tokenizer.FILE].decode()
    return build(tokenizer).to_str(pretty=True)


def build(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """Builds a tokenizer of the same ids, except that special pieces written in a text become special ids.

    Texts become [CLS] A [SEP] and [CLS] A [SEP] B [SEP], by whatever names.

    For SentencePiece vocabularies one difference is known: combining marks in an order that Unicode does not
    use (on one letter, a mark above before a mark below).
    """
    if isinstance(tokenizer, WordPieceTokenizer | JsonTokenizer):
        result = tokenizer.backend()
    else:
        assert isinstance(tokenizer, SentencePieceTokenizer)
        result = _sentencepiece(tokenizer)
    cls, sep = (tokenizer.piece(token) for token in (tokenizer.cls_id, tokenizer.sep_id))
    result.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )
    added = result.get_added_tokens_decoder()  # which would lose what they say of the spaces around them
    special = tokenizer.special_ids
    result.add_special_tokens([tokenizer.piece(token) for token in special if token not in added])
    return result


def settings(tokenizer: Tokenizer, max_length: int, segments: bool = True) -> dict[str, object]:
    """Makes the content of tokenizer_config.json for the tokenizer.json beside it.

    Without `segments` it makes no token_type_ids, which such networks do not take.
    """
    special = dict(zip(ROLES, map(tokenizer.piece, tokenizer.special_ids), strict=True))
    if isinstance(tokenizer, JsonTokenizer):
        special = tokenizer.roles  # there may be no unknown piece
    # For SentencePiece BertTokenizer would replace the normalizer by WordPiece's.
    kind: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(tokenizer, WordPieceTokenizer):
        # BertTokenizer has no setting for control characters and would ignore the rule in tokenizer.json.
        if tokenizer.settings.get("clean_text", True):
            kind = {"tokenizer_class": "BertTokenizer"}
        kind |= tokenizer.settings
    inputs = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    return kind | special | {"model_max_length": max_length, "model_input_names": inputs}


def _sentencepiece(tokenizer: SentencePieceTokenizer) -> tokenizers.Tokenizer:
    proto = ModelProto()
    proto.ParseFromString(tokenizer.files()[tokenizer.FILE])
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    # Words that were added are found before letters are merged, and are not merged from letters themselves.
    added = [piece.piece for piece in proto.pieces if piece.type == ModelProto.SentencePiece.USER_DEFINED]
    byte_fallback = proto.trainer_spec.byte_fallback
    model: Any
    if proto.trainer_spec.model_type == UNIGRAM:
        model = models.Unigram(pieces, unk_id=tokenizer.unk_id, byte_fallback=byte_fallback)
    elif proto.trainer_spec.model_type == BPE:
        vocab = {piece: token for token, (piece, _) in enumerate(pieces)}
        unknown = tokenizer.piece(tokenizer.unk_id)
        whole = bool(added)
        model = models.BPE(
            vocab, _merges(pieces), unk_token=unknown, fuse_unk=True, ignore_merges=whole,
            byte_fallback=byte_fallback,
        )  # fmt: skip
    else:
        raise UserError(
            "a SentencePiece model of words or characters cannot be exported; use unigram or bpe."
        )
    result = tokenizers.Tokenizer(model)
    result.normalizer = _normalizer(proto.normalizer_spec)
    # A special token, such as [MASK], splits the text; what follows it goes on with its word.
    result.pre_tokenizer = pre_tokenizers.Metaspace(WORD_START, prepend_scheme="first")
    if added:
        longest_first = Regex("|".join(map(re.escape, sorted(added, key=len, reverse=True))))
        split = pre_tokenizers.Split(longest_first, "isolated")
        result.pre_tokenizer = pre_tokenizers.Sequence([result.pre_tokenizer, split])
    result.decoder = decoders.Metaspace(WORD_START)
    if byte_fallback:
        result.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(WORD_START)])
    return result


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Lists all pairs of pieces that make a piece, best pieces first: SentencePiece merges by score."""
    known = {piece for piece, _ in pieces}
    splits = [
        (-score, token, piece[:cut], piece[cut:])
        for token, (piece, score) in enumerate(pieces)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    return [(left, right) for _, _, left, right in sorted(splits, key=lambda split: split[:2])]


def _normalizer(spec: Any) -> normalizers.Normalizer:
    """Builds the normalization that SentencePiece applies to a text before it looks for pieces.

    SentencePiece's own rules are written out, because `normalizers.Precompiled` loses a combining mark behind
    every letter that the rule changes. Other rules use it.
    """
    rule, replace = spec.name, normalizers.Replace
    steps: list[Any] = []
    if rule in ("nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf"):
        kept: dict[str, str] = {}
        if rule.startswith("nmt_"):
            kept |= KEPT
            # Metaspace begins a word at the first character only, so something must be left of that one.
            steps += [replace(Regex(f"^{REMOVED}+"), " "), replace(Regex(REMOVED), "")]
            steps += [replace(Regex(SPACES), " ")]
        if rule.endswith("_cf"):
            kept |= KEPT_IN_FOLDING
        steps += [normalizers.NFC(), *itertools.starmap(replace, kept.items()), normalizers.NFKC()]
        if rule.endswith("_cf"):
            steps += [normalizers.Lowercase(), *itertools.starmap(replace, FOLDED.items())]
        steps += [replace(stand_in, character) for character, stand_in in kept.items()]
    elif spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [replace(Regex(" {2,}"), " "), replace(Regex(" $"), "")]  # Metaspace doubles none
    return normalizers.Sequence(steps)
