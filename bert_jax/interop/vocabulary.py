"""Reads the vocabulary of a Hugging Face directory, with the rules by which it splits text.

The first of these files counts: sentencepiece.model (of our own export), tokenizer.json, vocab.txt. A
tokenizer.json that is not BERT's is used as it is.
"""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.tokenizer import ROLES, SPECIAL_PIECES, Tokenizer
from bert_jax.corpus.tokenizer_files import read_json_tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer, read_pieces
from bert_jax.errors import UserError
from bert_jax.interop.directory import check_fetched, read_json, read_text

BERT = ("BertTokenizer", "BertTokenizerFast")
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # run tokenizer.json as it is
PARTS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
# Settings that change how a text is split, with the only value that can be honoured.
FIXED = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece", "do_word_tokenize": True,
         "do_subword_tokenize": True, "do_basic_tokenize": True}  # fmt: skip
# Keys of tokens that are found in a text before it is split.
SPELLED = ("additional_special_tokens", "extra_special_tokens", "never_split", "added_tokens_decoder")
log = logging.getLogger("bert_jax")
REMEDY = "its ids would differ from the published ones. Give a model with BERT's tokenizer"


def read_vocabulary(directory: pathlib.Path) -> tuple[Tokenizer, int | None]:
    """Reads the tokenizer of a directory: its ids are those of AutoTokenizer.

    Returns:
        The tokenizer, and the most tokens of a text that it takes, None without a limit.

    Raises:
        UserError: if there is none, or it splits text by rules that neither its tokenizer.json nor
            `WordPieceTokenizer` has.
    """
    settings = _read_settings(directory)
    longest = settings.get("model_max_length")
    longest = longest if isinstance(longest, int) and longest >= 8 else None  # 10^30 stands for no limit
    tokenizer = _read_tokenizer(directory, settings)
    for name in ("config.json", WordPieceTokenizer.SETTINGS):
        if (path := directory / name).exists():
            _check_rules(read_json(path), path)
    if isinstance(tokenizer, JsonTokenizer):  # whose tokens may be any
        _warn_of_frame(tokenizer, directory)
        return tokenizer, longest
    for name in (WordPieceTokenizer.SETTINGS, "special_tokens_map.json", "added_tokens.json"):
        if (path := directory / name).exists():
            content = read_json(path)
            if name == "added_tokens.json":  # ids by token
                content = {"added_tokens_decoder": {str(token): name for name, token in content.items()}}
            _check_tokens(content, tokenizer, path)
    return tokenizer, longest


def _read_tokenizer(directory: pathlib.Path, settings: dict[str, Any]) -> Tokenizer:
    kind: str = settings.get("tokenizer_class") or BERT[0]
    known: tuple[str, ...] = BERT
    own = directory / SentencePieceTokenizer.FILE
    if own.exists():
        path, known = own, GENERIC
        kind = settings.get("tokenizer_class") or GENERIC[0]
    elif (path := directory / JsonTokenizer.FILE).exists():
        read = _read_library(path)
        if _other_parts(read) and not _of_bert(settings):
            return read_json_tokenizer(path, str(path), settings.get("vocab_size"))
        vocabulary, rules = _read_tokenizer_json(read, path)
        known = BERT + GENERIC
    elif (path := directory / WordPieceTokenizer.FILE).exists():
        check_fetched(path)
        vocabulary, rules = read_pieces(path, str(path)), {}
    else:
        raise UserError(f"{directory} holds no vocabulary: neither vocab.txt nor tokenizer.json.")
    if kind not in known:
        raise UserError(f"{directory}: tokenizer_class={kind!r} is not of {', '.join(known)}: {REMEDY}.")
    if path == own:
        check_fetched(path)
        return SentencePieceTokenizer(path.read_bytes(), str(path))
    if kind not in GENERIC:  # which do not read them
        rules |= _stated_rules(settings, directory)
    lowercase = rules.pop("do_lower_case", None)
    if lowercase is None:  # Google's checkpoints say it in their name only
        lowercase = all(piece == piece.lower() for piece in vocabulary if not piece.startswith("["))
    usual = {"strip_accents": lowercase, "tokenize_chinese_chars": True, "clean_text": True}
    other = {name: value for name, value in rules.items() if value != usual[name]}
    return WordPieceTokenizer(vocabulary, lowercase, str(path), **other)


