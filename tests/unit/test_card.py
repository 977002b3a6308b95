import json
import logging
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus import card as card_lib
from bert_jax.corpus import mixture
from bert_jax.corpus.card import card_of, collect, complete, describe, digest, vocabulary_use
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import PreparedDataset
from bert_jax.corpus.mixture import prepare
from bert_jax.corpus.sources import files
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.report import dataset_card
from tests.pages import Balanced, text_of

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "."]
FIRST = b"a a.\nb.\n\nb\xff\n\na a a\n"
SECOND = "\n".join(json.dumps({"text": text}) for text in ("strange a", "b a.\nb", "", "a.\na.\na."))
SCRIPT = "<script>alert('&')</script>"


def write_corpus(folder):
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (folder / "first.txt").write_bytes(FIRST)
    (folder / "second.jsonl").write_text(SECOND)
    return folder


def data_of(folder, source="text:{0}/first.txt,jsonl:{0}/second.jsonl", **settings):
    given = {"tokenizer": f"wordpiece:{folder}/vocab.txt", "invalid_utf8": "skip", "held_out_fraction": 0}
    return DataConfig(source=source.format(folder), **given | settings)


def prepare_in(folder, workers=1, **settings):
    (dataset,) = prepare(data_of(folder, **settings), len(PIECES), folder / "data", workers).datasets.values()
    return dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return prepare_in(write_corpus(tmp_path_factory.mktemp("card") / "text"))


def test_a_card_counted_by_hand(dataset):
    """Documents "a a." "b." | "a a a" | "[UNK] a" | "b a." "b" | "a." "a." "a."; 10 a, 3 b, 6 full stops."""
    card = json.loads((dataset.directory / "dataset_card.json").read_bytes())
    made, sources = card.pop("made"), card["sources"]
    assert re.fullmatch("[0-9a-f]{64}", card.pop("card_sha256"))
    assert re.fullmatch("[0-9a-f]{64}", card["tokenizer"].pop("sha256"))
    assert len({source.pop("fingerprint") for source in sources}) == 2
    folder = dataset.directory.parent.parent
    empty = {"documents": 0, "sentences": 0, "tokens": 0}
    left_out = {"lines or records that are not UTF-8 (data.invalid_utf8=skip)": 1}
    stored = dataset.manifest["splits"]["train"]["bytes"]
    entropy = -sum(n / 20 * np.log2(n / 20) for n in (1, 10, 3, 6))
    assert card == {
        "format": 1,
        "dataset_sha256": dataset.sha256,
        "text_bytes": 7 + 5 + 9 + 6 + 8,
        "left_out": left_out,
        "splits": {
            "train": {
                "documents": 5, "sentences": 9, "tokens": 20, "bytes": stored,
                "unknown": 1, "entropy_bits": round(entropy, 6), "pieces_used": 3, "pieces": 4,
                "lengths": {
                    "tokens_per_document": {
                        "mean": 4.0, "p10": 2, "p50": 4, "p90": 6, "p99": 6, "max": 6,
                        "histogram": [[2, 1], [3, 1], [4, 2], [6, 1]],
                    },
                    "tokens_per_sentence": {
                        "mean": 2.22, "p10": 1, "p50": 2, "p90": 3, "p99": 3, "max": 3,
                        "histogram": [[1, 1], [2, 5], [3, 3]],
                    },
                    "sentences_per_document": {
                        "mean": 1.8, "p10": 1, "p50": 2, "p90": 3, "p99": 3, "max": 3,
                        "histogram": [[1, 2], [2, 2], [3, 1]],
                    },
                },
            },
            "heldout": empty | {
                "bytes": 0, "unknown": 0, "entropy_bits": 0.0, "pieces_used": 0, "pieces": 4,
                "lengths": {
                    "tokens_per_document": {}, "tokens_per_sentence": {}, "sentences_per_document": {},
                },
            },
        },
        "sources": [
            {
                "spec": f"text:{folder}/first.txt", "files": 1, "text_bytes": 12, "left_out": left_out,
                "splits": {
                    "train": {"documents": 2, "sentences": 3, "tokens": 8, "unknown": 0},
                    "heldout": empty | {"unknown": 0},
                },
            },
            {
                "spec": f"jsonl:{folder}/second.jsonl", "files": 1, "text_bytes": 23, "left_out": {},
                "splits": {
                    "train": {"documents": 3, "sentences": 6, "tokens": 12, "unknown": 1},
                    "heldout": empty | {"unknown": 0},
                },
            },
        ],
        "tokenizer": {"kind": "WordPiece", "vocab_size": 9},
        "frequent_pieces": [["a", 10], [".", 6], ["b", 3], ["[UNK]", 1]],
        "samples": [0, 1, 2, 3, 4],
    }  # fmt: skip
    assert set(made) == {"command", "settings", "seconds", "versions"}
    assert "--config.model.vocab_size=9" in made["command"]
    assert f"--config.data.source=text:{folder}/first.txt,jsonl:{folder}/second.jsonl" in made["command"]


