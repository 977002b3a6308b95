import collections
import shutil
import struct

import google_crc32c
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import MissingInput, open_sources, read_text
from bert_jax.corpus.sources import tfds as tfds_source
from bert_jax.errors import UserError


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """letters 1.2.3: in train ten and in test two records of two texts and a number."""
    directory = tmp_path_factory.mktemp("tfds") / "letters" / "1.2.3"
    directory.mkdir(parents=True)
    features = {"body": {"text": tfds.features.Text()}, "title": tfds.features.Text(), "n": np.int64}
    for split, count in (("train", 10), ("test", 2)):
        path = directory / f"letters-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for n in range(count):
            example = tf_example_pb2.Example()
            values = {"body/text": f"Body {n}.\n\nMore.", "title": f"Title {n}"}
            for name, text in values.items():
                example.features.feature[name].bytes_list.value.append(text.encode())
            example.features.feature["n"].int64_list.value.append(n)
            writer.write(example.SerializeToString())
        writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict(features),
        split_infos=[
            tfds.core.SplitInfo(name=split, shard_lengths=[count], num_bytes=0)
            for split, count in (("train", 10), ("test", 2))
        ],
        check_data=False,
    )
    return directory


def sorted_text(source):
    return sorted(read_text(source))


def chunks(source, **settings):
    (opened,) = open_sources(DataConfig(source=source, **settings))
    return list(opened.chunks())


def test_a_chunk_of_records_is_bounded_in_bytes(monkeypatch):
    """Five records of 30 bytes, then one of 200: the files hold little only on average."""
    monkeypatch.setattr(tfds_source, "CHUNK_BYTES", 16)
    records = [b"a" * 30] * 5 + [b"b" * 200, b"c"]
    pieces = list(tfds_source._pieces(records))
    assert pieces == [records[:2], records[2:4], records[4:5], records[5:6], records[6:]]


def test_tfds_array_record(letters, monkeypatch):
    titles = sorted([f"Title {n}"] for n in range(10))
    assert sorted_text(f"tfds:{letters}::title") == titles
    assert sorted_text(f"tfds:{letters}:train:body/text") == sorted(
        [f"Body {n}.", "More."] for n in range(10)
    )
    assert len(sorted_text(f"tfds:{letters}:train[:40%]:title")) == 4
    assert len(sorted_text(f"tfds:{letters}:train[2:4]+test:title,tfds:{letters}:test:title")) == 6
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(letters.parent.parent))
    monkeypatch.setattr(
        "tensorflow_datasets.core.utils.file_utils.list_data_dirs", lambda **_: [letters.parents[1]]
    )
    assert sorted_text("tfds:letters:1.2.3:train:title") == titles


def framed(record):
    """A record as it stands in a TFRecord file."""
    length = struct.pack("<Q", len(record))
    return length + masked_crc(length) + record + masked_crc(record)


def masked_crc(data):
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def test_tfds_tfrecord_without_tensorflow(letters, tmp_path):
    for file in letters.iterdir():
        if "array_record" in file.name:
            reader = array_record_module.ArrayRecordReader(str(file))
            records = reader.read(0, reader.num_records())
            path = tmp_path / file.name.replace("array_record", "tfrecord")
            path.write_bytes(b"".join(map(framed, records)))
        else:
            (tmp_path / file.name).write_text(file.read_text().replace("array_record", "tfrecord"))
    assert sorted_text(f"tfds:{tmp_path}::title") == sorted([f"Title {n}"] for n in range(10))
    assert len(sorted_text(f"tfds:{tmp_path}:train[3:7]:title")) == 4
    (cut,) = tmp_path.glob("*test.tfrecord*")
    content = cut.read_bytes()
    half, changed = len(content) // 2, content.replace(b"Title 1", b"Title 7")
    for damaged, message, kept in (
        (content[:-7], rf"record 1 on \(it ends within the record at byte {half}\)", 1),
        (content[:half], r"record 1 on \(1 records are missing at its end\)", 1),
        (b"", r"record 0 on \(2 records are missing at its end\)", 0),
        (b"\xff" * len(content), r"record 0 on \(the length of the record at byte 0 is corrupt\)", 0),
        (changed, rf"record 1 on \(the record at byte {half} is corrupt\)", 1),
    ):
        cut.write_bytes(damaged)
        with pytest.raises(
            UserError, match=f"cannot be read from {message}: get the file again, or set data"
        ):
            sorted_text(f"tfds:{tmp_path}:test:title")
        found = chunks(f"tfds:{tmp_path}:test:title", broken_files="skip")
        assert [d for chunk in found for d in chunk.documents()] == [["Title 0"], ["Title 1"]][:kept]
        assert [*sum((chunk.left_out for chunk in found), collections.Counter()).values()] == [1]


def test_tfds_chunks_follow_the_size_of_records(letters, monkeypatch):
    monkeypatch.setattr("bert_jax.corpus.sources.tfds.CHUNK_BYTES", 1)
    source = open_sources(DataConfig(source=f"tfds:{letters}::title"))[0]
    found = list(source.chunks())
    assert len(found) == 10
    assert sum(chunk.read_bytes for chunk in found) <= source.size


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (":dev:title", "no split 'dev'; it has t"),
        ("", "no text feature 'text'; it has body/text, title"),
        (":train:n", "no text feature 'n'"),
        (":train:title:x", "too many parts"),
    ],
)
def test_tfds_errors(letters, rest, message):
    with pytest.raises(UserError, match=message):
        open_sources(DataConfig(source=f"tfds:{letters}{rest}"))


@pytest.mark.parametrize("name", ["lm1b", "no_such_dataset/config:1.0.0"])
def test_tfds_datasets_that_are_not_here(name):
    with pytest.raises(MissingInput, match=rf"not prepared on this machine.*tfds build {name}"):
        open_sources(DataConfig(source=f"tfds:{name}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{folder}", "{folder} failed"),
        ("{folder}/nowhere", "{folder}/nowhere failed"),
        ("a b", "a b failed"),
        ("ag_news_subset:9.9.9", "cannot be loaded at version 9.9.9"),
        ("ag_news_subset/other", "BuilderConfig other not found"),
    ],
)
def test_tfds_names_that_cannot_be_opened(tmp_path, name, message):
    _refuses(name.format(folder=tmp_path), message.format(folder=tmp_path))


@pytest.mark.parametrize("size", [0, 40, None])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_tfds_folders_whose_metadata_is_damaged(letters, tmp_path, file, size):
    folder = shutil.copytree(letters, tmp_path / "copy")
    content = (folder / file).read_bytes()[:size]
    (folder / file).unlink()
    if size is not None:
        (folder / file).write_bytes(content)
    _refuses(folder, "")


def _refuses(name, message):
    with pytest.raises(MissingInput, match="use NAME") as refused:
        open_sources(DataConfig(source=f"tfds:{name}"))
    assert f"data.source='tfds:{name}' cannot be opened (" in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
