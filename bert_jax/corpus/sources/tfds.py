"""Reads the text of TFDS datasets that are prepared on disk, record by record, without TensorFlow."""

import collections
import copy
import dataclasses
import difflib
import functools
import itertools
import os
import re
import struct
from collections.abc import Iterator
from typing import IO, Any

import google_crc32c
import numpy as np
from etils import epath

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.broken import BrokenFile
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.files import CHUNK_BYTES, NOT_UTF8, paragraphs_of
from bert_jax.corpus.sources.finding import MissingInput
from bert_jax.corpus.sources.texts import Texts
from bert_jax.errors import UserError, reason


@dataclasses.dataclass(frozen=True)
class Records:
    """Serialized tf.train.Example protos; their bytes feature `feature` is a document."""

    spec: str
    feature: str
    invalid_utf8: str
    records: list[bytes]
    read_bytes: int
    lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def size(self) -> int:
        return sum(map(len, self.records))

    @property
    def left_out(self) -> collections.Counter[str]:
        return +collections.Counter({NOT_UTF8: len(self.records) - len(self._texts)}) + self.lost

    def documents(self) -> Iterator[list[str]]:
        return map(paragraphs_of, self._texts)

    @functools.cached_property
    def _texts(self) -> list[str]:
        texts = []
        for record in self.records:
            try:
                texts.append(_text(record, self.feature).decode())
            except UnicodeDecodeError as error:
                if self.invalid_utf8 != "skip":
                    raise UserError(
                        f"data.source={self.spec!r}: a record is not UTF-8 ({error}); rebuild the dataset "
                        "or set data.invalid_utf8=skip."
                    ) from None
        return texts


