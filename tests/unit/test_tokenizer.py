import collections
import io
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.json_training import train_byte_bpe
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sources import read_text
from bert_jax.corpus.tokenizer_files import load_tokenizer, read_tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def sentences():
    paragraphs = [paragraph for document in read_text("corpus:") for paragraph in document]
    return [sentence for paragraph in paragraphs[::40] for sentence in paragraph.split(". ")]


@pytest.fixture(scope="module")
def counts(sentences):
    return collections.Counter(word for sentence in sentences for word in sentence.split())


@pytest.fixture(scope="module")
def trained(counts):
    return {kind: SentencePieceTokenizer.train(counts, kind, 1000, True) for kind in ("unigram", "bpe")}


@pytest.fixture(scope="module")
def wordpiece():
    return read_tokenizer(DataConfig(tokenizer="wordpiece:bert_uncased"), 30522)


@pytest.fixture(params=["unigram", "bpe", "wordpiece"])
def tokenizer(request, trained, wordpiece):
    return trained.get(request.param, wordpiece)


def test_special_pieces(trained, wordpiece):
    for tokenizer in trained.values():
        assert tokenizer.special_ids == (0, 1, 2, 3, 4)
        assert tokenizer.vocab_size == 1000
    assert wordpiece.special_ids == (0, 100, 101, 102, 103)
    for tokenizer in (*trained.values(), wordpiece):
        assert [tokenizer.piece(token) for token in tokenizer.special_ids] == SPECIALS
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        assert ids == tokenizer.special_ids


def test_special_pieces_in_a_text_are_text(tokenizer):
    texts = [" ".join(SPECIALS), "".join(SPECIALS), *SPECIALS, "the[MASK]", "a [CLS]"]
    found = {token for ids in tokenizer.encode(texts) for token in ids}
    assert len(found) > 5
    assert not found & (set(tokenizer.special_ids) - {tokenizer.unk_id})


def test_decode_gives_the_text_back_with_special_pieces_written_out(tokenizer):
    (ids,) = tokenizer.encode(["the people of the united states"])
    assert tokenizer.decode(ids) == "the people of the united states"
    assert tokenizer.decode(np.array(ids)) == "the people of the united states"
    framed = [tokenizer.cls_id, *ids[:1], tokenizer.mask_id, *ids[1:], tokenizer.sep_id, tokenizer.pad_id]
    assert tokenizer.decode(framed) == "[CLS] the [MASK] people of the united states [SEP] [PAD]"
    assert tokenizer.decode([]) == ""


def test_words_start_where_words_start(tokenizer, sentences):
    plain = ["".join(c if c.isalpha() else " " for c in sentence) for sentence in sentences[:200]]
    for text, ids in zip(plain, tokenizer.encode(plain), strict=True):
        assert tokenizer.word_starts[ids].sum() == len(text.split())
    assert tokenizer.word_starts.shape == (tokenizer.vocab_size,)
    specials = [token for token in tokenizer.special_ids if token != tokenizer.unk_id]
    assert tokenizer.word_starts[specials].all()


def test_word_starts_of_known_pieces(wordpiece, trained):
    ids = wordpiece.encode(["unaffable, really"])[0]
    assert [wordpiece.piece(token) for token in ids] == ["una", "##ffa", "##ble", ",", "really"]
    assert wordpiece.word_starts[ids].tolist() == [True, False, False, True, True]
    pieces = [trained["bpe"].piece(token) for token in trained["bpe"].encode(["the zz"])[0]]
    assert pieces == ["▁the", "▁", "z", "z"]
    assert trained["bpe"].word_starts[trained["bpe"].encode(["the zz"])[0]].tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_lowercase(counts, trained):
    cased = SentencePieceTokenizer.train(counts, "bpe", 1000, False)
    assert cased.decode(cased.encode(["The Senate"])[0]) == "The Senate"
    assert trained["bpe"].encode(["The Senate"]) == trained["bpe"].encode(["the ＳＥＮＡＴＥ"])


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_characters_beyond_the_coverage_become_unknown_or_bytes(counts, kind):
    more = counts + collections.Counter({"東京": 3})
    text = "the 東京"
    rare = SentencePieceTokenizer.train(more, kind, 1000, True, character_coverage=0.99)
    assert rare.unk_id in rare.encode([text])[0]
    whole = SentencePieceTokenizer.train(more, kind, 1000, True, character_coverage=1.0)
    assert whole.unk_id not in whole.encode([text])[0]
    of_bytes = SentencePieceTokenizer.train(more, kind, 1000, True, 0.99, byte_fallback=True)
    (ids,) = of_bytes.encode([text])
    pieces = [of_bytes.piece(token) for token in ids]
    assert pieces == ["▁the", "▁", *(f"<0x{byte:02X}>" for byte in "東京".encode())]
    assert of_bytes.decode(ids) == text
    (spans,) = [offsets.tolist() for _, offsets in of_bytes.encode_with_offsets([text])]
    assert spans == [[0, 3], [4, 4], *[[4, 5]] * 3, *[[5, 6]] * 3]


