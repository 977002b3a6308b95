"""A tokenizer.json comes in from a Hugging Face directory, is kept by a checkpoint and goes out as it was."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import normalizers

import bert_jax
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.interop import tokenizer_json
from bert_jax.interop.convert import convert
from bert_jax.interop.export import export
from bert_jax.interop.vocabulary import read_vocabulary
from bert_jax.training.opening import open_checkpoint
from tests.json_tokenizers import KINDS, eurobert, lines, mmbert, modernbert, wordpiece
from tests.saved import save
from tests.tiny import EURO, MODERN

LINES = lines()
CLASSES = {"modernbert": "PreTrainedTokenizerFast", "mmbert": "GemmaTokenizerFast", "eurobert": None,
           "wordpiece": "PreTrainedTokenizerFast", "unigram": "XLMRobertaTokenizer"}  # fmt: skip


def write(folder, kind, model_type="modernbert", vocab_size=1300, **settings):
    """What a published directory has beside its weights."""
    settings = {"tokenizer_class": CLASSES[kind.__name__], "model_max_length": 10**30} | settings
    kind().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": vocab_size}))


def frame(name):
    return {"mmbert": ("<bos>", "<eos>"), "unigram": ("<s>", "</s>"),
            "eurobert": ("<|begin_of_text|>", "<|end_of_text|>")}.get(name, ("[CLS]", "[SEP]"))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_directory_in_and_out_again(kind, tmp_path):
    write(tmp_path, kind)
    tokenizer, longest = read_vocabulary(tmp_path)
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer.vocab_size, longest) == (1300, 10**30)
    content = (tmp_path / "tokenizer.json").read_text()
    assert tokenizer_json.content(tokenizer) == content
    settings = tokenizer_json.settings(tokenizer, 64, segments=False)
    cls, sep = frame(kind.__name__)
    assert (settings["cls_token"], settings["sep_token"]) == (cls, sep)
    assert ("unk_token" in settings) == (kind is not eurobert)
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    again, longest = read_vocabulary(tmp_path)
    assert (again.files(), longest) == (tokenizer.files(), 64)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_auto_tokenizer_gives_the_same_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    write(tmp_path, kind)
    tokenizer, _ = read_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_json.settings(tokenizer, 64, False)))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [line for line in LINES if not any(name in line for name in theirs.all_special_tokens)]
    assert len(plain) > 990
    assert theirs(plain, add_special_tokens=False)["input_ids"] == tokenizer.encode(plain)
    (a, b), cls, sep = tokenizer.encode(["so", "it"]), tokenizer.cls_id, tokenizer.sep_id
    assert theirs("so", "it")["input_ids"] == [cls, *a, sep, *b, sep]
    assert [*theirs("so")] == ["input_ids", "attention_mask"]
    masked = theirs(f"The {theirs.mask_token} is", add_special_tokens=False)["input_ids"]
    assert [masked] == tokenizer.encode_with_masks(["The [MASK] is"])


def test_stated_roles_are_read(tmp_path):
    write(tmp_path, modernbert, bos_token="[unused0]", eos_token={"content": "|||EMAIL|||"}, mask_token=None)
    tokenizer, _ = read_vocabulary(tmp_path)
    special = [tokenizer.piece(token) for token in tokenizer.special_ids]
    assert special == ["[PAD]", "[UNK]", "[unused0]", "|||EMAIL|||", "[MASK]"]


def test_a_file_without_a_frame_gets_one():
    content = json.loads(modernbert().to_str()) | {"post_processor": None}
    tokenizer = JsonTokenizer(json.dumps(content).encode(), {})
    written = tokenizers.Tokenizer.from_str(tokenizer_json.content(tokenizer))
    (a, b), cls, sep = tokenizer.encode(["so", "it"]), tokenizer.cls_id, tokenizer.sep_id
    assert written.encode("so", "it").ids == [cls, *a, sep, *b, sep]
    (masked,) = tokenizer.encode_with_masks(["so [MASK]"])  # without the space before the mask
    assert written.encode("so [MASK]", add_special_tokens=False).ids == masked == [*a, tokenizer.mask_id]


def test_another_frame_is_told(tmp_path, caplog):
    """As Llama's, which has no token at the end."""
    write(tmp_path, modernbert)
    assert read_vocabulary(tmp_path)[0].vocab_size == 1300
    assert not caplog.messages
    content = json.loads(modernbert().to_str())
    content["post_processor"]["single"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    read_vocabulary(tmp_path)
    (line,) = caplog.messages
    told = "json makes rows like [CLS] A and [CLS] A [SEP] B [SEP]; those here are [CLS] A [SEP] B [SEP]"
    assert told in line


def test_berts_wordpiece_stays_berts(tmp_path):
    """As it was read before, and refused if it has other rules and a class that ignores them."""
    pieces = {piece: token for token, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    write(tmp_path, wordpiece, "neobert")
    library.save(str(tmp_path / "tokenizer.json"))
    assert isinstance(read_vocabulary(tmp_path)[0], WordPieceTokenizer)
    for kind, model_type in (("BertTokenizer", "neobert"), (None, "bert")):
        write(tmp_path, wordpiece, model_type, tokenizer_class=kind)
        with pytest.raises(UserError, match="its normalizer is NFKC and BERT's is BertNormalizer"):
            read_vocabulary(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    write(tmp_path, modernbert, vocab_size=1000)
    with pytest.raises(UserError, match=r"has 1214 pieces, but model\.vocab_size=1000: set it to 1214 or"):
        read_vocabulary(tmp_path)
    write(tmp_path, modernbert, mask_token="<mask>")
    with pytest.raises(UserError, match=r"tokenizer\.json has no mask_token \(<mask>\)"):
        read_vocabulary(tmp_path)
    write(tmp_path, modernbert, auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    with pytest.raises(UserError, match="auto_map names code of its own"):
        read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"tokenizer\.json is a pointer of git-lfs"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("kind", "network"),
    [(modernbert, MODERN), (eurobert, EURO), (mmbert, MODERN)],
    ids=["modernbert", "eurobert", "mmbert"],
)
def test_checkpoint_out_and_in_again(kind, network, tmp_path):
    """The network has more rows than there are pieces; masks are filled the same before and after."""
    size = 1280
    tokenizer = JsonTokenizer(kind().to_str(pretty=True).encode(), {}, vocab_size=size)
    save(tmp_path / "run", tokenizer, network)
    (tmp_path / "out").mkdir()
    export(tmp_path / "run", tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == kind().to_str(pretty=True)
    convert(tmp_path / "out", tmp_path / "in")
    assert open_checkpoint(tmp_path / "in").tokenizer.files() == tokenizer.files()
    before, after = (bert_jax.load(tmp_path / name) for name in ("run", "in"))
    texts = ["The [MASK] is", "a [MASK] of [MASK]."]
    ours, theirs = (bert.fill_mask(texts, top_k=size) for bert in (before, after))
    assert [len(masks) for masks in ours] == [1, 2]
    for one, other in zip(ours, theirs, strict=True):
        for guesses, again in zip(one, other, strict=True):
            assert len(guesses) == size
            np.testing.assert_allclose([p for _, p in guesses], [p for _, p in again], atol=1e-6)
            assert guesses[0].token == again[0].token
