"""Finds the weights of a directory, which may hold several, and reads them from any of their formats."""

import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.flax
from google.protobuf import text_encoding

from bert_jax.errors import UserError
from bert_jax.interop import pytorch, tensorflow
from bert_jax.interop.directory import check_fetched, read_json, read_text

Reader = Callable[[pathlib.Path], dict[str, np.ndarray]]
NEWEST = re.compile(r'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\]|\\.)*)"', re.MULTILINE)


class Weights(NamedTuple):
    """Tensors by name, and the files that they come from, for the log."""

    tensors: dict[str, np.ndarray]
    origin: str


def read_weights(directory: pathlib.Path) -> Weights:
    """Reads all tensors from the first kind of file that exists, whole or in shards.

    Raises:
        UserError: if there is none, a shard is missing, a file is damaged, or it cannot be told which of
            several is meant.
    """
    kinds = (("model.safetensors", _safetensors), ("pytorch_model.bin", pytorch.read_tensors))
    found = {
        path: reader
        for name, reader in kinds
        for path in (directory / name, directory / f"{name}.index.json")
        if path.exists()
    }
    if found:
        (path, reader), *others = found.items()
        ignored = ", ".join(other.name for other, _ in others)
        origin = f"{path.name}, and not {ignored}, which is there too" if ignored else path.name
        return Weights(_shards(path, reader) if path.suffix == ".json" else reader(path), origin)
    for folder in (directory, directory / "variables"):
        if indices := sorted(folder.glob("*.index")):
            index, why = _chosen(folder, indices)
            return Weights(
                tensorflow.read_bert(index), f"{index.relative_to(directory).with_suffix('')}{why}"
            )
    raise UserError(
        f"{directory} holds neither model.safetensors nor pytorch_model.bin, whole or in shards, nor a "
        "TensorFlow checkpoint."
    )


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    check_fetched(path)
    try:
        return {name: np.asarray(x) for name, x in safetensors.flax.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}).") from None


def _shards(index: pathlib.Path, reader: Reader) -> dict[str, np.ndarray]:
    """Reads the tensors of all files of an index; its `weight_map` names the file of each tensor."""
    files = read_json(index).get("weight_map")
    files = files if isinstance(files, dict) else {}
    names = list(files.values())
    if not names or not all(isinstance(name, str) and name == pathlib.PurePath(name).name for name in names):
        raise UserError(f"{index} has no weight_map from tensors to files beside it; fetch it again.")
    shards = [index.parent / name for name in sorted(set(names))]
    if missing := [path.name for path in shards if not path.is_file()]:
        raise UserError(f"{index} names shards that are not beside it: {', '.join(missing)}; fetch them.")
    tensors = {name: x for path in shards for name, x in reader(path).items()}
    if absent := [name for name in files if name not in tensors]:
        raise UserError(f"{index.parent / files[absent[0]]} lacks the tensor {absent[0]}; fetch it again.")
    return tensors


def _chosen(folder: pathlib.Path, indices: list[pathlib.Path]) -> tuple[pathlib.Path, str]:
    """Chooses a TensorFlow checkpoint: the one that the file `checkpoint` names, or the only one.

    Returns:
        Its index, and why it was chosen, for the log.

    Raises:
        UserError: if several are there and none of them is named.
    """
    state = folder / "checkpoint"
    named = NEWEST.search(read_text(state)) if state.is_file() else None
    # It may be a path of another machine, of any system.
    path = text_encoding.CUnescape(named[1]).decode(errors="replace") if named else ""
    newest = pathlib.PureWindowsPath(path).name
    for index in indices:
        if index.stem == newest:
            return index, ", which the file checkpoint names"
    if len(indices) == 1:
        return indices[0], f" (the file checkpoint names {newest}, which is not there)" if newest else ""
    names = ", ".join(index.stem for index in indices)
    told = f"the file checkpoint names {newest}" if newest else "no file checkpoint names one"
    raise UserError(
        f"{folder} holds several TensorFlow checkpoints, {names}, and {told}; keep the files of one, or "
        f'write a file checkpoint with the line model_checkpoint_path: "{indices[-1].stem}".'
    )
