"""Encodes the documents of a dataset with Apache Beam, on one machine or on many.

    parts of the sources ─ cut ─ (source, part, number), chunk ─ encode ─ group ─ write ranges of chunks
                                                                     └─ the caller: shards in order, one index

Tokenizer and hygiene learn before, where the command runs: what they learn is small, and workers read it.

Beam needs protobuf < 7, and what it needs of this package is in the extra `beam`.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from bert_jax.corpus import hygiene
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import DocumentEncoder, EncodedChunk
from bert_jax.corpus.journal import TOKENIZER, Journal
from bert_jax.corpus.shards import SPLITS, UNFINISHED, beside
from bert_jax.corpus.sources import Chunk, Source, chunks_of
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.tokenizer_files import load_tokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.corpus.writer import DocumentsWriter, SourceCounts, finish
from bert_jax.errors import UserError, reason
from bert_jax.files import write

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(
        f"--runner=beam needs Apache Beam ({error}): python -m venv beam-env; "
        "beam-env/bin/pip install 'bert_jax[beam]', and run prepare with beam-env/bin/python."
    ) from None

CHUNKS_PER_RANGE = 256  # about one shard; a worker holds their token ids in memory
ERROR, JSON = "error.txt", ".json"
BEAM = ".beam-"  # in the name of the folder that the workers of a pipeline share
RENAMING_THREADS = 32
TABLES = "tables"  # folder of what hygiene has learned
Key = tuple[int, int, int]  # number of the source, of its part, of the chunk or range of chunks
log = logging.getLogger("bert_jax")


@dataclasses.dataclass
class Part:
    """A part of a source, which one worker cuts."""

    source_number: int
    number: int  # in the source
    source: Source
    first: int = 0  # number in the corpus of its first chunk, if hygiene asks for it


def check(options: list[str]) -> None:
    """Raises UserError for options that the runner of a pipeline refuses."""
    try:
        beam.Pipeline(options=PipelineOptions(options))
    except (ValueError, ImportError, AttributeError) as error:
        raise UserError(f"--beam_options={' '.join(options)}: {reason(error)}") from None


def write_documents(
    new: epath.Path,
    sources: Sequence[Source],
    data: DataConfig,
    tokenizer: Tokenizer,
    journal: Journal,
    save: Callable[[], None],
    workers: Workers,
    directory: epath.Path,
    options: list[str],
) -> dict[str, Any]:
    """Does what `bert_jax.corpus.writer.write_documents` does, by an Apache Beam pipeline.

    Args:
        new, sources, data, tokenizer, journal, save: as there. The documents of a bucket's dataset are not
            written into `new`, but where they stay.
        workers: processes of this machine, which learn the rules of hygiene.
        directory: of the dataset; beside it is a folder while the pipeline runs, for all its workers.
        options: of the pipeline, as Beam's own command lines have them.

    Returns, raises: as there.
    """
    _tell_of_others(directory)
    shared = directory.parent / f".{directory.name}{BEAM}{secrets.token_hex(4)}"
    try:
        tokenizer.save(shared / TOKENIZER)
        parts = _parts(sources)
        with tempfile.TemporaryDirectory() as local:
            rules = _learned(parts, data, workers, pathlib.Path(local))
            rules = hygiene.copied(rules, shared / TABLES)
        _run(shared, parts, rules, data, options)
        target = directory if "://" in os.fspath(directory) else new
        by_source = [SourceCounts(tokenizer.unk_id) for _ in sources]
        besides = _move_shards(shared, target, journal, by_source)
        save()
        return finish(new, journal, besides, data, tokenizer.vocab_size)
    finally:
        shared.rmtree(missing_ok=True)


def _tell_of_others(directory: epath.Path) -> None:
    """Logs the folders of other pipelines of this dataset; nobody here can tell whether they still run."""
    siblings = directory.parent.iterdir() if directory.parent.is_dir() else ()
    for folder in siblings:
        if folder.name.startswith(f".{directory.name}{BEAM}"):
            log.warning("%s is of another pipeline; delete it if that was killed", folder)


def _move_shards(
    shared: epath.Path, target: epath.Path, journal: Journal, by_source: list[SourceCounts]
) -> dict[str, list[epath.Path]]:
    """Gives the shards of all ranges their places, in the order of the documents; adds up the counts.

    Returns:
        What stands beside the shards of each split.
    """
    moved, besides = [], {split: list[epath.Path]() for split in SPLITS}
    for path in sorted(path for path in shared.iterdir() if path.name.endswith(JSON)):
        ended = Journal.read(path)
        assert ended is not None, path
        by_source[int(path.name.split("-")[0])].add_entry(ended.by_source[0])
        for split, shards in ended.shards.items():
            for number, shard in enumerate(shards):
                made = ended.shard_path(shared, split, number)
                made = made.parent / f"{path.name.removesuffix(JSON)}-{made.name}"
                moved.append((made, journal.shard_path(target, split)))
                besides[split].append(made.parent / f"{made.name}.npz")
                journal.shards[split].append(shard)
    journal.by_source = [counts.manifest_entry() for counts in by_source]
    target.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(RENAMING_THREADS) as threads:
        list(threads.map(lambda pair: pair[0].replace(pair[1]), moved))
    return besides


def _parts(sources: Sequence[Source]) -> list[Part]:
    found: list[Part] = []
    for source_number, source in enumerate(sources):
        parts: Sequence[Source] = source.parts()
        found += [Part(source_number, number, part) for number, part in enumerate(parts)]
    return found


def _learned(
    parts: list[Part], data: DataConfig, workers: Workers, folder: pathlib.Path
) -> tuple[hygiene.Rule, ...]:
    """Learns the rules of hygiene, with tables in `folder`, and numbers the first chunks of the parts."""

    def chunks() -> Iterator[Chunk]:
        number = 0
        for part in parts:
            part.first = number
            for chunk in part.source.chunks():
                yield chunk
                number += 1

    size = sum(part.source.size for part in parts)
    return hygiene.learn(hygiene.rules_of(data), chunks, workers.map, folder, size)


def _run(
    shared: epath.Path,
    parts: list[Part],
    rules: tuple[hygiene.Rule, ...],
    data: DataConfig,
    options: list[str],
) -> None:
    folder = os.fspath(shared)
    log.info("prepare: an Apache Beam pipeline encodes %d files", len(parts))
    try:
        with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
            _ = (
                pipeline
                | "parts" >> beam.Create(parts)
                | "spread parts" >> beam.Reshuffle()
                | "cut" >> beam.ParDo(Cut(folder))
                | "spread chunks" >> beam.Reshuffle()
                | "encode" >> beam.ParDo(Encode(folder, rules, data.language, data.held_out_fraction))
                | "group" >> beam.GroupByKey()
                | "write" >> beam.ParDo(WriteRange(folder))
            )
    except Exception:
        if (shared / ERROR).exists():
            raise UserError((shared / ERROR).read_text()) from None
        raise


@contextlib.contextmanager
def _user_errors(folder: str) -> Iterator[None]:
    """Hands the message of a UserError to the caller of the pipeline; runners make other errors of it."""
    try:
        yield
    except UserError as error:
        write(epath.Path(folder) / ERROR, str(error))
        raise


class Cut(beam.DoFn):
    """Cuts a part of a source into numbered chunks."""

    def __init__(self, folder: str):
        self._folder = folder

    def process(self, part: Part) -> Iterator[tuple[Key, tuple[int, Chunk]]]:
        with _user_errors(self._folder):
            for number, chunk in enumerate(chunks_of([part.source])):
                yield (part.source_number, part.number, number), (part.first + number, chunk)


class Encode(beam.DoFn):
    """Cleans and encodes a chunk, as the processes of one machine do."""

    def __init__(self, folder: str, rules: tuple[hygiene.Rule, ...], language: str, held_out_fraction: float):
        self._folder, self._rules, self._settings = folder, rules, (language, held_out_fraction)

    def setup(self) -> None:
        tokenizer = load_tokenizer(epath.Path(self._folder) / TOKENIZER)
        self._encoder = DocumentEncoder(tokenizer, *self._settings)
        self._local = tempfile.TemporaryDirectory()
        self._here = self._rules
        if "://" in self._folder:  # tables are memory-mapped
            self._here = hygiene.copied(self._rules, epath.Path(self._local.name))

    def teardown(self) -> None:
        self._local.cleanup()

    def process(
        self, element: tuple[Key, tuple[int, Chunk]]
    ) -> Iterator[tuple[Key, tuple[int, EncodedChunk]]]:
        (source, part, number), (in_corpus, chunk) = element
        with _user_errors(self._folder):
            cleaned = hygiene.CleanedChunk(chunk, in_corpus, self._here)
            yield (source, part, number // CHUNKS_PER_RANGE), (number, self._encoder(cleaned))


class WriteRange(beam.DoFn):
    """Writes a range of chunks as shards, and a journal that tells what they hold."""

    def __init__(self, folder: str):
        self._folder = folder

    def setup(self) -> None:
        self._tokenizer = load_tokenizer(epath.Path(self._folder) / TOKENIZER)

    def process(self, element: tuple[Key, Iterable[tuple[int, EncodedChunk]]]) -> None:
        key, chunks = element
        shared, name = epath.Path(self._folder), "-".join(f"{number:08d}" for number in key)
        journal = Journal({}, by_source=[SourceCounts(self._tokenizer.unk_id).manifest_entry()])
        with tempfile.TemporaryDirectory() as temporary:
            local = epath.Path(temporary)
            (local / UNFINISHED).mkdir()
            writer = DocumentsWriter(local, self._tokenizer, journal, lambda: None)
            for _, chunk in sorted(chunks, key=lambda item: item[0]):
                writer.add(0, chunk)
            writer.finish_shards()
            for split in journal.shards:
                for path in journal.paths(local, split):
                    write(shared / f"{name}-{path.name}", path.read_bytes())
                    write(shared / f"{name}-{path.name}.npz", beside(path).read_bytes())
        journal.write(shared / f"{name}{JSON}")
