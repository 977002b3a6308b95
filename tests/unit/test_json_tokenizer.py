"""Any tokenizer.json: ids as the library gives them, special tokens by role, words, spaces, masks."""

import json
import pickle

import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.json_tokenizer import JsonTokenizer, starts_word
from bert_jax.corpus.sentences import split_sentences
from bert_jax.corpus.tokenizer_files import load_tokenizer, read_tokenizer
from bert_jax.data.batches import Batches
from bert_jax.data.shown import piece_text
from bert_jax.errors import UserError
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.registry import make_task
from bert_jax.tasks.token_classification import Sentence
from tests.fakes import MemoryStore
from tests.json_tokenizers import KINDS, eurobert, lines, mmbert, modernbert, paragraphs, unigram

NAMES = {  # of the five special tokens, with the id of padding for no unknown piece
    "modernbert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "eurobert": ("<|end_of_text|>",) * 2 + ("<|begin_of_text|>", "<|end_of_text|>", "<|mask|>"),
    "mmbert": ("<pad>", "<unk>", "<bos>", "<eos>", "<mask>"),
    "wordpiece": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "unigram": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
}
LINES = lines()


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def pair(request):
    """The library's tokenizer, and ours of the same file."""
    library = request.param()
    ours = JsonTokenizer(library.to_str().encode(), {})
    library.encode_special_tokens = True
    return request.param.__name__, library, ours


def ours_of(kind, **stated):
    return JsonTokenizer(kind().to_str().encode(), stated)


def pieces(tokenizer, ids):
    return [tokenizer.piece(token) for token in ids]


def test_ids_and_offsets_are_the_librarys(pair):
    name, library, tokenizer = pair
    assert len(LINES) == 1000
    expected = library.encode_batch(LINES, add_special_tokens=False)
    encoded = tokenizer.encode_with_offsets(LINES)
    assert tokenizer.encode(LINES) == [ids for ids, _ in encoded]
    for line, theirs, (ids, offsets) in zip(LINES, expected, encoded, strict=True):
        if name == "unigram" and "<s>" in line:  # whose own vocabulary has it
            continue
        assert ids == theirs.ids
        for (start, end), (first, last) in zip(offsets.tolist(), theirs.offsets, strict=True):
            assert line[start:end] == line[first:last].strip()
            assert first <= start <= end <= last
        assert (np.diff(offsets, axis=0) >= 0).all()


def test_special_tokens_by_their_names(pair):
    name, library, tokenizer = pair
    assert pieces(tokenizer, tokenizer.special_ids) == [*NAMES[name]]
    assert tokenizer.special_ids == tuple(map(library.token_to_id, NAMES[name]))
    assert pieces(tokenizer, range(tokenizer.vocab_size)) == [
        library.id_to_token(token) for token in range(tokenizer.vocab_size)
    ]


def test_special_tokens_in_a_text_are_text(pair):
    name, _, tokenizer = pair
    texts = [
        f"{before}{special}{after}" for special in NAMES[name] for before in ("", "a ") for after in "b ."
    ]
    found = {token for ids in tokenizer.encode(texts + LINES) for token in ids}
    special = {tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id}
    assert len(found) > 500
    assert not found & special


def test_stated_roles_count():
    stated = {"mask_token": "|||EMAIL|||", "bos_token": "[unused0]", "eos_token": "[PAD]"}
    tokenizer = ours_of(modernbert, **stated)
    assert pieces(tokenizer, tokenizer.special_ids) == [
        "[PAD]", "[UNK]", "[unused0]", "[PAD]", "|||EMAIL|||"
    ]  # fmt: skip
    named = ours_of(modernbert, **stated, cls_token="[CLS]", sep_token="[SEP]")
    assert pieces(named, named.special_ids[2:4]) == ["[CLS]", "[SEP]"]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (modernbert, "The [MASK] is", "The [MASK] Ġis"),
        (modernbert, "the[MASK].", "the [MASK] ."),
        (modernbert, "[MASK] [MASK]", "[MASK] [MASK]"),
        (eurobert, "The [MASK] is", "The Ġ <|mask|> Ġis"),
        (eurobert, "The<|mask|> is", "The <|mask|> Ġis"),
        (mmbert, "The [MASK] is", "The ▁ <mask> ▁is"),
        (unigram, "The [MASK] is", "▁The <mask> ▁is"),
    ],
)
def test_masks_are_those_of_the_library(kind, text, expected):
    """Of a text that holds no other special token."""
    tokenizer, library = ours_of(kind), kind()
    (ids,) = tokenizer.encode_with_masks([text])
    assert pieces(tokenizer, ids) == expected.split()
    mask = tokenizer.piece(tokenizer.mask_id)
    assert ids == library.encode(text.replace("[MASK]", mask), add_special_tokens=False).ids