def _read_settings(directory: pathlib.Path) -> dict[str, Any]:
    """Reads tokenizer_config.json; config.json has V, and may name the class of the tokenizer instead."""
    settings: dict[str, Any] = {}
    if (path := directory / "config.json").exists():
        config = read_json(path)
        settings = {name: config.get(name) for name in ("tokenizer_class", "model_type", "vocab_size")}
    if (path := directory / WordPieceTokenizer.SETTINGS).exists():
        settings |= {name: value for name, value in read_json(path).items() if value is not None}
    return settings


def _check_rules(content: dict[str, Any], path: pathlib.Path) -> None:
    """Raises UserError if a file states rules that BERT's tokenizer does not have, or code of its own."""
    for name, usual in FIXED.items():
        if (value := content.get(name)) not in (None, usual):
            raise UserError(f"{path}: {name}={value!r} and BERT's is {usual!r}: {REMEDY}.")
    code = content.get("auto_map") or {}
    if not isinstance(code, dict) or "AutoTokenizer" in code:
        raise UserError(f"{path}: auto_map names code of its own for the tokenizer: {REMEDY}.")


def _stated_rules(settings: dict[str, Any], directory: pathlib.Path) -> dict[str, bool]:
    names = [name for name in WordPieceTokenizer.RULES if name != "clean_text"]  # in tokenizer.json only
    rules = {name: settings[name] for name in names if name in settings}
    for name, value in rules.items():
        if not isinstance(value, bool):
            raise UserError(f"{directory}/tokenizer_config.json: {name}={value!r} must be true or false.")
    return rules


