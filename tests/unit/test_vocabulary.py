"""Vocabularies of Hugging Face: the ids are those of the `tokenizers` library, or the rules are refused."""

import itertools
import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from bert_jax.corpus.tokenizer import SPECIAL_PIECES, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import tokenizer_json
from bert_jax.interop.vocabulary import read_vocabulary
from tests.mixed_text import MIXED, mixed_lines

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
        (changed(pre_tokenizer=pre_tokenizers.Whitespace()), "its pre_tokenizer is Whitespace and BERT's"),
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
