import collections
import dataclasses
import json
import logging
import pathlib

import numpy as np
import pytest
from etils import epath

from bert_jax.corpus import hygiene
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import find, prepare
from bert_jax.corpus.sources import files
from bert_jax.errors import UserError

SETTINGS = {"tokenizer": "bpe", "held_out_fraction": 0.25}
V = 300
LONG, OTHER = "long " * 20, "other " * 20  # paragraphs of 100 and 120 characters
COPIES, PARAGRAPHS = "duplicate documents", "duplicate paragraphs"
LINES, SHORT = "boilerplate lines", "documents shorter than 8 characters"


@dataclasses.dataclass
class Documents:
    """A chunk in memory."""

    content: list[list[str]]
    read_bytes: int = 0
    size: int = 0

    @property
    def left_out(self):
        return collections.Counter({"redirects": 1})

    def documents(self):
        return iter(self.content)


def clean(folder, documents, per_chunk, **settings):
    """What stays of documents, and what the chunks count as left out."""
    chunks = [
        Documents(documents[start : start + per_chunk]) for start in range(0, len(documents), per_chunk)
    ]
    rules = hygiene.learn(
        hygiene.rules_of(DataConfig(**settings)), lambda: chunks, map, pathlib.Path(folder), 1
    )
    rules = hygiene.copied(rules, epath.Path(folder) / "copies")  # as a pipeline's workers have them
    stays, left_out = [], collections.Counter()
    for chunk in hygiene.cleaned(chunks, rules):
        stays += chunk.documents()
        left_out += chunk.left_out
    assert left_out.pop("redirects") == len(chunks)
    return stays, left_out


EXAMPLES = {
    "off": ({}, [["a"], [], ["a"]], [["a"], ["a"]], {}),
    "documents": (
        {"drop_duplicates": "documents"},
        [["a", "b"], ["a"], ["a", "b"], ["b"], ["a"], ["a", "b"], ["A"], ["a b"], []],
        [["a", "b"], ["a"], ["b"], ["A"], ["a b"]],
        {COPIES: 3},
    ),
    "paragraphs": (
        {"drop_duplicates": "paragraphs"},
        [["a", LONG, LONG], ["a", LONG, OTHER], [OTHER, LONG], ["a", OTHER], [LONG], ["a", LONG, LONG]],
        [["a", LONG], ["a", OTHER], ["a"]],
        {COPIES: 1, PARAGRAPHS: 6},
    ),
    "a paragraph of 99 characters is no duplicate": (
        {"drop_duplicates": "paragraphs"},
        [["a", "x" * 99], ["b", "x" * 99], ["a", "y" * 100], ["b", "y" * 100]],
        [["a", "x" * 99], ["b", "x" * 99], ["a", "y" * 100], ["b"]],
        {PARAGRAPHS: 1},
    ),
    "a document is no duplicate of a paragraph": (
        {"drop_duplicates": "paragraphs"},
        [["a", LONG], [LONG], ["b", OTHER], [OTHER, "c"]],
        [["a", LONG], ["b", OTHER], ["c"]],
        {PARAGRAPHS: 2},
    ),
    "short": (
        {"min_document_chars": 8},
        [["1234", "5678"], ["1234567"], ["äöüäöüäö"], ["12345678"], ["1234", "567"]],
        [["1234", "5678"], ["äöüäöüäö"], ["12345678"]],
        {SHORT: 2},
    ),
    "boilerplate": (
        {"boilerplate_documents": 3},
        [["Menu", "a"], ["b", "Menu", "Menu"], ["twice", "twice"], ["Menu"], ["twice", "menu"]],
        [["a"], ["b"], ["twice", "twice"], ["twice", "menu"]],
        {LINES: 4},
    ),
    "copies make no boilerplate": (
        {"boilerplate_documents": 3, "drop_duplicates": "documents"},
        [["Menu", "a"], ["Menu", "a"], ["Menu", "a"], ["Menu", "b"], ["Menu", "c"]],
        [["a"], ["b"], ["c"]],
        {LINES: 3, COPIES: 2},
    ),
    "equal without boilerplate": (
        {"boilerplate_documents": 3, "drop_duplicates": "documents"},
        [["Menu", "a"], ["Menu", "b"], ["b"], ["Menu", "Top", "c"], ["Top", "b", "d"], ["a", "Top"]],
        [["a"], ["c"], ["d"]],
        {LINES: 9, COPIES: 1},
    ),
    "what is too short claims no paragraph": (
        {"drop_duplicates": "paragraphs", "min_document_chars": 150},
        [[LONG], [LONG, OTHER], [OTHER, LONG, "x" * 99], [OTHER, "x" * 300]],
        [[LONG, OTHER], ["x" * 300]],
        {"documents shorter than 150 characters": 2, PARAGRAPHS: 3},
    ),
    "short without boilerplate": (
        {"boilerplate_documents": 2, "min_document_chars": 8},
        [["Cookies!", "1234567"], ["Cookies!", "12345678"], ["Cookies!"]],
        [["12345678"]],
        {LINES: 3, SHORT: 1},
    ),
}


