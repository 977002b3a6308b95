"""The folder of a run: one run, one identity."""

import fcntl
import json
import logging
import os
from importlib import metadata
from typing import Any

import jax
from etils import epath

from bert_jax.errors import UserError
from bert_jax.training.config import RunConfig
from bert_jax.version import __version__

log = logging.getLogger("bert_jax")
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """The installed versions of what a run's numbers depend on."""
    # Of the package itself also where it was never installed, e.g. a checkout.
    return {"bert_jax": __version__} | {name: metadata.version(name) for name in LIBRARIES}


def open_workdir(path: epath.PathLike, config: RunConfig, data_digest: str) -> epath.Path:
    """Makes the folder of a run, or checks that the run which is there is this one.

    Raises:
        UserError: when it holds a run of another identity (with what differs), or cannot be written.
    """
    workdir = check_workdir(path, config, data_digest)
    file = workdir / "config.json"
    if not file.exists() and jax.process_index() == 0:
        identity = config.identity() | {"data_digest": data_digest}
        content = {"config": config.to_dict(), "identity": identity, "versions": versions()}
        file.with_name("config.json.tmp").write_text(json.dumps(content, indent=1))
        file.with_name("config.json.tmp").replace(file)
    return workdir


def check_workdir(path: epath.PathLike, config: RunConfig, data_digest: str | None = None) -> epath.Path:
    """The folder, made if need be, and nothing in it; without `data_digest` before the data is known.

    Raises:
        UserError: as `open_workdir`.
    """
    workdir = epath.Path(path).expanduser().resolve()  # Orbax takes absolute paths only
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        known = dict(json.loads(file.read_text())["identity"]) if file.exists() else None
    except OSError as error:
        raise _unwritable(workdir, error) from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} is not a run's config.json; give another --workdir or move it away."
        ) from None
    if known is not None:
        asked = json.loads(json.dumps(config.identity()))
        known = type(config)().identity() | known  # a version without a key did what its default does
        _check_identity(workdir, known, asked | {"data_digest": data_digest or known.get("data_digest")})
    return workdir


def lock(workdir: epath.PathLike) -> None:
    """Keeps other runs out of a folder for as long as this process lives; on a local file system only.

    Raises:
        UserError: when another run is in it, or it cannot be written.
    """
    path = epath.Path(workdir).expanduser().resolve() / "lock"
    if "://" in str(path):
        return
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # never closed: that would unlock it
    except OSError as error:
        raise _unwritable(path.parent, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--workdir={path.parent} is in use: another run trains in it. Wait for its end, stop it or give "
            "another --workdir."
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): see to it that no other run uses the folder", path, error)


def keep_compiled(workdir: epath.PathLike) -> None:
    """Keeps what XLA compiles in the folder, so that a restart need not; what the user has set goes first."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(workdir) / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _unwritable(workdir: epath.Path, error: OSError) -> UserError:
    return UserError(f"--workdir={workdir} cannot be written: {error.strerror}; give another.")


def _check_identity(workdir: epath.Path, known: dict[str, Any], asked: dict[str, Any]) -> None:
    differing = [
        f"{key} is {known.get(key)!r} there and {asked.get(key)!r} here"
        for key in sorted(known.keys() | asked.keys())
        if known.get(key) != asked.get(key)
    ]
    if differing:
        raise UserError(
            f"--workdir={workdir} holds another run: {'; '.join(differing)}. Give another --workdir for "
            "a new run, or the old values to go on with that one."
        )
