import bz2
import collections
import gzip
import lzma
import pickle
import random

import pytest
import zstandard

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import Digests, MissingInput, mediawiki, open_sources
from bert_jax.errors import UserError
from tests.source_files import message, read, write
from tests.wiki_dumps import DOCUMENTS, FOOT, HEAD, LEFT_OUT, PAGES, multistream, page, single


def chunks(path):
    (source,) = open_sources(DataConfig(source=f"mediawiki:{path}"))
    return list(source.chunks())


def long_pages(count=150):
    """Pages that bzip2 cannot make much smaller."""
    rng = random.Random(0)
    return [page(f"P{n}", f"{n} " + "".join(rng.choices("abcdefgh ", k=20_000))) for n in range(count)]


def halves(data):
    """Two bzip2 streams, as parallel compressors write them: the first ends inside a page."""
    return bz2.compress(data[: len(data) // 2]) + bz2.compress(data[len(data) // 2 :])


@pytest.mark.parametrize(("name", "content"), [
    ("a.xml", single()),
    ("a.xml.bz2", bz2.compress(single())),
    ("a.xml.bz2", halves(single())),
    ("multistream.xml.bz2", multistream()),
    ("a.xml-p1p41242.BZ2", multistream(per_stream=100)),
    ("a.xml.gz", gzip.compress(single())),
    ("a.xml.xz", lzma.compress(single())),
    ("a.xml.zst", zstandard.compress(single())),
    ("a.xml.bz2", multistream() + b"\n"),
    ("a.xml.bz2", bz2.compress(single()) + b"\0\r\n"),
    ("a.xml", single() + b"\n<!-- 2026-11-01 -->\n"),
    ("a.xml", single().replace(b"<revision>", b"<revision><text>Alt.</text></revision><revision>")),
    ("a.xml", single().replace(b"<model>wikitext</model>", b"").replace(
        b"<revision>", b"<revision><model>css</model><text>Alt.</text></revision><revision>")),
    ("a.xml", b"\xef\xbb\xbf<?xml version='1.0'?>\n" + single()),
])  # fmt: skip
def test_articles_are_read_and_the_rest_is_counted(tmp_path, name, content):
    path = write(tmp_path / name, content)
    found = chunks(path)
    assert [document for chunk in found for document in chunk.documents()] == DOCUMENTS
    assert sum((chunk.left_out for chunk in found), collections.Counter()) == LEFT_OUT
    assert sum(chunk.read_bytes for chunk in found) == path.stat().st_size


def test_parts_are_read_in_order_and_indexes_are_passed_over(tmp_path):
    write(tmp_path / "wiki1.xml-p1p2.bz2", multistream(PAGES[:3]))
    write(tmp_path / "wiki1-index1.txt-p1p2.bz2", bz2.compress(b"570:1:Ada"))
    write(tmp_path / "wiki-multistream-index.txt.bz2", bz2.compress(b"570:1:Ada"))
    write(tmp_path / "wiki2.xml-p3p4.bz2", bz2.compress(single(PAGES[3:])))
    assert read(f"mediawiki:{tmp_path}/*.bz2") == DOCUMENTS
    (source,) = open_sources(DataConfig(source=f"mediawiki:{tmp_path}/*.bz2"))
    assert [path.rpartition("/")[2] for path in source.paths] == ["wiki1.xml-p1p2.bz2", "wiki2.xml-p3p4.bz2"]
    text = message(f"mediawiki:{tmp_path}/*index.txt.bz2", MissingInput)
    assert text.endswith("wiki-multistream-index.txt.bz2 is an index; give the dump that it belongs to.")


@pytest.mark.parametrize("multi", [False, True])
def test_a_long_dump_is_cut_into_chunks_that_parse_themselves(tmp_path, multi, monkeypatch):
    pages = long_pages()
    path = write(tmp_path / "a.xml.bz2", multistream(pages, 10) if multi else bz2.compress(single(pages)))
    found = chunks(path)
    assert len(found) == {False: 3, True: 4}[multi]
    assert all(chunk.compressed is multi for chunk in found)
    copies = pickle.loads(pickle.dumps(found))
    documents = [document for chunk in reversed(copies) for document in reversed(list(chunk.documents()))][
        ::-1
    ]
    assert [int(document[0].split()[0]) for document in documents] == list(range(150))
    assert sum(chunk.read_bytes for chunk in found) == path.stat().st_size
    text = sum(len(document[0]) for document in documents)
    assert 0.3 < sum(chunk.size for chunk in found) / text < 3
    monkeypatch.setattr(mediawiki, "CHUNK_BYTES", 200_000)  # what is read at a time changes no piece
    assert [chunk.data for chunk in chunks(path)] == [chunk.data for chunk in found]


def test_a_multistream_dump_of_a_wiki_with_many_namespaces(tmp_path):
    more = "".join(
        f'<namespace key="{n}" case="first-letter">{"ம" * 20}</namespace>\n' for n in range(16, 60)
    )
    head = HEAD.replace("    </namespaces>", f"{more}    </namespaces>")
    path = write(
        tmp_path / "a.xml.bz2",
        multistream().replace(bz2.compress(HEAD.encode()), bz2.compress(head.encode())),
    )
    assert all(chunk.compressed for chunk in chunks(path))
    assert read(f"mediawiki:{path}") == DOCUMENTS


def test_a_page_that_is_no_xml_is_counted(tmp_path):
    """Nor of a page with elements in its text, which would end there, is a part taken."""
    bad = ["<page><ns>0</ns><text>1 < 2</text></page>", "<page>\xff</page>", "<page>\x01</page>"]
    element = "<page><ns>0</ns><revision><text>One <x:y/> two.</text></revision></page>"
    content = HEAD.encode() + "".join([*bad, element, PAGES[0]]).encode("latin1") + FOOT.encode()
    (chunk,) = chunks(write(tmp_path / "a.xml", content))
    assert list(chunk.documents()) == DOCUMENTS[:1]
    assert chunk.left_out == {"pages that cannot be parsed": 4}


def test_a_page_that_is_too_long_is_counted_once(tmp_path):
    line = "x" * 99 + "\n"
    giant = page("Giant", line * 180_000)
    found = chunks(write(tmp_path / "a.xml", single([PAGES[0], giant, PAGES[5]])))
    assert [document for chunk in found for document in chunk.documents()] == DOCUMENTS
    assert sum((c.left_out for c in found), collections.Counter()) == {"pages that cannot be parsed": 1}


DUMP = multistream()
BUB = bz2.compress("".join(PAGES[4:6]).encode())  # one of its streams
ADA = bz2.compress("".join(PAGES[:2]).encode())  # the first stream of pages
HEADLESS = DUMP.replace(BUB, b"B?" + BUB[2:])
NEXT = "pages of other namespaces"  # the stream before it has two, and is whole
LAST = DUMP.rindex(b"BZh9")  # the stream of the foot


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.xml", single()[:-30], "a.xml cannot be read from byte 2,"),
    ("a.xml", single().removesuffix(FOOT.encode()), "on (it ends before </mediawiki>): get the file again"),
    ("a.xml", single() + HEAD.encode(), "on (it ends before </mediawiki>): get the file again"),
    ("a.xml.bz2", DUMP[:LAST], f"cannot be read from byte {LAST:,} on (it ends before </mediawiki>): get"),
    ("a.xml.bz2", DUMP[:-5], f"the bzip2 stream at byte {LAST:,} is broken (Compressed data ended"),
    ("a.xml.bz2", DUMP[:-5] + b"12345", f"the bzip2 stream at byte {LAST:,} is broken (Invalid data"),
    ("a.xml.bz2", HEADLESS, f"the bzip2 stream at byte {DUMP.index(BUB):,} is broken (Invalid data"),
    ("a.xml.bz2", bz2.compress(single())[:-5], "(the compressed data ends early): get the file"),
    ("a.xml", "", "a.xml is no MediaWiki dump: it begins with ''"),
    ("a.xml", "<html><body>No</body></html>", "a.xml is no MediaWiki dump: it begins with '<html><body>No"),
    ("a.xml", "<feed>\n<doc>A</doc></feed>", "no MediaWiki dump: it begins with '<feed>\\n<doc>"),
    ("a.xml", single().decode().encode("utf-16"), "a.xml looks like UTF-16, not UTF-8"),
    ("a.xml.bz2", single(), "a.xml.bz2 is not compressed but text; rename it"),
])  # fmt: skip
def test_what_is_no_whole_dump_is_refused_in_one_line(tmp_path, name, content, expected):
    assert expected in message(f"mediawiki:{write(tmp_path / name, content)}")


