"""Reads the vocabulary of a Hugging Face directory, with the rules by which it splits text.

The first of these files counts: sentencepiece.model (of our own export), tokenizer.json, vocab.txt.
"""

import json
import pathlib
from typing import Any

import tokenizers

from bert_jax.corpus.tokenizer import (
    SPECIAL_PIECES,
    SentencePieceTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    read_pieces,
)
from bert_jax.errors import UserError

BERT = ("BertTokenizer", "BertTokenizerFast")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # run tokenizer.json as it is
PARTS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
REMEDY = "its ids would differ from the published ones. Give a model with BERT's tokenizer"


def read_vocabulary(directory: pathlib.Path) -> tuple[Tokenizer, int | None]:
    """Reads the tokenizer of a directory: its ids are those of AutoTokenizer.

    Returns:
        The tokenizer, and the most tokens of a text that it takes, None without a limit.

    Raises:
        UserError: if there is none, or it splits text by rules that `WordPieceTokenizer` does not have.
    """
    settings = _read_settings(directory)
    longest = settings.get("model_max_length")
    longest = longest if isinstance(longest, int) and longest >= 8 else None  # 10^30 stands for no limit
    if (path := directory / SentencePieceTokenizer.FILE).exists():
        return SentencePieceTokenizer(path.read_bytes(), str(path)), longest
    kind: str = settings.get("tokenizer_class") or BERT[0]
    known: tuple[str, ...] = BERT
    if (path := directory / "tokenizer.json").exists():
        vocabulary, rules = _read_tokenizer_json(path)
        known = BERT + GENERIC
    elif (path := directory / WordPieceTokenizer.FILE).exists():
        vocabulary, rules = read_pieces(path, str(path)), {}
    else:
        raise UserError(f"{directory} holds no vocabulary: neither vocab.txt nor tokenizer.json.")
    if kind not in known:
        raise UserError(f"{directory}: tokenizer_class={kind!r} is not of {', '.join(known)}: {REMEDY}.")
    if kind not in GENERIC:  # which do not read them
        rules |= _stated_rules(settings, directory)
    lowercase = rules.pop("do_lower_case", None)
    if lowercase is None:  # Google's checkpoints say it in their name only
        lowercase = all(piece == piece.lower() for piece in vocabulary if not piece.startswith("["))
    usual = {"strip_accents": lowercase, "tokenize_chinese_chars": True, "clean_text": True}
    other = {name: value for name, value in rules.items() if value != usual[name]}
    return WordPieceTokenizer(vocabulary, lowercase, str(path), **other), longest


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; raises UserError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; --input is a folder of Hugging Face files."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def _read_settings(directory: pathlib.Path) -> dict[str, Any]:
    """Reads tokenizer_config.json; config.json may name the class of the tokenizer instead."""
    settings: dict[str, Any] = {}
    if (path := directory / "config.json").exists():
        settings["tokenizer_class"] = read_json(path).get("tokenizer_class")
    if (path := directory / "tokenizer_config.json").exists():
        settings |= {name: value for name, value in read_json(path).items() if value is not None}
    return settings


def _stated_rules(settings: dict[str, Any], directory: pathlib.Path) -> dict[str, bool]:
    names = [name for name in WordPieceTokenizer.RULES if name != "clean_text"]  # in tokenizer.json only
    rules = {name: settings[name] for name in names if name in settings}
    for name, value in rules.items():
        if not isinstance(value, bool):
            raise UserError(f"{directory}/tokenizer_config.json: {name}={value!r} must be true or false.")
    return rules


def _read_tokenizer_json(path: pathlib.Path) -> tuple[list[str], dict[str, bool]]:
    """Reads the pieces, and the rules of the normalizer by their names in tokenizer_config.json."""
    try:  # read by the library and written again, a file of any version has today's form
        content = json.loads(tokenizers.Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is not a file of the tokenizers library ({error}).") from None
    for part, kind in PARTS.items():
        if (found := (content[part] or {}).get("type")) != kind:
            raise UserError(f"{path}: its {part} is {found} and BERT's is {kind}: {REMEDY}.")
    model, normalizer = content["model"], content["normalizer"]
    pieces = model.pop("vocab")
    usual = json.loads(tokenizers.models.WordPiece({}, unk_token="[UNK]").__getstate__())
    for name, value in model.items():
        if value != usual[name]:
            raise UserError(f"{path}: its model has {name}={value!r} and BERT's {usual[name]!r}: {REMEDY}.")
    if sorted(pieces.values()) != list(range(len(pieces))):
        raise UserError(f"{path}: the ids of its {len(pieces)} pieces are not 0 to {len(pieces) - 1}.")
    # Special ones are found in a text only where it spells them out, which our tokenizers never do.
    foreign = [
        token["content"]
        for token in content["added_tokens"]
        if token["content"] not in pieces or not (token["special"] or token["content"] in SPECIAL_PIECES)
    ]
    if foreign:
        raise UserError(
            f"{path}: its added_tokens {', '.join(foreign[:5])} are not pieces of words: {REMEDY}."
        )
    rules = {ours: normalizer[theirs] for ours, theirs in WordPieceTokenizer.RULES.items()}
    return sorted(pieces, key=pieces.__getitem__), {k: v for k, v in rules.items() if v is not None}