def test_the_digest_names_the_documents_not_where_or_how_they_were_prepared(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK_BYTES", 10)
    again = prepare_in(write_corpus(tmp_path / "elsewhere"), workers=3)
    mine, other = card_of(dataset), card_of(again)
    assert mine["card_sha256"] == other["card_sha256"]
    assert mine["made"] != other["made"]
    assert mine["sources"][0]["spec"] != other["sources"][0]["spec"]
    for change in ({"left_out": {}}, {"samples": [1]}, {"sources": mine["sources"][:1]}):
        assert digest(mine | change) != mine["card_sha256"]


def test_a_card_that_is_missing_or_damaged_is_written_again(tmp_path, monkeypatch):
    found = prepare_in(write_corpus(tmp_path / "text"))
    path, page = (found.directory / name for name in ("dataset_card.json", "dataset_card.html"))
    whole = path.read_bytes()
    for damaged in (whole.replace(b'"tokens": 20', b'"tokens": 21', 1), whole[:-9], b"[]", b""):
        path.write_bytes(damaged)
        assert card_of(found) is None
        complete(found)
        assert path.read_bytes() == whole
    path.unlink(), page.unlink()
    prepare_in(tmp_path / "text")
    assert (path.read_bytes(), page.exists()) == (whole, True)
    monkeypatch.setattr(card_lib, "collect", None)  # not called where there is a card
    complete(found)


def test_a_folder_that_cannot_be_written_gets_no_card(tmp_path, monkeypatch):
    found = prepare_in(write_corpus(tmp_path / "text"))
    (found.directory / "dataset_card.json").unlink()

    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(card_lib, "write", refuse)
    complete(found)
    assert card_of(found) is None


def test_a_dataset_of_an_older_version_has_a_card_without_counts_by_source(dataset):
    old = {name: x for name, x in dataset.manifest.items() if name not in {"by_source", "left_out"}}
    older = PreparedDataset(dataset.directory, old)
    card = collect(older)
    assert [set(source) for source in card["sources"]] == [{"spec", "files", "fingerprint"}] * 2
    assert card["left_out"] == {}
    samples = card_lib.samples(older, card)
    assert [sample["source"] for sample in samples] == [""] * 5
    assert "first.txt1––" in text_of(dataset_card.render("old", card, samples, {}))


def test_samples_name_their_source_and_are_cut(dataset, monkeypatch):
    monkeypatch.setattr(card_lib, "SAMPLE_TOKENS", 4)
    found = card_lib.samples(dataset, card_of(dataset))
    assert [(sample["text"], sample["tokens"]) for sample in found] == [
        ("a a. b …", 5), ("a a a", 3), ("[UNK] a", 2), ("b a. b", 4), ("a. a. …", 6),
    ]  # fmt: skip
    assert [sample["source"].partition(":")[0] for sample in found] == ["text"] * 2 + ["jsonl"] * 3


def test_samples_are_chosen_by_the_digest():
    first, second = card_lib._chosen("one", 10**9), card_lib._chosen("other", 10**9)
    assert first == card_lib._chosen("one", 10**9) != second
    assert len(set(first)) == 6
    assert min(first) < 10**9 / 2 < max(first) < 10**9
    assert card_lib._chosen("one", 3) == [0, 1, 2]


def test_each_source_of_a_mixture_has_a_card_and_checkpoints_carry_them(tmp_path):
    folder = write_corpus(tmp_path / "text")
    data = data_of(folder, "text:{0}/first.txt@0.9,jsonl:{0}/second.jsonl@0.1")
    sources = prepare(data, len(PIECES), tmp_path / "data")
    ((name, content),) = sources.card_files().items()
    assert name == "dataset_cards.json"
    assert json.loads(content) == {n: card_of(one) for n, one in sources.datasets.items()}
    assert [card["splits"]["train"]["tokens"] for card in json.loads(content).values()] == [8, 12]
    for one in sources.datasets.values():
        (one.directory / "dataset_card.json").unlink()
    assert mixture.find(data, len(PIECES), tmp_path / "data").card_files() == {}


def test_files_whose_names_are_no_text(tmp_path, monkeypatch):
    # What is logged goes into pytest's report, which processes exchange as UTF-8.
    monkeypatch.setattr(logging.getLogger("bert_jax"), "disabled", True)
    folder = write_corpus(tmp_path / "text")
    (folder / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"a b.")
    found = prepare_in(folder, source="text:{0}/*\udce9.txt")
    assert card_of(found)["sources"][0]["spec"] == f"text:{folder}/*\udce9.txt"
    assert "caf?.txt" in (found.directory / "dataset_card.html").read_text()


def test_use_of_a_vocabulary():
    tokenizer = WordPieceTokenizer(PIECES, True)
    used = vocabulary_use(np.array([0, 2, 0, 0, 0, 4, 2, 0, 0]), tokenizer)
    assert used == {"unknown": 2, "entropy_bits": 1.5, "pieces_used": 2, "pieces": 4}


def test_lengths_beyond_the_last_bin_and_in_several_blocks():
    blocks = [np.array([1, 5, 5]), np.array([3_000_000]), np.array([7, 2**20 - 1], np.uint32)]
    found = describe(blocks)
    histogram = dict(found.pop("histogram"))
    assert found == {"mean": 674765.5, "p10": 1, "p50": 5, "p90": 2**20, "p99": 2**20, "max": 3_000_000}
    assert {length: count for length, count in histogram.items() if count} == {
        1: 1, 4: 2, 6: 1, 741455: 1, 2**20: 1,
    }  # fmt: skip
    lengths = np.arange(1, 200)
    counts = dict(describe([lengths])["histogram"])
    edges = sorted(counts)
    assert edges == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181]
    assert [counts[edge] for edge in edges] == np.diff([*edges, 200]).tolist()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 3 * 10**6), min_size=1, max_size=30), st.lists(st.integers(1, 500), max_size=9)
)
def test_histograms_of_any_lengths_can_be_drawn(train, held_out):
    name = "tokens_per_document"
    lengths = {
        "train": describe([np.array(train)]),
        "heldout": describe([np.array(held_out)] * bool(held_out)),
    }
    splits = {split: {"lengths": {name: found}} for split, found in lengths.items()}
    drawn = dataset_card._histogram(name, splits)
    shares = [bar["height"] for bar in drawn["bars"]]
    top = drawn["ticks"][-1][1]
    assert drawn["ticks"][-1][0] == 100
    assert sum(shares) * float(top.rstrip("%")) / 100 == pytest.approx(100, abs=0.5)
    assert sum(bar["width"] for bar in drawn["bars"]) == pytest.approx(100, abs=0.5)
    assert 1 <= len(drawn["labels"]) <= 6
    assert len(drawn["line"]) == (len(shares) if held_out else 0)