def test_the_same_counts_give_the_same_model(counts, trained):
    backwards = dict(reversed(counts.items()))
    for kind, tokenizer in trained.items():
        again = SentencePieceTokenizer.train(backwards, kind, 1000, True)
        assert again.files() == tokenizer.files()


def test_word_by_word_is_what_sentencepiece_does_with_sentences(trained, sentences):
    for kind, tokenizer in trained.items():
        model = tokenizer.files()[SentencePieceTokenizer.FILE]
        whole = sentencepiece.SentencePieceProcessor(model_proto=model).encode(sentences)
        ours = tokenizer.encode(sentences)
        differing = [i for i, (a, b) in enumerate(zip(whole, ours, strict=True)) if a != b]
        # Equally likely segmentations of a word ("9 99", "99 9") may be told apart by rounding.
        assert len(differing) <= (2 if kind == "unigram" else 0)
        assert [len(whole[i]) for i in differing] == [len(ours[i]) for i in differing]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=5))
def test_flat_encoding_is_the_encoding_of_each_text(trained, wordpiece, texts):
    for tokenizer in (*trained.values(), wordpiece):
        ids, lengths = tokenizer.encode_flat(texts)
        assert ids.dtype == np.int32
        assert len(lengths) == len(texts)
        assert lengths.sum() == len(ids)
        alone = [tokenizer.encode([text])[0] for text in texts]
        assert ids.tolist() == [token for part in alone for token in part]
        assert tokenizer.encode(texts) == alone
        assert not np.isin(
            ids, [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
        ).any()


def check_offsets(tokenizer, texts):
    encoded = tokenizer.encode_with_offsets(texts)
    assert [ids for ids, _ in encoded] == tokenizer.encode(texts)
    for text, (ids, offsets) in zip(texts, encoded, strict=True):
        assert offsets.shape == (len(ids), 2)
        assert offsets.dtype == np.int32
        assert (np.diff(offsets, axis=0) >= 0).all()
        assert ((offsets >= 0) & (offsets <= len(text))).all()
        for token, (start, end) in zip(ids, offsets.tolist(), strict=True):
            surface = text[start:end]
            assert surface == surface.strip()
            assert surface or tokenizer.piece(token) in ("▁", "[UNK]", "<unk>")


CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.sampled_from(
    "ab  ½ﬁ\u0301é東😀\u200b\u3000\tﷺ™İß\u1112\u1161"
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.text(CHARACTERS, max_size=30), max_size=5))
def test_offsets_are_in_order_and_go_with_the_ids_of_encode(trained, wordpiece, texts):
    for tokenizer in (*trained.values(), wordpiece):
        check_offsets(tokenizer, texts)


def test_offsets_of_plain_text_cover_it_without_spaces(tokenizer, sentences):
    texts = [f" {sentence}  end " for sentence in sentences[:100] if sentence.isascii()]
    assert len(texts) > 50
    check_offsets(tokenizer, texts)
    for text, (_, offsets) in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        covered = [position for start, end in offsets.tolist() for position in range(start, end)]
        assert covered == [position for position, character in enumerate(text) if not character.isspace()]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("wordpiece", "Cafés  cafe\u0301\tCafe\u0301s", ["Cafés", "cafe\u0301", "Cafe\u0301s"]),
        ("wordpiece", "東京, ½ un\xadaffable", ["東", "京", ",", "½", "un\xada", "ffa", "ble"]),
        ("wordpiece", "a 😀b 가", ["a", "😀b", "가", "가"]),
        ("bpe", "The zz", ["The", "", "z", "z"]),
        ("bpe", "the ½\tthe\u3000", ["the", "½", "½", "½", "the"]),  # 1, an unknown slash, 2
        ("bpe", "x™ the 東京", ["", "x", "™", "™", "the", "", "東京"]),
        ("bpe", "e\u0301 the", ["", "e\u0301", "the"]),
    ],
)
def test_offsets_are_in_the_text_as_it_was_given(trained, wordpiece, kind, text, expected):
    tokenizer = trained.get(kind, wordpiece)
    ((_, offsets),) = tokenizer.encode_with_offsets([text])
    assert [text[start:end] for start, end in offsets.tolist()] == expected


def test_offsets_of_no_text_and_of_none(tokenizer):
    assert tokenizer.encode_with_offsets([]) == []
    for ids, offsets in tokenizer.encode_with_offsets(["", "  "]):
        assert ids == []
        assert offsets.shape == (0, 2)