@pytest.mark.parametrize("per_chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("example", EXAMPLES)
def test_what_is_left_out(tmp_path, example, per_chunk):
    settings, documents, stays, left_out = EXAMPLES[example]
    assert clean(tmp_path, documents, per_chunk, **settings) == (stays, left_out)


def corpus(seed=0):
    """400 documents with copies, repeated paragraphs and lines of a site; some are short."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 8))) for _ in range(100)]
    paragraphs = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(300)]
    documents = [[*rng.choice(paragraphs, rng.integers(1, 5))] for _ in range(300)]
    sites = [["Skip to content", *document, "We use cookies."] for document in documents[::3]]
    return [[str(line) for line in document] for document in [*documents, *sites, *documents[:30]]]


def write(path, documents):
    path.write_text("\n".join(json.dumps({"text": "\n".join(document)}) for document in documents))


ALL = {"drop_duplicates": "paragraphs", "min_document_chars": 60, "boilerplate_documents": 50}


def test_a_dataset_does_not_depend_on_workers_chunks_or_files(tmp_path, monkeypatch):
    documents = corpus()
    write(tmp_path / "a.jsonl", documents)
    data = DataConfig(source=f"jsonl:{tmp_path}/a.jsonl", **SETTINGS, **ALL)
    whole = prepare(data, V, tmp_path / "whole", workers=1)
    write(tmp_path / "b1.jsonl", documents[:150])
    write(tmp_path / "b2.jsonl", documents[150:])
    monkeypatch.setattr(files, "CHUNK_BYTES", 3000)
    parts = dataclasses.replace(data, source=f"jsonl:{tmp_path}/b1.jsonl,jsonl:{tmp_path}/b2.jsonl")
    cut = prepare(parts, V, tmp_path / "cut", workers=3)
    assert cut.sha256 == whole.sha256
    assert cut.manifest["left_out"] == whole.manifest["left_out"]
    assert {reason for reason, count in whole.manifest["left_out"].items() if count > 20} == {
        COPIES, PARAGRAPHS, LINES, "documents shorter than 60 characters"
    }  # fmt: skip
    assert not [path for path in whole.directory.iterdir() if path.name.startswith("tmp")]


def test_hygiene_equals_the_text_without_what_it_leaves_out(tmp_path):
    stays, _ = clean(tmp_path, corpus(), 7, **ALL)
    write(tmp_path / "all.jsonl", corpus())
    write(tmp_path / "clean.jsonl", stays)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{x}" for x in "abcdefghij")]
    (tmp_path / "words.txt").write_text("\n".join(words))
    data = DataConfig(tokenizer=f"wordpiece:{tmp_path}/words.txt", held_out_fraction=0.25)
    cleaned = prepare(dataclasses.replace(data, source=f"jsonl:{tmp_path}/all.jsonl", **ALL), 25, tmp_path)
    given = prepare(dataclasses.replace(data, source=f"jsonl:{tmp_path}/clean.jsonl"), 25, tmp_path)
    assert cleaned.sha256 == given.sha256
    assert cleaned.manifest["text_bytes"] == given.manifest["text_bytes"]
    assert given.manifest["left_out"] == {}


@pytest.mark.parametrize("change", [{name: value} for name, value in ALL.items()])
def test_other_hygiene_is_another_dataset(tmp_path, change):
    write(tmp_path / "a.jsonl", corpus())
    data = DataConfig(source=f"jsonl:{tmp_path}/a.jsonl", **SETTINGS)
    prepare(data, V, tmp_path)
    assert find(dataclasses.replace(data, **change), V, tmp_path) is None


def test_counts_are_logged(tmp_path, caplog):
    write(tmp_path / "a.jsonl", [["some words are here"], ["other words"], ["some words are here"]] * 600)
    data = DataConfig(source=f"jsonl:{tmp_path}/a.jsonl", tokenizer="bpe", drop_duplicates="documents")
    with caplog.at_level(logging.WARNING, "bert_jax"):
        dataset = prepare(data, 40, tmp_path)
    assert "left out 1,798 duplicate documents" in caplog.text
    assert dataset.split("train").index.num_documents == 2


def test_nothing_is_left(tmp_path):
    write(tmp_path / "a.jsonl", [["some words are here"], ["other words"]] * 30)
    data = DataConfig(source=f"jsonl:{tmp_path}/a.jsonl", tokenizer="bpe", **ALL)
    with pytest.raises(UserError, match=r"no text to train on \(0 documents, 60 documents shorter than 60 "):
        prepare(data, 40, tmp_path)
    with pytest.raises(UserError, match=r"boilerplate_documents=1 would leave out every line"):
        DataConfig(boilerplate_documents=1)