def _check_tokens(content: dict[str, Any], tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Raises UserError if a file states other special pieces than the tokenizer has.

    Args:
        content: of tokenizer_config.json, or of the two files that once held parts of it.
    """
    special = {tokenizer.piece(token): token for token in tokenizer.special_ids}
    pieces = dict(zip(ROLES, special, strict=True))
    names = {key: _names(content.get(key)) for key in SPELLED}
    for role, token in content.items():
        if role.endswith("_token") and isinstance(token, (str, dict)):
            names[role] = _names([token])
            if names[role] != [pieces.get(role, names[role][0])]:
                stated, ours = names[role][0], pieces[role]
                raise UserError(f"{path}: {role}={stated!r} and the vocabulary's is {ours!r}: {REMEDY}.")
    for key, found in names.items():
        _refuse_added([name for name in found if name not in special], key, path)
    added = content.get("added_tokens_decoder")
    for number, name in zip(added, _names(added), strict=True) if isinstance(added, dict) else ():
        if number != str(special[name]):
            raise UserError(
                f"{path}: {name} has the id {number}, and {special[name]} in the vocabulary; they must be of "
                "one model."
            )


def _names(tokens: Any) -> list[str]:
    """Lists the texts of tokens, which are strings or objects, in a list or by a key."""
    values = [*tokens.values()] if isinstance(tokens, dict) else tokens or []
    values = values if isinstance(values, list) else [values]
    return [str(token.get("content") if isinstance(token, dict) else token) for token in values]


def _refuse_added(names: list[str], key: str, path: pathlib.Path) -> None:
    """Raises UserError for tokens that are found in a text before it is split; our tokenizers find none."""
    if found := ", ".join(names[:5]):
        raise UserError(
            f"{path}: its {key} {found} are not pieces of words: {REMEDY}, or take them out of the file if "
            "no text holds them."
        )


def _read_library(path: pathlib.Path) -> tokenizers.Tokenizer:
    text = read_text(path)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path} is not a file of the tokenizers library ({error}).") from None


def _other_parts(read: tokenizers.Tokenizer) -> dict[str, str | None]:
    """Returns the kinds of the parts in which a tokenizer differs from BERT's."""
    content = json.loads(read.to_str())
    kinds = {part: (content[part] or {}).get("type") for part in PARTS}
    return {part: kind for part, kind in kinds.items() if kind != PARTS[part]}


def _of_bert(settings: Mapping[str, Any]) -> bool:
    """Whether Transformers replaces the parts of tokenizer.json by those of BERT's class."""
    if settings.get("tokenizer_class"):
        return settings["tokenizer_class"] in BERT
    return (settings.get("model_type") or "bert") == "bert"


def _read_tokenizer_json(read: tokenizers.Tokenizer, path: pathlib.Path) -> tuple[list[str], dict[str, bool]]:
    """Reads the pieces, and the rules of the normalizer by their names in tokenizer_config.json."""
    for part, found in _other_parts(read).items():
        raise UserError(f"{path}: its {part} is {found} and BERT's is {PARTS[part]}: {REMEDY}.")
    content = json.loads(read.to_str())  # a file of any version has today's form
    model, normalizer = content["model"], content["normalizer"]
    pieces = model.pop("vocab")
    usual = json.loads(tokenizers.models.WordPiece({}, unk_token="[UNK]").__getstate__())
    for name, value in model.items():
        if value != usual[name]:
            raise UserError(f"{path}: its model has {name}={value!r} and BERT's {usual[name]!r}: {REMEDY}.")
    if sorted(pieces.values()) != list(range(len(pieces))):
        raise UserError(f"{path}: the ids of its {len(pieces)} pieces are not 0 to {len(pieces) - 1}.")
    added = [token["content"] for token in content["added_tokens"]]
    # Those of BERT are found in a text only where it spells them out, and never by our tokenizers.
    _refuse_added([name for name in added if name not in SPECIAL_PIECES], "added_tokens", path)
    _check_frame(read, pieces, path)
    rules = {ours: normalizer[theirs] for ours, theirs in WordPieceTokenizer.RULES.items()}
    return sorted(pieces, key=pieces.__getitem__), {k: v for k, v in rules.items() if v is not None}


def _warn_of_frame(tokenizer: JsonTokenizer, directory: pathlib.Path) -> None:
    """Warns if the file sets other special tokens around texts than rows have here."""
    read, (a, b) = tokenizer.backend(), tokenizer.encode(["a", "b"])
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    usual = [cls, *a, sep], [cls, *a, sep, *b, sep]
    if read.post_processor is not None and (read.encode("a").ids, read.encode("a", "b").ids) != usual:
        framed = [" ".join(read.encode(*texts).tokens) for texts in (("A",), ("A", "B"))]
        log.warning(
            "%s makes rows like %s and %s; those here are %s A %s B %s", directory / tokenizer.FILE, *framed,
            *map(tokenizer.piece, (cls, sep, sep)),
        )  # fmt: skip


def _check_frame(read: tokenizers.Tokenizer, pieces: Mapping[str, int], path: pathlib.Path) -> None:
    """Raises UserError unless texts become [CLS] A [SEP] and [CLS] A [SEP] B [SEP], as all of BERT's do."""
    if read.post_processor is None:  # the frame is left to the class of the tokenizer
        return
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"text": -1 % 2**32}, unk_token="text"))
    text.post_processor = read.post_processor
    body, cls, sep = -1 % 2**32, pieces.get("[CLS]"), pieces.get("[SEP]")
    frames = text.encode("text").ids, text.encode("text", "text").ids
    if frames != ([cls, body, sep], [cls, body, sep, body, sep]):
        kind = json.loads(read.to_str())["post_processor"]["type"]
        raise UserError(f"{path}: its post_processor {kind} does not set [CLS] A [SEP] B [SEP]: {REMEDY}.")
