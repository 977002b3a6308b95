"""Reads labelled data: rows of TSV, CSV and JSONL files and of TFDS datasets, with their places."""

import contextlib
import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from bert_jax.corpus.sources.finding import MissingInput
from bert_jax.corpus.sources.tfds import open_builder, split_spec
from bert_jax.errors import UserError
from bert_jax.tasks.input import is_stream, read_bytes, read_text

KINDS = (".tsv", ".csv", ".jsonl")
LINES_OF_TEXT = "predict also reads .txt, one text a line"
log = logging.getLogger("bert_jax")


class Record(NamedTuple):
    """A row of labelled data; `place` names file and line, for errors."""

    place: str
    values: dict[str, Any]


def digest(source: str, key: str) -> str:
    """Returns a digest of a file's content, or of a TFDS dataset's name, version and split."""
    if source.startswith("tfds:"):
        builder, split = _dataset(source, key)
        identity = [builder.info.full_name, split, builder.info.splits[split].num_examples]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    if is_stream(source):
        raise UserError(f"{key}={source} can be read only once, as a pipe; write it to a file first.")
    return hashlib.sha256(read_bytes(source, key)[0]).hexdigest()


def read_records(source: str, key: str, header: bool = True) -> list[Record]:
    """Reads all records of FILE.tsv, FILE.csv, FILE.jsonl (also .gz, .xz, .zst, .bz2) or tfds:NAME[:SPLIT].

    Args:
        source: the file or dataset; `key` is the config key or flag that named it.
        header: whether the first line of a TSV or CSV file names the columns; if not, they are "0", "1", ….

    Raises:
        UserError: for a file that is missing, empty or broken, naming the line.
    """
    if source.startswith("tfds:"):
        return list(_tfds_records(source, key))
    content, suffix = read_text(source, key)
    if suffix not in KINDS:
        raise UserError(
            f"{key}={source}: this task reads {', '.join(KINDS)} (also .gz, .xz, .zst, .bz2) and tfds:NAME; "
            f"{LINES_OF_TEXT}."
        )
    rows = _json_rows(content, source) if suffix == ".jsonl" else _table_rows(content, source, suffix, header)
    if not (records := list(rows)):
        raise UserError(f"{key}={source} has no rows after its header; add examples.")
    return records


def column(records: list[Record], name: str, key: str) -> list[Any]:
    """Returns a column of all records; raises UserError, naming the columns, if a record lacks it."""
    values = []
    for record in records:
        if name not in record.values:
            known = ", ".join(repr(column) for column in record.values)
            raise UserError(f"{key}={name!r}: {record.place} has no such column; it has {known}.")
        values.append(record.values[name])
    return values


def text_column(records: list[Record], name: str, key: str, lists: bool = False) -> list[Any]:
    """Returns a column whose values must be texts, or `lists` of texts."""
    values = column(records, name, key)
    for record, value in zip(records, values, strict=True):
        texts = value if lists else [value]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            kind = "no list of texts" if lists else "not a text"
            raise UserError(f"{key}={name!r}: {record.place} has {repr(value)[:60]}, which is {kind}.")
    return values


def _table_rows(content: str, source: str, suffix: str, header: bool) -> Iterator[Record]:
    # TSV as in GLUE: quotation marks are ordinary characters, and no field has a line break.
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    csv.field_size_limit(1 << 30)
    lines = io.StringIO(content.rstrip("\r\n"), newline="")
    reader = csv.reader(lines, **options, strict=suffix == ".csv")
    try:
        found = [(f"{source}, line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise UserError(
            f"{source}, line {reader.line_num}: {error}; close every quotation mark, and double it inside a "
            "field."
        ) from None
    rows = [(place, row) for place, row in found if row]
    _log_blank_lines(source, len(found) - len(rows))
    names = rows[0][1] if header else [str(number) for number in range(len(rows[0][1]))]
    if len(set(names)) < len(names):
        raise UserError(f"{rows[0][0]}: two columns have one name in {', '.join(names)}; rename one.")
    for place, row in rows[1 if header else 0 :]:
        if len(row) != len(names):
            raise UserError(
                f"{place} has {len(row)} columns and the first has {len(names)}; every row needs as many."
            )
        yield Record(place, dict(zip(names, row, strict=True)))


def _json_rows(content: str, source: str) -> Iterator[Record]:
    lines = content.rstrip().split("\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                values = parse_json(line)
                json.dumps(values, ensure_ascii=False).encode()  # JSON can write halves of characters
            except (ValueError, RecursionError) as error:
                raise UserError(f"{source}, line {number} is not JSON ({error}).") from None
            if not isinstance(values, dict):
                raise UserError(f"{source}, line {number} is not a JSON object.")
            yield Record(f"{source}, line {number}", values)
    _log_blank_lines(source, sum(not line.strip() for line in lines))


def parse_json(text: str) -> Any:
    """Parses JSON; a key that an object has twice gets a tuple, which is neither a text nor a label."""
    return json.loads(text, object_pairs_hook=_values_by_key)


def _values_by_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        values[name] = (values[name], value) if name in values else value
    return values


def _log_blank_lines(source: str, number: int) -> None:
    if number:
        log.warning("%s: %d blank lines between its rows are left out", source, number)


def _dataset(source: str, key: str) -> tuple[Any, str]:
    """Opens the builder of tfds:NAME[:SPLIT] and checks the split."""
    name, *split = split_spec(source.removeprefix("tfds:"))
    try:
        builder = open_builder(f"{key}={source!r}", name)
    except MissingInput as missing:
        raise UserError(str(missing)) from None
    chosen = split[0] if split else "train"
    if len(split) > 1 or chosen.split("[")[0] not in builder.info.splits:
        splits = ", ".join(builder.info.splits)
        raise UserError(f"{key}={source}: use tfds:NAME[:SPLIT] with a split of {splits}.")
    return builder, chosen


def _tfds_records(source: str, key: str) -> Iterator[Record]:
    builder, split = _dataset(source, key)
    try:
        rows = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise UserError(
            f"{key}={source} cannot be read at random; build it as array_record ({error})."
        ) from None
    for number, row in enumerate(rows):
        yield Record(f"{source}, record {number}", _plain(row, builder.info.features))


def _plain(value: Any, feature: Any) -> Any:
    """Converts what TFDS returns to Python's own types: texts for bytes and classes, lists for arrays."""
    if isinstance(value, dict):
        return {name: _plain(inner, feature[name]) for name, inner in value.items()}
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list):  # TFDS's sequences have the attributes of their feature
        return [_plain(inner, feature) for inner in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None  # -1: the class is unknown
    with contextlib.suppress(UnicodeDecodeError):  # bytes of a column that may not be in use
        return value.decode() if isinstance(value, bytes) else value
    return value
