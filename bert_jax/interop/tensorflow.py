"""Reads TensorFlow checkpoints (`bert_model.ckpt.index`, `.data-…`) without TensorFlow.

The index is a table as LevelDB has them: blocks of sorted keys, each without the prefix it shares with the
one before. Its values are protocol buffers that say where in the data files a tensor lies. Sources: LevelDB's
doc/table_format.md and TensorFlow's tensor_bundle.proto.
"""

import functools
import pathlib
import re
import struct
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from bert_jax.errors import UserError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 14: jnp.bfloat16, 19: np.float16}
TRAINING = re.compile(r"(^|/)(adam_[mv]|AdamWeightDecayOptimizer.*|global_step)$")
LANE = 4096  # bytes
Handle = tuple[int, int]  # offset and size


def read_bert(index: pathlib.Path) -> dict[str, np.ndarray]:
    """The variables of Google's BERT by Hugging Face's names and in its layout, without the optimizer's.

    Raises:
        UserError: if a file is missing, damaged, or no checkpoint.
    """
    try:
        variables = dict(read_variables(index))
    except OSError as error:
        raise UserError(f"{index} cannot be read: {error}; all files of the checkpoint are needed.") from None
    except (ValueError, IndexError, KeyError, struct.error, pa.ArrowException) as error:
        raise UserError(f"{index} is damaged or no TensorFlow checkpoint ({error}).") from None
    return dict(_renamed(name, value) for name, value in variables.items())


def read_variables(index: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of all variables but the optimizer's, checked against their CRC."""
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
            raise ValueError(f"{name} has changed since it was written")
        yield name, np.frombuffer(content, DTYPES[entry[1][0]]).reshape(shape)


def _renamed(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """`bert/encoder/layer_0/output/dense/kernel` becomes `bert.encoder.layer.0.output.dense.weight`."""
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
    """Keys and values of a table."""
    footer = content[-FOOTER:]
    if len(footer) != FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("the end of the index is missing")
    _, position = _handle(footer, 0)  # of the meta index, which holds nothing
    index, _ = _handle(footer, position)
    for _, value in _entries(_block(content, index)):
        yield from _entries(_block(content, _handle(value, 0)[0]))


def _block(content: bytes, handle: Handle) -> bytes:
    offset, size = handle
    block, kind = content[offset : offset + size], content[offset + size]
    (crc,) = struct.unpack("<I", content[offset + size + 1 : offset + size + 5])
    if _masked_crc(content[offset : offset + size + 1]) != crc:
        raise ValueError("the index has changed since it was written")
    if kind == 0:
        return block
    length, _ = _varint(block, 0)
    return pa.Codec("snappy").decompress(block, length, asbytes=True)


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack("<I", block[-4:])
    key, position, end = b"", 0, len(block) - 4 * (restarts + 1)
    while position < end:
        shared, position = _varint(block, position)
        unshared, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _handle(content: bytes, position: int) -> tuple[Handle, int]:
    offset, position = _varint(content, position)
    size, position = _varint(content, position)
    return (offset, size), position


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and the position behind it."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _message(content: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: integers, or bytes."""
    fields: dict[int, list] = {}
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        value: int | bytes
        if tag & 7 == 0:
            value, position = _varint(content, position)
        elif tag & 7 == 2:
            size, position = _varint(content, position)
            value, position = content[position : position + size], position + size
        elif tag & 7 == 5:
            (value,), position = struct.unpack_from("<I", content, position), position + 4
        else:
            raise ValueError(f"a field of wire type {tag & 7}")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _masked_crc(content: bytes) -> int:
    """CRC-32C, rotated and shifted as LevelDB stores it.

    Many stretches of `LANE` bytes are worked off side by side, then joined: to go on behind zeros is linear.
    """
    data, table = np.frombuffer(content, np.uint8), _crc_table()
    whole = len(data) // LANE * LANE
    crc = 0xFFFFFFFF
    if whole:
        for lane in _advance(np.zeros(whole // LANE, np.uint32), data[:whole].reshape(-1, LANE)).tolist():
            for bit, column in enumerate(_behind_zeros()):
                lane ^= column * (crc >> bit & 1)
            crc = lane
    for byte in data[whole:].tolist():
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _advance(crc: np.ndarray, lanes: np.ndarray) -> np.ndarray:
    """Registers uint32 [n] after the bytes uint8 [n, LANE]."""
    table = _crc_table()
    for column in lanes.T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc


@functools.cache
def _behind_zeros() -> list[int]:
    """What becomes of each of the 32 bits of a register over `LANE` bytes of zeros."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    return _advance(bits, np.zeros((32, LANE), np.uint8)).tolist()


@functools.cache
def _crc_table() -> np.ndarray:
    """uint32 [256], of Castagnoli's polynomial."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(0x82F63B78), table >> 1)
    return table
