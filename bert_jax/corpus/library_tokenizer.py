"""Any tokenizer.json, as the `tokenizers` library reads it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

from bert_jax.corpus.characters import WORD_START
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError

# What `special_tokens_map.json` calls the roles -> the names that published vocabularies give them.
ROLES: dict[str, tuple[str, ...]] = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>"),
    "sep_token": ("[SEP]", "</s>", "<eos>", "<|end_of_text|>"),
    "mask_token": ("[MASK]", "<mask>", "<|mask|>"),
}
BYTE_SPACE, BYTE_NEWLINE = "Ġ", "Ċ"  # a space and a new line in byte-level vocabularies


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json with the same ids and offsets as the `tokenizers` library gives.

    Special tokens have roles, whatever they are called; `[SEP]` and the others in a text stay text. A
    vocabulary of bytes has no unknown piece: its `unk_id` is that of padding.

    Args:
        content: of tokenizer.json.
        roles: role -> token, as in special_tokens_map.json; a role that is missing is found by `ROLES`.
        name: for errors.

    Raises:
        UserError: if it is no tokenizer.json, or has no token for a role.
    """

    FILE, ROLES_FILE = "tokenizer.json", "special_tokens_map.json"
    _words_are_independent = False

    def __init__(self, content: bytes, roles: Mapping[str, str], name: str = "the tokenizer"):
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
            described = json.loads(content)
        except Exception as error:  # of the library, which raises Exception itself
            raise UserError(f"{name} is not a tokenizer.json of this library ({error}).") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # those in a text are text
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.roles = {role: self._token(role, roles, name) for role in ROLES}
        ids = [self._tokenizer.token_to_id(token) if token else None for token in self.roles.values()]
        self.pad_id, unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        self.unk_id = self.pad_id if unk_id is None else unk_id
        self.word_starts = self._word_starts(described)
        whole_words = [token["id"] for token in described["added_tokens"] if token["single_word"]]
        self.word_starts[[self.pad_id, self.cls_id, self.sep_id, self.mask_id, *whole_words]] = True
        self._content = content

    def _token(self, role: str, roles: Mapping[str, str], name: str) -> str:
        """Finds the token of a role; "" for an unknown piece that there is none of."""
        names = (roles[role],) if role in roles else ROLES[role]
        for token in names:
            if self._tokenizer.token_to_id(token) is not None:
                return token
        if role == "unk_token":
            return ""
        raise UserError(
            f"{name} has no {role} ({' or '.join(names)}); name its own in {self.ROLES_FILE} beside it."
        )

    def _word_starts(self, described: Mapping[str, Any]) -> np.ndarray:
        pieces = [self._tokenizer.id_to_token(token) or "" for token in range(self.vocab_size)]
        if prefix := described["model"].get("continuing_subword_prefix"):
            return np.array([not piece.startswith(prefix) for piece in pieces])
        if "ByteLevel" in json.dumps([described.get("pre_tokenizer"), described.get("decoder")]):
            # A space belongs to the word behind it; what is no letter or digit is a word of its own.
            return np.array(
                [piece[:1] in (BYTE_SPACE, BYTE_NEWLINE) or not piece[:1].isalnum() for piece in pieces]
            )
        return np.array([piece.startswith(WORD_START) for piece in pieces])

    def _encode_words(self, words):
        return [text.ids for text in self._tokenizer.encode_batch_fast(words, add_special_tokens=False)]

    def _encode_with_spans(self, words):
        for text in self._tokenizer.encode_batch(words, add_special_tokens=False):
            yield text.ids, text.offsets

    def decode(self, ids):
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)

    def piece(self, token):
        return self._tokenizer.id_to_token(int(token))

    def files(self):
        roles = {role: token for role, token in self.roles.items() if token}
        return {self.FILE: self._content, self.ROLES_FILE: (json.dumps(roles) + "\n").encode()}
