"""Finds or builds the prepared dataset of a config, and reads its documents.

DATA_DIR/NAME-KEY/ holds
    manifest.json       written last; a folder without it is no dataset
    tokenizer/          what `load_tokenizer` reads
    documents-*         a TFDS dataset of ArrayRecord shards, one record per document
    train/, heldout/    index (sentence lengths, document starts) and unigram counts of each split
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from array_record.python import array_record_data_source
from etils import epath

from bert_jax.corpus import writer
from bert_jax.corpus.building import building, default_workers, tell_of_unfinished
from bert_jax.corpus.config import TRAINED, DataConfig
from bert_jax.corpus.disk import check_space
from bert_jax.corpus.encode import id_dtype, log_language, train_tokenizer
from bert_jax.corpus.index import Index
from bert_jax.corpus.journal import JOURNAL, TOKENIZER, Journal, digests_of
from bert_jax.corpus.sentences import newer_rules
from bert_jax.corpus.shards import SHARD_NAME, UNFINISHED, UNIGRAM_COUNTS
from bert_jax.corpus.sources import Digests, MissingInput, Source, open_sources
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.tokenizer_files import deciding_files, load_tokenizer, read_tokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError
from bert_jax.files import modified, touch, write
from bert_jax.settings import names
from bert_jax.version import versions

FORMAT = 1  # of the directory; another number, another dataset
MANIFEST = "manifest.json"
DIGESTS = "digests.json"  # in DATA_DIR
# Settings that enter the key through contents: through the sources' fingerprints and the tokenizer.
KEYED_BY_CONTENT = {"source", "text_field", "invalid_utf8", "tokenizer", "tokenizer_sample_mb"}
# Settings that enter the key at their default too. Later ones do not, so that older datasets are found.
ALWAYS_KEYED = {"lowercase", "language", "held_out_fraction"}
# In the manifest, but not in the key: a dataset stays valid when a library changes.
LIBRARIES = (
    "sentencepiece", "sentencex", "tokenizers", "tensorflow-datasets", "array-record", "numpy", "pyarrow",
    "zstandard",
)  # fmt: skip
log = logging.getLogger("bert_jax")


class DocumentStore:
    """The documents of one split.

    Attributes:
        index: sentence lengths and document starts, in the order of the records.
        unigram_counts: int64 [V], occurrences of each token in the split.

    Raises:
        UserError: if a file is missing, damaged or of another dataset. Records are checked as they are read.
    """

    def __init__(self, directory: epath.Path, split: str, entry: dict[str, Any], vocab_size: int):
        self.index, self._directory = Index.open(directory / split), directory
        try:
            with (directory / split / UNIGRAM_COUNTS).open("rb") as file:
                self.unigram_counts = np.load(file)
        except (OSError, EOFError, ValueError) as error:
            raise _damaged(directory, f"{split}/{UNIGRAM_COUNTS} cannot be read ({error})") from error
        found = {what: getattr(self.index, f"num_{what}") for what in ("documents", "sentences", "tokens")}
        if not found.items() <= entry.items() or self.unigram_counts.shape != (vocab_size,):
            raise _damaged(directory, f"{split} does not fit {MANIFEST} and the tokenizer")
        self._dtype = id_dtype(vocab_size)
        shards = range(len(entry["shards"]))
        self._paths = [str(directory / SHARD_NAME.format(split=split, shard=shard)) for shard in shards]

    @functools.cached_property
    def _records(self) -> array_record_data_source.ArrayRecordDataSource:
        records = array_record_data_source.ArrayRecordDataSource(self._paths)
        if len(records) != self.index.num_documents:
            raise ValueError(f"{len(records)} records instead of {self.index.num_documents}")
        return records

    def read(self, documents: np.ndarray) -> list[np.ndarray]:
        """Reads the token ids of documents.

        Args:
            documents: ints [N], numbers of documents in any order, also repeated.

        Returns:
            N arrays of unsigned ints [tokens].

        Raises:
            UserError: if files of records are missing or damaged.
        """
        documents = np.asarray(documents)
        if not len(documents):
            return []
        starts = self.index.token_starts
        lengths = (starts[documents + 1] - starts[documents]).tolist()
        try:
            records = self._records.__getitems__(documents.tolist())
            # Token ids are the last bytes of a record, so that nothing is parsed.
            return [
                np.frombuffer(record, self._dtype, offset=len(record) - length * self._dtype.itemsize)
                for record, length in zip(records, lengths, strict=True)
            ]
        except (OSError, RuntimeError, ValueError) as error:
            reason = f" ({error})" if str(error) else ""
            raise _damaged(self._directory, f"{self._paths[0]}… cannot be read{reason}") from error


@dataclasses.dataclass(frozen=True)
class PreparedDataset:
    """A prepared dataset on a disk or in a bucket."""

    directory: epath.Path
    manifest: dict[str, Any]  # what it was made from and what it holds

    @classmethod
    def open(cls, directory: epath.PathLike) -> Self:
        """Opens a dataset; raises UserError if there is none, or one of another format."""
        directory = epath.Path(directory)
        try:
            dataset = cls(directory, json.loads((directory / MANIFEST).read_bytes()))
            used = dataset.manifest["format"], dataset.sha256, dataset.summary()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(directory, f"{MANIFEST} is not that of a dataset ({error})") from error
        if used[0] != FORMAT:
            raise _damaged(directory, f"its format is {used[0]}, not {FORMAT}")
        return dataset

    @property
    def sha256(self) -> str:
        """A digest of the documents' token ids and sentence lengths, in order."""
        return self.manifest["dataset_sha256"]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        try:
            return load_tokenizer(self.directory / TOKENIZER)
        except UserError as error:
            raise _damaged(self.directory, str(error).rstrip(".")) from None

    def tokenizer_files(self) -> dict[str, bytes]:
        """Returns names (tokenizer/…) and contents of the tokenizer's files, which checkpoints keep."""
        return {f"{TOKENIZER}/{name}": content for name, content in self.tokenizer.files().items()}

    def split(self, name: str) -> DocumentStore:
        """Returns the split `train` or `heldout`, which may be empty; it is opened and checked once."""
        return self._open_split(name)

    @functools.cached_property
    def _open_split(self) -> Callable[[str], DocumentStore]:
        entries, vocab_size = self.manifest["splits"], self.tokenizer.vocab_size
        return functools.cache(lambda name: DocumentStore(self.directory, name, entries[name], vocab_size))

    def summary(self) -> str:
        """Describes the dataset in one line for the log."""
        splits = ", ".join(
            f"{name} " + ", ".join(f"{entry[what]:,} {what}" for what in ("documents", "sentences", "tokens"))
            for name, entry in self.manifest["splits"].items()
        )
        return f"{self.directory}: {splits}; from {self.manifest['text_bytes'] / 1e6:,.1f} MB of text"


