"""Finds or builds the prepared datasets of a run: one for each source of a mixture, with one tokenizer.

A tokenizer that is trained is trained once for all sources, and kept beside their datasets:

DATA_DIR/tokenizer-KIND-V-KEY/ holds what `load_tokenizer` reads, and trained_on.json, written last

The datasets are those of each SPEC with this file as tokenizer, so that a source is prepared once for all
mixtures with this tokenizer, and once for all with a tokenizer that is given. Weights decide none of this.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import time
from typing import Any

from etils import epath

from bert_jax.corpus import card as card_lib
from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus.building import building, default_workers
from bert_jax.corpus.config import OPTIONS_OF_TRAINED, TRAINED, DataConfig, changed_options
from bert_jax.corpus.dataset import DocumentStore, PreparedDataset
from bert_jax.corpus.downloads import obtain
from bert_jax.corpus.encode import train_tokenizer
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sources import MissingInput, NotDownloaded, Source, open_sources
from bert_jax.corpus.specs import languages, names, parse
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError

FORMAT = 1  # of a tokenizer's folder; another number, another tokenizer
TRAINED_ON = "trained_on.json"
log = logging.getLogger("bert_jax")


@dataclasses.dataclass(frozen=True)
class PreparedSources:
    """The prepared datasets of a run by the names of their sources; they have one tokenizer."""

    datasets: dict[str, PreparedDataset]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.datasets)

    @property
    def sha256(self) -> str:
        """A digest of all documents: that of the dataset if there is one, else of theirs in order."""
        digests = [dataset.sha256 for dataset in self.datasets.values()]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._first.tokenizer

    def tokenizer_files(self) -> dict[str, bytes]:
        """Returns names (tokenizer/…) and contents of the tokenizer's files, which checkpoints keep."""
        return self._first.tokenizer_files()

    def card_files(self) -> dict[str, bytes]:
        """Returns the file of a checkpoint with the cards of the datasets, by the names of their sources."""
        cards = {name: card_lib.card_of(dataset) for name, dataset in self.datasets.items()}
        known = {name: card for name, card in cards.items() if card}
        return {card_lib.CARDS: json.dumps(known, indent=1).encode()} if known else {}

    def stores(self, split: str) -> list[DocumentStore]:
        """Returns the split `train` or `heldout` of every source."""
        return [dataset.split(split) for dataset in self.datasets.values()]

    @functools.cached_property
    def _first(self) -> PreparedDataset:
        return next(iter(self.datasets.values()))


def prepare(
    data: DataConfig,
    vocab_size: int,
    data_dir: epath.PathLike,
    workers: int | None = None,
    beam_options: list[str] | None = None,
) -> PreparedSources:
    """Finds the prepared datasets of a config, or builds those that are missing, and the tokenizer first.

    Arguments and errors are those of `bert_jax.corpus.dataset.prepare`.
    """
    data_dir = epath.Path(data_dir)
    found, tokenizer, sources, fingerprints = _find_tokenizer(data, vocab_size, data_dir)
    if not found:
        _train(data, vocab_size, data_dir, tokenizer, sources, fingerprints, workers)
    datasets = {
        name: dataset_lib.prepare(one, vocab_size, data_dir, workers, beam_options)
        for name, one in _configs(data, tokenizer).items()
    }
    for dataset in datasets.values():
        card_lib.complete(dataset)
    return PreparedSources(datasets)


def find(data: DataConfig, vocab_size: int, data_dir: epath.PathLike) -> PreparedSources | None:
    """Finds the prepared datasets of a config; returns None if one of them, or the tokenizer, must be built.

    Errors, and what happens without the text, are as for `bert_jax.corpus.dataset.find`.
    """
    is_there, tokenizer, *_ = _find_tokenizer(data, vocab_size, epath.Path(data_dir))
    if not is_there:
        return None
    found = {
        name: dataset_lib.find(one, vocab_size, data_dir) for name, one in _configs(data, tokenizer).items()
    }
    datasets = {name: dataset for name, dataset in found.items() if dataset is not None}
    return PreparedSources(datasets) if len(datasets) == len(found) else None


def dataset_for(
    data: DataConfig,
    vocab_size: int,
    data_dir: epath.PathLike,
    processes: int,
    config: str,
    agreed: bool = False,
    beam_options: list[str] | None = None,
) -> PreparedSources:
    """Returns the prepared datasets of a config; a single process downloads and builds what is missing.

    Args:
        data, vocab_size, data_dir, beam_options: as for `prepare`.
        processes: of the run.
        config: value of --config as it was typed, for the remedy.
        agreed: to a download of the sources; otherwise a terminal is asked.

    Raises:
        UserError: if one is missing and there are several processes (with the command that builds it), if a
            download is not agreed to or fails, or as `prepare`.
    """
    if processes == 1:
        try:
            return prepare(data, vocab_size, data_dir, beam_options=beam_options)
        except NotDownloaded:
            obtain(data, data_dir, agreed)
            return prepare(data, vocab_size, data_dir, beam_options=beam_options)
    download = ""
    try:
        if found := find(data, vocab_size, data_dir):
            return found
    except NotDownloaded:
        download = " --download"
    raise UserError(
        f"--data_dir={data_dir} holds no dataset of this config, and {processes} processes "
        f"must not build it at once: first run python -m bert_jax.prepare --config={config} "
        f"--data_dir={data_dir}{download} with the same overrides."
    )


