"""Sources in buckets: s3:// paths, with a file system in memory in the place of the network's."""

import bz2
import importlib
import json
import random
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import Digests, MissingInput, files, open_sources, tfds
from bert_jax.errors import UserError
from bert_jax.paths import check_path
from tests.source_files import message, read


class Bucket(MemoryFileSystem):
    """Objects without a time of modification, as s3fs shows them."""

    protocol = "s3"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/") if path.strip("/") else ""


@pytest.fixture(autouse=True)
def forget_clients():
    """epath keeps the first client of a scheme that it finds."""
    clients = backend._FileSystemSpecBackend._get_filesystem
    clients.cache_clear()
    yield
    clients.cache_clear()


@pytest.fixture
def bucket(monkeypatch):
    registry = importlib.import_module("fsspec.registry")  # fsspec.registry is a view of what it holds
    monkeypatch.setitem(registry._registry, "s3", Bucket)
    Bucket.store.clear()
    Bucket.clear_instance_cache()
    return Bucket()


def write(bucket, path, content):
    with bucket.open(path, "wb") as file:
        content(file) if callable(content) else file.write(content)


def test_every_kind_of_file(bucket):
    table = pa.table({"text": ["One.\nTwo.", "Three."]})

    def stream(file):
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    write(bucket, "/b/text/1.txt.bz2", bz2.compress(b"One.\nTwo.\n"))
    write(bucket, "/b/text/2.txt", b"Three.\n")
    write(bucket, "/b/a.jsonl", b'{"text": "One.\\nTwo."}\n{"text": "Three."}\n')
    write(bucket, "/b/tables/a.parquet", lambda file: pq.write_table(table, file))
    write(bucket, "/b/saved/data.arrow", stream)
    write(bucket, "/b/saved/state.json", json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode())
    for source in (
        "text:s3://b/text/*", "jsonl:s3://b/a.jsonl", "parquet:s3://b/*/*.parquet", "arrow:s3://b/saved",
        "arrow:s3://b/saved/*.arrow",
    ):  # fmt: skip
        assert read(source) == [["One.", "Two."], ["Three."]]


def test_content_that_changes_at_the_same_size_is_seen(bucket, tmp_path):
    cache = files.epath.Path(tmp_path / "digests.json")

    def digest():
        (source,) = open_sources(DataConfig(source="text:s3://b/a.txt"))
        return source.fingerprint(Digests(cache))[-1]

    write(bucket, "/b/a.txt", b"same size")
    first = digest()
    assert digest() == first
    write(bucket, "/b/a.txt", b"SAME SIZE")
    assert digest() != first


@pytest.mark.parametrize("kind", ["text", "parquet", "arrow"])
@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_without_the_client_of_a_bucket(monkeypatch, kind, scheme, package):
    def missing(name, **_):
        raise ImportError(f"Install {name}")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    assert message(f"{kind}:{scheme}://b/a", MissingInput) == (
        f"data.source='{kind}:{scheme}://b/a': {scheme}:// needs a package that is not installed: "
        f"pip install {package}."
    )


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_cannot_be_reached(monkeypatch):
    class NoCredentials(Exception):
        pass

    def refuse(*_, **__):
        raise NoCredentials("Unable to locate\ncredentials")

    monkeypatch.setattr(Bucket, "info", refuse)
    monkeypatch.setattr(Bucket, "isdir", refuse)
    assert message("text:s3://b/*.txt", MissingInput) == (
        "data.source='text:s3://b/*.txt' cannot be reached (NoCredentials: Unable to locate credentials); "
        "check the name, the network and the credentials."
    )


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text", b"One.\n" * 10**6),
        ("jsonl", b'{"text": "One."}\n' * 10**6),
        ("text.bz2", bz2.compress(bytes(random.Random(0).choices(b"abc \n", k=10**6)))),
    ],
)
def test_a_bucket_that_fails_while_it_is_read(bucket, monkeypatch, tmp_path, kind, content):
    class Disconnected(Exception):
        """As aiohttp's, which gcsfs lets through: no OSError."""

    write(bucket, f"/b/a.{kind}", content)
    with bucket.open(f"/b/a.{kind}", "rb") as file:
        right = type(file).read

    def read_some(self, size=-1):
        if self.tell() > 100_000:
            raise Disconnected("Server disconnected")
        return right(self, min(size, 1 << 14))

    def refuse(_):
        raise Disconnected("Server disconnected")

    monkeypatch.setattr(type(file), "read", read_some)
    line = f"s3://b/a.{kind} cannot be read: Server disconnected. Check the path and the file."
    assert message(f"{kind.partition('.')[0]}:s3://b/a.{kind}", UserError) == line
    monkeypatch.setattr(type(file), "getbuffer", refuse)  # with which hashlib reads a file in memory
    with pytest.raises(UserError) as raised:
        Digests(files.epath.Path(tmp_path / "digests.json")).of([f"s3://b/a.{kind}"])
    assert str(raised.value) == line


def test_another_scheme():
    assert message("text:hdfs://b/a.txt") == (
        "data.source='text:hdfs://b/a.txt': hdfs:// is not supported; use gs://, s3:// or a local path."
    )


def test_folders_in_a_bucket_are_no_files(bucket):
    write(bucket, "/b/x/1", b"One.\n")
    write(bucket, "/b/x/sub/2.txt", b"Two.\n")
    (source,) = open_sources(DataConfig(source="text:s3://b/x/*"))
    assert source.paths == ["s3://b/x/1"]
    assert "it is a directory, use text:s3://b/x/*" in message("text:s3://b/x", MissingInput)
    assert "there are only directories" in message("text:s3://b/x/s*", MissingInput)


def test_datasets_are_not_prepared_where_they_cannot_be_read(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"--workdir=s3://b/run needs a package .* pip install s3fs"):
        check_path("workdir", "s3://b/run")
    with pytest.raises(UserError, match=r"--data_dir=s3://b/data: prepared datasets are read from disks and"):
        check_path("data_dir", "s3://b/data")  # before a package is asked for
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "s3fs" or None)
    check_path("workdir", "s3://b/run")
    file = SimpleNamespace(filename="s3://b/a.array_record", skip=0, take=1)
    with pytest.raises(UserError, match=r"s3://b/a\.array_record: ArrayRecord files are read from disks and"):
        list(tfds._array_record_batches(file, 1))
