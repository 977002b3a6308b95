"""Recognises files that are no text by how they begin, whatever their names say."""

import codecs
import re
from typing import NamedTuple

from bert_jax.errors import UserError

HEAD_BYTES = 512  # enough for every signature, and to tell UTF-16 by its zeros


class Format(NamedTuple):
    """A format that is no text: the bytes that it begins with, its name, and what to do with it."""

    signature: bytes
    name: str
    remedy: str


FORMATS = (
    Format(
        b"PK\x03\x04",
        "a zip archive, as .docx, .xlsx and .epub are too",
        "unpack it first, with unzip, or save the document as plain text in UTF-8",
    ),
    Format(b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first, with 7z x"),
    Format(b"Rar!\x1a\x07", "a RAR archive", "unpack it first, with unrar x"),
    Format(
        b"\x1f\x8b",
        "compressed with gzip",
        "decompress it first, with gzip -d (a .tgz with tar -xf), or rename it to end in .gz",
    ),
    Format(
        b"\xfd7zXZ\x00", "compressed with xz", "decompress it first, with xz -d, or rename it to end in .xz"
    ),
    Format(
        b"\x28\xb5\x2f\xfd",
        "compressed with zstd",
        "decompress it first, with zstd -d, or rename it to end in .zst",
    ),
    *(
        Format(
            b"BZh%d1AY&SY" % level,
            "compressed with bzip2",
            "decompress it first, with bzip2 -d, or rename it to end in .bz2",
        )
        for level in range(1, 10)
    ),
    Format(b"\x04\x22\x4d\x18", "compressed with LZ4", "decompress it first, with lz4 -d"),
    Format(b"%PDF-", "a PDF document", "extract its text first, e.g. with pdftotext"),
    Format(b"{\\rtf", "an RTF document", "save it as plain text in UTF-8"),
    Format(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "save it as plain text in UTF-8"),
    Format(b"PAR1\x15", "a Parquet table", "corpora are read with parquet:FILE, other data as JSONL"),
    Format(b"ARROW1\x00\x00", "an Arrow table", "corpora are read with arrow:FILE, other data as JSONL"),
    Format(b"\xff\xff\xff\xff", "an Arrow stream", "corpora are read with arrow:FILE, other data as JSONL"),
    Format(b"version https://git-lfs.", "a pointer of Git LFS", "fetch the file itself, with git lfs pull"),
)
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16, so it comes first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Which of four bytes in a row are mostly zero in text without a mark -> its encoding.
ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, False, True): "utf-16le",
    (True, False, True, False): "utf-16be",
    (False, True, True, True): "utf-32le",
    (True, True, True, False): "utf-32be",
}


def check_text(path: str, head: bytes) -> None:
    """Checks that a file may be UTF-8 text, by its first HEAD_BYTES (decompressed).

    Raises:
        UserError: names what the file is, and what makes text of it.
    """
    for signature, name, remedy in FORMATS:
        if head.startswith(signature):
            raise UserError(f"{path} is no text file but {name}: {remedy}.")
    if _is_tar(head):
        raise UserError(f"{path} is no text file but a tar archive: unpack it first, with tar -xf.")
    if encoding := _wide_encoding(head):
        raise UserError(
            f"{path} looks like {encoding[:6].upper()}, not UTF-8: convert it with "
            f"iconv -f {encoding} -t utf-8 FILE > NEW."
        )


def _is_tar(head: bytes) -> bool:
    """Recognises tar archives of all kinds, the oldest have no signature, by the header's checksum."""
    checksum = head[148:156].strip(b" \0")
    if len(head) < 512 or not re.fullmatch(rb"[0-7]+", checksum):
        return False
    return int(checksum, 8) == sum(head[:512]) - sum(head[148:156]) + 8 * ord(" ")


def _wide_encoding(head: bytes) -> str | None:
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    every_fourth = [head[place::4] for place in range(4)]
    return ZEROS.get(tuple(2 * part.count(0) > len(part) for part in every_fourth))