@pytest.mark.parametrize(
    "text", ["caf\udce9", "\ud83d", "so \udfff it", "\ude00\ud83d", "so " * 20 + "\udcff"]
)
def test_halves_of_characters_are_refused(tokenizer, text):
    """As Python shows what is not UTF-8 on its command line; 😀 in two halves is no character either."""
    shown = repr(text[:60]).replace("\\", "\\\\") + ("…" if len(text) > 60 else "")
    for encode in (tokenizer.encode, tokenizer.encode_flat, tokenizer.encode_with_offsets):
        with pytest.raises(
            UserError, match=f"^text {shown} is not valid Unicode .surrogates not allowed.; gi"
        ):
            encode(["so it is 😀", text])


def test_saved_and_pickled(tokenizer, tmp_path, sentences):
    tokenizer.save(tmp_path / "tokenizer")
    expected = tokenizer.encode(sentences[:50])
    for copy in (load_tokenizer(tmp_path / "tokenizer"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.encode(sentences[:50]) == expected
        assert copy.special_ids == tokenizer.special_ids
        assert (copy.word_starts == tokenizer.word_starts).all()
        assert copy.files() == tokenizer.files()


def test_saved_wordpiece_keeps_its_case(tmp_path):
    vocabulary = [*SPECIALS, "a", "A"]
    for lowercase, expected in ((True, 5), (False, 6)):
        WordPieceTokenizer(vocabulary, lowercase).save(tmp_path)
        assert load_tokenizer(tmp_path).encode(["A"]) == [[expected]]


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("wordpiece", "vocab.txt", b"\xff\xfe"),
        ("wordpiece", "tokenizer_config.json", b""),
        ("wordpiece", "tokenizer_config.json", b"{}"),
        ("wordpiece", "tokenizer_config.json", b'{"do_lower_case": true, "other": 1}'),
        ("wordpiece", "tokenizer_config.json", None),
        ("byte_bpe", "tokenizer_config.json", b'{"pad_token": "[PAD]"}'),
        ("byte_bpe", "tokenizer_config.json", b'{"vocab_size": "many"}'),
        ("byte_bpe", "tokenizer_config.json", b"[]"),
    ],
)
def test_a_damaged_folder_is_one_line(counts, tmp_path, kind, file, content):
    whole = train_byte_bpe(counts, 300, True) if kind == "byte_bpe" else WordPieceTokenizer(SPECIALS, True)
    whole.save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_impossible_sizes_name_a_size_that_works(kind):
    counts = {"hello": 3, "help": 2, "held": 2, "yellow": 1, "mellow": 1}
    for impossible in (6, 5000):
        with pytest.raises(
            UserError, match=rf"model\.vocab_size={impossible} .*use at (least|most) (\d+)"
        ) as error:
            SentencePieceTokenizer.train(counts, kind, impossible, True)
        size = int(str(error.value).rsplit(" ", 1)[1].rstrip("."))
        assert SentencePieceTokenizer.train(counts, kind, size, True).vocab_size == size


def spm_model(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a hat and a cat", "the hat of the cat"]), model_writer=model, vocab_size=30,
        hard_vocab_limit=False, minloglevel=2, **options
    )  # fmt: skip
    return model.getvalue()


