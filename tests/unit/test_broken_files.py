"""Files that are truncated or corrupt: named with the place, or by choice read up to it."""

import bz2
import collections
import gzip
import json
import logging
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python import array_record_module

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import find, prepare
from bert_jax.corpus.encode import serialized_example
from bert_jax.corpus.sources import files, open_sources
from bert_jax.errors import UserError
from tests.source_files import message, read, write

LOST = "rest of a broken file: {} from {} on ({}; data.broken_files=skip)"
rng = np.random.default_rng(0)
TEXTS = [f"Document {n}, {rng.bytes(200).hex()}.\nIts second paragraph." for n in range(3000)]
PLAIN = "\n\n".join(TEXTS).encode()
COMPRESS = {
    "bz2": lambda content: bz2.compress(content, 1),  # in blocks of 100 kB
    "gz": gzip.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
COMPRESSED = {suffix: compress(PLAIN) for suffix, compress in COMPRESS.items()}


def read_with_losses(source):
    """The documents of a source up to the breaks, and what was left out."""
    (opened,) = open_sources(DataConfig(source=source, broken_files="skip"))
    documents, left_out = [], collections.Counter()
    for chunk in opened.chunks():
        documents += ["\n".join(document) for document in chunk.documents()]
        left_out += chunk.left_out
    return documents, dict(left_out)


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_an_archive_that_ends_early(tmp_path, suffix, kind):
    content = COMPRESSED[suffix]
    if kind == "jsonl":
        content = COMPRESS[suffix]("\n".join(json.dumps({"text": text}) for text in TEXTS).encode())
    size = len(content) // 2
    path = write(tmp_path / f"a.{suffix}", content[:size])
    place, why = f"byte {size:,} of {size:,}", "the compressed data ends early"
    assert message(f"{kind}:{path}") == (
        f"{path} cannot be read from {place} on ({why}): get the file again, or set data.broken_files=skip "
        "to use the documents before that place."
    )
    documents, left_out = read_with_losses(f"{kind}:{path}")
    assert documents == TEXTS[: len(documents)]
    assert 500 < len(documents) < 1500
    assert left_out == {LOST.format(path, place, why): 1}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_an_archive_that_is_corrupt(tmp_path, suffix):
    content = bytearray(COMPRESSED[suffix])
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path = write(tmp_path / f"a.{suffix}", bytes(content))
    assert message(f"text:{path}").startswith(f"{path} cannot be read from byte ")
    documents, left_out = read_with_losses(f"text:{path}")
    # What comes before is whole; a checksum may tell too late that the last ones are not.
    same = next((n for n, text in enumerate(documents) if text != TEXTS[n]), len(documents))
    assert 500 < same < 1800
    assert [*left_out.values()] == [1]
    assert f"of {len(content):,} on (" in next(iter(left_out))


def test_a_broken_part_of_several_streams_ends_the_file(tmp_path):
    first, second = bz2.compress(b"One.\n\nTwo.\n\n"), bz2.compress(b"Three.\n\nFour.\n\n")
    path = write(tmp_path / "a.bz2", first + second)
    assert read(f"text:{path}") == [["One."], ["Two."], ["Three."], ["Four."]]
    write(path, first + second[:-5])
    assert read_with_losses(f"text:{path}")[0] == ["One.", "Two.", "Three.", "Four."]
    write(path, first + b"garbage" + second)
    documents, left_out = read_with_losses(f"text:{path}")
    assert documents == ["One.", "Two."]
    place = f"byte {len(first)} of {len(first + second) + 7}"
    assert left_out == {LOST.format(path, place, "Invalid data stream"): 1}


def test_a_document_that_the_break_cuts_is_left_out(tmp_path):
    whole = gzip.compress(b"One.\n\nTwo.\n\nThree and mo")
    path = write(tmp_path / "a.gz", whole[:-8])
    assert read_with_losses(f"text:{path}")[0] == ["One.", "Two."]
    lines = gzip.compress(b'{"text": "One."}\n{"text": "Two."}\n{"text": "Th')
    assert read_with_losses(f"jsonl:{write(tmp_path / 'b.gz', lines[:-8])}")[0] == ["One.", "Two."]


@pytest.mark.parametrize("suffix", ["bz2", "gz", "xz", "zst"])
@pytest.mark.parametrize("broken_files", ["error", "skip"])
def test_text_that_is_named_as_if_it_were_compressed(tmp_path, suffix, broken_files):
    path = write(tmp_path / f"a.txt.{suffix}", ("Eins.\n\n" + "é" * (1 << 14)).encode())
    expected = f"{path} is not compressed but text; rename it without its ending."
    assert message(f"text:{path}", broken_files=broken_files) == expected


@pytest.mark.parametrize("broken_files", ["error", "skip"])
def test_a_long_window_of_zstd_is_not_taken_for_a_break(tmp_path, broken_files):
    path, text = tmp_path / "long.txt.zst", b"One.\n\nTwo.\n"
    for window_log in (27, 28):
        block = (len(text) << 3 | 1).to_bytes(3, "little") + text  # stored, and the last
        path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0, window_log - 10 << 3]) + block)
        if window_log == 27:
            assert read(f"text:{path}", broken_files=broken_files) == [["One."], ["Two."]]
    expected = "a window of over 128 MB; compress it again: zstd -d --long=31 FILE -c | zstd > NEW."
    assert expected in message(f"text:{path}", broken_files=broken_files)


