"""Checkpoints: saved asynchronously, self-contained, and checked before they are used.

`checkpoints/STEP/` holds the Orbax items `params`, `opt_state` and `meta`, and files of the task (the
tokenizer). `checksums.json` is written last: a step without it is an unfinished save and does not count.
Every file is checked against its SHA-256 before it is read, and every array against a fingerprint that was
taken on the devices before it was written, because Orbax loads a flipped byte without an error.

All processes save and restore their parts, in one folder that all of them see. The first one checks files,
commits and removes.

Orbax's preservation policies are not used: they remove older steps before `checksums.json` is written, and
count damaged later steps as the newest.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from bert_jax.errors import UserError, reason
from bert_jax.files import without_patterns, write
from bert_jax.training.fingerprints import fingerprints, in_hexadecimal
from bert_jax.training.step import TrainState
from bert_jax.training.stored_arrays import DamagedCheckpoint, first_line, read_back, restore_items

CHECKSUMS = "checksums.json"
log = logging.getLogger("bert_jax")


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: the folder of the numbered steps.
        files: names and contents that make a checkpoint self-contained, e.g. `tokenizer/vocab.txt`.
        keep_last: number of newest steps to keep.
        keep_every: steps divisible by it are always kept; 0 for none.

    Raises:
        UserError: when `directory` cannot be written.
    """

    def __init__(self, directory: epath.PathLike, files: dict[str, bytes], keep_last: int, keep_every: int):
        self._directory = epath.Path(directory).resolve()  # Orbax takes absolute paths only
        self._files, self._keep_last, self._keep_every = files, keep_last, keep_every
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be written to {self._directory}: {reason(error)}; "
                "correct this or give another --workdir."
            ) from None
        self._manager = ocp.CheckpointManager(
            without_patterns(self._directory),
            options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True),
        )
        self._committer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future | None = None
        unfinished = set(self._manager.all_steps()) - set(committed_steps(self._directory))
        multihost_utils.sync_global_devices("checkpoints listed")
        if unfinished:
            log.info("removed unfinished checkpoints %s", sorted(unfinished))
        self._remove(unfinished)

    def save(self, state: TrainState, meta: dict[str, Any], best: int | None = None) -> None:
        """Starts to save `state`; `meta` is JSON. Returns as soon as the devices' memory has been copied.

        `best` is a step whose checkpoint is kept, however old it is.

        Raises:
            UserError: when the save before this one failed.
        """
        self.wait()
        step = int(state.step)
        # Dispatched before the next update reuses the memory; `_commit` waits for them in the background.
        arrays = {"params": state.params, "opt_state": state.opt_state}
        taken = fingerprints(arrays)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)
        # A copy: Orbax writes `meta` in the background, while the caller may change it.
        meta = json.loads(json.dumps({**meta, "step": step}))
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            opt_state=ocp.args.StandardSave(state.opt_state),
            meta=ocp.args.JsonSave(meta),
        )
        if step in self._manager.all_steps():  # damaged, otherwise `restore_newest` would have restored it
            self._guarded(step, lambda: self._remove([step]))
        self._guarded(step, lambda: self._manager.save(step, args=args, force=True))
        self._pending = self._committer.submit(
            self._guarded, step, lambda: self._commit(step, meta, taken, abstract, best)
        )

    def wait(self) -> None:
        """Waits until the last save is complete; raises UserError if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def raise_if_failed(self) -> None:
        """Raises UserError if the last save has failed; does not wait for a save in progress."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def close(self) -> None:
        self.wait()
        self._committer.shutdown()
        with contextlib.suppress(Exception):  # it raises again what `wait` has raised
            self._manager.close()

    def restore_newest(
        self, abstract: TrainState, at_most: int | None = None
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the newest undamaged checkpoint as (state, meta); returns None when there is none at all.

        It skips damaged ones with a warning; they stay until the run saves that step again.

        Args:
            abstract: the state's shapes, dtypes and shardings.
            at_most: the newest of this step or before is restored, or, where none is left, the oldest after.

        Raises:
            UserError: when there are checkpoints and all of them are damaged.
        """
        self.wait()
        damaged = set[int]()
        while True:
            found, step = self._newest_verified(at_most, damaged)
            if step < 0 and found:
                raise UserError(
                    f"every checkpoint in {self._directory} is damaged; move the folder away to start again."
                )
            if step < 0:
                return None
            try:
                return self._restore(step, abstract)
            except DamagedCheckpoint as damage:
                log.warning("checkpoint %d is damaged and not used: %s", step, damage)
                damaged.add(step)

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, after a roll-back to `step`."""
        self.wait()
        self._remove(later for later in self._manager.all_steps() if later > step)

    def _remove(self, steps: Iterable[int]) -> None:
        """Removes checkpoints; every process must call it, and none returns before they are gone."""
        if jax.process_index() == 0:
            for step in steps:
                self._remove_folder(step)
        multihost_utils.sync_global_devices("checkpoints removed")
        self._manager.reload()

    def _remove_folder(self, step: int) -> None:
        folder = self._directory / str(step)
        (folder / CHECKSUMS).unlink(missing_ok=True)  # first, so that a half-removed checkpoint never counts
        if folder.exists():
            folder.rmtree()

    def _newest_verified(self, at_most: int | None, damaged: set[int]) -> tuple[bool, int]:
        """Returns whether there are checkpoints, and that with undamaged files to restore (or -1)."""
        found, newest = 0, -1
        if jax.process_index() == 0:
            committed = committed_steps(self._directory)
            found = len(committed)
            later = [s for s in committed if at_most is not None and s > at_most]
            steps = [s for s in later[::-1] + committed[: found - len(later)] if s not in damaged]
            while steps and newest < 0:
                try:
                    verify_files(self._directory / str(steps[-1]))
                    newest = steps[-1]
                except DamagedCheckpoint as damage:
                    log.warning("checkpoint %d is damaged and not used: %s", steps.pop(), damage)
        found, newest = multihost_utils.broadcast_one_to_all(np.array([found, newest], np.int32)).tolist()
        return found > 0, newest

    def _restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        folder = self._directory / str(step)
        if not folder.is_dir():
            raise UserError(
                f"process {jax.process_index()} cannot see {folder}, which process 0 found; --workdir must "
                "be a folder that all hosts share."
            )
        meta = _read_meta(folder)
        items = {"params": abstract.params, "opt_state": abstract.opt_state}
        arrays = restore_items(folder, items, meta["digests"])
        number = jax.device_put(np.int32(step), abstract.step.sharding)
        return TrainState(number, arrays["params"], arrays["opt_state"]), meta

    def _commit(
        self,
        step: int,
        meta: dict[str, Any],
        taken: dict[str, Any],
        abstract: dict[str, Any],
        best: int | None,
    ) -> None:
        """Writes the checksums, once everything has been read back as it was."""
        self._manager.wait_until_finished()
        folder = self._directory / str(step)
        if jax.process_index() == 0:
            for name, content in self._files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            sums = {
                "files": {str(path.relative_to(folder)): _sha256(path) for path in _files_of(folder)},
                "arrays": in_hexadecimal(taken),
            }
            _check_files(folder, sums["files"], meta, self._files)
            read_back(folder, abstract, sums["arrays"])
            write(folder / CHECKSUMS, json.dumps(sums, indent=1))
            # Later steps are damaged ones that were skipped: they must not replace undamaged ones.
            for old in [s for s in committed_steps(self._directory) if s <= step][: -self._keep_last]:
                if old != best and not (self._keep_every and old % self._keep_every == 0):
                    self._remove_folder(old)

    def _guarded(self, step: int, action: Any) -> None:
        try:
            action()
        except Exception as error:  # Orbax and file systems raise many kinds
            older = "Older checkpoints are unchanged; " if committed_steps(self._directory) else ""
            raise UserError(
                f"checkpoint {step} could not be written to {self._directory}: {first_line(error)}. "
                f"{older}remove the cause and run the same command again."
            ) from error


def committed_steps(directory: epath.Path) -> list[int]:
    """Lists the steps whose save was finished, ascending."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit() and (p / CHECKSUMS).exists())


def is_checkpoint(path: epath.PathLike) -> bool:
    """Returns whether `find_checkpoint` finds something in `path`."""
    path = epath.Path(path)
    return (path / CHECKSUMS).exists() or any(committed_steps(p) for p in (path / "checkpoints", path))


def find_checkpoint(path: epath.PathLike, key: str = "checkpoint") -> epath.Path:
    """Finds the folder of a checkpoint: `path` itself, or the best one in a workdir or its `checkpoints`.

    The best is the one that the run has chosen by a metric, otherwise the newest.

    Raises:
        UserError: when there is none; `key` is the flag or config key that `path` was given with.
    """
    path = epath.Path(path).expanduser().resolve()  # Orbax takes absolute paths only
    if (path / CHECKSUMS).exists():
        return path
    for folder in (path / "checkpoints", path):
        if steps := committed_steps(folder):
            newest, best = folder / str(steps[-1]), None
            with contextlib.suppress(OSError, ValueError, KeyError):  # unchecked: `find_verified` checks
                best = json.loads((newest / "meta" / "metadata").read_bytes())["selection"]["best_step"]
            return folder / str(best) if best in steps else newest
    folders = sorted(path.iterdir()) if path.is_dir() else []
    runs = [f for f in folders if "_" in f.name and (f / "checkpoints").is_dir()]  # of folds or seeds
    remedy = f"one of its runs, e.g. {runs[0]}" if runs else "a run's folder or one of its checkpoints/STEP"
    raise UserError(f"{key}: there is no checkpoint in {path}; give {remedy}.")


def verify_files(folder: epath.Path) -> dict[str, Any]:
    """Compares every file of a checkpoint with its SHA-256; returns `meta`, with fingerprints as `digests`.

    Raises:
        DamagedCheckpoint: for a missing or changed file.
    """
    try:
        checksums = json.loads((folder / CHECKSUMS).read_bytes())
        sums, _ = checksums["files"], checksums["arrays"]
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpoint(f"{folder / CHECKSUMS} is not valid") from None
    missing = [name for name in sums if not (folder / name).exists()]
    if missing:
        raise DamagedCheckpoint(f"{folder / missing[0]} is missing")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for name, digest in zip(sums, pool.map(lambda name: _sha256(folder / name), sums), strict=True):
            if digest != sums[name]:
                raise DamagedCheckpoint(f"{folder / name} has changed since it was written")
    return _read_meta(folder)


def _check_files(folder: epath.Path, sums: dict[str, str], meta: Any, files: dict[str, bytes]) -> None:
    """Raises DamagedCheckpoint if `meta` or a file is not read back as it was written."""
    changed = [
        name for name, content in files.items() if sums.get(name) != hashlib.sha256(content).hexdigest()
    ]
    if _stored_meta(folder) != meta:
        changed.append("meta")
    if changed:
        raise DamagedCheckpoint(f"{folder / changed[0]} is not read back as it was written")


def _stored_meta(folder: epath.Path) -> dict[str, Any]:
    # Not by Orbax, which needs all processes to read it.
    return json.loads((folder / "meta" / "metadata").read_bytes())


def _read_meta(folder: epath.Path) -> dict[str, Any]:
    return _stored_meta(folder) | {"digests": json.loads((folder / CHECKSUMS).read_bytes())["arrays"]}


def find_verified(path: epath.PathLike, key: str = "checkpoint") -> tuple[epath.Path, dict[str, Any]]:
    """Finds a checkpoint (see `find_checkpoint`), checks its files and returns its folder and `meta`.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    folder = find_checkpoint(path, key)
    try:
        return folder, verify_files(folder)
    except DamagedCheckpoint as damage:
        raise _unusable(folder, damage) from None


def restore(folder: epath.Path, meta: dict[str, Any], abstract_params: Any) -> Any:
    """Restores the parameters of a checkpoint, with the shapes and shardings of `abstract_params`.

    Args:
        folder, meta: what `find_verified` returned.
        abstract_params: ShapeDtypeStructs with shardings; of everything, or of a part, e.g. the encoder.

    Raises:
        UserError: when the checkpoint is damaged.
    """
    try:
        return restore_items(folder, {"params": abstract_params}, meta["digests"])["params"]
    except DamagedCheckpoint as damage:
        raise _unusable(folder, damage) from None


def _files_of(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files_of(path)
        elif not path.name.startswith(CHECKSUMS):
            yield path


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(folder: epath.Path, damage: DamagedCheckpoint) -> UserError:
    others = [step for step in committed_steps(folder.parent) if str(step) != folder.name]
    remedy = f"; there is also {folder.parent / str(others[-1])}" if others else ""
    return UserError(f"checkpoint {folder} is damaged: {damage}{remedy}.")
