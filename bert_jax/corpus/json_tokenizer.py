"""Any tokenizer.json, as the `tokenizers` library reads it."""

import codecs
import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

from bert_jax.corpus.characters import BYTE_FALLBACK, WORD_START, is_unspaced
from bert_jax.corpus.tokenizer import MASK, ROLES, Tokenizer
from bert_jax.errors import UserError

# What published vocabularies call the token of a role, and in which roles others may serve.
USUAL = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<|end_of_text|>", "<|endoftext|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "sep_token": ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
}
SUBSTITUTES = {"cls_token": "bos_token", "sep_token": "eos_token"}
# How vocabularies of bytes write a byte (GPT-2's `bytes_to_unicode`).
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(HIDDEN)}


class JsonTokenizer(Tokenizer):
    """A tokenizer.json with the same ids as the `tokenizers` library gives.

    Special tokens have roles, whatever they are called. In a text they stay text; other tokens that the file
    adds to its vocabulary are found, as in the library. A vocabulary of bytes has no unknown piece: its
    `unk_id` is that of padding.

    Args:
        content: of tokenizer.json.
        stated: role -> token, as in tokenizer_config.json. A role that is missing is found by `USUAL`.
        name: for errors.
        vocab_size: V, of the network, which may have more rows than there are pieces; default: none more.

    Raises:
        UserError: if it is no tokenizer.json, has no token for a role, or more pieces than `vocab_size`.
    """

    FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
    _words_are_independent = False

    def __init__(
        self,
        content: bytes,
        stated: Mapping[str, str],
        name: str = "the tokenizer",
        vocab_size: int | None = None,
    ):
        try:  # read by the library and written again, a file of any version has today's form
            read = tokenizers.Tokenizer.from_str(content.decode("utf-8-sig"))
            described = json.loads(read.to_str())
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{name} is not a file of the tokenizers library ({error}).") from None
        ids = read.get_vocab(with_added_tokens=True)
        self._content = content.removeprefix(codecs.BOM_UTF8)
        self.roles = {role: token for role in ROLES if (token := _token(role, stated, ids, name))}
        special = [ids[self.roles.get(role, self.roles["pad_token"])] for role in ROLES]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = special
        never = {token["content"] for token in described["added_tokens"] if token["special"]}
        in_text = [token for piece, token in ids.items() if piece not in never]
        size = 1 + max(*in_text, *special)
        self.vocab_size = vocab_size or max(ids.values()) + 1
        if self.vocab_size < size:
            raise UserError(
                f"{name} has {size} pieces, but model.vocab_size={vocab_size}: set it to {size} or more."
            )
        self._maskable = np.zeros(self.vocab_size, bool)
        self._maskable[in_text] = True
        self._maskable[special] = False
        self._stand_ins = {self.roles[role]: f"\U0010fffe{role}" for role in ROLES[:1] + ROLES[2:]}
        self._tokenizer = _with_stand_ins(described, self._stand_ins, self.roles["mask_token"], self.mask_id)
        self._names = {ids[token]: token for token in self._stand_ins}
        self._describe_pieces(described, ids)
        apart = self._encode_words(["a", "b", " b", "a b"])
        self.gap = "" if apart[0] + apart[1] == apart[3] else " "

    def __reduce__(self):
        return type(self), (self._content, self.roles, "the tokenizer", self.vocab_size)

    def _describe_pieces(self, described: Mapping[str, Any], ids: Mapping[str, int]) -> None:
        """Finds what the pieces stand for, and which of them start a word."""
        self.word_starts = np.zeros(self.vocab_size, bool)
        self._prefix = described["model"].get("continuing_subword_prefix") or ""
        rules = json.dumps([described["pre_tokenizer"], described["decoder"]])
        self._of_bytes = '"ByteLevel"' in rules
        for piece, token in ids.items():
            if token < self.vocab_size:
                self.word_starts[token] = (
                    not piece.startswith(self._prefix) if self._prefix else starts_word(self._surface(piece))
                )
        words = [token["id"] for token in described["added_tokens"] if token["single_word"]]
        self.word_starts[[self.pad_id, self.cls_id, self.sep_id, self.mask_id, *words]] = True

    def _surface(self, piece: str) -> bytes:
        """Returns the bytes of text that a piece stands for, with the space that it may begin with."""
        if self._of_bytes and all(character in BYTES for character in piece):
            return bytes(map(BYTES.__getitem__, piece))
        if match := BYTE_FALLBACK.fullmatch(piece):
            return bytes.fromhex(match[1])
        return piece.replace(WORD_START, " ").encode()

    @property
    def maskable(self):
        return self._maskable

    def _encode_words(self, words):
        return [text.ids for text in self._tokenizer.encode_batch_fast(words, add_special_tokens=False)]

    def _encode_with_spans(self, words):
        for text, found in zip(
            words, self._tokenizer.encode_batch(words, add_special_tokens=False), strict=True
        ):
            yield found.ids, [_without_spaces(text, *span) for span in found.offsets]

    def encode_with_masks(self, texts):
        mask = self.roles["mask_token"]
        stand_in = self._stand_ins[mask]
        return self.encode([text.replace(MASK, stand_in).replace(mask, stand_in) for text in texts])

    def decode(self, ids):
        text = self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)
        for name, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, name)
        return text

    def piece(self, token):
        token = int(token)
        return self._names.get(token) or self._tokenizer.id_to_token(token) or f"<no piece {token}>"

    def bare_piece(self, token):
        piece = self.piece(token)
        if self._prefix:
            return piece.removeprefix(self._prefix) or piece
        text = self._surface(piece).decode(errors="replace").removeprefix(" ")
        return piece if not text or "\ufffd" in text else text

    def surface(self, token):
        return self._surface(self.piece(token).removeprefix(self._prefix)).removeprefix(b" ")

    def backend(self) -> tokenizers.Tokenizer:
        """Returns the `tokenizers.Tokenizer` of the file."""
        return tokenizers.Tokenizer.from_buffer(self._content)

    def files(self):
        settings = self.roles | {"vocab_size": self.vocab_size}
        return {self.FILE: self._content, self.SETTINGS: (json.dumps(settings) + "\n").encode()}


