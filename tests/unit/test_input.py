import gzip
import io
import os
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.tasks.input import is_stream, read_bytes, read_lines, read_text, suffix_of
from bert_jax.tasks.records import digest

ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # where str.splitlines would split


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        ("a.txt", ".txt"),
        ("A.TXT", ".txt"),
        ("a.jsonl.gz", ".jsonl"),
        ("a.Json.XZ", ".json"),
        ("a.tsv.zst", ".tsv"),
        ("folder.csv/a", ""),
        ("a.b.conll", ".conll"),
        ("a.gz", ""),
        ("gs://bucket/a.CSV", ".csv"),
        ("", ""),
    ],
)
def test_suffixes(source, suffix):
    assert suffix_of(source) == suffix


CHARACTERS = st.one_of(
    st.sampled_from(f"a \t\r{ODD}"), st.characters(exclude_characters="\n\0\ufeff", codec="utf-8")
)
LINES = st.lists(st.text(CHARACTERS).filter(lambda line: not line.endswith("\r")), min_size=1)


@given(LINES, st.sampled_from(["\n", "\r\n"]))
def test_every_line_is_there_whatever_is_in_it(tmp_path_factory, lines, end):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    lines = [*lines, "the last"]
    for last in ("", end):
        path.write_bytes((end.join(lines) + last).encode())
        assert read_lines(str(path), "--input") == lines


def test_blank_lines_and_carriage_returns_are_kept(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff\ngood\rfine\r\n \r\n\r\nbad\n\n".encode())
    assert read_lines(str(tmp_path / "a.txt"), "--input") == ["", "good\rfine", " ", "", "bad", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("für\n".encode("latin1"), r" is not a UTF-8 text file \(.*0xfc.*convert it, .* iconv -f cp1252 -t"),
        (
            b"so\0it\n",
            r" is no text file: byte 2 is NUL, .*; take it out, or convert UTF-16 with iconv -f utf-16",
        ),
        (b"a\rb\rc\r", r": its lines end in \\r \(carriage return\) alone; convert it with tr '\\r' '\\n' <"),
        (b"", r" is empty; write one text a line\.$"),
        ("\ufeff \n\u3000\u2028\r\n".encode(), r" has white space only; write one text a line\.$"),
    ],
)
def test_what_is_no_text_is_one_line_with_a_remedy(tmp_path, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^--input={path}{message}") as error:
        read_lines(str(path), "--input")
    assert "\n" not in str(error.value)
    compressed = tmp_path / "a.txt.GZ"
    compressed.write_bytes(gzip.compress(content, mtime=0))
    with pytest.raises(UserError, match=f"^--input={compressed}{message}"):
        read_lines(str(compressed), "--input")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "so it\n".encode("utf-16"),
            "looks like UTF-16, not UTF-8: convert it with iconv -f utf-16 -t utf-8",
        ),
        (gzip.compress(b"so it\n", mtime=0), "is no text file but compressed with gzip: decompress it first"),
        (b"%PDF-1.7\n", "is no text file but a PDF document"),
    ],
)
def test_formats_are_known_by_how_they_begin_in_files_and_streams(tmp_path, monkeypatch, content, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    for source in (str(path), "-"):
        with pytest.raises(UserError, match=f"^--input={source} {message}"):
            read_lines(source, "--input")


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere.txt", "No such file"), (".", "Is a directory"), ("x" * 300, "File name too long")],
)
def test_a_path_that_cannot_be_read(path, message):
    with pytest.raises(UserError, match=f"^--input={path} cannot be read: .*{message}.*. Check the path and"):
        read_lines(path, "--input")


@pytest.mark.parametrize("source", ["-", "/dev/stdin"])
def test_standard_input(monkeypatch, source):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffgrün\n\nso\n".encode()), "latin1"))
    assert read_lines(source, "--input") == ["grün", "", "so"]


def test_pipes_are_read_once_and_not_from_another_place(tmp_path):
    """A named pipe, and one of the shell's <(…); a reader that opens twice or seeks would wait or fail."""
    named = tmp_path / "named.tsv"
    os.mkfifo(named)
    writer = threading.Thread(target=named.write_bytes, args=(b"so\n\nit\n",), daemon=True)
    writer.start()
    assert read_lines(str(named), "--input") == ["so", "", "it"]
    writer.join()
    reading, writing = os.pipe()
    os.write(writing, b"so\nit")
    os.close(writing)
    assert read_bytes(f"/dev/fd/{reading}", "--input") == (b"so\nit", "")
    os.close(reading)


def test_what_is_a_stream(tmp_path):
    (tmp_path / "a.txt").write_text("so\n")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [name for name in ("a.txt", "pipe.txt", "nowhere", ".") if is_stream(str(tmp_path / name))] == [
        "pipe.txt"
    ]
    assert all(map(is_stream, ("-", "/dev/stdin", "/dev/fd/63", "/proc/self/fd/0")))
    assert not any(map(is_stream, ("", "-.txt", "tfds:glue", "gs://bucket/a.txt")))


def test_data_that_is_read_twice_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(
        UserError, match=r"^data.train=.*pipe.tsv can be read only once, as a pipe; write it to a"
    ):
        digest(str(tmp_path / "pipe.tsv"), "data.train")


def test_byte_order_marks_are_no_text(tmp_path):
    """Files that were joined have one at each start, which would be part of a word."""
    (tmp_path / "a.Conll").write_bytes("\ufeffso O\n\n\ufeffit\ufeff O\n".encode())
    assert read_text(str(tmp_path / "a.Conll"), "data.train") == ("so O\n\nit\ufeff O\n", ".conll")