class TfdsSource:
    """A prepared dataset in TFDS's data directory, or at a path: NAME[:SPLIT[:FEATURE]].

    SPLIT is a name or an instruction like train[:10%] (default: train); FEATURE is a text feature (default:
    `text`, or the only one). Reads ArrayRecord and TFRecord files and downloads nothing.

    Raises:
        MissingInput: if the dataset is not on this machine; gives the command that builds it.
        UserError: if the split or the feature does not exist.
    """

    def __init__(self, spec: str, rest: str, invalid_utf8: str, broken_files: str):
        name, *options = split_spec(rest)
        if len(options) > 2:
            raise UserError(f"data.source={spec!r} has too many parts: use tfds:NAME[:SPLIT[:FEATURE]].")
        split, feature = [*options, "", ""][:2]
        info = open_builder(f"data.source={spec!r}", name).info
        self.spec, self._split, self._name = spec, split or "train", info.full_name
        self._invalid_utf8, self._broken_files = invalid_utf8, broken_files
        self._feature = _text_feature(spec, info.features, feature)
        self._format = info.file_format.value
        if self._format not in ("array_record", "tfrecord"):
            raise UserError(f"data.source={spec!r} is stored as {self._format}; rebuild it as array_record.")
        try:
            self._files = info.splits[self._split].file_instructions
        except (KeyError, ValueError) as error:
            raise UserError(
                f"data.source={spec!r} has no split {self._split!r}; it has {', '.join(info.splits)}."
            ) from error
        try:
            self._sizes = [
                epath.Path(file.filename).stat().length * file.take // max(1, file.examples_in_shard)
                for file in self._files
            ]
        except OSError as error:
            raise UserError(f"data.source={spec!r} is incomplete ({error}); rebuild it.") from error
        self.paths = [os.fspath(file.filename) for file in self._files]
        self.size = sum(self._sizes)

    def fingerprint(self, digests: Digests) -> list[Any]:  # noqa: ARG002
        """Returns name, version and sizes; in TFDS, equal versions have equal data."""
        files = [[os.path.basename(file.filename), file.skip, file.take] for file in self._files]
        return ["tfds", self._name, self._split, self._feature, self._invalid_utf8, files, self._sizes]

    def parts(self) -> list["TfdsSource"]:
        """Returns the files as sources of their own, in order."""
        parts = [copy.copy(self) for _ in self.paths]
        for part, path, file, size in zip(parts, self.paths, self._files, self._sizes, strict=True):
            part.paths, part.size, part._files, part._sizes = [path], size, [file], [size]
        return parts

    def chunks(self) -> Iterator[Records | Texts]:
        batches = {"array_record": _array_record_batches, "tfrecord": _tfrecord_batches}[self._format]
        for file, size in zip(self._files, self._sizes, strict=True):
            batch_size = max(1, CHUNK_BYTES * file.take // max(1, size))
            number = file.skip
            try:
                for records in batches(file, batch_size):
                    yield from self._chunks(records, file.filename, number, size // max(1, file.take))
                    number += len(records)
            except (OSError, RuntimeError, ValueError) as error:
                broken = BrokenFile(file.filename, f"record {number:,}", reason(error))
                lost = broken.left_out(self._broken_files)
                yield Records(self.spec, self._feature, self._invalid_utf8, [], 0, lost)

    def _chunks(
        self, records: list[bytes], path: str, number: int, record_bytes: int
    ) -> Iterator[Records | Texts]:
        """Yields records from the one of this number on as one chunk, but cuts up a long one."""
        for long, group in itertools.groupby(records, lambda record: len(record) > files.MAX_DOCUMENT_BYTES):
            run = list(group)
            for some in () if long else _pieces(run):
                read_bytes = record_bytes * len(some)
                yield Records(self.spec, self._feature, self._invalid_utf8, some, read_bytes)
            for at, record in enumerate(run if long else (), number):
                text = _text(record, self._feature)
                bounds = np.array([0, len(text)])
                yield from Texts(f"{path}, record", at, text, bounds, record_bytes, self._invalid_utf8).cut()
            number += len(run)


def _pieces(records: list[bytes]) -> Iterator[list[bytes]]:
    """Yields runs of records of 4 × CHUNK_BYTES at most: a batch holds few bytes only on average."""
    start = size = 0
    for place, record in enumerate(records):
        if place > start and size + len(record) > 4 * CHUNK_BYTES:
            yield records[start:place]
            start, size = place, 0
        size += len(record)
    yield records[start:]


def split_spec(spec: str) -> list[str]:
    """Splits NAME[:SPLIT[:FEATURE]] into its parts.

    Colons inside train[10%:], before a version number and in gs:// do not separate parts.

    >>> split_spec("gs://bucket/wiki:1.0.0:train[:10%]:text")
    ['gs://bucket/wiki:1.0.0', 'train[:10%]', 'text']
    """
    return re.split(r":(?!//|\d+\.\d+\.\d+|[^\[]*\])", spec)


def open_builder(where: str, name: str):
    """Opens TFDS's builder of a prepared dataset; errors begin with `where`, the setting that names it.

    Raises:
        MissingInput: if it is not on this machine, with the command that builds it, or cannot be opened.
    """
    import tensorflow_datasets as tfds

    hint, unknown = "", (tfds.core.registered.DatasetNotFoundError, ImportError)
    try:
        if (epath.Path(os.path.expanduser(name)) / "dataset_info.json").exists():
            return tfds.builder_from_directory(os.path.expanduser(name))
        builder = tfds.builder(name)
        if builder.is_prepared():
            return builder
        if builder.info.download_size or builder.info.dataset_size:
            hint = f", {builder.info.download_size} to download and {builder.info.dataset_size} on disk"
    except Exception as error:  # of many kinds: of the name, the version, the folder's files, the bucket
        if "://" in name or not isinstance(error, unknown):
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise MissingInput(
                f"{where} cannot be opened ({why.rstrip('.: ')}); use NAME[/CONFIG][:VERSION], or a folder "
                "where dataset_info.json and features.json are whole."
            ) from error
        # TFDS lists only datasets whose requirements are installed, so this one may exist.
        known = tfds.list_builders(with_community_datasets=False)
        if near := difflib.get_close_matches(name.split("/")[0], known):
            hint = f"; did you mean {' or '.join(near)}?"
    raise MissingInput(
        f"{where}: this dataset is not prepared on this machine{hint} (looked in "
        f"{tfds.core.constants.DATA_DIR}; set TFDS_DATA_DIR if it is elsewhere). Build it with "
        f"tfds build {name} --file_format=array_record (many datasets then need "
        "pip install tensorflow apache-beam), or use text files."
    )


def _text_feature(spec: str, features: Any, asked: str) -> str:
    import tensorflow_datasets as tfds

    texts = sorted(
        "/".join(path)  # as TFDS stores a feature in a dict of features
        for path, info in tfds.core.utils.flatten_with_path(features.get_tensor_info())
        if info.np_dtype == np.object_ and not info.shape
    )
    chosen = asked or ("text" if "text" in texts or len(texts) != 1 else texts[0])
    if chosen not in texts:
        raise UserError(
            f"data.source={spec!r} has no text feature {chosen!r}; it has {', '.join(texts) or 'none'}: "
            "use tfds:NAME:SPLIT:FEATURE."
        )
    return chosen


def _text(record: bytes, feature: str) -> bytes:
    """Returns the values of a bytes feature of a tf.train.Example, joined as lines."""
    from google.protobuf import message
    from tensorflow_datasets.proto import tf_example_pb2  # here, since importing TFDS takes a second

    try:
        example = tf_example_pb2.Example.FromString(record)
    except message.DecodeError as error:
        raise UserError(f"a record of the TFDS dataset is corrupt ({error}); rebuild the dataset.") from None
    return b"\n".join(example.features.feature[feature].bytes_list.value)


def _array_record_batches(file: Any, batch_size: int) -> Iterator[list[bytes]]:
    from array_record.python import array_record_module

    if "://" in file.filename and not file.filename.startswith("gs://"):
        raise UserError(
            f"{file.filename}: ArrayRecord files are read from disks and gs:// only; copy them to a disk."
        )
    reader = array_record_module.ArrayRecordReader(file.filename)
    stop = file.skip + file.take
    if reader.num_records() < stop:
        raise OSError("its index of records, at its end, is missing or damaged")
    for start in range(file.skip, stop, batch_size):
        batch = range(start, min(start + batch_size, stop))
        try:
            yield reader.read(batch.start, batch.stop)
        except RuntimeError:
            yield from ([reader.read([number])[0]] for number in batch)  # up to the broken one


def _tfrecord_batches(file: Any, batch_size: int) -> Iterator[list[bytes]]:
    with epath.Path(file.filename).open("rb") as stream:
        batch, count = [], 0
        try:
            for record in itertools.islice(_tfrecords(stream), file.skip, file.skip + file.take):
                batch.append(record)
                if len(batch) == batch_size:
                    count += len(batch)
                    yield batch
                    batch = []
        except OSError:
            yield batch
            raise
        yield batch
        if missing := file.take - count - len(batch):
            raise OSError(f"{missing} records are missing at its end")


def _tfrecords(stream: IO[bytes]) -> Iterator[bytes]:
    """Yields records of a file that repeats length (uint64), checksum, record, checksum (both uint32).

    Raises:
        OSError: if the file ends within a record, or a checksum is not that of the content.
    """
    place = 0
    while header := stream.read(12):
        length, checksum = struct.unpack("<QI", header.ljust(12, b"\0"))
        if checksum != _masked_crc(header[:8]):
            raise OSError(f"the length of the record at byte {place:,} is corrupt")
        record, end = stream.read(length), stream.read(4)
        if len(end) < 4:
            raise OSError(f"it ends within the record at byte {place:,}")
        if end != struct.pack("<I", _masked_crc(record)):
            raise OSError(f"the record at byte {place:,} is corrupt")
        yield record
        place = stream.tell()


def _masked_crc(data: bytes) -> int:
    """Returns the CRC32C of bytes as TFRecord files hold it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
