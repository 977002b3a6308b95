"""Reads TensorFlow checkpoints (`bert_model.ckpt.index`, `.data-…`) without TensorFlow.

The index is a table as LevelDB has them: blocks of sorted keys, each without the prefix it shares with the
one before. Its values are protocol buffers that say where in the data files a tensor lies. Sources: LevelDB's
doc/table_format.md and TensorFlow's tensor_bundle.proto.
"""

import itertools
import pathlib
import re
import struct
from collections.abc import Iterator

import google_crc32c
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from google.protobuf import empty_pb2, message, unknown_fields

from bert_jax.errors import UserError
from bert_jax.interop.directory import check_fetched

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 14: jnp.bfloat16, 19: np.float16}
TRAINING = re.compile(r"(^|/)(adam_[mv]|AdamWeightDecayOptimizer.*|global_step)$")


def read_bert(index: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the variables of Google's BERT, by Hugging Face's names and in its layout, but the optimizer's.

    Raises:
        UserError: if a file is missing, damaged, or no checkpoint.
    """
    check_fetched(index)
    try:
        return dict(itertools.starmap(_renamed, read_variables(index)))
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error}; all files of the checkpoint are needed.") from None
    except (ValueError, IndexError, KeyError, struct.error, pa.ArrowException, message.DecodeError) as error:
        raise UserError(f"{index} is damaged or no TensorFlow checkpoint ({error}).") from None


def read_variables(index: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Reads names and values of all variables but the optimizer's; checks them against their CRC."""
    table = dict(_table(index.read_bytes()))
    shards = _message(table.pop(b""))[1][0]
    for key, value in table.items():
        if TRAINING.search(name := key.decode()):
            continue
        entry = _message(value)
        shard, offset, size = (entry.get(field, [0])[0] for field in (3, 4, 5))
        shape = [_message(dim).get(1, [0])[0] for dim in _message(entry.get(2, [b""])[0]).get(2, [])]
        path = index.with_suffix(f".data-{shard:05}-of-{shards:05}")
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) != size or _masked_crc(content) != entry[6][0]:
            check_fetched(path)
            raise ValueError(f"{name} has changed since it was written")
        yield name, np.frombuffer(content, DTYPES[entry[1][0]]).reshape(shape)


def _renamed(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Renames `bert/encoder/layer_0/output/dense/kernel` to `bert.encoder.layer.0.output.dense.weight`."""
    if name.endswith("/kernel"):
        value = value.T
    name = re.sub(r"/layer_(\d+)/", r"/layer/\1/", name)
    name = re.sub(r"^output_", "classifier/output_", name)  # of a network fine-tuned with run_classifier.py
    name = name.replace("cls/squad/", "qa_outputs/")  # with run_squad.py
    name = re.sub(r"/(kernel|gamma|output_weights)$", "/weight", name)
    name = re.sub(r"_embeddings$", "_embeddings/weight", name)
    name = re.sub(r"/(beta|output_bias)$", "/bias", name)
    return name.replace("/", "."), value


def _table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Reads the keys and values of a table."""
    footer = content[-FOOTER:]
    if len(footer) != FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("the end of the index is missing")
    # A handle is an offset and a size. The first is of the meta index, which holds nothing.
    _, _, *index, _ = _varints(footer, 4)
    for _, value in _entries(_block(content, *index)):
        yield from _entries(_block(content, *_varints(value, 2)[:2]))


def _block(content: bytes, offset: int, size: int) -> bytes:
    block, kind = content[offset : offset + size], content[offset + size]
    (crc,) = struct.unpack("<I", content[offset + size + 1 : offset + size + 5])
    if _masked_crc(content[offset : offset + size + 1]) != crc:
        raise ValueError("the index has changed since it was written")
    if kind == 0:
        return block
    length, _ = _varints(block, 1)
    return pa.Codec("snappy").decompress(block, length, asbytes=True)


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    key, position, end = b"", 0, len(block) - 4 * (restarts + 1)
    while position < end:
        shared, unshared, length, position = _varints(block, 3, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _varints(content: bytes, count: int, position: int = 0) -> list[int]:
    """Reads integers of seven bits a byte; returns them, and at last the position behind them."""
    values, shift = [0], 0
    while len(values) <= count:
        byte = content[position]
        values[-1] |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            values, shift = [*values, 0], 0
    return [*values[:-1], position]


def _message(content: bytes) -> dict[int, list]:
    """Reads the fields of a protocol buffer by number: integers, or bytes."""
    fields: dict[int, list] = {}
    for field in unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(content)):
        fields.setdefault(field.field_number, []).append(field.data)
    return fields


def _masked_crc(content: bytes) -> int:
    """Computes the CRC-32C, rotated and shifted as LevelDB stores it."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
