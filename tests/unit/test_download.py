"""What a server may do to a download: break off, lie, refuse, change the content."""

import datetime as dt
import email.utils
import hashlib
import os
import random
import threading
import time
import urllib.request

import pytest

from bert_jax.corpus.sources import download as download_lib
from bert_jax.corpus.sources.download import NotFound, RemoteFile, download, get, missing_bytes
from bert_jax.errors import UserError
from tests.mirror import answers, breaks_off, claims_length, ignores_range, sends, serving

CONTENT = random.Random(0).randbytes(50_000)
NAME = "wiki.xml.bz2"


def remote(name=NAME, content=CONTENT, algorithm="sha1"):
    return RemoteFile(name, len(content), algorithm, hashlib.new(algorithm, content).hexdigest())


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that the downloads of a test waited: none of them in fact."""
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    seconds = []
    monkeypatch.setattr(download_lib, "_pause", lambda asked, _: seconds.append(asked))
    monkeypatch.setattr(download_lib, "POLL", 0.001)
    return seconds


@pytest.fixture
def mirror(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(CONTENT)
    with serving(tmp_path / "served") as mirror:
        yield mirror


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_files_are_downloaded_once(mirror, folder, tmp_path):
    others = [f"{number}.bz2" for number in range(5)]
    for name in others:
        (tmp_path / "served" / name).write_bytes(name.encode())
    files = [remote(algorithm="md5"), *(remote(name, name.encode()) for name in others)]
    download(files, mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT} | {name: name.encode() for name in others}
    assert len(mirror.requests) == 6
    assert missing_bytes(folder, files) == 0
    download(files, mirror.address, folder)
    assert len(mirror.requests) == 6


def test_after_an_error_the_other_connection_has_ended(mirror, folder, monkeypatch):
    """What it completes is there, and a download that begins now is alone in the folder."""
    digest, begun = download_lib._digest, threading.Event()

    def slow_digest(*arguments):
        begun.set()
        time.sleep(0.3)
        return digest(*arguments)

    def refuses_meanwhile(handler, _):
        handler.send_error(404 if begun.wait(10.0) else 500)
        return True

    monkeypatch.setattr(download_lib, "_digest", slow_digest)
    (mirror.folder / "other.bz2").write_bytes(b"")
    mirror.faults["other.bz2"] = [refuses_meanwhile]
    with pytest.raises(NotFound):
        download([remote(), remote("other.bz2")], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}


def test_it_goes_on_where_it_was(mirror, folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT[:20_000])
    assert missing_bytes(folder, [remote()]) == 30_000
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}
    assert mirror.asked_for(NAME) == ["bytes=20000-"]


def test_a_whole_partial_file_needs_no_network(folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT)
    download([remote()], "http://127.0.0.1:9", folder)
    assert kept(folder) == {NAME: CONTENT}


def test_broken_connections_are_resumed_without_end_as_long_as_bytes_come(mirror, folder, waits):
    mirror.faults[NAME] = [breaks_off(2_000)] * 20
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}
    assert mirror.asked_for(NAME) == [None, *(f"bytes={2000 * n}-" for n in range(1, 21))]
    assert waits == [1.0] * 20


def test_a_connection_that_brings_nothing_is_given_up(mirror, folder, waits):
    mirror.faults[NAME] = [breaks_off(2_000), *[breaks_off(0)] * 100]
    with pytest.raises(UserError, match=r"broke off after 2,000 of 50,000 bytes.*it goes on where it was"):
        download([remote()], mirror.address, folder)
    assert kept(folder) == {f"{NAME}.part": CONTENT[:2_000]}
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_server_without_ranges(mirror, folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT[:20_000])
    mirror.faults[NAME] = [ignores_range]
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(mirror, folder):
    mirror.faults[NAME] = [claims_length(2_000)] * 100
    with pytest.raises(UserError, match="broke off after 2,000 of 50,000 bytes"):
        download([remote()], mirror.address, folder)
    assert len(mirror.requests) == 10


@pytest.mark.parametrize("fault", [claims_length(2_000), sends(CONTENT + b"more")], ids=["short", "long"])
def test_a_wrong_length(fault, mirror, folder):
    mirror.faults[NAME] = [fault]
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}


def test_a_partial_file_that_is_too_long(mirror, folder):
    (folder / f"{NAME}.part").write_bytes(CONTENT + b"more")
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}


def test_a_file_that_is_shorter_than_published_is_given_up(mirror, folder, tmp_path):
    (tmp_path / "served" / NAME).write_bytes(CONTENT[:30_000])
    with pytest.raises(UserError, match="ends after 30,000 bytes, and 50,000 are published; use another"):
        download([remote()], mirror.address, folder)
    assert NAME not in kept(folder)


def test_a_wrong_content_is_downloaded_once_more(mirror, folder, caplog):
    mirror.faults[NAME] = [sends(CONTENT[::-1])]
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}
    assert "its sha1 is not the published one; downloading it again" in caplog.text


def test_a_wrong_content_twice_is_an_error(mirror, folder):
    mirror.faults[NAME] = [sends(CONTENT[::-1])] * 2
    with pytest.raises(UserError, match=r"come twice with another sha1 .* use another mirror"):
        download([remote()], mirror.address, folder)
    assert kept(folder) == {}


def test_the_server_says_how_long_to_wait(mirror, folder, waits):
    in_a_minute = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
    mirror.faults[NAME] = [
        answers(503, Retry_After="7"),
        answers(429, Retry_After=in_a_minute),
        answers(429, Retry_After="nonsense"),
        answers(503, Retry_After="1000000"),
    ]
    download([remote()], mirror.address, folder)
    assert kept(folder) == {NAME: CONTENT}
    assert (waits[0], waits[2:]) == (7.0, [4.0, 3600.0])
    assert 50 < waits[1] < 61


def test_a_refusal_is_not_repeated(mirror, folder):
    mirror.faults[NAME] = [answers(403)] * 2
    with pytest.raises(UserError, match="HTTP 403 Forbidden"):
        download([remote()], mirror.address, folder)
    assert len(mirror.requests) == 1


def test_what_is_not_there(mirror, folder):
    with pytest.raises(NotFound, match=r"/other\.bz2 does not exist"):
        download([remote("other.bz2")], mirror.address, folder)


def test_no_server(waits):
    with pytest.raises(UserError, match=r"127.0.0.1:9/a cannot be downloaded \(Connection refused\)"):
        get("http://127.0.0.1:9/a")
    assert waits == [1.0, 2.0, 4.0]


def test_the_program_names_itself(mirror, monkeypatch):
    get(f"{mirror.address}/{NAME}")
    monkeypatch.setenv("BERT_JAX_CONTACT", "ada@example.org")
    get(f"{mirror.address}/{NAME}")
    first, second = sorted(mirror.agents)
    assert first.startswith("bert_jax/")
    assert second.startswith("bert_jax/")
    assert "(ada@example.org)" in first + second


def test_a_proxy_of_the_environment(mirror, monkeypatch):
    monkeypatch.setenv("http_proxy", mirror.address)
    monkeypatch.setenv("no_proxy", "")
    urllib.request.install_opener(None)  # it has read the environment
    assert get(f"http://dumps.invalid/{NAME}") == CONTENT
    urllib.request.install_opener(None)


def test_a_full_disk(mirror, folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = folder / f"{NAME}.part"
    right = type(path).open
    monkeypatch.setattr(
        type(path), "open", lambda self, *args, **kw: full() if self == path else right(self, *args, **kw)
    )
    with pytest.raises(UserError, match=r"wiki\.xml\.bz2\.part cannot be written: No space left on device"):
        download([remote()], mirror.address, folder)


def test_two_processes_do_not_download_into_one_folder(folder):
    with download_lib._locked(folder), pytest.raises(UserError, match="another process downloads into"):
        download([remote()], "http://127.0.0.1:9", folder)
    assert os.listdir(folder) == [".lock"]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://a..b/", "label empty"),
        ("http://[::1/", "Invalid IPv6 URL"),
        ("http://127.0.0.1:9/ü", "'ascii' codec"),
        ("http://127.0.0.1:port/", "nonnumeric port: 'port'"),
        ("dumps.wikimedia.org", "unknown url type"),
    ],
)
def test_a_mistyped_mirror(url, reason):
    with pytest.raises(UserError, match=rf"is no address \(.*{reason}.*\); correct data\.wikipedia_mirror"):
        get(url)
