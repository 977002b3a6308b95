"""Which dump wikipedia:LANG[:DATE] is, here and on a mirror, and what is said before it is downloaded."""

import json
import logging
import shutil

import pytest

from bert_jax.corpus import downloads, mixture
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.downloads import obtain
from bert_jax.corpus.mixture import dataset_for
from bert_jax.corpus.sources import Digests, NotDownloaded, download, open_sources
from bert_jax.errors import UserError
from tests.mirror import answers, article, dump, publish, serving

PAGES = [article(n, f"Page {n}", f"The number {n} is a '''number'''. It is [[even]]." * 20) for n in range(8)]
PARTS = [dump(PAGES[:3]), dump(PAGES[3:5]), dump(PAGES[5:])]


@pytest.fixture
def mirror(tmp_path):
    publish(tmp_path / "served", "aawiki", "20261001", PARTS)
    publish(tmp_path / "served", "aawiki", "20261101", PARTS, status="in-progress")
    publish(tmp_path / "served", "zh_yuewiki", "20261020", PARTS[:1])
    with serving(tmp_path / "served") as mirror:
        yield mirror


@pytest.fixture
def data(mirror, tmp_path, monkeypatch):
    """A config's data section, by its SPEC, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "_pause", lambda *_: None)
    return lambda spec, **settings: DataConfig(source=spec, **{"wikipedia_mirror": mirror.address} | settings)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_newest_complete_dump(data, mirror, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bert_jax")
    obtain(data("wikipedia:aa"), tmp_path / "data", agreed=True)
    folder = tmp_path / "data" / "downloads" / "wikipedia-aa-20261001"
    stem = "aawiki-20261001-pages-articles-multistream"
    assert names(folder) == [
        *(f"{stem}{n}.xml-p{n}00p{n}99.bz2" for n in (1, 2, 3)),
        "dump.json",
    ]
    assert [path.read_bytes() for path in sorted(folder.glob("*.bz2"))] == PARTS
    assert "aawiki of 2026-10-01 (3 files) must be downloaded from http://127.0.0.1" in caplog.text
    requests = len(mirror.requests)
    (source,) = open_sources(data("wikipedia:aa"), tmp_path / "data")
    assert [path.rsplit("/", 1)[1] for path in source.paths] == names(folder)[:3]
    assert source.size == sum(map(len, PARTS))
    obtain(data("wikipedia:aa"), tmp_path / "data", agreed=False)
    assert len(mirror.requests) == requests


def test_parts_are_in_the_order_of_their_pages(data, tmp_path):
    publish(tmp_path / "served", "bbwiki", "20261001", [dump([page]) for page in PAGES] * 2)
    obtain(data("wikipedia:bb"), "data", agreed=True)
    numbers = [
        path.partition("multistream")[2].partition(".")[0]
        for path in open_sources(data("wikipedia:bb"), "data")[0].paths
    ]
    assert numbers == [str(n) for n in range(1, 17)]


def test_a_small_wiki_is_one_file_and_a_hyphen_an_underscore(data, tmp_path):
    obtain(data("wikipedia:zh-yue:20261020"), tmp_path, agreed=True)
    (source,) = open_sources(data("wikipedia:zh-yue:20261020"), tmp_path)
    assert source.paths == [
        f"{tmp_path}/downloads/wikipedia-zh-yue-20261020/zh_yuewiki-20261020-pages-articles-multistream.xml.bz2"
    ]


def test_the_fingerprint_is_the_published_one_on_every_machine(data, tmp_path):
    prints = []
    for machine in ("one", "two"):
        one = data("wikipedia:aa", download_dir=str(tmp_path / machine))
        obtain(one, "data", agreed=True)
        prints.append(open_sources(one, "data")[0].fingerprint(Digests(tmp_path / "digests.json")))
    status = json.loads((tmp_path / "served/aawiki/20261001/dumpstatus.json").read_text())
    files = status["jobs"]["articlesmultistreamdump"]["files"]
    published = [[name, files[name]["sha1"]] for name in files if "index" not in name]
    assert prints[0] == prints[1] == ["wikipedia", 2, "aa", "20261001", published]
    assert not (tmp_path / "digests.json").exists()


def test_what_was_downloaded_is_preferred_to_the_newest_and_named(data, tmp_path, caplog):
    obtain(data("wikipedia:aa"), "data", agreed=True)
    publish(tmp_path / "served", "aawiki", "20261120", PARTS[:2])
    caplog.set_level(logging.INFO, "bert_jax")
    (source,) = open_sources(data("wikipedia:aa", wikipedia_mirror="http://127.0.0.1:9"), "data")
    assert len(source.paths) == 3
    assert "wikipedia:aa: the dump of 2026-10-01, " in caplog.text
    with pytest.raises(NotDownloaded, match="no dump of it is in data/downloads"):
        open_sources(data("wikipedia:aa:20261120"), "data")
    obtain(data("wikipedia:aa:20261120"), "data", agreed=True)
    assert len(open_sources(data("wikipedia:aa"), "data")[0].paths) == 2


def test_an_interrupted_download_keeps_its_date(data, mirror, tmp_path):
    """Although a newer dump has appeared, and goes on at another mirror."""
    second = "aawiki-20261001-pages-articles-multistream2.xml-p200p299.bz2"
    mirror.faults[second] = [answers(503)] * 100
    with pytest.raises(UserError, match="HTTP 503"):
        obtain(data("wikipedia:aa"), "data", agreed=True)
    with pytest.raises(NotDownloaded, match=r"wikipedia-aa-20261001 lacks .* of 1\.\d kB"):
        open_sources(data("wikipedia:aa"), "data")
    publish(tmp_path / "served", "aawiki", "20261120", PARTS[:2])
    with serving(tmp_path / "served") as other:
        obtain(data("wikipedia:aa", wikipedia_mirror=other.address), "data", agreed=True)
        assert len(other.asked_for(second)) == 1
        assert other.asked_for("dumpstatus.json") == []
    assert len(open_sources(data("wikipedia:aa"), "data")[0].paths) == 3


def test_a_dump_that_is_gone_from_the_mirror(data, tmp_path):
    third = tmp_path / "served/aawiki/20261001/aawiki-20261001-pages-articles-multistream3.xml-p300p399.bz2"
    third.unlink()
    with pytest.raises(
        UserError, match=r"multistream3.* does not exist\. .* delete data/downloads/wikipedia-aa"
    ):
        obtain(data("wikipedia:aa"), "data", agreed=True)


def test_without_a_yes_nothing_is_downloaded(data, mirror, tmp_path):
    with pytest.raises(UserError) as raised:
        obtain(data("wikipedia:aa,wikipedia:zh-yue"), "data", agreed=False)
    told = str(raised.value)
    assert told.startswith(
        "aawiki of 2026-10-01 (3 files) and zh_yuewiki of 2026-10-20 (1 file) must be downl"
    )
    assert told.endswith("To start, add --download to the command (with make: ARGS=--download).")
    assert "\n" not in told
    assert not (tmp_path / "data").exists()
    assert not any(path.endswith("bz2") for path, _ in mirror.requests)


@pytest.mark.parametrize(("answer", "whole"), [("y", True), ("", False)])
def test_a_terminal_is_asked(answer, whole, data, monkeypatch):
    for stream in (downloads.sys.stdin, downloads.sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or answer)
    try:
        obtain(data("wikipedia:aa"), "data", agreed=False)
    except UserError:
        assert not whole
    assert asked[0].endswith("Download it now? [y/N] ")
    assert (
        "wikipedia-aa-20261001"
        in str(downloads.wikipedia.downloaded("", "aa", downloads.pathlib.Path("data/downloads")))
    ) == whole


def test_a_full_disk_is_seen_before(data, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(
        UserError, match=r"data.download_dir=data/downloads: 1\.\d kB must be downl.* 100 B are free"
    ):
        obtain(data("wikipedia:aa"), "data", agreed=True)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("spec", "settings", "told"),
    [
        ("wikipedia:xx", {}, r"/xxwiki/ does not exist; LANG is the first word"),
        ("wikipedia:aa:20200101", {}, r"no complete dump of 20200101; leave the date out"),
        ("wikipedia:aa:20261101", {}, r"no complete dump of 20261101; leave the date out"),
        ("wikipedia:aa:latest", {}, r"use wikipedia:LANG or wikipedia:LANG:YYYYMMDD"),
        ("wikipedia:../etc", {}, r"use wikipedia:LANG or wikipedia:LANG:YYYYMMDD"),
        ("wikipedia:aa", {"wikipedia_mirror": "/srv/dumps"}, r"/srv/dumps .* is no address"),
        ("wikipedia:aa", {"download_dir": "gs://b/d"}, r"data.download_dir=gs://b/d is no folder"),
        ("wikipedia:aa", {"wikipedia_mirror": "http://127.0.0.1:9"}, r"is not in data/d.*refused"),
    ],
)
def test_mistakes(spec, settings, told, data):
    with pytest.raises(UserError, match=told):
        obtain(data(spec, **settings), "data", agreed=True)


@pytest.mark.parametrize(
    "status", ["<html>", "[]", '{"jobs": {"articlesmultistreamdump": {"status": "done"}}}']
)
def test_a_broken_list_of_files(status, data, tmp_path):
    (tmp_path / "served/aawiki/20261001/dumpstatus.json").write_text(status)
    with pytest.raises(UserError, match=r"dumpstatus\.json of aawiki-20261001 is not as Wikimedia writes it"):
        obtain(data("wikipedia:aa"), "data", agreed=True)


def test_names_of_a_hostile_mirror_stay_in_the_folder(data, tmp_path):
    path = tmp_path / "served/aawiki/20261001/dumpstatus.json"
    path.write_text(
        path.read_text().replace("aawiki-20261001-pages-articles-multistream2", "../../x-multistream2")
    )
    obtain(data("wikipedia:aa"), "data", agreed=True)
    assert len(names(tmp_path / "data/downloads/wikipedia-aa-20261001")) == 3


def test_the_mirror_of_the_environment(data, mirror, monkeypatch):
    monkeypatch.setenv("BERT_JAX_WIKIPEDIA_MIRROR", f"{mirror.address}/")
    obtain(data("wikipedia:aa", wikipedia_mirror=""), "data", agreed=True)
    assert open_sources(data("wikipedia:aa"), "data")


def test_a_data_directory_in_a_bucket_keeps_downloads_on_a_disk():
    assert str(downloads.wikipedia.downloads_of("", "gs://bucket/data")) == "data_dir/downloads"
    assert str(downloads.wikipedia.downloads_of("/big", "gs://bucket/data")) == "/big"


def test_several_processes_never_download(data, mirror, monkeypatch):
    monkeypatch.setattr(mixture, "obtain", None)
    command = r"first run python -m bert_jax\.prepare --config=c --data_dir=data --download with the same"
    with pytest.raises(UserError, match=command):
        dataset_for(data("wikipedia:aa"), 100, "data", processes=2, config="c", agreed=True)
    assert mirror.requests == []
