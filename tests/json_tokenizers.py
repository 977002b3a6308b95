"""Small tokenizers of the kinds that published encoders have, made with the `tokenizers` library."""

import functools
import json

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from bert_jax.corpus.sources import read_text
from tests.mixed_text import mixed_lines

SIZE = 1200
CODE = """
def f(x):\n    return [x[i] for i in range(10)]  # 2**31
\tif (a != b) { a->next = NULL; }
https://example.org/?q=1&r=%20 e-mail@example.org |||EMAIL|||
it's   three  spaces,     five \u3000 1,234,567.89 3.14 x_y-z don't
[CLS] a [SEP] b[SEP][MASK] [PAD][UNK] [unused0] <s> x</s> <mask> <bos><eos> <pad> <unk> <0x41>
<|begin_of_text|>a<|end_of_text|> <|mask|>b \U0010fffd ▁under Ġby
"""
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


@functools.cache
def paragraphs():
    """Every 60th paragraph of the embedded corpus."""
    return [paragraph for document in read_text("corpus:") for paragraph in document][::60]


def lines():
    """1,000 lines: many scripts, English, code, runs of spaces, and special tokens written out."""
    code = [line for line in CODE.split("\n") if line]
    english = paragraphs()[:200]
    return [*code, CODE, *english, *mixed_lines(1000 - len(code) - len(english) - 1)[1]]


def _made_once(make):
    """Every call gives a tokenizer of its own."""
    content = functools.cache(lambda: make().to_str())
    return functools.wraps(make)(lambda: tokenizers.Tokenizer.from_str(content()))


def _trained(result, trainer):
    result.train_from_iterator(paragraphs(), trainer)
    return result


def _frame(result, cls, sep):
    ids = [(token, result.token_to_id(token)) for token in (cls, sep)]
    return processors.TemplateProcessing(f"{cls} $A {sep}", f"{cls} $A {sep} $B {sep}", ids)


@_made_once
def modernbert():
    """Byte-level BPE as ModernBERT has it: special tokens last, white space and others added before them."""
    result = tokenizers.Tokenizer(models.BPE())
    result.normalizer = normalizers.NFC()
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True)
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(result, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False))
    result.add_tokens([AddedToken(" " * n, normalized=True) for n in range(8, 1, -1)])
    result.add_tokens(
        [AddedToken("|||EMAIL|||", normalized=False), AddedToken("[unused0]", normalized=False)]
    )
    result.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)])
    result.post_processor = _frame(result, "[CLS]", "[SEP]")
    return result


@_made_once
def eurobert():
    """Byte-level BPE with the rules of Llama 3: padding is the end of the text, and no piece is unknown."""
    result = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    result.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    result.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _trained(result, trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False))
    result.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|mask|>"])
    frame = _frame(result, "<|begin_of_text|>", "<|end_of_text|>")
    result.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), frame])
    return result


@_made_once
def mmbert():
    """BPE as Gemma's: a space is ▁, none is put before a text, and rare characters become bytes."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    result = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    result.normalizer = normalizers.Replace(" ", "▁")
    result.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    _trained(
        result,
        trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special + fallback, show_progress=False),
    )
    result.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    result.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    result.post_processor = _frame(result, "<bos>", "<eos>")
    content = json.loads(result.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in special]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


@_made_once
def wordpiece():
    """WordPiece with other rules than BERT's."""
    result = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    result.normalizer = normalizers.NFKC()
    result.pre_tokenizer = pre_tokenizers.Whitespace()
    result.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _trained(result, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False))
    result.post_processor = _frame(result, "[CLS]", "[SEP]")
    return result


@_made_once
def unigram():
    """A unigram model with the names of XLM-R."""
    result = tokenizers.Tokenizer(models.Unigram())
    result.normalizer = normalizers.NFKC()
    result.pre_tokenizer, result.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", AddedToken("<mask>", lstrip=True)]
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    _trained(result, trainer)
    result.post_processor = _frame(result, "<s>", "</s>")
    return result


KINDS = (modernbert, eurobert, mmbert, wordpiece, unigram)
