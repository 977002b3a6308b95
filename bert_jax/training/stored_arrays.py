"""The arrays of a checkpoint on disk: restored to devices, or read back to see that they are there."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from bert_jax.errors import out_of_memory
from bert_jax.files import without_patterns
from bert_jax.training.fingerprints import digests, host_digest
from bert_jax.training.mesh import path_name

READ_BACK_BYTES = 256 << 20  # that are in memory at a time, unless one array has more


class DamagedCheckpoint(Exception):
    """Raised if the content of a checkpoint is not what was saved; names the file or array."""


def restore_items(folder: epath.Path, abstract: dict[str, Any], expected: dict[str, str]) -> dict[str, Any]:
    """Restores items of a checkpoint, or parts of them, and checks the fingerprint of every array.

    Args:
        folder: of the checkpoint.
        abstract: ShapeDtypeStructs with shardings, by item.
        expected: fingerprints by path, as `digests` returns them.

    Raises:
        DamagedCheckpoint: if an array cannot be read or is not what was saved.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        arrays = {
            name: _read(checkpointer, folder / name, target, ocp.checkpoint_utils.construct_restore_args)
            for name, target in abstract.items()
        }
    _compare(folder, digests(arrays), expected)
    return arrays


def read_back(folder: epath.Path, abstract: dict[str, Any], expected: dict[str, str]) -> None:
    """Reads what was just written into the host's memory, a part at a time, and checks every fingerprint.

    One process can do so while others train: nothing is put on devices, and no process waits for another.

    Args and Raises: as `restore_items`; shardings are not used.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="read_back",
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    restore_args = functools.partial(jax.tree.map, lambda _: ocp.RestoreArgs(restore_type=np.ndarray))
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        for name, target in abstract.items():
            for part in _parts(target):
                arrays = _read(checkpointer, folder / name, part, restore_args)
                found = {
                    f"{name}/{path_name(path)}": host_digest(leaf)
                    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
                    if leaf is not ocp.PLACEHOLDER
                }
                _compare(folder, found, expected)


def first_line(error: BaseException) -> str:
    """Returns the message of an error of Orbax or a file system: the cause of TensorStore's chain."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    cause = re.search(r": ([^:]+) \[os_error_code", lines[0])
    return cause[1] if cause else lines[0].partition(" [tensorstore_spec")[0]


def _parts(target: Any) -> Iterator[Any]:
    """Yields the tree several times, each time with other arrays and a placeholder for all others."""
    leaves, structure = jax.tree.flatten(target)
    part, size = [ocp.PLACEHOLDER] * len(leaves), 0
    for number, leaf in enumerate(leaves):
        part[number] = leaf
        size += leaf.size * leaf.dtype.itemsize
        if size >= READ_BACK_BYTES or number == len(leaves) - 1:
            yield jax.tree.unflatten(structure, part)
            part, size = [ocp.PLACEHOLDER] * len(leaves), 0


def _read(checkpointer: ocp.Checkpointer, folder: epath.Path, target: Any, restore_args: Any) -> Any:
    wanted = ocp.args.PyTreeRestore(item=target, restore_args=restore_args(target), partial_restore=True)
    try:
        steps = without_patterns(folder.parents[1])
        return checkpointer.restore(steps / folder.parent.name / folder.name, args=wanted)
    except Exception as error:  # Orbax and TensorStore raise many kinds for unreadable data
        if out_of_memory(error):
            raise
        raise DamagedCheckpoint(f"{folder} cannot be read: {first_line(error)}") from error


def _compare(folder: epath.Path, found: dict[str, str], expected: dict[str, str]) -> None:
    for name, digest in found.items():
        if digest != expected.get(name):
            raise DamagedCheckpoint(f"array {name} in {folder} is not what was saved (fingerprint {digest})")