def find(data: DataConfig, vocab_size: int, data_dir: epath.PathLike) -> PreparedDataset | None:
    """Finds the prepared dataset of this config; returns None if it must be built.

    If the source is not on this machine (in a pod only the data directory may be mounted), a dataset of the
    same settings is taken, with a warning that it may be out of date.

    Raises:
        UserError: if neither is there, or the source is not valid.
    """
    return _find(data, vocab_size, epath.Path(data_dir))[0]


def prepare(
    data: DataConfig,
    vocab_size: int,
    data_dir: epath.PathLike,
    workers: int | None = None,
    beam_options: list[str] | None = None,
) -> PreparedDataset:
    """Finds the prepared dataset of this config, or builds it: tokenizer, documents, index.

    A build that fails or is killed leaves nothing that could be taken for a dataset; the next call goes on
    after its last whole shard.

    Args:
        data: its fields with `prepares=True` decide the dataset.
        vocab_size: V, of the tokenizer.
        data_dir: folder of the datasets, or a bucket; for a bucket the temporary directory holds the build.
        workers: processes; default: one per core.
        beam_options: of an Apache Beam pipeline that encodes the documents; None: this machine does.

    Raises:
        UserError: if a source or the tokenizer is missing or broken, the vocabulary size is impossible, or
            there is no text.
    """
    data_dir = epath.Path(data_dir)
    found, directory, sources, fingerprints = _find(data, vocab_size, data_dir)
    if found:
        log.info("dataset: %s", found.summary())
        touch(directory / MANIFEST)  # where the text is missing, this one is meant from now on
        return found
    start = time.perf_counter()
    megabytes = sum(source.size for source in sources) / 1e6
    log.info("prepare: %s (%.1f MB on disk) into %s", data.source, megabytes, directory)
    tell_of_unfinished(data_dir, directory)
    count = workers or default_workers(sources)
    with building(directory, MANIFEST, resumed=beam_options is None) as new, Workers(count) as pool:
        if not any((folder / MANIFEST).exists() for folder in (directory, new)):
            if beam_options is None or new.parent == data_dir:  # else a bucket gets the documents at once
                check_space(new, sources, data, vocab_size)
            encode = _encode(directory, pool, beam_options)
            manifest = _build(new, data, vocab_size, data_dir, sources, fingerprints, pool, encode)
            write(new / MANIFEST, json.dumps(manifest, indent=1))
        shutil.rmtree(new / UNFINISHED, ignore_errors=True)
    dataset = PreparedDataset.open(directory)
    log.info("dataset: %s, %.1f s", dataset.summary(), time.perf_counter() - start)
    if not dataset.manifest["splits"]["heldout"]["documents"]:
        log.warning("no document is held out, so there is no evaluation; %s.", _why_none(dataset, data))
    return dataset


