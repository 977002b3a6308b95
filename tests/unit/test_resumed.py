"""A build that was killed goes on where it was, or begins anew: what is half written is never read."""

import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from bert_jax.corpus import progress, writer
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import find, prepare
from bert_jax.corpus.encode import EncodedDocuments
from bert_jax.corpus.shards import ShardWriter
from bert_jax.corpus.sources import files
from bert_jax.errors import UserError
from bert_jax.files import resumed_folder

V, DOCUMENTS = 200, 300
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """What is prepared: 29 chunks."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)
    monkeypatch.setattr(writer, "SHARD_BYTES", 3000)
    path = tmp_path / "text.txt"
    path.write_text(
        "\n\n".join(f"document {n} is about\nthe number {n * n}. Or so." for n in range(DOCUMENTS))
    )
    return DataConfig(source=f"text:{path}", tokenizer="bpe", held_out_fraction=0.25)


@pytest.fixture
def undisturbed(data, tmp_path):
    return prepare(data, V, tmp_path / "undisturbed", workers=1)


def stop_at(monkeypatch, call, error):
    """Raises an error instead of the end of a shard, the `call`th, once."""
    right, calls = ShardWriter.finish, []

    def finish(shard):
        calls.append(shard)
        if len(calls) == call:
            raise error
        return right(shard)

    monkeypatch.setattr(ShardWriter, "finish", finish)


def encoded_by(monkeypatch):
    """Lists the chunks that are encoded from now on."""
    right, chunks = writer.DocumentsWriter.add, []
    add = lambda *args: (chunks.append(args[-1]), right(*args))[1]  # noqa: E731
    monkeypatch.setattr(writer.DocumentsWriter, "add", add)
    return chunks


def contents(dataset):
    folder = pathlib.Path(dataset.directory)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def manifest(dataset):
    return {key: value for key, value in dataset.manifest.items() if key != "seconds"}


def test_it_goes_on_after_the_last_whole_shard(data, undisturbed, tmp_path, monkeypatch, caplog):
    data_dir = tmp_path / "data_dir"
    stop_at(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, V, data_dir, workers=1)
    assert find(data, V, data_dir) is None
    chunks = encoded_by(monkeypatch)
    caplog.clear()
    with caplog.at_level(logging.INFO, "bert_jax"):
        again = prepare(data, V, data_dir, workers=1)
    assert 0 < len(chunks) < 29
    assert "prepare: goes on at " in caplog.text
    assert "tokenizer: bpe" not in caplog.text
    assert contents(again) == contents(undisturbed)
    assert manifest(again) == manifest(undisturbed)
    assert sorted(path.name for path in data_dir.iterdir()) == ["digests.json", again.directory.name]


def test_copies_of_what_was_done_before_are_left_out(data, tmp_path, monkeypatch):
    path = pathlib.Path(data.source.partition(":")[2])
    path.write_text("\n\n".join(2 * [path.read_text()]))
    data = dataclasses.replace(data, drop_duplicates="documents")
    whole = prepare(data, V, tmp_path / "whole", workers=1)
    assert whole.manifest["left_out"] == {"duplicate documents": DOCUMENTS}
    stop_at(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    assert manifest(prepare(data, V, tmp_path / "data_dir", workers=1)) == manifest(whole)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def by_another(name):
    """Makes a journal that of another version of a library; in zstandard's, chunks may end elsewhere."""

    def change(path):
        journal = json.loads(path.read_bytes())
        assert name in journal["made_by"]
        journal["made_by"][name] = "0.0.1"
        path.write_text(json.dumps(journal))

    return change


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("documents-train.array_record-00001", flip, "documents-train.array_record-00001 is not as it was"),
        ("documents-heldout.array_record-00000", os.remove, "heldout.array_record-00000 is not as it was"),
        ("unfinished/documents-train.array_record-00000.npz", cut, "00000.npz is not as it was written"),
        ("tokenizer/sentencepiece.model", cut, "tokenizer/ is not as it was written"),
        *(
            ("unfinished/journal.json", by_another(name), "other versions of the libraries wrote it")
            for name in ("sentencepiece", "zstandard", "pyarrow", "python")
        ),
        ("unfinished/journal.json", cut, ""),
    ],
)
def test_what_is_damaged_is_not_gone_on_with(
    data, undisturbed, tmp_path, monkeypatch, caplog, file, damage, message
):
    stop_at(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    (folder,) = (tmp_path / "data_dir").glob(".*.building")
    damage(folder / file)
    chunks = encoded_by(monkeypatch)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        again = prepare(data, V, tmp_path / "data_dir", workers=1)
    lines = [line for line in caplog.messages if "begins anew" in line]
    assert len(lines) == bool(message)
    assert message in "".join(lines)
    assert len(chunks) == 29
    assert contents(again) == contents(undisturbed)


def test_when_there_is_space_again_it_goes_on(data, undisturbed, tmp_path, monkeypatch):
    stop_at(monkeypatch, 6, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    remedy = (
        r"\(\[Errno 28\] No space left on device\); free some space and run the command again, which goes on"
    )
    with pytest.raises(UserError, match=remedy):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    chunks = encoded_by(monkeypatch)
    assert contents(prepare(data, V, tmp_path / "data_dir", workers=1)) == contents(undisturbed)
    assert 0 < len(chunks) < 29


def test_a_full_disk_is_noticed():
    documents = EncodedDocuments(np.zeros(9, np.int64))
    documents.add(np.ones(9, np.uint8), np.array([9], np.uint16))
    shard = ShardWriter(epath.Path("/dev/full"), 9)
    shard.add(documents)
    with pytest.raises(OSError, match="No space left on device"):
        shard.finish()


def test_text_that_changed_is_not_gone_on_with(data, tmp_path, monkeypatch):
    """Not even once it is as before: no shard may be recorded that was made from other text."""
    path, right = pathlib.Path(data.source.partition(":")[2]), writer.DocumentsWriter.finish_shards
    text = path.read_text()

    def finish_shards(documents):
        path.write_text(text.replace("about", "among"))
        right(documents)

    monkeypatch.setattr(writer.DocumentsWriter, "finish_shards", finish_shards)
    with pytest.raises(UserError, match="changed while it was read"):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    assert [entry.name for entry in (tmp_path / "data_dir").iterdir()] == ["digests.json"]


@pytest.mark.parametrize("shard", [1, 6])
def test_others_that_are_unfinished_are_named_and_kept(data, tmp_path, monkeypatch, caplog, shard):
    stop_at(monkeypatch, shard, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    (folder,) = (tmp_path / "data_dir").glob(".*.building")
    with caplog.at_level(logging.INFO, "bert_jax"):
        prepare(data, V + 1, tmp_path / "data_dir", workers=1)
    assert f"{folder} is an unfinished dataset of other text or settings" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "bert_jax"):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    assert "unfinished" not in caplog.text


def test_two_at_once_make_one(data, undisturbed, tmp_path, monkeypatch, caplog):
    """The second waits, and finds what the first has made."""
    script = (
        "from bert_jax.corpus import dataset; from bert_jax.corpus.config import DataConfig;"
        "from bert_jax.corpus.shards import ShardWriter; finish = ShardWriter.finish;"
        "ShardWriter.finish = lambda shard: (print('now', flush=True), input(), finish(shard))[-1];"
        f"dataset.prepare({data!r}, {V}, {str(tmp_path / 'data_dir')!r}, workers=1)"
    )
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert process.stdout.readline() == "now\n"
    chunks = encoded_by(monkeypatch)
    monkeypatch.setattr("time.sleep", lambda _: process.communicate("\n" * 99))
    with caplog.at_level(logging.INFO, "bert_jax"):
        second = prepare(data, V, tmp_path / "data_dir", workers=1)
    assert process.wait() == 0
    assert "is being written by another process: waiting for it" in caplog.text
    assert (second.sha256, chunks) == (undisturbed.sha256, [])
    assert sorted(path.name for path in (tmp_path / "data_dir").iterdir()) == [
        "digests.json", second.directory.name,
    ]  # fmt: skip


@pytest.mark.parametrize(("worth", "left"), [(True, ["a"]), (False, [])])
def test_a_folder_is_left_by_failures_only_if_it_is_worth_it(tmp_path, worth, left):
    def fail():
        with resumed_folder(epath.Path(tmp_path / "data"), "last", lambda _: worth) as folder:
            (folder / "a").touch()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.glob(".*/a")] == left


def test_a_source_that_has_shrunk_under_its_fingerprint_is_refused(data, tmp_path, monkeypatch):
    stop_at(monkeypatch, 6, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    (path,) = (tmp_path / "data_dir").glob(".*.building/unfinished/journal.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chunks": 1000}))
    with pytest.raises(
        UserError, match=r"has less text than when this build began, .* delete .* run the command again"
    ):
        prepare(data, V, tmp_path / "data_dir", workers=1)


