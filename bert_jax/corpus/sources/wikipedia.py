"""Finds the public dump of a Wikipedia, LANG[:DATE], among the downloads of this machine and at Wikimedia.

DOWNLOADS/wikipedia-LANG-DATE/ holds
    dump.json    the files of the dump, as Wikimedia publishes them; written first, so that DATE is decided
    *.xml.bz2    the files, each under its name once it is whole; until then, as NAME.part
"""

import contextlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.download import NotFound, RemoteFile, gb, get, is_whole, missing_bytes
from bert_jax.corpus.sources.finding import MissingInput
from bert_jax.corpus.sources.mediawiki import CLEANING, MediaWikiSource
from bert_jax.errors import UserError
from bert_jax.files import write

WIKIMEDIA = "https://dumps.wikimedia.org"
MIRROR = "BERT_JAX_WIKIPEDIA_MIRROR"  # environment variable
JOB = "articlesmultistreamdump"  # of dumpstatus.json: the current text of all articles
SPEC = re.compile(r"([a-z][a-z0-9_-]*)(?::(\d{8}))?", re.ASCII)
DUMP = "dump.json"
log = logging.getLogger("bert_jax")


class NotDownloaded(MissingInput):
    """Raised if a dump is not, or not wholly, on this machine."""


class Dump(NamedTuple):
    """The dump of a language and a date, and the folder where it is kept or will be."""

    language: str
    date: str
    folder: pathlib.Path
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded."""
        return missing_bytes(self.folder, self.files)

    @property
    def whole(self) -> bool:
        return all(is_whole(self.folder, file) for file in self.files)

    @property
    def day(self) -> str:
        return f"{self.date[:4]}-{self.date[4:6]}-{self.date[6:]}"

    @property
    def wiki(self) -> str:
        """Its name at Wikimedia: enwiki, zh_yuewiki."""
        return _wiki(self.language)

    def decide(self) -> None:
        """Writes down which files the dump has; from then on it is found without the network."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder / DUMP, json.dumps([file._asdict() for file in self.files], indent=1))


class WikipediaSource(MediaWikiSource):
    """The dump of LANG[:DATE], as it was downloaded.

    Raises:
        NotDownloaded: if it is not on this machine as a whole.
    """

    def __init__(self, spec: str, rest: str, downloads: pathlib.Path, data: DataConfig):
        self._dump = require_downloaded(spec, rest, downloads)
        if _base(self._dump.language) != _base(data.language):
            message = "%s: data.language=%s splits its sentences; set it to the language of the text."
            log.warning(message, spec, data.language)
        paths = [str(self._dump.folder / file.name) for file in self._dump.files]
        super().__init__(spec, paths, data.broken_files)

    def fingerprint(self, digests: Digests) -> list[Any]:  # noqa: ARG002
        """Returns what Wikimedia publishes of the dump: the same on every machine, and no file is read."""
        files = [[file.name, file.digest] for file in self._dump.files]
        return ["wikipedia", CLEANING, self._dump.language, self._dump.date, files]


def downloads_of(download_dir: str, data_dir: epath.PathLike) -> pathlib.Path:
    """Returns the folder of the downloads: `data.download_dir`, else that in the data directory.

    For a data directory in a bucket that of the default, since a download goes on only on a disk.
    """
    if "://" in download_dir:
        raise UserError(f"data.download_dir={download_dir} is no folder of this machine; give one.")
    local = os.fspath(data_dir) if "://" not in os.fspath(data_dir) else "data_dir"
    return pathlib.Path(os.path.expanduser(download_dir) or pathlib.Path(local, "downloads"))


def mirror_of(wikipedia_mirror: str) -> str:
    """Returns the address with LANGwiki/DATE/ below it: of the setting, the environment, or Wikimedia."""
    mirror = wikipedia_mirror or os.environ.get(MIRROR) or WIKIMEDIA
    if not re.match(r"https?://[^/]", mirror):
        raise UserError(
            f"data.wikipedia_mirror={mirror} (or {MIRROR}) is no address; give one like {WIKIMEDIA}."
        )
    return mirror.rstrip("/")


def downloaded(spec: str, rest: str, downloads: pathlib.Path) -> Dump | None:
    """Finds the dump of LANG[:DATE] on this machine: the newest whole one, else the newest that was begun."""
    language, date = _parse(spec, rest)
    found = []
    for folder in sorted(downloads.iterdir()) if downloads.is_dir() else ():
        match = re.fullmatch(rf"wikipedia-{language}-(\d{{8}})", folder.name)
        if match and date in (None, match[1]) and (folder / DUMP).exists():
            found.append(_read(folder, language, match[1]))
    return max(found, key=lambda dump: (dump.whole, dump.date), default=None)