def test_blocks_hold_every_length_once(monkeypatch):
    monkeypatch.setattr(card_lib, "BLOCK", 3)
    starts = np.array([0, 2, 3, 7, 8, 10, 15, 16])
    assert np.concatenate([*card_lib._differences(starts)]).tolist() == [2, 1, 4, 1, 2, 5, 1]
    assert np.concatenate([*card_lib._blocks(starts)]).tolist() == starts.tolist()
    assert [*card_lib._differences(np.array([0]))] == []


def test_everything_on_the_page_is_escaped_and_nothing_is_loaded(dataset):
    card = card_of(dataset)
    card["left_out"] = {SCRIPT: 2}
    card["sources"][0]["spec"] = card["frequent_pieces"][0][0] = card["made"]["command"] = SCRIPT
    card["made"]["settings"] = {"source": SCRIPT}
    samples = [{"number": 0, "source": SCRIPT, "tokens": 3, "text": SCRIPT}]
    page = dataset_card.render(SCRIPT, card, samples, {SCRIPT: {SCRIPT: "5eed"}})
    Balanced().feed(page)
    assert "<script" not in page
    assert text_of(page).count(SCRIPT) == 11
    assert not re.search(r"https?:|src=|href=|url\(|@import", page)


def test_what_the_page_shows(dataset):
    page = (dataset.directory / "dataset_card.html").read_text(encoding="utf-8")
    Balanced().feed(page)
    text = text_of(page)
    for shown in (
        "WordPiece tokenizer of 9 pieces", f"dataset{dataset.sha256}",
        f"card{card_of(dataset)['card_sha256']}",
        "Documents50 held out", "Text35 bytes1.75 bytes per token", "Unknown5.0%[UNK], 1 of 20 tokens",
        "Vocabulary used75.0%3 of 4 pieces, train", "Left out1see below", "train5920", "a 50.0%",
        "4–5 tokens: 40.0% of the documents (2)", "from 6 tokens: 20.0% of the documents (1)",
    ):  # fmt: skip
        assert shown in text, shown
    digests = re.findall(r"(?:first\.txt|second\.jsonl)([0-9a-f]{64})", text)
    assert digests == [source["fingerprint"][2][0] for source in dataset.manifest["sources"]]