@pytest.mark.parametrize("suffix", ["bz2", "xz"])
def test_a_few_bytes_that_become_very_many(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(files, "CHUNK_BYTES", 1 << 16)
    path = write(tmp_path / f"a.{suffix}", COMPRESS[suffix](b"word\n" * 1_000_000))
    assert path.stat().st_size < 5_000
    blocks = [data for data, _ in files.read(str(path))]
    assert sum(map(len, blocks)) == 5_000_000
    assert max(map(len, blocks)) <= 1 << 16


def arrow(path, new):
    table = pa.table({"text": TEXTS})
    with new(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file], ids=["stream", "file"])
def test_an_arrow_file_that_ends_early(tmp_path, new):
    path = tmp_path / "a.arrow"
    arrow(path, new)
    content = path.read_bytes()
    write(path, content[: len(content) // 2])
    said = message(f"arrow:{path}")
    assert said.startswith(f"{path} cannot be read from byte ")
    assert f" of {len(content) // 2:,} on (Expected to be able to read " in said
    documents, left_out = read_with_losses(f"arrow:{path}")
    assert documents == TEXTS[:1500]
    assert [*left_out.values()] == [1]


def test_an_arrow_stream_that_ends_between_batches(tmp_path):
    """Nothing but the mark at its end tells, so that a whole one without it reads the same."""
    path = tmp_path / "a.arrow"
    arrow(path, pa.ipc.new_stream)
    size = path.stat().st_size - 8
    write(path, path.read_bytes()[:size])
    place = f"byte {size:,} of {size:,}"
    why = "it is cut there, or was written without the mark of its end"
    assert message(f"arrow:{path}").startswith(f"{path} cannot be read from {place} on ({why})")
    assert read_with_losses(f"arrow:{path}") == (TEXTS, {LOST.format(path, place, why): 1})


def test_an_arrow_file_whose_bounds_are_corrupt(tmp_path):
    """They point out of the file's bytes, and are seen before anything is read there."""
    path, table = tmp_path / "a.arrow", pa.table({"text": TEXTS[:4]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    bounds = np.cumsum([0, *(len(text) for text in TEXTS[:4])]).astype("<i4").tobytes()
    assert bounds in path.read_bytes()
    write(path, path.read_bytes().replace(bounds, bounds[:4] + b"\xff\xff\xff\x7f" + bounds[8:]))
    assert "cannot be read from byte " in message(f"arrow:{path}")
    assert read_with_losses(f"arrow:{path}")[0] == []


def test_a_parquet_file_that_is_corrupt(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"n": range(len(TEXTS)), "text": TEXTS})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    content[start + 1000] ^= 255
    write(path, bytes(content))
    place = f"row 1,000 (of row group 1, at byte {start:,})"
    assert message(f"parquet:{path}").startswith(f"{path} cannot be read from {place} on (")
    documents, left_out = read_with_losses(f"parquet:{path}")
    assert documents == TEXTS[:1000]
    assert [*left_out.values()] == [1]
    write(path, bytes(content[:-100]))
    assert message(f"parquet:{path}").startswith(f"{path} cannot be read from byte 0 on (Parquet magic bytes")
    assert read_with_losses(f"parquet:{path}")[0] == []


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        *(
            (content, "cannot be read from byte 0 o")
            for content in (b"", b"OWN", b"OWN" + bytes(99), bytes(99))
        ),
        (b"no table\n" * 100, "is no NAME file: it begins with 'no table'; read plain text with text: and "),
    ],
)
def test_what_is_no_table(tmp_path, kind, content, expected):
    own = {"parquet": b"PAR1", "arrow": b"ARROW1\0\0"}[kind]
    path = write(tmp_path / "a.bin", content.replace(b"OWN", own))
    expected = expected.replace("NAME", kind.capitalize())
    assert message(f"{kind}:{path}").startswith(f"{path} {expected}")


@pytest.mark.parametrize(
    ("kind", "content", "remedy"),
    [
        ("arrow", b"PAR1", "read it with parquet:."),
        ("parquet", b"ARROW1\0\0", "read it with arrow:."),
        ("parquet", b"\xff\xff\xff\xff", "read it with arrow:."),
        ("arrow", b"FEA1", "it is Feather of version 1: write it again with version 2, which arrow: reads."),
    ],
)
def test_a_table_of_another_kind(tmp_path, kind, content, remedy):
    path = write(tmp_path / "a.bin", content + bytes(99))
    found = message(f"{kind}:{path}")
    assert found.startswith(f"{path} is no {kind.capitalize()} file: it begins with ")
    assert found.endswith(f"; {remedy}")


@pytest.fixture
def array_record(tmp_path):
    """A TFDS dataset of one ArrayRecord file; its directory and the file."""
    path = tmp_path / "made_up-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for text in TEXTS:
        writer.write(serialized_example(text=text.encode()))
    writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[len(TEXTS)], num_bytes=0)],
        check_data=False,
    )
    return f"tfds:{tmp_path}", path