def _build(
    new: epath.Path,
    data: DataConfig,
    vocab_size: int,
    data_dir: epath.Path,
    sources: list[Source],
    fingerprints: list[Any],
    pool: Workers,
    encode: Callable[..., dict[str, Any]],
) -> dict[str, Any]:
    """Builds all but the manifest, from where an earlier process was; returns the manifest."""
    # Python, too, has decompressors, which decide where chunks end: the journal counts these.
    made_by = versions(*LIBRARIES) | {"python": platform.python_version()}
    journal = Journal.open(new, made_by)
    start = time.perf_counter()
    before = journal.seconds["documents"]

    def save() -> None:
        check_unchanged(data, sources, fingerprints, data_dir)  # so that all that is kept is of this text
        journal.seconds["documents"] = before + time.perf_counter() - start
        journal.write(new / JOURNAL)

    if not journal.tokenizer:
        _tokenizer(data, vocab_size, sources, pool).save(new / TOKENIZER)
        journal.seconds["tokenizer"] = time.perf_counter() - start
        start = time.perf_counter()
        journal.tokenizer = digests_of(new / TOKENIZER)
        save()
        log.info(
            "tokenizer: %s of %d pieces in %.1f s", data.tokenizer, vocab_size, journal.seconds["tokenizer"]
        )
    tokenizer = load_tokenizer(new / TOKENIZER)
    log_language(data, tokenizer)
    counts = encode(new, sources, data, tokenizer, journal, save)
    save()
    seconds = {what: round(spent, 3) for what, spent in journal.seconds.items()}
    log.info("documents: %.1f MB of text in %.1f s", counts["text_bytes"] / 1e6, seconds["documents"])
    return {
        "format": FORMAT,
        **counts,
        "settings": _settings(data, vocab_size, data_dir),
        "sources": [
            {"spec": source.spec, "paths": source.paths, "fingerprint": fingerprint}
            for source, fingerprint in zip(sources, fingerprints, strict=True)
        ],
        "seconds": seconds,
        "versions": journal.made_by,
    }


def _encode(
    directory: epath.Path, pool: Workers, beam_options: list[str] | None
) -> Callable[..., dict[str, Any]]:
    """Returns the function that encodes and writes the documents; raises UserError if it cannot."""
    if beam_options is None:
        return functools.partial(writer.write_documents, workers=pool)
    from bert_jax.corpus import beam  # here, for Apache Beam is in few environments

    beam.check(beam_options)
    return functools.partial(beam.write_documents, workers=pool, directory=directory, options=beam_options)


def _tokenizer(data: DataConfig, vocab_size: int, sources: list[Source], pool: Workers) -> Tokenizer:
    if data.tokenizer not in TRAINED:
        return read_tokenizer(data, vocab_size)
    return train_tokenizer(sources, data, vocab_size, pool)


def _why_none(dataset: PreparedDataset, data: DataConfig) -> str:
    """Names the remedy if no document is held out; copies of a document are all in one split."""
    documents = dataset.manifest["splits"]["train"]["documents"]
    if documents * data.held_out_fraction < 20:  # else by chance once in 500 million times
        return "raise data.held_out_fraction"
    return f"the {documents:,} documents are copies of few: set data.drop_duplicates=documents, or add text"


