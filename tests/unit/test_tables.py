"""Columns of Parquet and Arrow files, and datasets of the Hugging Face library."""

import json
import os
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import Digests, MissingInput, files, open_sources, parquet
from bert_jax.corpus.sources.tables import binary, texts_of
from bert_jax.corpus.specs import names, parse
from tests.source_files import message, read


def chunks_of(source, **settings):
    (opened,) = open_sources(DataConfig(source=source, **settings))
    return opened, list(opened.chunks())


def write_parquet(path, table, **options):
    pq.write_table(table, path, **options)


def write_stream(path, table, **options):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=options.get("row_group_size"))


def write_file(path, table, **options):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=options.get("row_group_size"))


WRITERS = {"parquet": write_parquet, "arrow": write_stream, "arrow file": write_file}


@pytest.fixture(params=WRITERS)
def source_of(request, tmp_path):
    """Writes a table into a file and returns the source that reads it, and its path."""

    def make(table, **options):
        path = tmp_path / f"a.{request.param.split()[0]}"
        WRITERS[request.param](path, table, **options)
        return f"{request.param.split()[0]}:{path}", path

    return make


TYPES = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of bytes": pa.dictionary(pa.int32(), pa.binary()),
}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_text(source_of, kind):
    texts = ["One ä.\n\n Two. ", None, "", "日本\0語", None]
    table = pa.table({"n": range(5), "text": pa.array(texts).cast(TYPES[kind])})
    source, _ = source_of(table, row_group_size=2)
    _, found = chunks_of(source)
    assert [document for chunk in found for document in chunk.documents()] == [
        ["One ä.", "Two."], [], [], ["日本語"], [],
    ]  # fmt: skip
    assert [chunk.left_out for chunk in found if chunk.left_out] in (
        [{"records whose text is null": 1}] * 2,
        [{"records whose text is null": 2}],
    )


def test_a_column_of_another_name(source_of):
    source, _ = source_of(pa.table({"text": ["no"], "body": ["yes"]}))
    assert read(source, text_field="body") == [["yes"]]
    source, _ = source_of(pa.table({"a": [{"b": "no"}], "a.b": ["yes"]}))
    assert read(source, text_field="a.b") == [["yes"]]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            {"title": ["a"], "n": [1], "body": ["b"]},
            "no column of text 'text' (found: title (string), n (int64), body (string)); "
            "set data.text_field to title or body.",
        ),
        ({"text": [3]}, "no column of text 'text' (found: text (int64)); none of them is text."),
        ({"text": [["a"]]}, "(found: text (list<item: string>)); none of them is text."),
        ({}, "no column of text 'text' (found: no column); none of them is text."),
    ],
)
def test_a_column_that_is_missing_or_no_text(source_of, table, expected):
    source, path = source_of(pa.table(table))
    said = message(source)
    assert said.startswith(f"{path}: no column of text")
    assert said.replace("element:", "item:").endswith(expected)  # Parquet's name and Arrow's


def test_a_column_of_nulls_alone_and_byte_order_marks(source_of):
    source, _ = source_of(pa.table({"text": pa.nulls(3)}))
    _, found = chunks_of(source)
    assert [document for chunk in found for document in chunk.documents()] == [[]] * 3
    assert sum(chunk.left_out["records whose text is null"] for chunk in found) == 3
    assert read(source_of(pa.table({"text": ["\ufeffa\nb"]}))[0]) == [["a", "b"]]


def test_a_column_that_is_there_twice(source_of):
    source, path = source_of(pa.table([["a"], ["b"]], names=["text", "text"]))
    assert message(source) == f"{path}: 2 columns have the name 'text'; rename all but one."


@pytest.mark.parametrize(
    ("kind", "beside"),
    [("parquet", ["_SUCCESS", "_metadata"]), ("arrow", ["state.json", "dataset_info.json"])],
)
def test_what_stands_beside_tables_is_passed_over(tmp_path, kind, beside):
    WRITERS[kind](tmp_path / "part-0", pa.table({"text": ["a"]}))
    for name in beside:
        (tmp_path / name).touch()
    assert read(f"{kind}:{tmp_path}/*") == [["a"]]


def test_text_that_is_not_utf8_is_named_by_its_row_or_skipped(source_of):
    texts = pa.array([b"good"] * 7 + [b"b\xffd"] + [b"good"] * 2)
    source, path = source_of(pa.table({"text": texts}), row_group_size=3)
    assert message(source) == (
        f"{path}, row 7: byte 1 of its text is not valid UTF-8 (invalid start byte); write it as UTF-8, or "
        "set data.invalid_utf8=skip."
    )
    _, found = chunks_of(source, invalid_utf8="skip")
    assert [d for chunk in found for d in chunk.documents()] == [["good"]] * 9
    assert sum(chunk.left_out.total() for chunk in found) == 1


def test_chunks_are_small_and_cover_the_file(source_of, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 50)
    texts = [f"{n} " + "x" * (n % 13) for n in range(500)]
    opened, found = chunks_of(source_of(pa.table({"text": texts, "n": range(500)}), row_group_size=200)[0])
    assert [d for chunk in found for d in chunk.documents()] == [[text.strip()] for text in texts]
    assert all(0 < chunk.size <= 100 for chunk in found)
    assert 50 < len(found) < 100
    assert 0.9 * opened.size < sum(chunk.read_bytes for chunk in found) <= opened.size


