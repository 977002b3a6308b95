"""Finds and reads the tokenizer that a config names, or that a folder has."""

import json
import os
import pathlib
import re

from etils import epath

from bert_jax.corpus.config import TRAINED, DataConfig
from bert_jax.corpus.library_tokenizer import ROLES, LibraryTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sources.files import MissingInput
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer, read_pieces
from bert_jax.errors import UserError

VOCABULARIES = pathlib.Path(__file__).parent / "vocabularies"
MODEL_START = re.compile(b"\n.{1,3}\n", re.DOTALL)  # of a ModelProto: its first piece, and in it the text


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
    if (path := directory / LibraryTokenizer.FILE).exists():
        return read_library_tokenizer(path, str(path))
    files = f"{SentencePieceTokenizer.FILE}, {WordPieceTokenizer.FILE} or {LibraryTokenizer.FILE}"
    raise UserError(f"{directory} holds no tokenizer ({files}).")


def read_library_tokenizer(path: epath.Path | pathlib.Path, name: str) -> LibraryTokenizer:
    """Reads a tokenizer.json, with the roles of its tokens from the files that may be beside it.

    Raises:
        UserError: if it is no tokenizer.json, or has no token for a role; begins with `name`.
    """
    roles: dict[str, str] = {}
    for file in ("tokenizer_config.json", LibraryTokenizer.ROLES_FILE):
        if (beside := path.parent / file).exists():
            content = json.loads(beside.read_bytes())
            tokens = {role: content[role] for role in ROLES if content.get(role)}
            roles |= {
                role: token["content"] if isinstance(token, dict) else token for role, token in tokens.items()
            }
    return LibraryTokenizer(path.read_bytes(), roles, name)


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
    if data.tokenizer.startswith("tokenizer_json:"):
        tokenizer = read_library_tokenizer(path, name)
    elif wordpiece:
        tokenizer = WordPieceTokenizer(read_pieces(path, name), data.lowercase, name)
    else:
        tokenizer = SentencePieceTokenizer(content, name)
    if (size := tokenizer.vocab_size) != vocab_size:
        raise UserError(f"{name} has {size} pieces, but model.vocab_size={vocab_size}: set it to {size}.")
    return tokenizer