def test_a_pass_of_hygiene_logs_its_progress(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    data = dataclasses.replace(data, drop_duplicates="documents")
    with caplog.at_level(logging.INFO, "bert_jax"):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    lines = [line for line in caplog.messages if line.startswith("hygiene, duplicates: ")]
    assert len(lines) == 29
    assert re.fullmatch(r"hygiene, duplicates: 100%, [\d.]+ MB/s of the files, 00:00 left", lines[-1])


def test_progress_is_logged_without_a_terminal(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "bert_jax"):
        prepare(data, V, tmp_path / "data_dir", workers=1)
    lines = [line for line in caplog.messages if line.endswith(" left")]
    assert len(lines) == 29
    assert lines[-1].startswith("prepare: 100%, ")
    assert lines[-1].endswith(" documents/s, 00:00 left")


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_dataset(tmp_path):
    words = [*map("".join, (zip(*[iter("abcdefghij" * 9)] * 5, strict=False)))]
    text = "\n\n".join(f"Document {n} {' '.join(words)} {n * n}." for n in range(200))
    (tmp_path / "text.txt").write_text(text)
    command = [sys.executable, "-m", "tests.kills", tmp_path / "text.txt", tmp_path / "data"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    undisturbed, *killed = map(json.loads, lines)
    assert len(killed) == 15
    assert undisturbed["found"] == "nothing"
    assert {row["digest"] for row in killed} == {undisturbed["digest"]}
    found = {row["moment"]: row["found"] for row in killed if row["found"] != "nothing"}
    assert found == {"it is renamed": undisturbed["digest"]}
    assert [row["left"] for row in killed] == 15 * [[]]
    every = undisturbed["encoded"]
    encoded = [row["encoded"] for row in killed]
    assert encoded[:5] == 5 * [every]
    assert encoded[5:] == sorted(encoded[5:], reverse=True)
    assert every > encoded[5] > encoded[7] > encoded[9] > 0
    assert encoded[-3:] == [0, 0, 0]
