"""Reads the tensors of a `pytorch_model.bin` without PyTorch and without executing it.

The file is a zip archive of a pickle and of one member for each storage. A pickle can call any function of
any module; here only the few names that tensors are made of exist.
"""

import collections
import pathlib
import pickle
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np

from bert_jax.errors import UserError

DTYPES = {"Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
          "Long": np.int64, "Int": np.int32, "Byte": np.uint8, "Bool": np.bool_}  # fmt: skip


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict, by name.

    Raises:
        UserError: if it is no such file, is damaged, or holds anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
            with archive.open(name) as file:
                tensors = _Unpickler(file, archive, name.removesuffix("data.pkl")).load()
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is not a file of PyTorch 1.6 or later, or is damaged; give a model.safetensors."
        ) from None
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError, EOFError) as e:
        raise UserError(f"{path} cannot be read as tensors ({e}); give a model.safetensors.") from None
    if not isinstance(tensors, dict) or not all(isinstance(x, np.ndarray) for x in tensors.values()):
        raise UserError(f"{path} holds more than tensors; save the model's state_dict() alone.")
    return dict(tensors)


class _Unpickler(pickle.Unpickler):
    """Knows storages, tensors and ordered dicts, and nothing else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PARTS:
            raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not part of a tensor")
        return PARTS[module, name]

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, dtype, key, _, _ = pid
        return np.frombuffer(self._archive.read(f"{self._root}data/{key}"), dtype)


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # as_strided does not check bounds, and would read any memory that the file names.
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage.size):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


# What a pickle may ask for: (module, name) -> ours. A storage is its dtype.
PARTS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
} | {("torch", f"{kind}Storage"): np.dtype(dtype) for kind, dtype in DTYPES.items()}