def _find(
    data: DataConfig, vocab_size: int, data_dir: epath.Path
) -> tuple[PreparedDataset | None, epath.Path, list[Source], list[Any]]:
    """Returns the dataset or None, its folder, the sources and their fingerprints."""
    try:
        sources = open_sources(data, data_dir)
        fingerprints = fingerprints_of(sources, data_dir)
        files = deciding_files(data)
        kind = data.tokenizer.split(":")[0]
        decides = Digests(data_dir / DIGESTS).of(files) if files else [data.tokenizer_sample_mb]
        content = {
            "format": FORMAT,
            "sources": fingerprints,
            "tokenizer": [kind, *decides],
            "vocab_size": vocab_size,
            **_keyed(data),
        }
    except MissingInput as missing:
        return _of_same_settings(data, vocab_size, data_dir, missing), data_dir, [], []
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    kinds = "-".join(dict.fromkeys(source.spec.split(":")[0] for source in sources))
    directory = data_dir / f"{kinds}-{kind}-{vocab_size}-{key}"
    found = PreparedDataset.open(directory) if (directory / MANIFEST).exists() else None
    return found, directory, sources, fingerprints


def _of_same_settings(
    data: DataConfig, vocab_size: int, data_dir: epath.Path, missing: MissingInput
) -> PreparedDataset:
    """Finds the newest dataset of the same settings; raises `missing` if there is none."""
    settings, defaults = (_settings(one, vocab_size, data_dir) for one in (data, type(data)()))
    for manifest in newest_first(data_dir, MANIFEST):
        with contextlib.suppress(UserError):  # a damaged dataset
            dataset = PreparedDataset.open(manifest.parent)
            theirs = dataset.manifest.get("settings")
            if theirs and _portable(defaults | theirs, data_dir) == settings:  # an older version knew fewer
                message = "%s Using %s, made from it earlier: whether it is up to date cannot be checked."
                log.warning(message, missing, manifest.parent)
                return dataset
    raise missing


def newest_first(data_dir: epath.Path, name: str) -> list[epath.Path]:
    """Lists the files of this name in the folders of the data directory."""
    # Not with epath's glob, which takes brackets in the path of data_dir for a pattern.
    folders = data_dir.iterdir() if data_dir.is_dir() else ()
    files = [path for folder in folders if (path := folder / name).exists()]
    return sorted(files, key=modified, reverse=True)


def _damaged(directory: epath.Path, what: str) -> UserError:
    return UserError(f"dataset {directory} is damaged: {what}; delete that folder and run prepare again.")


def _settings(data: DataConfig, vocab_size: int, data_dir: epath.Path) -> dict[str, Any]:
    """Returns what a dataset depends on besides the contents of files, as the manifest holds it."""
    values = {name: getattr(data, name) for name in names(type(data), "prepares")}
    return _portable({"vocab_size": vocab_size} | values, data_dir)


def _portable(settings: dict[str, Any], data_dir: epath.Path) -> dict[str, Any]:
    """Names a tokenizer in the data directory without its path, which may be another on another machine."""
    return settings | {"tokenizer": settings["tokenizer"].replace(f":{data_dir}/", ":DATA_DIR/", 1)}


def _keyed(data: DataConfig) -> dict[str, Any]:
    """Returns the settings that enter the key by their value."""
    fields = set(names(type(data), "prepares")) - KEYED_BY_CONTENT
    defaults = {name: getattr(type(data)(), name) for name in fields}
    values = {name: type(default)(getattr(data, name)) for name, default in defaults.items()}  # 0 is 0.0
    keyed = {name: x for name, x in values.items() if name in ALWAYS_KEYED or x != defaults[name]}
    rules = newer_rules(data.language)
    return keyed | ({"sentences": rules} if rules else {})


def fingerprints_of(sources: Sequence[Source], data_dir: epath.Path) -> list[Any]:
    """Returns the fingerprint of each source; the digests of files are kept in the data directory."""
    digests = Digests(data_dir / DIGESTS)
    return [source.fingerprint(digests) for source in sources]


def check_unchanged(
    data: DataConfig, sources: Sequence[Source], fingerprints: list[Any], data_dir: epath.Path
) -> None:
    """Raises UserError if the sources have other fingerprints by now."""
    if fingerprints_of(sources, data_dir) != fingerprints:
        raise UserError(f"data.source={data.source!r} changed while it was read; run the command again.")
