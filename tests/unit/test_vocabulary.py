"""Vocabularies of Hugging Face: the ids are those of the `tokenizers` library, or the rules are refused."""

import codecs
import itertools
import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer import SPECIAL_PIECES
from bert_jax.corpus.tokenizer_files import load_tokenizer, read_tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import tokenizer_json
from bert_jax.interop.vocabulary import read_vocabulary
from tests.mixed_text import MIXED, mixed_lines
from tests.saved import sentencepiece

CHARACTERS = sorted({character for character in MIXED + "ABCabc\u0301\x07" if not character.isspace()})
VOCABULARY = [*SPECIAL_PIECES, *CHARACTERS, *(f"##{character}" for character in CHARACTERS), "Łódź", "cafe"]
RULES = [
    {"lowercase": lowercase, "strip_accents": strip, "handle_chinese_chars": chinese, "clean_text": clean}
    for lowercase, strip, chinese, clean in itertools.product(
        (True, False), (None, True, False), (True, False), (True, False)
    )
]
LINES = mixed_lines(300)[1]
UNIGRAM = models.Unigram([("a", 0.0)])


def published(vocabulary=VOCABULARY, **rules):
    """A tokenizer of the library with BERT's normalizer and these rules of it."""
    ids = {piece: token for token, piece in enumerate(vocabulary)}
    result = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    result.normalizer = normalizers.BertNormalizer(**rules)
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return result


def ids_of(reference):
    return [line.ids for line in reference.encode_batch(LINES, add_special_tokens=False)]


def write_vocab_txt(folder, vocabulary=VOCABULARY, **settings):
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_tokenizer_json_gives_the_ids_of_the_library(tmp_path, rules):
    """As it was read, as a checkpoint keeps it, as it is exported, and as that is read again."""
    reference = published(**rules)
    reference.save(str(tmp_path / "tokenizer.json"))
    expected = ids_of(reference)
    tokenizer, _ = read_vocabulary(tmp_path)
    assert tokenizer.encode(LINES) == expected
    assert [ids for ids, _ in tokenizer.encode_with_offsets(LINES)] == expected
    tokenizer.save(tmp_path / "kept")
    kept = load_tokenizer(tmp_path / "kept")
    assert kept.encode(LINES) == expected
    (tmp_path / "out").mkdir()
    tokenizer_json.build(kept).save(str(tmp_path / "out/tokenizer.json"))
    (tmp_path / "out/tokenizer_config.json").write_text(json.dumps(tokenizer_json.settings(kept, 32)))
    again, longest = read_vocabulary(tmp_path / "out")
    assert (again.encode(LINES), longest, again.files()) == (expected, 32, tokenizer.files())


def test_every_rule_changes_ids():
    """Or the test above could not fail."""
    different = {json.dumps(ids_of(published(**rules))) for rules in RULES}
    assert len(different) == 2 * 2 * 2 * 2  # strip_accents=None is one of the other two


