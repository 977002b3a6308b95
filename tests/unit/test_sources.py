import bz2
import gzip
import hashlib
import itertools
import json
import lzma
import os
import pathlib
import re

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus import sources as sources_lib
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import Digests, MissingInput, files, open_sources, read_text
from bert_jax.errors import UserError

TEXT = "One.\nTwo.\n\nThree.\n"
DOCUMENTS = [["One.", "Two."], ["Three."]]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def chunks(source, **settings):
    return [
        chunk for opened in open_sources(DataConfig(source=source, **settings)) for chunk in opened.chunks()
    ]


def read_jsonl(path, **settings):
    return [document for chunk in chunks(f"jsonl:{path}", **settings) for document in chunk.documents()]


def test_the_embedded_corpus():
    documents = list(read_text("corpus:"))
    assert len(documents) == 659
    assert sum(map(len, documents)) == 38340
    assert documents[0][0] == "EMMA"


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        "\n\n \n" + TEXT + "\n\n",
        TEXT.replace("\n", "\r\n"),
        "\ufeff" + TEXT,
        "One.\nTwo.\n \t \nThree.",
    ],
)
def test_paragraphs_and_documents(tmp_path, content):
    assert list(read_text(f"text:{write(tmp_path / 'a.txt', content)}")) == DOCUMENTS


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".bz2", bz2.compress),
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_compressed_files(tmp_path, suffix, compress):
    several = compress(b"One.\nTw") + compress(b"o.\n\nThree.\n") + b"\0" * 8
    for number, content in enumerate([compress(TEXT.encode()), several]):
        path = write(tmp_path / f"{number}.txt{suffix}", content)
        assert list(read_text(f"text:{path}")) == DOCUMENTS
    big = compress(bytes(i * i % 251 for i in range(100_000)))
    for broken in (big[: len(big) // 2], b"no such format" + big):
        path = write(tmp_path / f"broken.txt{suffix}", broken)
        with pytest.raises(UserError, match=re.escape(f"{path} cannot be read")):
            list(read_text(f"text:{path}"))


def test_globs_home_commas_and_several_sources(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er" / "b.txt", "B")
    write(tmp_path / "deep" / "a,b.txt", "A")
    write(tmp_path / "c.jsonl", '{"text": "C"}')
    assert list(read_text("text:~/deep/**/*.txt")) == [["A"], ["B"]]
    assert list(read_text("text:~/deep/a,b.txt, jsonl:~/c.jsonl,text:~/deep/er/b.txt")) == [
        ["A"],
        ["C"],
        ["B"],
    ]


def test_datasets_runs_and_models_are_no_text(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "bert_jax")
    ours = ["data_dir/x/manifest.json", "data_dir/x/tokenizer/vocab.txt", "data_dir/x/train/x",
            "runs/a/config.json", "runs/a/metrics.jsonl",
            "runs/a/checkpoints/10/tokenizer/vocab.txt", "out/config.json", "out/model.safetensors",
            "out/vocab.txt"]  # fmt: skip
    for path in [*ours, "text/config.json", "text/a.txt", "b.txt"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / path, path)
    monkeypatch.chdir(tmp_path)
    for pattern in ("**/*.txt", f"{tmp_path}/**/*.txt"):
        assert [*read_text(f"text:{pattern}")] == [["b.txt"], ["text/a.txt"]]
        assert "passes over files of datasets, runs or models: 3" in caplog.text
        caplog.clear()
    assert [*read_text("text:out/*.txt")] == [["out/vocab.txt"]]
    with pytest.raises(MissingInput, match="matches no file: there are only files of datasets, runs"):
        open_sources(DataConfig(source="text:runs/**/*.txt"))


def test_no_match_names_the_source_and_the_remedy(tmp_path):
    with pytest.raises(MissingInput, match=r"nothing\*' matches no file"):
        open_sources(DataConfig(source=f"text:{tmp_path}/nothing*"))
    with pytest.raises(MissingInput, match=rf"it is a directory, use text:{tmp_path}/\*"):
        open_sources(DataConfig(source=f"text:{tmp_path}"))


@pytest.mark.parametrize("source", ["", "books.txt", "text:", "parquet:", "hf:", "corpus:austen"])
def test_unknown_sources(source):
    with pytest.raises(UserError, match=r"use corpus:"):
        open_sources(DataConfig(source=source))


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_invalid_utf8_is_reported_with_file_and_byte(tmp_path, monkeypatch, prefix, chunk_bytes):
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    path = write(tmp_path / "latin.txt", prefix + "Café.\n\nDéjà".encode() + "\n\nCaf\xe9".encode("latin1"))
    expected = path.read_bytes().index(b"\xe9")
    with pytest.raises(UserError, match=rf"latin\.txt: byte {expected} is not valid UTF-8"):
        list(read_text(f"text:{path}"))


@pytest.mark.parametrize("chunk_bytes", [1, 9, 1 << 20])
def test_invalid_utf8_can_be_skipped_and_counted(tmp_path, monkeypatch, chunk_bytes):
    """A broken paragraph leaves its document in one piece; a broken record of JSONL moves no line number."""
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfA.\nb\xff\nC.\n\n\xff\n\n" + "Dé.\n".encode())
    blocks = chunks(f"text:{path}", invalid_utf8="skip")
    assert [d for block in blocks for d in block.documents()] == [["A.", "C."], ["Dé."]]
    assert sum(block.left_out.total() for block in blocks) == 2
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n{"body": 1}\n')
    assert read_jsonl(write(tmp_path / "good.jsonl", path.read_bytes()[:-12]), invalid_utf8="skip") == [
        ["a"],
        ["c"],
    ]
    with pytest.raises(UserError, match="line 4: no text"):
        read_jsonl(path, invalid_utf8="skip")


def test_jsonl(tmp_path):
    records = [{"text": "a\n\n b "}, {"text": ""}, {"text": "\ud83d\ude00 \ud83d"}, {"text": "c", "x": [1]}]
    path = write(tmp_path / "a.jsonl", "\n\n".join(map(json.dumps, records)))
    assert read_jsonl(path) == [["a", "b"], [], ["😀 \ufffd"], ["c"]]
    many_digits = '{"n": ' + 5000 * "7" + ', "text": "a"}'
    path = write(tmp_path / "c.jsonl", many_digits + '\n{"text": null}\n{"text": "b"}\n')
    (block,) = chunks(f"jsonl:{path}")
    assert list(block.documents()) == [["a"], [], ["b"]]
    assert block.left_out == {"records whose text is null": 1}
    path = write(tmp_path / "b.jsonl", '{"body": "b"}')
    assert read_jsonl(path, text_field="body") == [["b"]]


def test_a_long_array_is_told_from_a_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 16)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 64)
    for content, remedy in ((' [ {"text": "a"},', r"jq -c '\.\[\]' FILE > NEW"), ("word", "split it")):
        path = write(tmp_path / "a.jsonl", content * 64)
        with pytest.raises(UserError, match=rf"byte 0 is longer than 64 bytes; .*{remedy}\."):
            read_jsonl(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "b"}', r"line 4: no text in the field 'text' \(found: body\)"),
        ('{"text": 3}', "line 4: no text in the field 'text'"),
        (
            '[{"text": "c"}]',
            r"""line 4: '\[{"text": "c"}\]' is no object {…}; make an array one object per line: jq""",
        ),
        (
            json.dumps({f"a\n{n}": 1 for n in range(12)}),
            r"line 4: no text in the field 'text' \(found: a\\n0, .*, a\\n9 and 2 more\)",
        ),
        ('"b"', r"line 4: '\"b\"' is no object {…}; plain text is read with text:GLOB\."),
        ("[", r"line 4: not valid JSON .*; make an array one object per line: jq -c '\.\[\]' FILE > NEW"),
        ("{", "line 4: not valid JSON .*; repair it, or write each object in one line: jq -c . FILE > NEW"),
        ('{"text": ', "line 4: not valid JSON"),
        ("[" * 100_000, "line 4: not valid JSON"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_jsonl_errors_name_the_line(tmp_path, monkeypatch, line, message, chunk_bytes):
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


def test_lines_without_an_end_of_a_document_are_searched_once(monkeypatch):
    """Compressed files come in many small blocks."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 10_000)
    searched = []

    class Counting:
        def finditer(self, data, start):
            searched.append(len(data) - start)
            return files.TextBlock.END.finditer(data, start)

    text = b"a line of 20 letters\n" * 400 + b"\n"
    blocks = ((text[place : place + 30], place + 30) for place in range(0, len(text), 30))
    assert [data for data, _ in files.cut(blocks, Counting(), "a.txt.gz")] == [text]
    assert sum(searched) < 3 * len(text)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "é", "\n", "\n\n", " ", "\r\n", "\n \n", "bc d", "\ufeff"]), max_size=40),
    st.integers(1, 12),
)
def test_documents_do_not_depend_on_where_chunks_end(tmp_path_factory, parts, chunk_bytes):
    path = write(tmp_path_factory.mktemp("text") / "a.txt", "".join(parts))
    whole = ["\n".join(block.lines) for block in chunks(f"text:{path}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk_bytes)
        blocks = chunks(f"text:{path}")
        documents = list(read_text(f"text:{path}"))
    assert "".join("\n".join(block.lines) for block in blocks) == "".join(whole)
    assert documents == list(read_text(f"text:{path}"))
    assert sum(block.read_bytes for block in blocks) == path.stat().st_size
    assert [block.offset for block in blocks] == [
        sum(len(block.data) for block in blocks[:number]) for number in range(len(blocks))
    ]


def test_documents_without_end_are_cut_and_lines_without_end_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 256)
    path = write(tmp_path / "a.txt", "paragraph\n" * 100)
    documents = list(read_text(f"text:{path}"))
    assert len(documents) == 4
    assert list(itertools.chain(*documents)) == ["paragraph"] * 100
    path = write(tmp_path / "b.txt", "word " * 100)
    with pytest.raises(UserError, match=r"b\.txt: the line that begins at byte 0 is longer than 256 bytes"):
        list(read_text(f"text:{path}"))


@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("piece", [7, 50, 300, 5000])
def test_where_a_long_document_is_cut_does_not_depend_on_what_is_read_at_a_time(
    tmp_path, monkeypatch, suffix, piece
):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 256)
    monkeypatch.setattr(files, "CHUNK_BYTES", min(piece, 64))
    monkeypatch.setattr(files, "READ_BYTES", piece)
    compress = {".bz2": bz2.compress, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
    long = [[f"line {n}" + n * "." for n in range(lines)] for lines in (3, 19, 4, 40, 2)]
    text = "\n\n".join("\n".join(document) for document in long)
    path = write(tmp_path / f"a.txt{suffix}", compress.get(suffix, bytes)(text.encode()))
    found = [len(document) for document in read_text(f"text:{path}")]
    assert found == [3, 16, 3, 4, 16, 9, 7, 6, 2, 2]


def test_digests_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    path, cache = write(tmp_path / "a.txt", "same size"), files.epath.Path(tmp_path / "digests.json")
    first = Digests(cache).of([str(path)])
    assert first == [hashlib.sha256(b"same size").hexdigest()]
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert Digests(cache).of([str(path)]) == first
    write(path, "SAME SIZE")
    assert Digests(cache).of([str(path)]) != first
    write(cache, "not JSON")
    assert len(Digests(cache).of([str(path)])[0]) == 64


REPLACEMENTS = {
    "written in place": lambda path: path.write_bytes(b"SAME SIZE"),
    "moved over it": lambda path: write(path.parent / "new.txt", b"SAME SIZE").replace(path),
    "a copy that keeps times": lambda path: (path.unlink(), write(path, b"SAME SIZE")),
    "another target": lambda path: (
        write(path.parent / "new.txt", b"SAME SIZE"),
        path.unlink(),
        path.symlink_to("new.txt"),
    ),
}


@pytest.mark.parametrize("how", REPLACEMENTS)
def test_content_that_changes_while_size_and_time_do_not(tmp_path, how):
    path, cache = write(tmp_path / "a.txt", "same size"), files.epath.Path(tmp_path / "digests.json")
    os.utime(path, ns=(10**18, 10**18))
    first = Digests(cache).of([str(path)])
    REPLACEMENTS[how](path)
    os.utime(path, ns=(10**18, 10**18))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (9, 10**18)
    assert Digests(cache).of([str(path)]) != first


@pytest.mark.parametrize(
    "entry", [[9, 10**18, "old"], [9, 10**18, 10**18, 7, "old"], [], None, 5, [5], {"a": 1}]
)
def test_a_cache_of_digests_of_another_version_is_read_again(tmp_path, entry):
    path, cache = write(tmp_path / "a.txt", "same size"), files.epath.Path(tmp_path / "digests.json")
    os.utime(path, ns=(10**18, 10**18))
    fresh = Digests(files.epath.Path(tmp_path / "none.json")).of([str(path)])
    for content in ({str(path): entry}, [], 3, None):
        pathlib.Path(cache).write_text(json.dumps(content))
        assert Digests(cache).of([str(path)]) == fresh


def test_two_stars_do_not_work_in_buckets():
    with pytest.raises(
        UserError, match=r"data.source='text:gs://bucket/\*\*/\*.txt': \*\* does not work in buckets"
    ):
        open_sources(DataConfig(source="text:gs://bucket/**/*.txt"))


def test_every_source_is_opened_in_its_language(monkeypatch):
    opened = []
    monkeypatch.setattr(
        sources_lib, "_open_source", lambda spec, data, _: opened.append((spec, data.language))
    )
    open_sources(DataConfig(source="text:a@1,text:b@2", language="de,th"))
    open_sources(DataConfig(source="text:a,text:b", language="fr"))
    assert opened == [("text:a", "de"), ("text:b", "th"), ("text:a", "fr"), ("text:b", "fr")]