def test_an_array_record_file_that_is_corrupt(array_record):
    source, path = array_record
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    write(path, bytes(content))
    documents, left_out = read_with_losses(source)
    assert documents == TEXTS[: len(documents)]
    assert 500 < len(documents) < 2500
    assert [*left_out.values()] == [1]
    place = f"{path} cannot be read from record {len(documents):,} on (Corrupted Riegeli/records file: chunk "
    assert message(source).startswith(place)


@pytest.mark.parametrize("size", [0, 100_000, -10])
def test_an_array_record_file_that_ends_early(array_record, size):
    source, path = array_record
    write(path, path.read_bytes()[:size])
    expected = "its index of records, at its end, is missing or damaged"
    assert f"{path} cannot be read from record 0 on ({expected}): get the file" in message(source)
    assert read_with_losses(source)[0] == []


def test_a_record_that_is_no_example(array_record):
    source, path = array_record
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for _ in TEXTS:
        writer.write(b"\xff\xff")
    writer.close()
    assert "a record of the TFDS dataset is corrupt" in message(source)


def test_a_long_record_of_tfds_is_several_documents(array_record, monkeypatch):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 430)
    (opened,) = open_sources(DataConfig(source=array_record[0]))
    found = [*opened.chunks()]
    assert [d for chunk in found for d in chunk.documents()] == [
        [paragraph] for text in TEXTS for paragraph in text.split("\n")
    ]
    assert len(found) == 2 * len(TEXTS)


def test_prepared_up_to_the_breaks_is_another_dataset(tmp_path, caplog):
    path = write(tmp_path / "a.gz", COMPRESSED["gz"][:200_000])
    data_dir, settings = tmp_path / "data_dir", {"tokenizer": "bpe"}
    skipping = DataConfig(source=f"text:{path}", broken_files="skip", **settings)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        dataset = prepare(skipping, 300, data_dir, workers=1)
    lost = LOST.format(path, "byte 200,000 of 200,000", "the compressed data ends early")
    assert dataset.manifest["left_out"] == {lost: 1}
    assert f"left out 1 {lost}" in caplog.text
    assert find(skipping, 300, data_dir) == dataset
    assert find(DataConfig(source=f"text:{path}", **settings), 300, data_dir) is None


def test_text_that_is_all_lost_says_why(tmp_path):
    path = write(tmp_path / "a.gz", COMPRESSED["gz"][:5])
    data = DataConfig(source=f"text:{path}", tokenizer="bpe", broken_files="skip")
    with pytest.raises(UserError, match=r"has no text: 1 rest of a broken file: .* left out\.$"):
        prepare(data, 300, tmp_path / "data_dir", workers=1)