@pytest.mark.parametrize(
    ("settings", "rules"),
    [
        ({"do_lower_case": False}, {"lowercase": False}),
        ({"do_lower_case": True, "strip_accents": None}, {"lowercase": True}),
        ({"do_lower_case": False, "tokenize_chinese_chars": False},
         {"lowercase": False, "handle_chinese_chars": False}),
        ({"do_lower_case": True, "strip_accents": False}, {"lowercase": True, "strip_accents": False}),
        ({"do_lower_case": False, "strip_accents": True}, {"lowercase": False, "strip_accents": True}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_tokenizer_config_json_states_rules(tmp_path, settings, rules, file):
    write_vocab_txt(tmp_path, **settings)
    if file == "tokenizer.json":  # as BertTokenizerFast reads it
        published(lowercase=not settings["do_lower_case"]).save(str(tmp_path / file))
    assert read_vocabulary(tmp_path)[0].encode(LINES) == ids_of(published(**rules))


def test_a_vocabulary_without_settings(tmp_path):
    """It needs capitals if it has them."""
    for vocabulary, lowercase in (VOCABULARY, False), ([p for p in VOCABULARY if p == p.lower()], True):
        vocabulary = [*SPECIAL_PIECES, *(piece for piece in vocabulary if piece not in SPECIAL_PIECES)]
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
        expected = ids_of(published(vocabulary, lowercase=lowercase))
        tokenizer, longest = read_vocabulary(tmp_path)
        assert (tokenizer.encode(LINES), longest) == (expected, None)


def test_a_rule_is_true_or_false(tmp_path):
    write_vocab_txt(tmp_path, strip_accents="no")
    with pytest.raises(UserError, match="strip_accents='no' must be true or false"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["BertJapaneseTokenizer", "HerbertTokenizerFast", "PreTrainedTokenizerFast"])
def test_another_class_of_tokenizer_is_refused(tmp_path, file, kind):
    """Japanese BERT, e.g., splits words by MeCab first; a generic class needs a tokenizer.json."""
    write_vocab_txt(tmp_path, do_lower_case=False)
    (tmp_path / file).write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(UserError, match=f"tokenizer_class='{kind}' is not of BertTokenizer, .*Give a model"):
        read_vocabulary(tmp_path)
    (tmp_path / file).write_text(json.dumps({"tokenizer_class": "BertTokenizerFast"}))
    assert read_vocabulary(tmp_path)[0].vocab_size == len(VOCABULARY)


def changed(**parts):
    """A published tokenizer with other parts, as the content of its file."""
    result = published()
    for name, part in parts.items():
        setattr(result, name, part)
    return result.to_str()


def with_model(**settings):
    content = json.loads(published().to_str())
    content["model"] |= settings
    return json.dumps(content)


def with_added(token):
    result = published()
    result.add_special_tokens(["[CLS]", "[SEP]"])
    result.add_tokens([token])
    return result.to_str()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a file of the tokenizers library"),
        (changed(model=UNIGRAM), "its model is Unigram and BERT's is WordPiece"),
        (changed(normalizer=normalizers.NFKC()), "its normalizer is NFKC and BERT's is BertNormalizer"),
        (changed(normalizer=None), "its normalizer is None"),
        (changed(normalizer=normalizers.Sequence([normalizers.BertNormalizer()])), "normalizer is Sequence"),
        (changed(pre_tokenizer=pre_tokenizers.Whitespace()), "its pre_tokenizer is Whitespace and BERT's"),
        (
            changed(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer()])),
            "pre_tokenizer is Sequence",
        ),
        (with_model(max_input_chars_per_word=50), "its model has max_input_chars_per_word=50 and BERT's 100"),
        (with_model(continuing_subword_prefix="@@"), "continuing_subword_prefix='@@' and BERT's '##'"),
        (with_model(unk_token="<unk>"), "unk_token='<unk>'"),
        (with_model(vocab={"a": 0, "[UNK]": 2}), "the ids of its 2 pieces are not 0 to 1"),
        (with_added("two words"), "its added_tokens two words are not pieces"),
        (with_added("cafe"), "its added_tokens cafe are not pieces"),
    ],
)
def test_other_rules_are_refused(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_vocabulary(tmp_path)


CONFIG, SETTINGS, MAP, ADDED = (
    "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip
REFUSED = [
    (SETTINGS, {"word_tokenizer_type": "mecab"}, "word_tokenizer_type='mecab' and BERT's is 'basic'"),
    (SETTINGS, {"subword_tokenizer_type": "character"}, "subword_tokenizer_type='character'"),
    (CONFIG, {"word_tokenizer_type": "mecab"}, r"/config.json: word_tokenizer_type='mecab'"),
    (SETTINGS, {"do_subword_tokenize": False}, "do_subword_tokenize=False and BERT's is True"),
    (SETTINGS, {"do_word_tokenize": False}, "do_word_tokenize=False"),
    (SETTINGS, {"do_basic_tokenize": False}, "do_basic_tokenize=False and BERT's is True"),
    (SETTINGS, {"never_split": ["cafe", "[MASK]"]}, "its never_split cafe are not pieces of words"),
    (SETTINGS, {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}, "auto_map names code of its own"),
    (SETTINGS, {"auto_map": ["own.Tokenizer", None]}, "auto_map names code of its own"),
    (CONFIG, {"auto_map": {"AutoTokenizer": "own.Tokenizer"}}, r"/config.json: auto_map"),
    (SETTINGS, {"mask_token": "<mask>"}, r"mask_token='<mask>' and the vocabulary's is '\[MASK\]'"),
    (SETTINGS, {"unk_token": {"content": "<unk>"}}, "unk_token='<unk>'"),
    (MAP, {"cls_token": "<s>"}, r"/special_tokens_map.json: cls_token='<s>'"),
    (SETTINGS, {"cls_token": "[SEP]", "sep_token": "[CLS]"}, r"cls_token='\[SEP\]'"),
    (SETTINGS, {"eos_token": "</s>"}, "its eos_token </s> are not pieces"),
    (SETTINGS, {"additional_special_tokens": ["<e1>"]}, "its additional_special_tokens <e1>.*take them out"),
    (MAP, {"additional_special_tokens": [{"content": "cafe"}]}, "additional_special_tokens cafe"),
    (SETTINGS, {"extra_special_tokens": {"image_token": "<i>"}}, "extra_special_tokens <i>"),
    (SETTINGS, {"added_tokens_decoder": {"4": {"content": "[MASK]"}, "9": {"content": "<e1>"}}},
     "added_tokens_decoder <e1>"),
    (SETTINGS, {"added_tokens_decoder": {"103": {"content": "[MASK]"}}},
     r"\[MASK\] has the id 103, and 4 in the vocabulary"),
    (ADDED, {"cafe": 9}, "/added_tokens.json: its added_tokens_decoder cafe"),
    (ADDED, {"[MASK]": 5}, r"\[MASK\] has the id 5"),
    (SETTINGS, {"never_split": 5}, "never_split 5"),
]  # fmt: skip
HONOURED = [
    {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece", "do_basic_tokenize": True},
    {"never_split": None, "additional_special_tokens": [], "extra_special_tokens": {}, "auto_map": {}},
    {"never_split": ["[MASK]"], "mask_token": "[MASK]", "unk_token": {"content": "[UNK]"}, "pad_token": None},
    {"bos_token": "[CLS]", "eos_token": "[SEP]", "add_bos_token": True, "tokenizer_file": None},
    {"added_tokens_decoder": {"0": {"content": "[PAD]"}, "4": {"content": "[MASK]", "special": True}}},
]


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=str)
def test_settings_that_change_ids_are_refused(tmp_path, file, name, content, message):
    """With BERT's class, with a generic one where tokenizer.json is run as it is, and without."""
    write_vocab_txt(tmp_path, do_lower_case=False)
    for kind in (None, "BertTokenizer", *(["PreTrainedTokenizerFast"] if file == "tokenizer.json" else [])):
        if file == "tokenizer.json":
            published(lowercase=False).save(str(tmp_path / file))
        (tmp_path / CONFIG).write_text(json.dumps({"tokenizer_class": kind}))
        stated = content if name in (MAP, ADDED) else content | {"tokenizer_class": kind}
        (tmp_path / name).write_text(json.dumps(stated))
        with pytest.raises(UserError, match=message):
            read_vocabulary(tmp_path)


@pytest.mark.parametrize("content", HONOURED, ids=str)
def test_settings_that_change_no_id(tmp_path, content):
    write_vocab_txt(tmp_path, do_lower_case=False, **content)
    assert read_vocabulary(tmp_path)[0].encode(LINES) == ids_of(published(lowercase=False))


def test_the_class_is_named_before_its_settings(tmp_path):
    write_vocab_txt(tmp_path, tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab")
    with pytest.raises(UserError, match="tokenizer_class='BertJapaneseTokenizer' is not of BertTokenizer"):
        read_vocabulary(tmp_path)


def test_the_class_in_tokenizer_config_json_counts(tmp_path):
    write_vocab_txt(tmp_path, tokenizer_class="BertTokenizer", do_lower_case=False)
    (tmp_path / CONFIG).write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    assert read_vocabulary(tmp_path)[0].vocab_size == len(VOCABULARY)


def frame(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", cls=2, sep=3):
    return processors.TemplateProcessing(single, pair, [("[CLS]", cls), ("[SEP]", sep)])


def test_what_of_tokenizer_json_changes_no_id(tmp_path):
    for processor in (None, frame(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))):
        reference = published()
        if processor is not None:
            reference.post_processor = processor
        reference.enable_truncation(16)
        reference.enable_padding()
        reference.decoder = decoders.WordPiece()
        reference.save(str(tmp_path / "tokenizer.json"))
        reference.no_truncation()
        reference.no_padding()
        assert read_vocabulary(tmp_path)[0].encode(LINES) == ids_of(reference)


@pytest.mark.parametrize(
    "processor",
    [
        frame(single="$A [SEP]"),
        frame(pair="[CLS] $A $B [SEP]"),
        frame(cls=0),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
    ],
)
def test_texts_between_other_pieces_are_refused(tmp_path, processor):
    (tmp_path / "tokenizer.json").write_text(changed(post_processor=processor), encoding="utf-8")
    with pytest.raises(UserError, match=r"its post_processor \w+ does not set \[CLS\] A \[SEP\] B \[SEP\]"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_byte_order_marks_and_line_ends(tmp_path, mark, line_end):
    settings = mark + b'{"do_lower_case": false}'
    expected = ids_of(published(lowercase=False))
    (tmp_path / "vocab.txt").write_bytes(mark + line_end.join([*VOCABULARY, ""]).encode())
    for name in (CONFIG, SETTINGS, MAP):
        (tmp_path / name).write_bytes(settings)
    assert read_vocabulary(tmp_path)[0].encode(LINES) == expected
    data = DataConfig(tokenizer=f"wordpiece:{tmp_path}/vocab.txt", lowercase=False)
    assert read_tokenizer(data, len(VOCABULARY)).encode(LINES) == expected
    (tmp_path / "vocab.txt").unlink()
    (tmp_path / "tokenizer.json").write_bytes(mark + published(lowercase=False).to_str().encode())
    assert read_vocabulary(tmp_path)[0].encode(LINES) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", CONFIG, SETTINGS, MAP])
def test_files_that_are_not_utf8(tmp_path, name, encoding):
    write_vocab_txt(tmp_path)
    (tmp_path / name).write_bytes("[PAD]\n[UNK]\ncafé".encode(encoding))
    with pytest.raises(UserError, match=rf"/{name} is not a UTF-8 text file .*; save it as UTF-8\.$"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "sentencepiece.model", SETTINGS])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    write_vocab_txt(tmp_path)
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=f"/{name} is a pointer of git-lfs, .*git lfs pull"):
        read_vocabulary(tmp_path)


def test_a_sentencepiece_model_of_another_library_is_refused(tmp_path):
    """Ours have a generic class; XLM-R's ids, e.g., are not those of its model."""
    sentencepiece().save(tmp_path)
    assert read_vocabulary(tmp_path)[0].files() == sentencepiece().files()
    (tmp_path / SETTINGS).write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    with pytest.raises(UserError, match="tokenizer_class='XLMRobertaTokenizer' is not of PreTrained"):
        read_vocabulary(tmp_path)
