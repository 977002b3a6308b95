import collections
import dataclasses
import logging
import os
import re
import shutil

import pytest

from bert_jax.corpus import disk
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.sources import open_sources
from bert_jax.errors import UserError

Usage = collections.namedtuple("Usage", "free")


def written(directory):
    """Bytes of the shards and of the index."""
    names = ("documents-*", "*/*.bin")
    return sum(path.stat().length for name in names for path in directory.glob(name))


@pytest.mark.parametrize("vocab_size", [400, 8000])
def test_the_estimate_is_near_what_is_written(tmp_path, vocab_size):
    data = DataConfig(tokenizer="bpe")
    (source,) = open_sources(data)
    ratio = disk.dataset_bytes(source, vocab_size) / written(prepare(data, vocab_size, tmp_path).directory)
    assert 0.8 < ratio < 1.3


@pytest.fixture
def data(tmp_path):
    text = "\n\n".join(f"The document number {n} has a sentence. It has another one." for n in range(90_000))
    (tmp_path / "text.txt").write_text(text)
    return DataConfig(source=f"text:{tmp_path}/text.txt", tokenizer="bpe")


def test_what_cannot_fit_is_not_begun(data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000_000))
    message = (
        r"takes about \d\d MB of disk in .*data_dir, where 10 MB are free; free some space, or give another"
    )
    with pytest.raises(UserError, match=message):
        prepare(data, 200, tmp_path / "data_dir")
    assert os.listdir(tmp_path / "data_dir") == ["digests.json"]


def test_what_cleaning_may_make_fit_is_begun_with_a_warning(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10_000_000))
    cleaned = dataclasses.replace(data, drop_duplicates="documents")
    disk.check_space(tmp_path / "new", open_sources(cleaned), cleaned, 200)
    assert "large enough only if cleaning leaves out much of the text" in caplog.text


def test_what_is_done_is_not_needed_again(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(12_000_000))
    sources = open_sources(data)
    needed = disk.dataset_bytes(sources[0], 200)
    assert 18e6 < needed < 24e6
    with pytest.raises(UserError):
        disk.check_space(tmp_path / "new", sources, data, 200)
    (tmp_path / "new" / "unfinished").mkdir(parents=True)
    (tmp_path / "new" / "unfinished" / "shard").write_bytes(bytes(10_000_000))
    with caplog.at_level(logging.INFO, "bert_jax"):
        disk.check_space(tmp_path / "new", sources, data, 200)
    assert re.search(r"takes about (8|9|1\d) MB of disk in .*, where 12 MB are free", caplog.text)


def test_ideographs_take_more_than_letters():
    letters, ideographs = disk.stored_bytes("a" * 30_000, 30_522), disk.stored_bytes("文" * 30_000, 30_522)
    assert letters == pytest.approx(15_500, rel=0.02)
    assert ideographs == pytest.approx(41_600, rel=0.02)