def test_a_given_sentencepiece_model(tmp_path):
    # As ALBERT's: other names, other places, and [MASK] defined so that it is found in plain text.
    ids = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1}
    model = spm_model(**ids, control_symbols="[CLS],[SEP]", user_defined_symbols="[MASK]")
    (tmp_path / "given.model").write_bytes(model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    data = DataConfig(tokenizer=f"sentencepiece:{tmp_path}/given.model")
    tokenizer = read_tokenizer(data, size)
    assert [tokenizer.piece(token) for token in tokenizer.special_ids] == [
        "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"
    ]  # fmt: skip
    assert tokenizer.mask_id not in tokenizer.encode(["a [MASK] cat", "[MASK]"])[0]
    with pytest.raises(UserError, match=rf"has {size} pieces, but model\.vocab_size=8000: set it to {size}"):
        read_tokenizer(data, 8000)


def test_models_whose_pieces_cross_words_see_whole_texts():
    control = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": "[CLS],[SEP],[MASK]"}
    for options in (
        {"split_by_whitespace": False},
        {"treat_whitespace_as_suffix": True},
        {"add_dummy_prefix": False},
    ):
        model = spm_model(**control, **options)
        texts = ["the hat and a cat", "a  hat", ""]
        whole = sentencepiece.SentencePieceProcessor(model_proto=model).encode(texts)
        tokenizer = SentencePieceTokenizer(model)
        assert tokenizer.encode(texts) == whole
        check_offsets(tokenizer, [*texts, " the\u3000hat ½ é ﷺ "])
        (_, offsets), *_ = tokenizer.encode_with_offsets(texts)
        pieces = "".join(texts[0][start:end] for start, end in offsets.tolist())
        assert pieces.replace(" ", "") == "thehatandacat"


def test_a_sentencepiece_model_without_special_pieces():
    with pytest.raises(UserError, match=r"has no piece \[PAD\], \[CLS\], \[SEP\], \[MASK\]; train it with"):
        SentencePieceTokenizer(spm_model())
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        SentencePieceTokenizer(b"\xff\xffnonsense")


def test_a_tokenizer_of_the_other_kind_is_named(tmp_path):
    (tmp_path / "a.model").write_bytes(spm_model())
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a"]))
    with pytest.raises(
        UserError, match=r"a SentencePiece model; use data.tokenizer=sentencepiece:.*/a\.model\.$"
    ):
        read_tokenizer(DataConfig(tokenizer=f"wordpiece:{tmp_path}/a.model"), 6)
    with pytest.raises(UserError, match=r"of a piece a line; use data.tokenizer=wordpiece:.*/vocab\.txt\.$"):
        read_tokenizer(DataConfig(tokenizer=f"sentencepiece:{tmp_path}/vocab.txt"), 6)


def test_a_folder_or_a_tokenizer_json_in_place_of_a_vocabulary(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{\n "version": "1.0"}')
    for kind in ("wordpiece", "sentencepiece"):
        with pytest.raises(
            UserError, match=r"is a tokenizer\.json; use data\.tokenizer=tokenizer_json:.*json\.$"
        ):
            read_tokenizer(DataConfig(tokenizer=f"{kind}:{tmp_path}/tokenizer.json"), 6)
    with pytest.raises(
        UserError, match=rf"is a directory; name a file, as wordpiece:{tmp_path}/vocab\.txt\.$"
    ):
        read_tokenizer(DataConfig(tokenizer=f"wordpiece:{tmp_path}/"), 6)


def test_vocabulary_with_the_line_ends_of_windows(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*SPECIALS, "a", ""]).encode())
    assert read_tokenizer(DataConfig(tokenizer=f"wordpiece:{tmp_path}/vocab.txt"), 6).piece(5) == "a"


def test_broken_vocabularies(tmp_path):
    with pytest.raises(UserError, match=r"has no piece \[SEP\], \[MASK\]"):
        WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]"], True)
    with pytest.raises(UserError, match=r"line 7 \('a'\) is empty or repeated"):
        WordPieceTokenizer([*SPECIALS, "a", "a", "b"], True)
    with pytest.raises(UserError, match=r"line 7 \(''\) is empty or repeated"):
        WordPieceTokenizer([*SPECIALS, "a", "", "b"], True)
    with pytest.raises(UserError, match=r"has 30522 pieces, but model\.vocab_size=30000: set it to 30522"):
        read_tokenizer(DataConfig(tokenizer="wordpiece:bert_uncased"), 30000)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="is not a UTF-8 text file"):
        read_tokenizer(DataConfig(tokenizer=f"wordpiece:{tmp_path}/latin.txt"), 5)
    with pytest.raises(UserError, match=r"there is no such file; shipped: wordpiece:bert_uncased"):
        read_tokenizer(DataConfig(tokenizer="wordpiece:bert_cased"), 5)
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_training_is_quiet(counts, capfd):
    SentencePieceTokenizer.train(counts, "bpe", 500, True)
    assert capfd.readouterr() == ("", "")


def test_pieces_of_scripts_without_spaces_are_words():
    words = dict.fromkeys(["ใช้งาน", "ใช้", "งาน", "今天很好。", "今天", "很好", "the", "them"], 9)
    for kind in ("unigram", "bpe"):
        tokenizer = SentencePieceTokenizer.train(words, kind, 26, False, 1.0)
        (ids,) = tokenizer.encode(["ใช้งาน 今天很好。 them"])
        pieces = [tokenizer.piece(token) for token in ids]
        for piece, start in zip(pieces, tokenizer.word_starts[ids].tolist(), strict=True):
            assert start is (piece[0] in "▁今天很好。ใชงาน"), (piece, start)
        assert any(piece[0] in "今天很好" for piece in pieces)
    tokenizer = WordPieceTokenizer([*SPECIALS, "ใ", "##ช", "##้", "##งาน", "今", "##天", "the", "##m"], False)
    # A tone mark goes on with its letter.
    assert tokenizer.word_starts[5:].tolist() == [True, True, False, True, True, True, True, False]
    assert tokenizer.unspaced[5:].tolist() == [True, True, False, True, True, True, False, False]
    assert not tokenizer.unspaced[:5].any()
