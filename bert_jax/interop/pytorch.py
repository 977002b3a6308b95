"""Reads the tensors of a `pytorch_model.bin` without PyTorch and without executing it.

Since PyTorch 1.6 the file is a zip archive of a pickle and of one member for each storage; before, it was a
row of pickles with the storages behind them. A pickle can call any function of any module; here only the few
names that tensors are made of exist. Source: torch/serialization.py, `_load` and `_legacy_load`.
"""

import io
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError
from bert_jax.interop.directory import check_fetched
from bert_jax.interop.pickles import Machine, by_name

DTYPES = {"Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
          "Long": np.int64, "Int": np.int32, "Byte": np.uint8, "Bool": np.bool_}  # fmt: skip
ZIP, PICKLE, TAR = b"PK", b"\x80", b"ustar"  # how the formats begin; the tar at byte 257
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Storage(NamedTuple):
    """The values of the storage `key`, or of these the `view`: a key, the first, and how many."""

    dtype: np.dtype
    key: str
    length: int  # in values
    view: Any

    @classmethod
    def of(cls, pid: Any) -> "Storage":
        """Reads the persistent id of a storage."""
        kind, dtype, key, _, length, *view = pid
        if kind != "storage" or not (
            isinstance(dtype, np.dtype) and type(key) is str and type(length) is int
        ):
            raise pickle.UnpicklingError("it refers to something that is no storage of numbers")
        return cls(dtype, key, length, view[0] if view else None)


class Tensor(NamedTuple):
    """A part of a storage, in values."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, by name.

    Raises:
        UserError: if it is no such file, is damaged, or holds anything but tensors.
    """
    check_fetched(path)
    with path.open("rb") as file:
        start = file.read(512)
    if not start.startswith((ZIP, PICKLE)):
        kind = "is a tar file, as before PyTorch 0.2" if start[257:262] == TAR else "is no file of PyTorch"
        raise UserError(f"{path} {kind}, or is damaged; give a model.safetensors.")
    try:
        tensors, storages = _zipped(path) if start.startswith(ZIP) else _legacy(path.read_bytes())
        if isinstance(tensors, dict) and all(type(tensor) is Tensor for tensor in tensors.values()):
            return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error, ValueError, LookupError, TypeError),
        *(ArithmeticError, EOFError, OSError, RuntimeError, MemoryError),
    ) as error:
        remedy = "save the model's state_dict() alone, or give a model.safetensors"
        raise UserError(f"{path} cannot be read as tensors ({error}); {remedy}.") from None
    raise UserError(f"{path} holds more than tensors; save the model's state_dict() alone.")


def _zipped(path: pathlib.Path) -> tuple[Any, dict[str, memoryview]]:
    """Reads the object of a zip archive, and the bytes of its storages."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
        if packed or sum(member.file_size for member in members) > path.stat().st_size:
            raise pickle.UnpicklingError("its members are compressed or overlap, which PyTorch's never do")
        (name,) = [member.filename for member in members if member.filename.split("/")[1:] == ["data.pkl"]]
        root = name.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are not little-endian")
        parts = {member.filename: memoryview(archive.read(member)) for member in members}
    storages = {name.removeprefix(f"{root}data/"): part for name, part in parts.items()}
    return Machine(PARTS, Storage.of).run(io.BytesIO(parts[name])), storages


def _legacy(content: bytes) -> tuple[Any, dict[str, memoryview]]:
    """Reads the object of a file of several pickles, and the bytes of its storages behind them."""
    named: dict[str, Storage] = {}

    def storage(pid: Any) -> Storage:
        found = Storage.of(pid)
        if named.setdefault(found.key, found)[:3] != found[:3]:
            raise pickle.UnpicklingError(f"it describes storage {found.key} in two ways")
        return found

    file, machine = io.BytesIO(content), Machine(PARTS, storage)
    if machine.run(file) != MAGIC or machine.run(file) != PROTOCOL:
        raise pickle.UnpicklingError("it is a pickle, but not one of torch.save")
    system = machine.run(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise pickle.UnpicklingError("its numbers are not little-endian")
    tensors, keys = machine.run(file), machine.run(file)
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        if type(key) is not str or key not in named or count != named[key].length:
            raise pickle.UnpicklingError(f"it has {count} values for a storage of another size, or of none")
        size = count * named[key].dtype.itemsize
        storages[key] = memoryview(content)[file.tell() : file.tell() + size]
        file.seek(size, io.SEEK_CUR)
    return tensors, storages


def _array(tensor: Tensor, storages: dict[str, memoryview]) -> np.ndarray:
    storage = tensor.storage
    if storage.key not in storages:
        raise pickle.UnpicklingError(f"storage {storage.key} is missing")
    content = storages[storage.key]
    if len(content) != storage.length * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"storage {storage.key} does not have {storage.length} values")
    values = np.frombuffer(content, storage.dtype)
    if storage.view is not None:
        _, offset, count = storage.view
        values = _strided(values, offset, (count,), (1,))
    return _strided(values, *tensor[1:])


def _strided(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # as_strided does not check bounds, and would read any memory that the file names.
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage.size):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    if math.prod(size) > storage.size:
        raise pickle.UnpicklingError("a tensor has more values than its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if type(storage) is not Storage or not all(type(n) is int for n in (offset, *size, *stride)):
        raise pickle.UnpicklingError("a tensor is described by other things than numbers")
    return Tensor(storage, offset, size, stride)


def _ordered_dict(items: Sequence[Any] = ()) -> dict[str, Any]:
    """Makes a dict, which has an order by itself; Python 2 gives a list of its items."""
    result = by_name([part for key, value in items for part in (key, value)])
    if isinstance(items, list):
        items.clear()  # or a file could name one list a million times, each time for another dict
    return result


# What a pickle may name: "module name" -> ours. A storage's class is its dtype.
PARTS: dict[str, Any] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _tensor,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda data, *_: data,
} | {f"torch {kind}Storage": np.dtype(dtype) for kind, dtype in DTYPES.items()}