@pytest.mark.parametrize("broken", [b"B?" + ADA[2:], ADA[:90] + b"?" + ADA[91:]])
def test_the_first_pages_may_be_broken(tmp_path, broken):
    path = write(tmp_path / "a.xml.bz2", DUMP.replace(ADA, broken))
    (source,) = open_sources(DataConfig(source=f"mediawiki:{path}", broken_files="skip"))
    found = list(source.chunks())
    assert [document for chunk in found for document in chunk.documents()] == DOCUMENTS[1:]
    assert sum(chunk.left_out[mediawiki.BROKEN_STREAMS] for chunk in found) == 1


@pytest.mark.parametrize(("name", "content", "documents", "lost"), [
    ("a.xml", single()[:-30], 2, "rest of a broken file"),
    ("a.xml.bz2", bz2.compress(single())[:-5], 2, "rest of a broken file"),
    ("a.xml.bz2", DUMP[:LAST], 2, "rest of a broken file"),
    ("a.xml.bz2", DUMP[:-5], 2, "broken bzip2 streams of pages"),
    ("a.xml.bz2", DUMP.replace(BUB, BUB[:90] + b"?" + BUB[91:]), 1, "broken bzip2 streams of pages"),
    ("a.xml.bz2", HEADLESS, 1, "broken bzip2 streams of pages"),
])  # fmt: skip
def test_of_a_broken_dump_what_is_whole_is_used(tmp_path, name, content, documents, lost):
    path = write(tmp_path / name, content)
    (source,) = open_sources(DataConfig(source=f"mediawiki:{path}", broken_files="skip"))
    found = list(source.chunks())
    assert [document for chunk in found for document in chunk.documents()] == DOCUMENTS[:documents]
    (reason,) = (reason for chunk in found for reason in chunk.left_out if "data.broken_files=skip" in reason)
    assert reason.startswith(lost)
    assert sum(chunk.left_out[NEXT] for chunk in found) == 2


def test_streams_that_do_not_begin_are_not_read_without_end(tmp_path, monkeypatch):
    path = write(tmp_path / "a.xml.bz2", multistream() + bytes(2 << 20))
    monkeypatch.setattr(mediawiki, "MAX_STREAM_BYTES", 1 << 20)
    with pytest.raises(UserError, match=r"no bzip2 stream begins within 2,097,152 bytes of byte 0; download"):
        chunks(path)


def test_the_fingerprint_is_that_of_the_contents(tmp_path):
    def fingerprint(path):
        (source,) = open_sources(DataConfig(source=f"mediawiki:{path}"))
        return source.fingerprint(Digests(tmp_path / "digests.json"))

    one, other = write(tmp_path / "one.xml", single()), write(tmp_path / "other.xml", single(PAGES[1:]))
    copy = write(tmp_path / "copy.xml", single())
    assert fingerprint(one) == fingerprint(copy) != fingerprint(other)
    assert fingerprint(one)[:2] == ["mediawiki", 2]
