"""One corpus in every container that a source reads: the digest of the dataset is that of its documents."""

import bz2
import gzip
import hashlib
import json
import lzma

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.benchmarks import containers
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from tests import source_files

V = 300
DOCUMENTS = [
    [f"Paragraph {i} of ä{n} λόγος. Sentence {n * i % 37} is “here”." for i in range(n % 4)]
    for n in range(300)
]  # one in four is empty
TEXTS = ["\n".join(document) for document in DOCUMENTS]


def examples():
    for text in TEXTS:
        example = tf_example_pb2.Example()
        example.features.feature["text"].bytes_list.value.append(text.encode())
        yield example.SerializeToString()


def write_array_record(path):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in examples():
        writer.write(record)
    writer.close()


def write_tfrecord(path):
    def checksum(data):
        crc = google_crc32c.value(data)
        return np.uint32(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).tobytes()

    lengths = [(np.uint64(len(record)).tobytes(), record) for record in examples()]
    parts = [length + checksum(length) + record + checksum(record) for length, record in lengths]
    path.write_bytes(b"".join(parts))


def tfds_of(write, kind):
    def make(folder):
        directory = folder / "made_up" / "1.0.0"
        directory.mkdir(parents=True)
        write(directory / f"made_up-train.{kind}-00000-of-00001")
        tfds.folder_dataset.write_metadata(
            data_dir=directory,
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[len(TEXTS)], num_bytes=0)],
            check_data=False,
        )
        return f"tfds:{directory}"

    return make


def text_of(suffix, compress):
    def make(folder):
        (folder / f"a.txt{suffix}").write_bytes(compress("\n\n".join(filter(None, TEXTS)).encode()))
        return f"text:{folder}/*"

    return make


def jsonl_of(suffix, compress):
    def make(folder):
        lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
        (folder / f"a.jsonl{suffix}").write_bytes(compress(lines.encode()))
        return f"jsonl:{folder}/*"

    return make


def parquet_of(values, **options):
    def make(folder):
        half = len(TEXTS) // 2
        for name, rows in (("1", slice(half)), ("2", slice(half, None))):
            table = pa.table({"n": [1] * half, "text": values(TEXTS[rows])})
            pq.write_table(table, folder / f"{name}.parquet", **options)
        return f"parquet:{folder}/*.parquet"

    return make


def arrow_of(new, **options):
    def make(folder):
        table = pa.table({"n": range(len(TEXTS)), "text": TEXTS})
        with new(folder / "a.arrow", table.schema, **options) as writer:
            writer.write_table(table, max_chunksize=70)
        return f"arrow:{folder}/*.arrow"

    return make


def saved_to_disk(folder):
    """What Dataset.save_to_disk writes."""
    table = pa.table({"text": TEXTS})
    names = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
    for shard, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table.slice(150 * shard, 150))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return f"arrow:{folder}"


zstd = zstandard.ZstdCompressor().compress
compressed_arrow = pa.ipc.IpcWriteOptions(compression="zstd")
CONTAINERS = {
    "text": text_of("", bytes),
    "text.bz2": text_of(".bz2", bz2.compress),
    "text.gz": text_of(".gz", gzip.compress),
    "text.xz": text_of(".xz", lzma.compress),
    "text.zst": text_of(".zst", zstd),
    "jsonl": jsonl_of("", bytes),
    "jsonl.bz2": jsonl_of(".bz2", bz2.compress),
    "parquet": parquet_of(list),
    "parquet, row groups": parquet_of(list, row_group_size=7, compression="zstd"),
    "parquet, bytes": parquet_of(lambda texts: pa.array([text.encode() for text in texts])),
    "parquet, dictionary": parquet_of(lambda texts: pa.array(texts).dictionary_encode()),
    "parquet, large_string": parquet_of(lambda texts: pa.array(texts, pa.large_string())),
    "arrow, stream": arrow_of(pa.ipc.new_stream),
    "arrow, table": arrow_of(pa.ipc.new_file),
    "arrow, compressed": arrow_of(pa.ipc.new_file, options=compressed_arrow),
    "arrow, save_to_disk": saved_to_disk,
    "tfds, array_record": tfds_of(write_array_record, "array_record"),
    "tfds, tfrecord": tfds_of(write_tfrecord, "tfrecord"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_container_does_not_change_the_documents(tmp_path, name):
    read = source_files.read(CONTAINERS[name](tmp_path))
    assert [document for document in read if document] == [document for document in DOCUMENTS if document]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The dataset of one container of each kind, and of one whose files are in parts."""
    datasets = {}
    for name in ("text", "jsonl", "parquet", "parquet, row groups", "arrow, stream", "tfds, array_record"):
        folder = tmp_path_factory.mktemp("container")
        data = DataConfig(source=CONTAINERS[name](folder), tokenizer="bpe", held_out_fraction=0.2)
        datasets[name] = prepare(data, V, tmp_path_factory.mktemp("data_dir"), workers=1)
    return datasets


def test_the_container_does_not_change_the_digest(prepared):
    digests = {name: dataset.sha256 for name, dataset in prepared.items()}
    assert digests == dict.fromkeys(prepared, digests["text"])
    splits = prepared["parquet"].manifest["splits"]
    assert splits["train"]["documents"] + splits["heldout"]["documents"] == 225


def test_the_digest_is_that_of_the_records(prepared):
    """Read by ArrayRecord and protocol buffers alone, from the files that lie there."""
    directory = prepared["text"].directory
    splits = []
    for split in ("train", "heldout"):
        digest = hashlib.sha256()
        for path in sorted(directory.glob(f"documents-{split}.array_record-*")):
            reader = array_record_module.ArrayRecordReader(str(path))
            for record in reader.read(0, reader.num_records()):
                feature = tf_example_pb2.Example.FromString(record).features.feature
                (lengths,) = feature["sentence_lengths"].bytes_list.value
                (ids,) = feature["token_ids"].bytes_list.value
                digest.update(hashlib.sha256(f"{len(lengths)} ".encode() + lengths + ids).digest())
        splits.append(digest.hexdigest())
    assert json.loads((directory / "manifest.json").read_text())["dataset_sha256"] == (
        hashlib.sha256("".join(splits).encode()).hexdigest()
    )


@pytest.mark.parametrize("name", containers.WRITERS)
def test_the_benchmark_of_prepare_has_one_text_in_all_containers(tmp_path, name):
    documents = [
        [
            f"Ada wrote {n} programs for a machine that nobody had built. It was of brass & steel.",
            "Later, 1 < 2.",
        ]
        for n in range(250)
    ]
    source = containers.WRITERS[name](lambda: ("\n".join(document) for document in documents), tmp_path)
    assert source_files.read(source) == documents