def test_each_chunk_has_its_share_of_the_bytes_that_were_read(monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 10)
    texts, empty = pa.array(["a" * 5, "b" * 5, "", "c" * 5, "d" * 8]), pa.array(["", None])
    shares = [
        [chunk.read_bytes for chunk in texts_of(binary(column), "row", 0, 100, "error").cut()]
        for column in (texts, empty)
    ]
    assert shares == [[43, 22, 35], [100]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("word " * 5 + "\n" + "w" * 10, ["word " * 5 + "\n", "w" * 10]),
        ("word " * 12, ["word " * 6, "word " * 6]),
        ("x" * 70, ["x" * 31, "x" * 31, "x" * 8]),
        ("ä" * 20, ["ä" * 15, "ä" * 5]),
        ("語" * 30, ["語" * 10, "語" * 10, "語" * 10]),
    ],
)
def test_a_long_text_is_several_documents(source_of, monkeypatch, text, parts):
    """As one of a text file is: cut after a line, else after a word, else after a character."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 16)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 32)
    source, _ = source_of(pa.table({"text": ["before", text, "after"]}))
    documents = read(source)
    assert documents == [["before"], *([part.strip()] for part in parts), ["after"]]
    _, found = chunks_of(source)
    assert all(chunk.size <= 32 for chunk in found)


@pytest.mark.parametrize("setting", [{"text_field": "title"}, {"invalid_utf8": "skip"}])
def test_the_fingerprint_follows_content_and_settings(source_of, tmp_path, setting):
    table = pa.table({"title": ["a"], "text": ["b"]})
    source, path = source_of(table)
    digests = Digests(files.epath.Path(tmp_path / "digests.json"))

    def fingerprint(**settings):
        return open_sources(DataConfig(source=source, **settings))[0].fingerprint(digests)

    first = fingerprint()
    assert first == fingerprint()
    assert first != fingerprint(**setting)
    content = path.read_bytes()
    path.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])
    assert fingerprint() != first


def test_folders_of_datasets(tmp_path):
    folder = tmp_path / "saved" / "train"
    folder.mkdir(parents=True)
    for number, name in enumerate(["data-1.arrow", "data-0.arrow"]):
        write_stream(folder / name, pa.table({"text": [f"text {number}"]}))
    write_stream(folder / "cache-1.arrow", pa.table({"text": ["not part of it"]}))
    state = {"_data_files": [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert read(f"arrow:{folder}") == [["text 0"], ["text 1"]]
    split = f"arrow:{tmp_path}/saved/train or arrow:{tmp_path}/saved/test"
    assert f"is a folder of splits: use {split}." in message(f"arrow:{tmp_path}/saved/")
    (folder / "data-0.arrow").unlink()
    assert "lacks data-0.arrow; save or copy" in message(f"arrow:{folder}", MissingInput)
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    assert "has its rows in another order" in message(f"arrow:{folder}")
    (folder / "state.json").write_text("{")
    assert f"{folder}/state.json cannot be read" in message(f"arrow:{folder}")
    for other in ('{"epoch": 1}', "[1]", '{"_data_files": [1]}'):
        (folder / "state.json").write_text(other)
        assert "state.json or dataset_dict.json is not that of a saved" in message(f"arrow:{folder}")
    assert "matches no file: it is a directory" in message(f"parquet:{folder}", MissingInput)


def test_names_and_weights():
    source = "hf:allenai/c4:en@2,parquet:/data/wiki/*.parquet@1,arrow:/data/books@1"
    assert names(parse(source).sources) == ("c4", "wiki", "books")


def test_without_the_library_of_hugging_face(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message("hf:imdb", MissingInput) == (
        "data.source='hf:imdb' needs the library datasets: pip install 'bert_jax[huggingface]'."
    )


def test_what_the_library_of_hugging_face_raises_is_one_line(monkeypatch):
    asked = []

    def load_dataset(*arguments, **named):
        asked.append((arguments, named))
        raise ConnectionError("no network\nat all.")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    for source in ("hf:imdb", "hf:a/b:en", "hf:a/b::test[:10%]"):
        assert message(source, MissingInput).startswith(
            f"data.source={source!r} cannot be loaded (no network at all); use hf:NAME"
        )
    assert asked == [
        (("imdb", None), {"split": "train"}),
        (("a/b", "en"), {"split": "train"}),
        (("a/b", None), {"split": "test[:10%]"}),
    ]


def test_a_dataset_of_hugging_face(tmp_path, monkeypatch):
    """With the library itself, where it is installed: a folder of files, the second time from its cache."""
    monkeypatch.setitem(os.environ, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    folder = tmp_path / "files"
    folder.mkdir()
    rows = [{"title": f"T{n}", "text": f"One {n}.\nTwo." if n % 5 else None} for n in range(3000)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    opened, found = chunks_of(f"hf:{folder}")
    assert [d for chunk in found for d in chunk.documents()] == [
        [f"One {n}.", "Two."] if n % 5 else [] for n in range(3000)
    ]
    assert sum(chunk.left_out.total() for chunk in found) == 600
    assert read(f"hf:{folder}::train[:2]", text_field="title") == [["T0"], ["T1"]]
    digests = Digests(files.epath.Path(tmp_path / "digests.json"))
    again, _ = chunks_of(f"hf:{folder}")
    assert again.fingerprint(digests) == opened.fingerprint(digests)
    other, _ = chunks_of(f"hf:{folder}::train[:2]")
    assert other.fingerprint(digests) != opened.fingerprint(digests)
    assert "cannot be loaded (Unknown split" in message(f"hf:{folder}::dev", MissingInput)
    assert "no column of text 'body' (found: title (string), text (string))" in message(
        f"hf:{folder}", text_field="body"
    )
    library.load_dataset(str(folder), split="train").save_to_disk(tmp_path / "saved")
    assert read(f"arrow:{tmp_path}/saved") == read(f"hf:{folder}")
    assert "use hf:NAME[:CONFIG[:SPLIT]], or arrow:FOLDER for" in message(
        f"hf:{tmp_path}/saved", MissingInput
    )
