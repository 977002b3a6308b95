"""What is in a file: archives, other encodings and line ends are no text."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import Digests, files, open_sources
from bert_jax.errors import UserError
from bert_jax.tasks import records
from tests.source_files import STORY, message, read, write


def tar(tar_format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        entry = tarfile.TarInfo("story.txt")
        entry.size = len(STORY)
        archive.addfile(entry, io.BytesIO(STORY.encode()))
    return buffer.getvalue()


def tar_of_1979():
    """A tar archive without the signature that later ones have."""
    archive = bytearray(tar(tarfile.USTAR_FORMAT))
    archive[257:512] = bytes(255)
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    return bytes(archive)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("story.txt", STORY)
    return buffer.getvalue()


def parquet():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [STORY]}), buffer)
    return buffer.getvalue()


def arrow(new):
    buffer = io.BytesIO()
    table = pa.table({"text": [STORY]})
    with new(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def zstd(content):
    return zstandard.ZstdCompressor().compress(content)


NO_TEXT = {
    "gnu.tar": (tar(tarfile.GNU_FORMAT), "a tar archive: unpack"),
    "a.tar": (tar(), "a tar archive: unpack it first, with tar -xf"),
    "a.tar.gz": (gzip.compress(tar()), "a tar archive: unpack"),
    "a.tar.xz": (lzma.compress(tar()), "a tar archive: unpack"),
    "a.tar.zst": (zstd(tar()), "a tar archive: unpack"),
    "a.tgz": (
        gzip.compress(tar()),
        "compressed with gzip: decompress it first, with gzip -d (a .tgz with tar",
    ),
    "a.txt": (gzip.compress(STORY.encode()), "compressed with gzip: decompress"),
    "twice.gz": (gzip.compress(gzip.compress(STORY.encode())), "compressed with gzip: decompress"),
    "b.txt": (lzma.compress(STORY.encode()), "compressed with xz: decompress"),
    "c.txt": (zstd(STORY.encode()), "compressed with zstd: decompress"),
    "bz.txt": (
        bz2.compress(STORY.encode()),
        "compressed with bzip2: decompress it first, with bzip2 -d, or rename it to end in .bz2",
    ),
    "a.tbz": (bz2.compress(tar(), 1), "compressed with bzip2: decompress"),
    "a.tar.bz2": (bz2.compress(tar(), 1), "a tar archive: unpack"),
    "twice.bz2": (bz2.compress(bz2.compress(STORY.encode())), "compressed with bzip2: decompress"),
    "v7.tar": (tar_of_1979(), "a tar archive: unpack"),
    "a.zip": (zipped(), "a zip archive, as .docx, .xlsx and .epub are too: unpack"),
    "zip.gz": (gzip.compress(zipped()), "a zip archive"),
    "a.7z": (b"7z\xbc\xaf'\x1c\x00\x04", "a 7z archive: unpack it first, with 7z x"),
    "a.rar": (b"Rar!\x1a\x07\x01\x00", "a RAR archive: unpack it first, with unrar x"),
    "a.lz4": (b"\x04\x22\x4d\x18\x64\x40", "compressed with LZ4: decompress it first, with lz4 -d"),
    "a.pdf": (b"%PDF-1.7\n1 0 obj\n", "a PDF document: extract its text first"),
    "a.rtf": (b"{\\rtf1\\ansi Once.}\n", "an RTF document: save it as plain text"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\x00", "an old Office document: save it as plain text"),
    "a.parquet": (parquet(), "a Parquet table: corpora are read with parquet:FILE"),
    "a.arrow": (arrow(pa.ipc.new_file), "an Arrow table: corpora are read with arrow:FILE"),
    "b.arrow": (arrow(pa.ipc.new_stream), "an Arrow stream: corpora are read with arrow:FILE"),
    "d.txt": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "a pointer of Git LFS: fetch the file itself, with git lfs pull",
    ),
}


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("invalid_utf8", ["error", "skip"])
@pytest.mark.parametrize("name", NO_TEXT)
def test_archives_and_documents_are_no_text(tmp_path, monkeypatch, name, kind, invalid_utf8):
    monkeypatch.setattr(files, "CHUNK_BYTES", 7)  # signatures are found however a file is read
    content, expected = NO_TEXT[name]
    path = write(tmp_path / name, content)
    said = message(f"{kind}:{path}", invalid_utf8=invalid_utf8)
    assert said.startswith(f"{path} is no text file but {expected}")


@pytest.mark.parametrize(
    "text", ["BZhang wrote.", "PK", "7z", "%PD", "PAR1 is a word.", "Rar!", "x" * 256 + " ustar"]
)
def test_text_that_begins_almost_like_an_archive(tmp_path, text):
    assert read(f"text:{write(tmp_path / 'a.txt', text)}") == [[text.strip()]]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_nul_is_in_no_text(tmp_path, monkeypatch, kind, chunk_bytes):
    monkeypatch.setattr(files, "CHUNK_BYTES", chunk_bytes)
    lines = [b'{"text": "a"}', b"", b'{"text": "\xc3\xa9\0"}', b'{"text": "c"}', b""]
    path = write(tmp_path / "a.txt", b"\n".join(lines))
    said = message(f"{kind}:{path}")
    assert said.startswith(f"{path} is no text file: byte {path.read_bytes().index(0)} is NUL, as in binary")
    documents = read(f"{kind}:{path}", invalid_utf8="skip")
    assert documents == ([['{"text": "a"}'], ['{"text": "c"}']] if kind == "text" else [["a"], ["c"]])
    (source,) = open_sources(DataConfig(source=f"{kind}:{path}", invalid_utf8="skip"))
    assert sum(chunk.left_out.total() for chunk in source.chunks()) == 1


def test_an_escaped_nul_of_json_is_left_out(tmp_path):
    records = [{"text": "a\0b\n\0\nc"}, {"text": "\0"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)))
    assert b"\\u0000" in path.read_bytes()
    assert read(f"jsonl:{path}") == [["ab", "c"], []]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("invalid_utf8", ["error", "skip"])
@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-16", "looks like UTF-16, not UTF-8: convert it with iconv -f utf-16 -t utf-8 FILE > NEW."),
        ("utf-16-le", "looks like UTF-16, not UTF-8: convert it with iconv -f utf-16le -t utf-8"),
        ("utf-16-be", "looks like UTF-16, not UTF-8: convert it with iconv -f utf-16be -t utf-8"),
        ("utf-32", "looks like UTF-32, not UTF-8: convert it with iconv -f utf-32 -t utf-8 FILE > NEW."),
        ("utf-32-le", "looks like UTF-32, not UTF-8: convert it with iconv -f utf-32le -t utf-8"),
        ("utf-32-be", "looks like UTF-32, not UTF-8: convert it with iconv -f utf-32be -t utf-8"),
    ],
)
def test_utf16_and_utf32(tmp_path, kind, invalid_utf8, encoding, expected):
    for name, text in {"latin": STORY, "long": STORY * 100, "accents": "Déjà vu.\n", "ab": "a\n"}.items():
        path = write(tmp_path / f"{name}.txt", text.encode(encoding))
        assert message(f"{kind}:{path}", invalid_utf8=invalid_utf8).startswith(f"{path} {expected}")
        path = write(tmp_path / f"{name}.txt.gz", gzip.compress(text.encode(encoding)))
        assert message(f"{kind}:{path}", invalid_utf8=invalid_utf8).startswith(f"{path} {expected}")


@pytest.mark.parametrize("text", ["Привет, мир.\n", "你好，世界。\n"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_mark_in_other_scripts_is_refused_too(tmp_path, text, encoding):
    path = write(tmp_path / "a.txt", text.encode(encoding))
    assert "iconv" in message(f"text:{path}")


def test_files_with_byte_order_marks_that_were_joined(tmp_path):
    """A mark is no text, also where a file begins in the middle of another, or of a line of blanks."""
    mark = "\ufeff"
    text = write(tmp_path / "a.txt", f"{mark}One.\n\n{mark}Two.\n{mark}\n{mark}Three.\n")
    assert read(f"text:{text}") == [["One."], ["Two."], ["Three."]]
    records = write(tmp_path / "a.jsonl", f'{mark}{{"text": "a"}}\n{mark}{{"text": "b"}}\n{mark}\n')
    assert read(f"jsonl:{records}") == [["a"], ["b"]]
    broken = write(tmp_path / "b.txt", f"{mark}One.\n\n{mark}".encode() + b"\xff\n\n" + f"{mark}B.".encode())
    assert "byte 12 is not valid UTF-8" in message(f"text:{broken}")
    assert read(f"text:{broken}", invalid_utf8="skip") == [["One."], ["B."]]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_lines_that_end_in_carriage_returns_alone(tmp_path, monkeypatch, kind):
    path = write(tmp_path / "mac.txt", '{"text": "a"}\r\r{"text": "b"}\r')
    remedy = (
        r"mac.txt: its lines end in \r (carriage return) alone; convert it with tr '\r' '\n' < FILE > NEW."
    )
    assert remedy in message(f"{kind}:{path}")
    monkeypatch.setattr(files, "CHUNK_BYTES", 64)
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 256)
    write(path, "a paragraph\r" * 100)
    assert remedy in message(f"{kind}:{path}")


def test_a_lone_carriage_return_amid_other_lines_is_white_space(tmp_path):
    path = write(tmp_path / "a.txt", "One\rtwo.\r\n\r\r\nThree.\r")
    assert read(f"text:{path}") == [["One\rtwo."], ["Three."]]
    assert read(f"text:{write(tmp_path / 'b.txt', 'One.' + chr(13))}") == [["One."]]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
@pytest.mark.parametrize("content", ["", "\n", " \t\r\n\n", "\ufeff", "\ufeff\n\ufeff\n"])
@pytest.mark.parametrize("suffix", ["", ".bz2", ".gz", ".xz", ".zst"])
def test_files_without_text(tmp_path, kind, content, suffix):
    compressors = {".bz2": bz2.compress, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}
    compress = compressors.get(suffix, bytes)
    path = write(tmp_path / f"a.txt{suffix}", compress(content.encode()))
    assert read(f"{kind}:{path}") == []
    assert read(f"{kind}:{write(path, b'')}") == []


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", STORY)

    def forbidden(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(files.epath.Path(path)), "open", forbidden)
    expected = f"{path} cannot be read: [Errno 13] Permission denied: '{path}'. Check the path and the file."
    assert message(f"text:{path}") == expected
    with pytest.raises(UserError) as raised:
        Digests(files.epath.Path(tmp_path / "digests.json")).of([str(path)])
    assert str(raised.value) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (zipped(), "is no text file but a zip archive, as .docx, .xlsx and .epub are too: unpack it first"),
        (
            gzip.compress(b"text\tlabel\n", mtime=0),
            "is no text file but compressed with gzip: decompress it first",
        ),
        (
            "text\tlabel\n".encode("utf-16"),
            "looks like UTF-16, not UTF-8: convert it with iconv -f utf-16 -t",
        ),
    ],
)
def test_labelled_data_is_looked_at_too(tmp_path, content, expected):
    path = write(tmp_path / "a.tsv", content)
    with pytest.raises(UserError) as raised:
        records.read_text(str(path), "data.train")
    assert str(raised.value).startswith(f"data.train={path} {expected}")
