"""Downloads what `data.source` names and this machine lacks, once the user agrees to what it takes."""

import logging
import pathlib
import shutil
import sys
import time

from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import wikipedia
from bert_jax.corpus.sources.download import NotFound, download, gb, minutes
from bert_jax.corpus.sources.wikipedia import Dump
from bert_jax.corpus.specs import specs
from bert_jax.corpus.workers import available_cores
from bert_jax.errors import UserError, reason

# What is said beforehand. The last two were measured on an excerpt of English Wikipedia, with WordPiece.
DOWNLOAD_SPEED = 10e6  # bytes/s
PREPARE_SPEED = 1.1e6  # bytes of a dump/s and core
DATASET_SHARE = 0.75  # bytes of a dataset per byte of a dump
log = logging.getLogger("bert_jax")


def obtain(data: DataConfig, data_dir: epath.PathLike, agreed: bool) -> None:
    """Downloads the dumps of `data.source` that are not on this machine.

    Args:
        data: its `source`, `download_dir` and `wikipedia_mirror`.
        data_dir: where datasets are kept.
        agreed: whether the user has said --download; otherwise a terminal is asked.

    Raises:
        UserError: if the user does not agree (with what the download takes, and how to agree), it does not
            fit on the disk, or it fails.
    """
    downloads = wikipedia.downloads_of(data.download_dir, data_dir)
    mirror = wikipedia.mirror_of(data.wikipedia_mirror)
    missing = [dump for spec in specs(data.source) if (dump := _missing(spec, downloads, mirror))]
    if not missing:  # another process has downloaded it meanwhile
        return
    told = _described(missing, downloads, data_dir, mirror)
    _check_disk(missing, downloads)
    if agreed:
        log.info("%s", told)
    elif not _says_yes(told):
        raise UserError(f"{told} To start, add --download to the command (with make: ARGS=--download).")
    for dump in missing:
        _download(dump, mirror)


def _missing(spec: str, downloads: pathlib.Path, mirror: str) -> Dump | None:
    kind, _, rest = spec.partition(":")
    if kind != "wikipedia":
        return None
    dump = wikipedia.downloaded(spec, rest, downloads) or wikipedia.published(spec, rest, downloads, mirror)
    return None if dump.whole else dump


def _described(dumps: list[Dump], downloads: pathlib.Path, data_dir: epath.PathLike, mirror: str) -> str:
    """Says in one line what the dumps are and what they take."""
    files = [f"{len(dump.files)} file{'s' * (len(dump.files) > 1)}" for dump in dumps]
    what = " and ".join(f"{dump.wiki} of {dump.day} ({n})" for dump, n in zip(dumps, files, strict=True))
    missing, size = (sum(getattr(dump, name) for dump in dumps) for name in ("missing", "size"))
    cores = available_cores()
    seconds = size / PREPARE_SPEED / cores
    return (
        f"{what} must be downloaded from {mirror}: {gb(missing)}, {minutes(missing / DOWNLOAD_SPEED)} at "
        f"{gb(DOWNLOAD_SPEED)}/s, into {downloads} ({gb(_free(downloads))} free); to prepare it then takes "
        f"{minutes(seconds)} on {cores} cores and about {gb(DATASET_SHARE * size)} in {data_dir}."
    )


def _says_yes(told: str) -> bool:
    """Asks on a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input(f"{told}\nDownload it now? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _check_disk(dumps: list[Dump], downloads: pathlib.Path) -> None:
    missing, free = sum(dump.missing for dump in dumps), _free(downloads)
    if missing > free:
        raise UserError(
            f"data.download_dir={downloads}: {gb(missing)} must be downloaded, and {gb(free)} are free; free "
            "some, or set data.download_dir to a folder on a larger disk."
        )


def _free(folder: pathlib.Path) -> int:
    """Returns the free bytes of the disk that a folder is on, or will be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def _download(dump: Dump, mirror: str) -> None:
    start, size = time.perf_counter(), dump.missing
    try:
        dump.decide()
        download(dump.files, f"{mirror}/{dump.wiki}/{dump.date}", dump.folder)
    except NotFound as error:
        raise UserError(
            f"{error} Wikimedia keeps dumps for some months: use a mirror that has it "
            f"(data.wikipedia_mirror), or delete {dump.folder} and name a newer date, or none."
        ) from None
    except OSError as error:
        raise UserError(
            f"{dump.folder} cannot be written: {reason(error)}; correct this, or set data.download_dir."
        ) from None
    log.info("downloaded: %s in %s, checked, %.1f s", gb(size), dump.folder, time.perf_counter() - start)