def test_a_mask_beside_other_special_tokens_is_the_only_one():
    tokenizer = ours_of(modernbert)
    (ids,) = tokenizer.encode_with_masks(["[CLS] a [MASK] b [SEP]"])
    assert [token for token in ids if token in tokenizer.special_ids] == [tokenizer.mask_id]


def test_saved_and_pickled(pair, tmp_path):
    _, _, tokenizer = pair
    wide = JsonTokenizer(tokenizer.files()["tokenizer.json"], tokenizer.roles, vocab_size=1300)
    wide.save(tmp_path)
    for copy in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(wide))):
        assert copy.encode(LINES[:300]) == tokenizer.encode(LINES[:300])
        assert (copy.special_ids, copy.vocab_size) == (tokenizer.special_ids, 1300)
        assert copy.files() == wide.files()


def test_word_starts_of_plain_text(pair):
    _, _, tokenizer = pair
    texts = ["".join(c if c.isalpha() and c.isascii() else " " for c in line) for line in paragraphs()[:100]]
    texts = [" ".join(text.split()) for text in texts]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        starts = tokenizer.word_starts[ids]
        assert starts[1:].sum() == len(text.split()) - 1
    assert tokenizer.word_starts[[tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]].all()


@pytest.mark.parametrize("kind", [modernbert, eurobert, mmbert, unigram], ids=lambda kind: kind.__name__)
def test_words_as_they_are_masked(kind):
    """A bracket that opens belongs to the word behind it."""
    tokenizer, text = ours_of(kind), " so (union) 1984. naïve" + " 東京" * (kind is not unigram)
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    words = []
    for token, (start, end) in zip(ids, offsets.tolist(), strict=True):
        if tokenizer.word_starts[token]:
            words.append(set())
        words[-1] |= {*range(start, end)}
    found = ["".join(text[place] for place in sorted(word)) for word in words if word]
    assert found[:5] == ["so", "(union", ")", "1984", "."]
    assert found[5:] == (["na", "ïve"] if kind is unigram else ["naïve", "東", "京"])  # ï is unknown


@pytest.mark.parametrize(
    ("surface", "starts"),
    [
        (" the", True), ("\n", True), ("the", False), ("7", False), (".", True), ("'s", True), ("_", True),
        ("é", False), ("ж", False), ("東", True), ("カ", True), ("한", False), ("😀", True),
        ("\u0301", False), ("การ", True), ("\u0e31", False), ("ກ", True), ("က", True),
        ("ក", True), ("，", True), ("हि", False), (b"\xe0\xb8", True), (b"\xe0\xa4", False),
        (b"\xe1\x9e", True), (b"\xe0", False),
        (b"\xe6", True), (b"\x9d\xb1", False), (b"\xf0\x9f", True), (b"\xc3", False), (b"\xed\x95", False),
        (b"", False),
    ],
)  # fmt: skip
def test_what_starts_a_word(surface, starts):
    assert starts_word(surface if isinstance(surface, bytes) else surface.encode()) is starts


def test_pieces_as_people_read_them():
    tokenizer = ours_of(modernbert)
    (ids,) = tokenizer.encode(["The state don't é\n"])
    assert pieces(tokenizer, ids) == ["The", "Ġstate", "Ġd", "on", "'t", "Ġ", "Ã", "©", "Ċ"]
    assert [tokenizer.bare_piece(token) for token in ids] == [
        "The",
        "state",
        "d",
        "on",
        "'t",
        "Ġ",
        "Ã",
        "©",
        "\n",
    ]
    assert piece_text(tokenizer, ids[3]) == "##on"
    assert piece_text(ours_of(mmbert), ours_of(mmbert).encode([" the"])[0][0]) == "the"


@pytest.mark.parametrize("kind", [modernbert, eurobert, mmbert, unigram], ids=lambda kind: kind.__name__)
def test_sentences_keep_the_space_between_them(kind, tmp_path):
    """As they are prepared; unigram pieces have it anyway."""
    documents = [[p for p in paragraphs()[n : n + 3] if p.isascii()] for n in range(0, 60, 3)]
    documents = [document for document in documents if document]
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": "\n".join(document)}) + "\n" for document in documents)
    )
    kind().save(str(tmp_path / "tokenizer.json"))
    data = DataConfig(
        source=f"jsonl:{tmp_path}/text.jsonl", tokenizer=f"tokenizer_json:{tmp_path}/tokenizer.json",
        held_out_fraction=0,
    )  # fmt: skip
    dataset = prepare(data, 1300, tmp_path / "data_dir", workers=1)
    store, tokenizer = dataset.split("train"), dataset.tokenizer
    assert tokenizer.gap == ("" if kind is unigram else " ")
    found = store.read(np.arange(store.index.num_documents))
    assert len(found) == len(documents)
    for ids, document in zip(found, documents, strict=True):
        assert tokenizer.decode(ids) == " ".join(split_sentences(document, "en"))


