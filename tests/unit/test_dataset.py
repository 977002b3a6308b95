import dataclasses
import gzip
import json
import logging
import lzma
import pathlib
import signal
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus import writer
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import PreparedDataset, find, prepare
from bert_jax.corpus.encode import DocumentEncoder, id_dtype, serialized_example, split_of
from bert_jax.corpus.index import Index
from bert_jax.corpus.sentences import split_sentences
from bert_jax.corpus.sources import MissingInput, files
from bert_jax.corpus.sources.files import TextBlock
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.settings import setting

SETTINGS = {"tokenizer": "bpe", "held_out_fraction": 0.25}
V = 400


def documents(count=60, seed=0):
    """Documents of made-up words, paragraphs and sentences; one in ten is empty or a single word."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(1, 8))) for _ in range(200)]

    def sentence():
        return " ".join(rng.choice(words, rng.integers(3, 15))).capitalize() + "."

    def document(number):
        if number % 10 == 9:
            return ["Word"] if number % 20 == 9 else []
        return [" ".join(sentence() for _ in range(rng.integers(1, 5))) for _ in range(rng.integers(1, 4))]

    return [document(number) for number in range(count)]


def as_text(documents):
    return "\n\n".join("\n".join(document) for document in documents).encode()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_bytes(as_text(documents()))
    return path


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    data = DataConfig(source=f"text:{corpus}", **SETTINGS)
    return prepare(data, V, tmp_path_factory.mktemp("data_dir"), workers=2)


def contents(dataset):
    """The token ids of all documents, split by split, in the order of the records."""
    stores = [dataset.split(name) for name in ("train", "heldout")]
    return [[ids.tolist() for ids in store.read(np.arange(store.index.num_documents))] for store in stores]


def test_documents_come_back_in_order(prepared):
    expected = {"train": [], "heldout": []}
    for document in documents():
        if sentences := split_sentences(document, "en"):
            expected[split_of("\n".join(document).encode(), 0.25)].append(
                prepared.tokenizer.encode(sentences)
            )
    assert 5 < len(expected["heldout"]) < 25
    for name, encoded in expected.items():
        store = prepared.split(name)
        assert contents(prepared)[name == "heldout"] == [list(chain(*document)) for document in encoded]
        lengths = [len(sentence) for document in encoded for sentence in document]
        assert store.index.sentence_lengths.tolist() == lengths
        assert np.diff(store.index.sentence_starts).tolist() == list(map(len, encoded))
        counts = np.bincount([token for document in encoded for s in document for token in s], minlength=V)
        assert store.unigram_counts.tolist() == counts.tolist()
        facts = prepared.manifest["splits"][name]
        assert (facts["documents"], facts["sentences"], facts["tokens"]) == (
            len(encoded),
            len(lengths),
            sum(lengths),
        )


def test_batched_reads_in_any_order(prepared):
    store = prepared.split("train")
    whole = store.read(np.arange(store.index.num_documents))
    order = np.array([7, 0, 7, store.index.num_documents - 1])
    assert [ids.tolist() for ids in store.read(order)] == [whole[i].tolist() for i in order]
    assert whole[0].dtype == np.uint16
    assert store.read(np.array([], int)) == []


def test_a_split_is_opened_once(prepared, monkeypatch):
    dataset = PreparedDataset.open(prepared.directory)
    opened, right = [], Index.open
    monkeypatch.setattr(Index, "open", lambda path: (opened.append(path.name), right(path))[1])
    assert dataset.split("train") is dataset.split("train") is not dataset.split("heldout")
    assert opened == ["train", "heldout"]


def test_tfds_reads_it_too(prepared):
    builder = tfds.builder_from_directory(prepared.directory)
    for name, expected in zip(("train", "heldout"), contents(prepared), strict=True):
        source = builder.as_data_source(name)
        assert [np.frombuffer(record["token_ids"], "<u2").tolist() for record in source] == expected
        lengths = np.concatenate([np.frombuffer(record["sentence_lengths"], "<u2") for record in source])
        assert lengths.tolist() == prepared.split(name).index.sentence_lengths.tolist()


def test_digest_does_not_depend_on_workers_chunks_or_files(prepared, corpus, tmp_path, monkeypatch):
    half = corpus.read_bytes().index(b"\n\n", corpus.stat().st_size // 2)
    (tmp_path / "1.txt.xz").write_bytes(lzma.compress(corpus.read_bytes()[:half]))
    (tmp_path / "2.txt").write_bytes(corpus.read_bytes()[half:])
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1000)
    again = prepare(DataConfig(source=f"text:{tmp_path}/*", **SETTINGS), V, tmp_path / "data_dir", workers=3)
    assert len(again.manifest["splits"]["train"]["shards"]) > 3
    assert again.sha256 == prepared.sha256
    assert contents(again) == contents(prepared)
    assert again.directory.name != prepared.directory.name
    assert len(tfds.builder_from_directory(again.directory).as_data_source("train")) == len(
        contents(again)[0]
    )


def test_digest_does_not_depend_on_the_container(prepared, corpus, tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": "\n".join(d)}) for d in documents()))
    for source in (f"text:{tmp_path}/a.gz", f"jsonl:{tmp_path}/a.jsonl"):
        assert prepare(DataConfig(source=source, **SETTINGS), V, tmp_path).sha256 == prepared.sha256


def test_what_is_there_is_found_wherever_the_text_lies(prepared, corpus, tmp_path, monkeypatch):
    (tmp_path / "moved.txt").write_bytes(corpus.read_bytes())
    monkeypatch.setattr(writer, "write_documents", None)
    for path in (corpus, tmp_path / "moved.txt"):
        data = DataConfig(source=f"text:{path}", max_seq_length=64, **SETTINGS)
        assert prepare(data, V, prepared.directory.parent).directory == prepared.directory


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": "unigram"},
        {"lowercase": False},
        {"language": "de"},
        {"held_out_fraction": 0.5},
        {"tokenizer_sample_mb": 1},
        {"vocab_size": V + 1},
    ],
)
def test_other_settings_are_another_dataset(prepared, corpus, change):
    change = {"vocab_size": V, **SETTINGS, **change}
    vocab_size = change.pop("vocab_size")
    assert find(DataConfig(source=f"text:{corpus}", **change), vocab_size, prepared.directory.parent) is None


@pytest.mark.parametrize(
    ("settings", "vocab_size", "name"),
    [
        ({}, 400, "text-unigram-400-998c7b3ae427"),
        ({"tokenizer": "bpe", "held_out_fraction": 0.25}, 400, "text-bpe-400-01441089ea77"),
        (
            {
                "source": "jsonl:a.jsonl,text:a.txt", "text_field": "body", "invalid_utf8": "skip",
                "language": "de", "lowercase": False, "tokenizer": "wordpiece:vocab.txt",
                "tokenizer_sample_mb": 7, "held_out_fraction": 0,
            },
            6,
            "jsonl-text-wordpiece-6-9e2eea8b5518",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_names_of_datasets_do_not_drift(tmp_path, monkeypatch, settings, vocab_size, name):
    # When this fails, every corpus that somebody has prepared is prepared again: a breaking change.
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.txt").write_text("Some text.\n\nMore text.\n")
    pathlib.Path("a.jsonl").write_text('{"body": "x"}\n')
    pathlib.Path("vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    data = DataConfig(**{"source": "text:a.txt"} | settings)
    assert dataset_lib._find(data, vocab_size, epath.Path(tmp_path))[1].name == name


@dataclasses.dataclass(frozen=True)
class NewerConfig(DataConfig):
    """The settings of a later version, which reads and writes the same datasets by default."""

    shortest: int = setting(0, least=0, prepares=True)
    threads: int = setting(0, least=0)


def test_a_setting_added_later_makes_another_dataset(prepared, corpus):
    data_dir = prepared.directory.parent
    newer = NewerConfig(source=f"text:{corpus}", **SETTINGS)
    assert find(newer, V, data_dir) == prepared
    assert find(dataclasses.replace(newer, threads=3), V, data_dir) == prepared
    assert find(dataclasses.replace(newer, shortest=3), V, data_dir) is None


def test_a_setting_added_later_counts_where_the_text_is_missing(tmp_path):
    path, data_dir = tmp_path / "a.txt", tmp_path / "data_dir"
    path.write_bytes(as_text(documents(seed=2)))
    first = prepare(DataConfig(source=f"text:{path}", **SETTINGS), V, data_dir)
    path.unlink()
    newer = NewerConfig(source=f"text:{path}", **SETTINGS)
    assert find(newer, V, data_dir) == first
    with pytest.raises(MissingInput, match="matches no file"):
        find(dataclasses.replace(newer, shortest=3), V, data_dir)


def test_changed_content_is_another_dataset(tmp_path):
    path, data_dir = tmp_path / "a.txt", tmp_path / "data_dir"
    data = DataConfig(source=f"text:{path}", **SETTINGS)
    path.write_bytes(text := as_text(documents(seed=1)))
    first = prepare(data, V, data_dir)
    assert find(data, V, data_dir) == first
    path.write_bytes(text.replace(b"a", b"b", 1))
    assert find(data, V, data_dir) is None
    path.write_bytes(text)
    assert find(data, V, data_dir) == first


def test_without_the_text_a_dataset_of_the_same_settings_is_taken(tmp_path, caplog):
    path, data_dir = tmp_path / "a.txt", tmp_path / "data_dir"
    data = DataConfig(source=f"text:{path}", **SETTINGS)
    for seed in (2, 3, 2):  # the one that was asked for last is meant
        path.write_bytes(as_text(documents(seed=seed)))
        last = prepare(data, V, data_dir)
    path.unlink()
    with caplog.at_level(logging.WARNING, "bert_jax"):
        assert find(data, V, data_dir) == prepare(data, V, data_dir) == last
    assert "whether it is up to date cannot be checked" in caplog.text
    with pytest.raises(MissingInput, match="matches no file"):
        find(data, V + 1, data_dir)


def test_a_build_that_fails_leaves_nothing(corpus, tmp_path, monkeypatch):
    data = DataConfig(source=f"text:{corpus}", **SETTINGS)
    monkeypatch.setattr(writer, "write_tfds_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(data, V, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digests.json"]
    assert find(data, V, tmp_path) is None


def test_a_build_that_is_killed_leaves_nothing_to_read_and_is_cleaned_up(corpus, prepared, tmp_path):
    script = (
        "import time; from bert_jax.corpus import dataset, writer;"
        "from bert_jax.corpus.config import DataConfig;"
        "writer.write_tfds_metadata = lambda *_: (print('now', flush=True), time.sleep(60));"
        f"dataset.prepare(DataConfig(source='text:{corpus}', **{SETTINGS}), {V}, '{tmp_path}')"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    data = DataConfig(source=f"text:{corpus}", **SETTINGS)
    (left,) = tmp_path.glob(".*building*")
    assert (left / "documents-train.array_record-00000").exists()
    assert find(data, V, tmp_path) is None
    assert prepare(data, V, tmp_path).sha256 == prepared.sha256
    assert not list(tmp_path.glob(".*building*"))


def test_one_sentence_documents_are_prepared(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"number {n} of the lines"}) for n in range(300)))
    dataset = prepare(DataConfig(source=f"jsonl:{path}", tokenizer="bpe", held_out_fraction=0), 40, tmp_path)
    train = dataset.split("train").index
    assert (train.num_documents, train.num_sentences) == (300, 300)
    assert dataset.split("heldout").index.num_documents == 0
    assert dataset.split("heldout").read(np.array([], int)) == []
    assert dataset.split("train").read(np.array([3]))[0].dtype == np.uint8


@pytest.mark.parametrize("text", [b"", b"\n \n\n"])
@pytest.mark.parametrize(("tokenizer", "vocab_size"), [("bpe", V), ("wordpiece:bert_uncased", 30522)])
def test_a_corpus_without_text(tmp_path, text, tokenizer, vocab_size):
    (tmp_path / "empty.txt").write_bytes(text)
    with pytest.raises(UserError, match=r"empty\.txt' has no text"):
        prepare(DataConfig(source=f"text:{tmp_path}/empty.txt", tokenizer=tokenizer), vocab_size, tmp_path)


def test_documents_that_the_tokenizer_drops_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\n\x01 \ufffd\n\n\x02\n\nTwo.")
    data = DataConfig(
        source=f"text:{tmp_path}/a.txt", tokenizer="wordpiece:bert_uncased", held_out_fraction=0.0
    )
    dataset = prepare(data, 30522, tmp_path / "data_dir", workers=1)
    assert dataset.split("train").index.num_documents == 2
    assert dataset.manifest["left_out"] == {"documents of nothing but characters that the tokenizer drops": 2}


def test_bad_input_is_reported_from_the_workers(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good\n\nb\xffad")
    with pytest.raises(UserError, match=r"bad\.txt: byte 7 is not valid UTF-8"):
        prepare(DataConfig(source=f"text:{tmp_path}/bad.txt", **SETTINGS), V, tmp_path)
    (tmp_path / "few.txt").write_bytes(b"a few words are here")
    with pytest.raises(
        UserError, match=rf"model\.vocab_size={V} is more than this text can fill: use at most"
    ):
        prepare(DataConfig(source=f"text:{tmp_path}/few.txt", **SETTINGS), V, tmp_path)


def test_a_data_dir_that_cannot_be_written(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--data_dir=.* cannot be written"):
        prepare(DataConfig(source=f"text:{corpus}", **SETTINGS), V, tmp_path / "file")


def test_serialized_examples_are_those_of_tfds():
    for size in (0, 1, 126, 127, 128, 20_000, 3_000_000):
        features = {"sentence_lengths": b"\x01" * (size % 7), "token_ids": bytes(range(256)) * (size // 256)}
        record = serialized_example(**features)
        parsed = tf_example_pb2.Example.FromString(record)
        assert {k: v.bytes_list.value[0] for k, v in parsed.features.feature.items()} == features
        assert parsed.SerializeToString(deterministic=True) == record
        assert record.endswith(features["token_ids"])


def test_held_out_is_a_share_by_content():
    splits = [split_of(b"document %d" % n, 0.1) for n in range(10_000)]
    assert 900 < splits.count("heldout") < 1100
    assert splits == [split_of(b"document %d" % n, 0.1) for n in range(10_000)]
    assert {split_of(b"document %d" % n, 0.0) for n in range(1000)} == {"train"}
    more = [split_of(b"document %d" % n, 0.2) for n in range(10_000)]
    assert all(b == "heldout" for a, b in zip(splits, more, strict=True) if a == "heldout")


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(200, "u1"), (256, "u1"), (257, "<u2"), (65536, "<u2"), (65537, "<u4")]
)
def test_ids_take_the_smallest_type(vocab_size, dtype):
    assert id_dtype(vocab_size) == np.dtype(dtype)


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "."]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text("ab. \t\u200b", max_size=30), max_size=3), max_size=6))
def test_encoded_documents_hold_every_token_once(paragraphs):
    tokenizer = WordPieceTokenizer(VOCABULARY, True)
    block = TextBlock("", as_text(paragraphs), 0, 1, 0, {})
    parts, text_bytes, *_ = DocumentEncoder(tokenizer, "en", 0.5)(block)
    texts = ["\n".join(document) for document in block.documents()]
    assert text_bytes == sum(len(text.encode()) for text in texts)
    for split in ("train", "heldout"):
        expected = [
            ids
            for text in texts
            if split_of(text.encode(), 0.5) == split
            for ids in tokenizer.encode([text])
            if ids
        ]
        if not expected:
            assert split not in parts
            continue
        features = [
            tf_example_pb2.Example.FromString(record).features.feature for record in parts[split].records
        ]
        stored = [
            np.frombuffer(feature["token_ids"].bytes_list.value[0], np.uint8).tolist() for feature in features
        ]
        assert stored == expected
        assert [int(lengths.sum()) for lengths in parts[split].sentence_lengths] == list(map(len, expected))
        assert all((lengths > 0).all() for lengths in parts[split].sentence_lengths)
        assert parts[split].unigram_counts.sum() == sum(map(len, expected))


def test_a_sentence_longer_than_the_index_can_say():
    tokenizer = WordPieceTokenizer(VOCABULARY, True)
    parts, *_ = DocumentEncoder(tokenizer, "en", 0.0)(TextBlock("", b"a " * 70_000, 0, 1, 0, {}))
    assert [lengths.tolist() for lengths in parts["train"].sentence_lengths] == [[65535, 4465]]


def test_workers_import_neither_tfds_nor_jax():
    script = "import sys, bert_jax.corpus.encode, bert_jax.corpus.workers; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert "sentencepiece" in modules.split()
    assert not {"tensorflow_datasets", "jax", "grain"} & set(modules.split())
