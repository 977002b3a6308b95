"""Finds and reads the tokenizer that a config names, or that a folder has."""

import json
import os
import pathlib
import re

from etils import epath

from bert_jax.corpus.config import TRAINED, DataConfig
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sources.finding import MissingInput
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer, read_pieces
from bert_jax.errors import UserError

VOCABULARIES = pathlib.Path(__file__).parent / "vocabularies"
MODEL_START = re.compile(b"\n.{1,3}\n", re.DOTALL)  # of a ModelProto: its first piece, and in it the text


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
    """Reads a tokenizer that `Tokenizer.save` wrote.

    Raises:
        UserError: if there is no tokenizer, or one whose files cannot be read.
    """
    directory = epath.Path(directory)
    try:
        if (path := directory / SentencePieceTokenizer.FILE).exists():
            return SentencePieceTokenizer(path.read_bytes(), str(path))
        if (path := directory / WordPieceTokenizer.FILE).exists():
            settings = json.loads((directory / WordPieceTokenizer.SETTINGS).read_bytes())
            lowercase = settings.pop("do_lower_case")
            pieces = path.read_bytes().decode().removesuffix("\n").split("\n")
            return WordPieceTokenizer(pieces, lowercase, str(path), **settings)
        if (path := directory / JsonTokenizer.FILE).exists():
            settings = json.loads((directory / JsonTokenizer.SETTINGS).read_bytes())
            return read_json_tokenizer(path, str(path), settings["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the tokenizer in {directory} cannot be read ({error!r}).") from error
    files = f"{SentencePieceTokenizer.FILE}, {WordPieceTokenizer.FILE} or {JsonTokenizer.FILE}"
    raise UserError(f"{directory} holds no tokenizer ({files}).")


def read_json_tokenizer(
    path: epath.Path | pathlib.Path, name: str, vocab_size: int | None = None
) -> JsonTokenizer:
    """Reads a tokenizer.json, with the roles of its tokens from the files that may be beside it.

    Raises:
        UserError: as `JsonTokenizer`; begins with `name`.
    """
    stated: dict[str, str] = {}
    for beside in _beside(path):
        try:
            content = json.loads(beside.read_bytes().decode("utf-8-sig"))
            tokens = {role: token for role, token in content.items() if role.endswith("_token") and token}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{name}: {beside} is no JSON object ({error}).") from None
        stated |= {
            role: str(token.get("content")) if isinstance(token, dict) else token
            for role, token in tokens.items()
            if isinstance(token, str | dict)
        }
    return JsonTokenizer(path.read_bytes(), stated, name, vocab_size)


def _beside(path: epath.Path | pathlib.Path) -> list[epath.Path | pathlib.Path]:
    """Lists the files that state the roles of a tokenizer.json's tokens; the last counts."""
    names = ("special_tokens_map.json", JsonTokenizer.SETTINGS)
    return [file for name in names if (file := path.parent / name).exists()]


def tokenizer_file(data: DataConfig) -> str | None:
    """Finds the file that `data.tokenizer` names; returns None if the tokenizer is to be trained.

    `wordpiece:bert_uncased` is the published uncased vocabulary of 30,522 pieces, which this package ships.

    Raises:
        MissingInput: if there is no such file.
    """
    if data.tokenizer in TRAINED:
        return None
    kind, _, name = data.tokenizer.partition(":")
    path, shipped = os.path.expanduser(name), VOCABULARIES / f"{name}.txt"
    if kind == "wordpiece" and not epath.Path(path).exists() and shipped.exists():
        path = str(shipped)
    if name and epath.Path(path).is_dir():
        named = {"wordpiece": WordPieceTokenizer.FILE, "tokenizer_json": JsonTokenizer.FILE}
        file = f"{kind}:{name.rstrip('/')}/{named.get(kind, SentencePieceTokenizer.FILE)}"
        raise MissingInput(f"data.tokenizer={data.tokenizer!r} is a directory; name a file, as {file}.")
    if not name or not epath.Path(path).is_file():
        names = ", ".join(f"wordpiece:{file.stem}" for file in VOCABULARIES.glob("*.txt"))
        raise MissingInput(f"data.tokenizer={data.tokenizer!r}: there is no such file; shipped: {names}.")
    return path


def deciding_files(data: DataConfig) -> list[str]:
    """Lists the files whose content decides the tokenizer, `tokenizer_file` first; none if it is trained.

    Raises:
        MissingInput: if there is no such file.
    """
    if not (file := tokenizer_file(data)):
        return []
    roles = _beside(epath.Path(file)) if data.tokenizer.startswith("tokenizer_json:") else []
    return [file, *map(str, roles)]


def read_tokenizer(data: DataConfig, vocab_size: int) -> Tokenizer:
    """Reads the tokenizer from the file that `data.tokenizer` names.

    Raises:
        UserError: if the file holds no tokenizer with BERT's special pieces, or not `vocab_size` pieces; a
            tokenizer.json may have fewer.
    """
    path = epath.Path(tokenizer_file(data))
    name = f"data.tokenizer={data.tokenizer!r}"
    if data.tokenizer.startswith("tokenizer_json:"):
        return read_json_tokenizer(path, name, vocab_size)
    content, wordpiece = path.read_bytes(), data.tokenizer.startswith("wordpiece:")
    if wordpiece and MODEL_START.match(content):
        raise UserError(f"{name} is a SentencePiece model; use data.tokenizer=sentencepiece:{path}.")
    if not wordpiece and b"[MASK]" in content.splitlines():
        raise UserError(f"{name} is a vocabulary of a piece a line; use data.tokenizer=wordpiece:{path}.")
    if content.startswith(b"{") and b"[MASK]" not in content.splitlines():
        raise UserError(f"{name} is a tokenizer.json; use data.tokenizer=tokenizer_json:{path}.")
    tokenizer: Tokenizer
    if wordpiece:
        tokenizer = WordPieceTokenizer(read_pieces(path, name), data.lowercase, name)
    else:
        tokenizer = SentencePieceTokenizer(content, name)
    if (size := tokenizer.vocab_size) != vocab_size:
        raise UserError(f"{name} has {size} pieces, but model.vocab_size={vocab_size}: set it to {size}.")
    return tokenizer