def test_words_of_a_tagged_sentence_keep_the_space_between_them():
    tokenizer, words = ours_of(modernbert), ["The", "state", "of", "the", "union", "is", "strong", "."]
    task = make_task(TaskConfig("token_classification"), TaskData(), {"labels": ["O"]})
    encoded = task.encode([Sentence(words, ["O"] * len(words), "")] * 2, tokenizer, 64)
    assert encoded.tokens.tolist() == tokenizer.encode([" ".join(words)])[0] * 2


def test_masks_and_random_tokens_are_pieces_of_text():
    """The network may have more rows than there are pieces; neither these nor special tokens are drawn."""
    tokenizer = JsonTokenizer(modernbert().to_str().encode(), {}, vocab_size=2000)
    real = [*range(1200), *range(1200, 1209)]  # with those of white space and others that a text can have
    assert np.flatnonzero(tokenizer.maskable).tolist() == real
    data = DataConfig(
        second_objective="none", mask_token_rate=0.0, random_token_rate=1.0, mask_rate=0.5, max_seq_length=64
    )
    batch = Batches(MemoryStore([[50]] * 400, 1200), data, tokenizer, 0)(0)
    row, slot = np.nonzero(batch["masked_lm_weights"])
    drawn = batch["input_ids"][row, batch["masked_lm_positions"][row, slot]]
    assert len(drawn) > 5000
    assert np.isin(drawn, real).all()
    assert len(np.unique(drawn)) > 1150
    assert tokenizer.piece(1999) == "<no piece 1999>"


def test_a_tokenizer_is_read_with_what_is_beside_it(tmp_path):
    path = tmp_path / "tokenizer.json"
    modernbert().save(str(path))
    data = DataConfig(tokenizer=f"tokenizer_json:{path}")
    (tmp_path / "special_tokens_map.json").write_text('{"cls_token": "[SEP]", "mask_token": "[unused0]"}')
    (tmp_path / "tokenizer_config.json").write_text('{"cls_token": {"content": "[PAD]"}, "pad_token": null}')
    tokenizer = read_tokenizer(data, 1214)
    assert pieces(tokenizer, tokenizer.special_ids) == ["[PAD]", "[UNK]", "[PAD]", "[SEP]", "[unused0]"]


def test_another_role_is_another_dataset(tmp_path):
    path = tmp_path / "tokenizer.json"
    modernbert().save(str(path))
    (tmp_path / "text.txt").write_text("\n\n".join(paragraphs()[:3]))
    data = DataConfig(
        source=f"text:{tmp_path}/text.txt", tokenizer=f"tokenizer_json:{path}", held_out_fraction=0
    )
    first = prepare(data, 1214, tmp_path, workers=1)
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "[unused0]"}')
    second = prepare(data, 1214, tmp_path, workers=1)
    assert first.directory != second.directory
    assert second.tokenizer.piece(second.tokenizer.mask_id) == "[unused0]"


def test_pieces_that_no_text_has_may_be_beyond_the_network():
    """Special tokens without a role, as some published files have them."""
    library = modernbert()
    library.add_special_tokens(["<|image|>"])
    content = library.to_str().encode()
    assert JsonTokenizer(content, {}).vocab_size == 1215
    assert JsonTokenizer(content, {}, vocab_size=1214).vocab_size == 1214


@pytest.mark.parametrize(
    ("content", "stated", "vocab_size", "message"),
    [
        (b"{}", {}, None, r"^it is not a file of the tokenizers library \("),
        (b"\xff\xfe", {}, None, r"^it is not a file of the tokenizers library \("),
        (
            None,
            {"mask_token": "<m>"},
            None,
            r"^it has no mask_token \(<m>\); name its own in tokenizer_config",
        ),
        (None, {}, 1213, r"^it has 1214 pieces, but model\.vocab_size=1213: set it to 1214 or more\.$"),
    ],
)
def test_what_is_no_tokenizer(content, stated, vocab_size, message):
    with pytest.raises(UserError, match=message):
        JsonTokenizer(content or modernbert().to_str().encode(), stated, "it", vocab_size)


def test_a_vocabulary_without_a_mask():
    content = json.loads(eurobert().to_str())
    content["added_tokens"].pop()
    with pytest.raises(UserError, match=r"has no mask_token \(\[MASK\] or <mask> or <\|mask\|>\); name its"):
        JsonTokenizer(json.dumps(content).encode(), {})