def _configs(data: DataConfig, tokenizer: str) -> dict[str, DataConfig]:
    """Returns the `data` of each source's dataset by its name."""
    sources = parse(data.source).sources
    if tokenizer != data.tokenizer:  # trained for these sources: its file decides, not how it was trained
        defaults = {name: getattr(DataConfig, name) for name in OPTIONS_OF_TRAINED}
        data = dataclasses.replace(data, tokenizer=tokenizer, **defaults)
    spoken = languages(data.source, data.language)
    return {
        name: dataclasses.replace(data, source=source, language=language)
        for name, source, language in zip(names(sources), sources, spoken, strict=True)
    }


def _find_tokenizer(
    data: DataConfig, vocab_size: int, data_dir: epath.Path
) -> tuple[bool, str, list[Source], list[Any]]:
    """Finds the tokenizer of all sources, a file in the data directory if it is trained on several.

    Returns:
        Whether it is there, its `data.tokenizer`, the sources to train it on and their fingerprints.
    """
    if len(parse(data.source).sources) == 1 or data.tokenizer not in TRAINED:
        return True, data.tokenizer, [], []
    try:
        sources = open_sources(data, data_dir)
        fingerprints = dataset_lib.fingerprints_of(sources, data_dir)
    except MissingInput as missing:
        return True, _file(data.tokenizer, _of_same_settings(data, vocab_size, data_dir, missing)), [], []
    # The sources in one order, however they are written, and without weights: these may change, and nothing
    # is prepared again.
    ordered = sorted(zip(fingerprints, sources, strict=True), key=lambda pair: json.dumps(pair[0]))
    fingerprints, sources = [list(values) for values in zip(*ordered, strict=True)]
    content = [FORMAT, fingerprints, _settings(data, vocab_size)]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    folder = data_dir / f"tokenizer-{data.tokenizer}-{vocab_size}-{key}"
    return (folder / TRAINED_ON).exists(), _file(data.tokenizer, folder), sources, fingerprints


def _file(kind: str, folder: epath.Path) -> str:
    """Names the file that a trained tokenizer of a kind leaves in a folder, as `data.tokenizer`."""
    read, file = {
        "byte_bpe": ("tokenizer_json", JsonTokenizer.FILE),
        "wordpiece": ("wordpiece", WordPieceTokenizer.FILE),
    }.get(kind, ("sentencepiece", SentencePieceTokenizer.FILE))
    return f"{read}:{folder / file}"


def _train(
    data: DataConfig,
    vocab_size: int,
    data_dir: epath.Path,
    tokenizer: str,
    sources: list[Source],
    fingerprints: list[Any],
    workers: int | None,
) -> None:
    """Trains the tokenizer that `_find_tokenizer` has not found."""
    start = time.perf_counter()
    folder = epath.Path(tokenizer.partition(":")[2]).parent
    log.info("prepare: a tokenizer for %s into %s", data.source, folder)
    with building(folder, TRAINED_ON) as new, Workers(workers or default_workers(sources)) as pool:
        train_tokenizer(sources, data, vocab_size, pool).save(new)
        dataset_lib.check_unchanged(data, sources, fingerprints, data_dir)
        (new / TRAINED_ON).write_text(json.dumps(_trained_on(data, vocab_size), indent=1))
    seconds = time.perf_counter() - start
    log.info("tokenizer: %s of %d pieces in %.1f s", data.tokenizer, vocab_size, seconds)


def _settings(data: DataConfig, vocab_size: int) -> dict[str, Any]:
    """Returns what a trained tokenizer depends on besides the text."""
    fields = ("tokenizer", "lowercase", "tokenizer_sample_mb")
    values = {"vocab_size": vocab_size} | {name: getattr(data, name) for name in fields}
    return values | changed_options(data)  # later ones, not at their defaults, so that older ones are found


def _trained_on(data: DataConfig, vocab_size: int) -> dict[str, Any]:
    """Returns what trained_on.json holds."""
    options = {"text_field": data.text_field, "invalid_utf8": data.invalid_utf8}
    return {
        "format": FORMAT,
        "specs": sorted(parse(data.source).sources),
        "settings": _settings(data, vocab_size) | options,
    }


def _of_same_settings(
    data: DataConfig, vocab_size: int, data_dir: epath.Path, missing: MissingInput
) -> epath.Path:
    """Finds the newest tokenizer of the same SPECs and settings; raises `missing` if there is none."""
    for file in dataset_lib.newest_first(data_dir, TRAINED_ON):
        with contextlib.suppress(ValueError):  # a damaged one
            if json.loads(file.read_bytes()) == _trained_on(data, vocab_size):
                return file.parent
    raise missing