def starts_word(surface: bytes) -> bool:
    """Decides whether a piece starts a word by its first character.

    White space does, and so does what is no letter, accent or digit: the pre-tokenizers of published
    vocabularies split before it. So does a letter of a script without spaces: a Chinese one is a word in
    BERT's WordPiece, too. The first letter behind an opening bracket or a hyphen goes on with what is before
    it.

    Args:
        surface: the bytes of the piece; they may begin inside a character.
    """
    if is_unspaced(surface):
        return True
    first = surface.decode(errors="replace")[:1]
    if first == "\ufffd":  # E2: symbols; EE and EF: private use, wide punctuation; F0: emoji
        return surface[0] == 0xE2 or surface[0] >= 0xEE
    return bool(first) and unicodedata.category(first)[0] not in "LMN"


def _token(role: str, stated: Mapping[str, str], ids: Mapping[str, int], name: str) -> str:
    """Finds the token of a role; "" for an unknown piece that there is none of."""
    named = stated.get(role) or stated.get(SUBSTITUTES.get(role, ""))
    names = (named,) if named else USUAL[role]
    for token in names:
        if token in ids:
            return token
    if role == "unk_token":
        return ""
    raise UserError(
        f"{name} has no {role} ({' or '.join(names)}); name its own in {JsonTokenizer.SETTINGS} beside it."
    )


def _with_stand_ins(
    described: dict[str, Any], stand_ins: Mapping[str, str], mask: str, mask_id: int
) -> tokenizers.Tokenizer:
    """Builds the tokenizer with other names for the tokens of roles, which no text holds.

    A model may find its own special tokens in a text, so it is not enough to leave them unsplit. The mask's
    name is found, with the space before it if the file says so.
    """
    vocabulary = described["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {stand_ins.get(piece, piece): token for piece, token in vocabulary.items()}
    else:  # of a unigram model
        vocabulary = [[stand_ins.get(piece, piece), score] for piece, score in vocabulary]
    described["model"]["vocab"] = vocabulary
    added = {token["content"]: token for token in described["added_tokens"]}
    if mask not in added:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        added[mask] = {"id": mask_id, "content": mask, **flags}
        described["added_tokens"].append(added[mask])
    added[mask] |= {"special": False, "normalized": False}  # so that it alone is found
    for token in described["added_tokens"]:
        token["content"] = stand_ins.get(token["content"], token["content"])
    described |= {"truncation": None, "padding": None}
    result = tokenizers.Tokenizer.from_str(json.dumps(described))
    result.encode_special_tokens = True  # the others in a text are text
    return result


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    surface = text[start:end]
    start = end - len(surface.lstrip())
    return start, max(start, end - len(surface) + len(surface.rstrip()))
