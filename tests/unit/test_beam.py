"""An Apache Beam pipeline makes the same dataset; where Beam is not installed, one line says how it is."""

import dataclasses
import gzip
import importlib
import json
import pickle
import sys

import pyarrow.parquet
import pytest
from etils import epath

from bert_jax import corpus
from bert_jax.corpus import writer
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.sources import chunks_of, files, open_sources
from bert_jax.errors import UserError

V = 200


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two sources of three files, the second with a line that is left out."""
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)
    monkeypatch.setattr(writer, "SHARD_BYTES", 2000)
    texts = [
        [f"document {n} is about\nthe number {n * n}. Or so. It seems" for n in range(start, 300, 3)]
        for start in range(3)
    ]
    (tmp_path / "a.txt").write_text("\n\n".join(texts[0]))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(texts[1]).encode()))
    lines = [json.dumps({"text": text}).encode() for text in texts[2]]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([*lines[:50], b'{"text": "\xff"}', *lines[50:]]))
    source = f"text:{tmp_path}/*.txt*,jsonl:{tmp_path}/c.jsonl"
    return DataConfig(source=source, tokenizer="bpe", held_out_fraction=0.25, invalid_utf8="skip")


@pytest.fixture
def beam(monkeypatch):
    pytest.importorskip("apache_beam")
    module = importlib.import_module("bert_jax.corpus.beam")
    monkeypatch.setattr(module, "CHUNKS_PER_RANGE", 5)
    return module


def test_the_parts_of_a_source_have_its_chunks(data):
    sources = open_sources(data)
    parts = [part for source in sources for part in source.parts()]
    assert [len(part.paths) for part in parts] == [1, 1, 1]
    assert sum(part.size for part in parts) == sum(source.size for source in sources)
    assert [*chunks_of(parts)] == [*chunks_of(sources)]


def test_the_parts_of_tables_have_their_documents(tmp_path):
    for name in ("a", "b"):
        rows = [f"{name} {n}" for n in range(3)]
        pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / f"{name}.parquet")
    (source,) = open_sources(DataConfig(source=f"parquet:{tmp_path}/*"))
    parts = pickle.loads(pickle.dumps(source.parts()))
    documents = [[*chunk.documents()] for chunk in chunks_of(parts)]
    assert documents == [[["a 0"], ["a 1"], ["a 2"]], [["b 0"], ["b 1"], ["b 2"]]]
    assert sum(part.size for part in parts) == source.size


@pytest.mark.usefixtures("beam")
def test_it_makes_the_same_dataset(data, tmp_path):
    local = prepare(data, V, tmp_path / "local", workers=1)
    beam = prepare(data, V, tmp_path / "beam", workers=1, beam_options=[])
    assert beam.sha256 == local.sha256
    assert beam.directory.name == local.directory.name
    for key in ("text_bytes", "left_out", "by_source", "settings", "sources"):
        assert beam.manifest[key] == local.manifest[key]
    assert beam.manifest["left_out"] == {files.NOT_UTF8: 1}
    for split in ("train", "heldout"):
        mine, theirs = beam.split(split), local.split(split)
        assert mine.index.sentence_starts.tolist() == theirs.index.sentence_starts.tolist()
        assert mine.unigram_counts.tolist() == theirs.unigram_counts.tolist()
        every = range(mine.index.num_documents)
        assert [*map(bytes, mine.read([*every]))] == [*map(bytes, theirs.read([*every]))]
    assert len(beam.manifest["splits"]["train"]["shards"]) > 10
    assert sorted(path.name for path in (tmp_path / "beam").iterdir()) == [
        "digests.json",
        beam.directory.name,
    ]
    assert not [path.name for path in beam.directory.iterdir() if "unfinished" in path.name]


@pytest.mark.usefixtures("beam")
def test_what_is_wrong_with_the_text_is_one_line(data, tmp_path):
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b"\nno JSON\n")
    with pytest.raises(UserError, match=r"^\S+c\.jsonl, line 102: not valid JSON .* read with text:GLOB\.$"):
        prepare(data, V, tmp_path / "beam", workers=1, beam_options=[])


@pytest.mark.usefixtures("beam")
@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({"drop_duplicates": "documents"}, "duplicate documents"),
        ({"drop_duplicates": "paragraphs", "min_document_chars": 10}, "duplicate paragraphs"),
        ({"boilerplate_documents": 40}, "boilerplate lines"),
        ({"min_document_chars": 60}, "documents shorter than 60 characters"),
    ],
)
def test_hygiene_leaves_out_the_same(data, tmp_path, rules, reason):
    """Copies in other files and sources, and in the same chunk."""
    line = 20 * "long " + "paragraph"
    path, lines = tmp_path / "a.txt", tmp_path / "c.jsonl"
    path.write_text("\n\n".join([path.read_text(), "short", f"one\n{line}", f"two\n{line}", f"two\n{line}"]))
    again = [json.dumps({"text": text}).encode() for text in (f"three\n{line}", f"one\n{line}", "short")]
    lines.write_bytes(b"\n".join([*again, lines.read_bytes()]))
    (tmp_path / "d.txt").write_text("\n\n".join(f"the end of each\ntext {n}" for n in range(50)))
    data = dataclasses.replace(data, **rules)
    local = prepare(data, V, tmp_path / "local", workers=1)
    beam = prepare(data, V, tmp_path / "beam", workers=1, beam_options=[])
    assert local.manifest["left_out"][reason] > 1
    assert beam.manifest["left_out"] == local.manifest["left_out"]
    assert beam.sha256 == local.sha256


def test_what_a_killed_pipeline_left_is_told(beam, tmp_path, caplog):
    left = tmp_path / ".text-bpe-200-0123.beam-89abcdef"
    for path in (left, tmp_path / ".text-bpe-200-4567.beam-89abcdef", tmp_path / "text-bpe-200-0123"):
        path.mkdir()
    for folder in (tmp_path, tmp_path / "nowhere"):
        beam._tell_of_others(epath.Path(folder / "text-bpe-200-0123"))
    assert caplog.messages == [f"{left} is of another pipeline; delete it if that was killed"]


@pytest.mark.usefixtures("beam")
@pytest.mark.parametrize("option", ["--runner=Nope", "--runner=no.such.Runner", "--runner=DataflowRunner"])
def test_options_that_no_runner_takes_are_one_line(data, tmp_path, option):
    with pytest.raises(UserError, match=rf"^--beam_options={option}: "):
        prepare(data, V, tmp_path / "beam", workers=1, beam_options=[option])


def test_without_beam_a_line_says_how_it_is_installed(data, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "bert_jax.corpus.beam", raising=False)
    monkeypatch.delattr(corpus, "beam", raising=False)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam .*: .*pip install 'bert_jax\[beam\]'"):
        prepare(data, V, tmp_path / "data_dir", workers=1, beam_options=[])
