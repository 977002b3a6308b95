"""The folder of a run: its identity, its lock and its records."""

import json
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from bert_jax import files, version
from bert_jax.errors import UserError, reason
from bert_jax.report import report
from bert_jax.training.checkpoint import committed_steps
from bert_jax.training.config import REMOVED, RunConfig
from bert_jax.training.phases import unlearned

log = logging.getLogger("bert_jax")
ONCE_UNRECORDED = ("train.evaluations_per_epoch",)  # older versions had it and did not record it
PHASES_CHANGE = (
    " Only phases that have not begun may change. The number of all steps may change if the learning rates "
    "used so far stay as they were: with optimizer.schedule=constant or rsqrt, or if these phases set "
    "schedules of their own."
)
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """The installed versions of the libraries that a run's numbers depend on, and of this package."""
    return version.versions(*LIBRARIES)


def open_workdir(path: epath.PathLike, config: RunConfig, data_digest: str) -> epath.Path:
    """Creates the folder of a run with its `config.json`, or checks that the folder holds this run.

    Raises:
        UserError: if it holds a run of another identity (names what differs), or cannot be written.
    """
    workdir = check_workdir(path, config, data_digest)
    file = workdir / "config.json"
    identity = config.identity() | {"data_digest": data_digest}
    # Phases that had not begun may have changed.
    if jax.process_index() == 0 and not (file.exists() and _phases(identity) == _phases(_identity(file))):
        content = {"config": config.to_dict(), "identity": identity, "versions": versions()}
        try:
            files.write(file, json.dumps(content, indent=1))
        except OSError as error:
            raise _unwritable(workdir, error) from None
    return workdir


def check_workdir(path: epath.PathLike, config: RunConfig, data_digest: str | None = None) -> epath.Path:
    """Creates the folder of a run, or checks that it holds this run; writes no file.

    Without `data_digest`, before the data is known, the data is not compared.

    Raises:
        UserError: as in `open_workdir`.
    """
    workdir = epath.Path(path).expanduser().resolve()  # Orbax takes absolute paths only
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        known = _identity(file) if file.exists() else None
    except OSError as error:
        raise _unwritable(workdir, error) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} is not a run's config.json; put back the run's own, or give another --workdir."
        ) from None
    if known is None and committed_steps(workdir / "checkpoints"):
        raise UserError(
            f"--workdir={workdir} has checkpoints and no config.json, which says of what run; put it "
            "back, or give another --workdir."
        )
    if known is not None:
        asked = json.loads(json.dumps(config.identity()))
        theirs, ours = ("fine-tuning" if "task.name" in run else "pretraining" for run in (known, asked))
        if theirs != ours:
            raise UserError(f"--workdir={workdir} holds a run of {theirs}, and this is {ours}; give another.")
        # A version without a key used its default, except for those that it had but did not record.
        known = type(config)().identity() | {key: asked[key] for key in ONCE_UNRECORDED} | known
        asked |= {"data_digest": data_digest or known.get("data_digest")}
        _check_identity(workdir, known, asked, _changeable(config, workdir, known))
    return workdir


def lock(workdir: epath.PathLike) -> None:
    """Keeps other runs out of a folder until this process ends; on local file systems only.

    Raises:
        UserError: if another run holds the folder, or it cannot be written.
    """
    path = epath.Path(workdir).expanduser().resolve() / "lock"
    if "://" in str(path):
        return
    try:
        files.lock(path)  # never closed: that would unlock it
    except BlockingIOError:
        raise UserError(
            f"--workdir={path.parent} is in use: another run trains in it. Wait until it ends, stop it or "
            "give another --workdir."
        ) from None
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def use_compilation_cache(workdir: epath.PathLike) -> None:
    """Caches compiled programs in the folder for restarts, unless the user has set another cache."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(workdir) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def record_start(workdir: epath.Path, step: int, devices: str) -> list[dict[str, Any]]:
    """Adds a row to `starts.jsonl`: the run starts or resumes at `step`, on `devices`; returns all rows."""
    file = workdir / "starts.jsonl"
    starts = [*files.read_rows(file), {"step": step, "devices": devices, "time": round(time.time(), 3)}]
    _record(file, starts, files.write_rows)
    return starts


def write_examples(workdir: epath.Path, examples: list[dict[str, Any]]) -> None:
    """Writes the predictions that `Task.examples` returned to `examples.json`, which the report shows."""
    _record(workdir / "examples.json", json.dumps(examples, ensure_ascii=False))


def write_results(workdir: epath.Path, results: dict[str, Any]) -> None:
    """Writes the results of the best checkpoint to `results.json`, which the report shows.

    `results` has `step`, `scores` ({split: {metric: value}}), and the task's `tables` for the split `of`.
    """
    _record(workdir / "results.json", json.dumps(results, indent=1, ensure_ascii=False))


def write_report(workdir: epath.Path) -> None:
    """Writes `report.html` from the files in the folder; only `config.json` must exist."""
    if jax.process_index() == 0:
        _record(workdir / "report.html", report.render(report.collect(workdir)))


def _record(file: epath.Path, content: Any, write: Callable[..., None] = files.write) -> None:
    """Replaces a file, in the first process only. A failure is a warning: it does not end the run."""
    if jax.process_index():
        return
    try:
        write(file, content)
    except OSError as error:
        log.warning("%s could not be written: %s", file, reason(error))


def _unwritable(workdir: epath.Path, error: OSError) -> UserError:
    return UserError(f"--workdir={workdir} cannot be written: {reason(error)}; give another.")


def _identity(file: epath.Path) -> dict[str, Any]:
    identity = dict(json.loads(file.read_bytes())["identity"])
    return {key: value for key, value in identity.items() if key not in REMOVED}


def _phases(identity: dict[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in identity.items() if key.startswith("phases[") or key == "train.num_steps"}


def _changeable(config: RunConfig, workdir: epath.Path, known: dict[str, Any]) -> Callable[[str], bool]:
    """Returns which keys may differ from those `known`, that the run was started with."""
    phases, steps = config.phase_list(), committed_steps(workdir / "checkpoints")
    if len(phases) == 1 and not any(key.startswith("phases[") for key in known):
        return lambda _: False
    return unlearned(phases, config.optimizer.schedule, steps[-1] if steps else 0)


def _check_identity(
    workdir: epath.Path, known: dict[str, Any], asked: dict[str, Any], free: Callable[[str], bool]
) -> None:
    name_of = {"data_digest": "data_digest (the content of the data)"}
    differing = [
        f"{name_of.get(key, key)} is {known.get(key)!r} there and {asked.get(key)!r} here"
        for key in sorted(known.keys() | asked.keys())
        if known.get(key) != asked.get(key) and not free(key)
    ]
    if differing:
        hint = PHASES_CHANGE if any(key.startswith("phases[") for key in known) else ""
        raise UserError(
            f"--workdir={workdir} holds another run: {'; '.join(differing)}. Give another --workdir for "
            f"a new run, or the old values and data to resume that one.{hint}"
        )