def require_downloaded(spec: str, rest: str, downloads: pathlib.Path) -> Dump:
    """Returns the dump of LANG[:DATE].

    Raises:
        NotDownloaded: if it is not on this machine as a whole.
    """
    dump = downloaded(spec, rest, downloads)
    if dump is None:
        state = f"no dump of it is in {downloads}"
    elif not dump.whole:
        state = f"{dump.folder} lacks {gb(dump.missing)} of {gb(dump.size)}"
    else:
        log.info("%s: the dump of %s, %s in %s", spec, dump.day, gb(dump.size), dump.folder)
        return dump
    raise NotDownloaded(
        f"data.source={spec!r} is not downloaded: {state}. Run prepare or pretrain with --download."
    )


def published(spec: str, rest: str, downloads: pathlib.Path, mirror: str) -> Dump:
    """Asks the mirror for the dump of LANG[:DATE]; without DATE for the newest that is complete.

    Raises:
        UserError: if there is none, or the mirror does not answer.
    """
    language, date = _parse(spec, rest)
    wiki = _wiki(language)
    try:
        for candidate in [date] if date else _dates(f"{mirror}/{wiki}/"):
            with contextlib.suppress(NotFound):
                status = get(f"{mirror}/{wiki}/{candidate}/dumpstatus.json")
                if files := tuple(_files(status, mirror, f"{wiki}-{candidate}")):
                    return Dump(language, candidate, downloads / f"wikipedia-{language}-{candidate}", files)
    except NotFound:
        raise UserError(
            f"data.source={spec!r}: {mirror}/{wiki}/ does not exist; LANG is the first word of a Wikipedia's "
            "address, such as en, de or simple."
        ) from None
    except UserError as error:
        raise UserError(f"data.source={spec!r} is not in {downloads}, and {error}") from None
    raise UserError(
        f"data.source={spec!r}: {mirror}/{wiki}/ has no complete dump"
        + (f" of {date}; leave the date out to take the newest." if date else "; try another mirror.")
    )


def _parse(spec: str, rest: str) -> tuple[str, str | None]:
    if not (match := SPEC.fullmatch(rest)):
        raise UserError(
            f"data.source={spec!r} is no Wikipedia: use wikipedia:LANG or wikipedia:LANG:YYYYMMDD, such as "
            "wikipedia:en or wikipedia:de:20261101."
        )
    return match[1], match[2]


def _base(language: str) -> str:
    """Returns the language without its variant; Simple English is English."""
    return "en" if language == "simple" else re.split("[-_]", language)[0].lower()


def _wiki(language: str) -> str:
    return language.replace("-", "_") + "wiki"


def _dates(listing: str) -> list[str]:
    """Returns the dates that the page of a wiki links to, newest first."""
    page = get(listing).decode(errors="replace")
    return sorted(set(re.findall(r"""href=["']?(?:[^"'>]*/)?(\d{8})/?["'>]""", page)), reverse=True)


def _files(status: bytes, mirror: str, prefix: str) -> Iterator[RemoteFile]:
    """Yields the files of a dump in their order, from its dumpstatus.json; none if it is not complete."""
    part = re.compile(rf"{prefix}-pages-articles-multistream(\d*)\.xml(?:-p(\d+)p\d+)?\.bz2", re.ASCII)
    try:
        job = json.loads(status)["jobs"][JOB]
        if job["status"] != "done":
            return
        names = {name: match for name in job["files"] if (match := part.fullmatch(name))}
        for name in sorted(names, key=lambda name: [int(number or 0) for number in names[name].groups()]):
            entry = job["files"][name]
            algorithm = "sha1" if entry.get("sha1") else "md5"
            yield RemoteFile(name, int(entry["size"]), algorithm, entry[algorithm].lower())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{mirror}: dumpstatus.json of {prefix} is not as Wikimedia writes it ({error!r}); use another "
            "mirror (data.wikipedia_mirror)."
        ) from None


def _read(folder: pathlib.Path, language: str, date: str) -> Dump:
    try:
        files = tuple(RemoteFile(**file) for file in json.loads((folder / DUMP).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / DUMP} cannot be read ({error}); delete that folder.") from None
    return Dump(language, date, folder, files)
