import hashlib
import logging

import numpy as np
import pytest

from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus import mixture as mixture_lib
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import train_tokenizer
from bert_jax.corpus.mixture import dataset_for, find, prepare
from bert_jax.corpus.sources import MissingInput
from bert_jax.errors import UserError

V = 60
SETTINGS = {"tokenizer": "bpe", "held_out_fraction": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    for name, letters, count in (("big", "abcdefgh", 60), ("small", "ghijklmn", 20)):
        documents = [
            "\n".join(
                " ".join("".join(rng.choice(list(letters), rng.integers(1, 5))) for _ in range(8)) + "."
                for _ in range(4)
            )
            for _ in range(count)
        ]
        (folder / f"{name}.txt").write_text("\n\n".join(documents))
    return folder


def data_of(folder, source="text:{0}/big.txt@0.7,text:{0}/small.txt@0.3", **settings):
    return DataConfig(source=source.format(folder), **SETTINGS | settings)


@pytest.fixture(scope="module")
def data_dir(folder):
    return folder / "data_dir"


@pytest.fixture(scope="module")
def prepared(folder, data_dir):
    return prepare(data_of(folder), V, data_dir, workers=1)


def test_a_dataset_for_each_source_and_one_tokenizer(prepared, data_dir):
    assert prepared.names == ("big", "small")
    names = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
    kinds = ["text-sentencepiece-60", "text-sentencepiece-60", "tokenizer-bpe-60"]
    assert [name.rpartition("-")[0] for name in names] == kinds
    big, small = prepared.datasets.values()
    assert big.tokenizer_files() == small.tokenizer_files() == prepared.tokenizer_files()
    assert prepared.stores("train") == [big.split("train"), small.split("train")]
    assert prepared.sha256 == hashlib.sha256((big.sha256 + small.sha256).encode()).hexdigest()


@pytest.mark.parametrize("source", [
    "text:{0}/big.txt@0.1,text:{0}/small.txt@0.9",
    "text:{0}/small.txt@0,text:{0}/big.txt@1",
])  # fmt: skip
def test_weights_and_order_prepare_nothing_again(prepared, folder, data_dir, monkeypatch, source):
    before = sorted(path.name for path in data_dir.iterdir())
    monkeypatch.setattr(dataset_lib.writer, "write_documents", None)
    monkeypatch.setattr(mixture_lib, "train_tokenizer", None)
    again = prepare(data_of(folder, source), V, data_dir)
    assert {**again.datasets} == {**prepared.datasets}
    assert find(data_of(folder, source), V, data_dir) == again
    assert sorted(path.name for path in data_dir.iterdir()) == before


def test_with_a_given_tokenizer_the_datasets_are_those_of_each_source_alone(prepared, folder, data_dir):
    (model,) = data_dir.glob("tokenizer-*/sentencepiece.model")
    for name, dataset in prepared.datasets.items():
        alone = data_of(folder, f"text:{{0}}/{name}.txt", tokenizer=f"sentencepiece:{model}")
        assert dataset_lib.find(alone, V, data_dir) == dataset


def test_without_weights_all_sources_are_one_dataset(folder, tmp_path):
    data = data_of(folder, "text:{0}/big.txt,text:{0}/small.txt")
    both = prepare(data, V, tmp_path)
    (dataset,) = both.datasets.values()
    assert dataset == dataset_lib.find(data, V, tmp_path)
    assert (
        dataset.manifest["splits"]["train"]["documents"] + dataset.manifest["splits"]["heldout"]["documents"]
        == 80
    )
    assert both.sha256 == dataset.sha256
    (weighted,) = prepare(data_of(folder, "text:{0}/big.txt@2"), V, tmp_path).datasets.values()
    assert weighted == dataset_lib.find(data_of(folder, "text:{0}/big.txt"), V, tmp_path)


@pytest.mark.parametrize(
    "change", [{"lowercase": False}, {"tokenizer": "unigram"}, {"tokenizer_sample_mb": 1}]
)
def test_other_settings_are_another_tokenizer(prepared, folder, data_dir, change):
    assert prepared
    assert find(data_of(folder, **change), V, data_dir) is None
    assert find(data_of(folder), V - 1, data_dir) is None


def test_the_order_of_sources_does_not_change_the_tokenizer(folder, tmp_path, monkeypatch):
    """Their key has them in any order, so that the sample must not depend on it either."""
    specs = []

    def train(sources, *rest):
        specs.append([source.spec for source in sources])
        return train_tokenizer(sources, *rest)

    monkeypatch.setattr(mixture_lib, "train_tokenizer", train)
    for source in ("text:{0}/big.txt@2,text:{0}/small.txt@1", "text:{0}/small.txt@1,text:{0}/big.txt@2"):
        prepare(data_of(folder, source), V, tmp_path / str(len(specs)))
    assert specs[0] == specs[1]


def test_without_the_text_what_was_made_from_it_is_taken(folder, tmp_path, caplog):
    for name in ("big", "small"):
        (tmp_path / f"{name}.txt").write_bytes((folder / f"{name}.txt").read_bytes())
    data = data_of(tmp_path)
    first = prepare(data, V, tmp_path / "here")
    (tmp_path / "small.txt").unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    with caplog.at_level(logging.WARNING, "bert_jax"):
        again = find(data, V, tmp_path / "there")
    assert again.sha256 == first.sha256
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == ["WARNING"]
    assert "whether it is up to date cannot be checked" in caplog.text
    for damaged in ("half", "empty"):
        (tmp_path / "there" / damaged).mkdir()
        (tmp_path / "there" / damaged / "trained_on.json").write_text('{"format": 1' * (damaged == "half"))
    assert find(data, V, tmp_path / "there").sha256 == first.sha256
    with pytest.raises(MissingInput, match=r"small\.txt' matches no file"):
        prepare(data, V - 1, tmp_path / "there")


def test_a_tokenizer_whose_training_fails_leaves_nothing(folder, tmp_path):
    with pytest.raises(UserError, match=r"model\.vocab_size=50000 is more than this text can fill"):
        prepare(data_of(folder), 50_000, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["digests.json"]


def test_text_that_changes_while_the_tokenizer_is_trained_makes_none(folder, tmp_path, monkeypatch):
    path = tmp_path / "small.txt"
    path.write_bytes((folder / "small.txt").read_bytes())
    right = mixture_lib.train_tokenizer

    def changing(*arguments):
        path.write_text(path.read_text().replace("g", "h"))
        return right(*arguments)

    monkeypatch.setattr(mixture_lib, "train_tokenizer", changing)
    with pytest.raises(UserError, match="changed while it was read; run the command again"):
        prepare(data_of(folder, f"text:{{0}}/big.txt@1,text:{path}@1"), V, tmp_path / "data_dir")
    assert [entry.name for entry in (tmp_path / "data_dir").iterdir()] == ["digests.json"]


def test_several_processes_do_not_prepare(prepared, folder, data_dir, tmp_path):
    assert dataset_for(data_of(folder), V, data_dir, processes=4, config="c") == prepared
    with pytest.raises(UserError, match="4 processes must not build it at once"):
        dataset_for(data_of(folder), V, tmp_path, processes=4, config="c")


def test_how_a_tokenizer_is_trained_enters_its_key_and_no_datasets(folder, data_dir):
    default, other = data_of(folder), data_of(folder, byte_fallback=True)
    keys = [mixture_lib._find_tokenizer(data, V, data_dir)[1] for data in (default, other)]
    assert keys[0] != keys[1]
    one, two = (mixture_lib._configs(data, "sentencepiece:x.model") for data in (default, other))
    assert one == two
    with pytest.raises(
        UserError, match=r"^data\.byte_fallback=True has no effect on data\.tokenizer='byte_bpe'"
    ):
        data_of(folder, tokenizer="byte_bpe", byte_fallback=True)
