"""Byte-level BPE and WordPiece trained here: the same for the same words, of exactly the size asked for."""

import collections
import hashlib
import os
import subprocess
import sys

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.json_training import train_byte_bpe, train_wordpiece
from bert_jax.corpus.mixture import prepare as prepare_sources
from bert_jax.corpus.tokenizer import SPECIAL_PIECES
from bert_jax.errors import UserError
from tests.json_tokenizers import lines, paragraphs

TRAINERS = {"byte_bpe": train_byte_bpe, "wordpiece": train_wordpiece}


def count():
    return collections.Counter(word for paragraph in paragraphs() for word in paragraph.split())


@pytest.fixture(scope="module")
def counts():
    return count()


@pytest.fixture(params=TRAINERS.values(), ids=TRAINERS)
def train(request):
    return request.param


def digest(tokenizer):
    return hashlib.sha256(b"".join(tokenizer.files().values())).hexdigest()


def test_special_pieces_come_first(counts, train):
    for size in (700, 1000):
        tokenizer = train(counts, size, True)
        assert (tokenizer.vocab_size, tokenizer.special_ids) == (size, (0, 1, 2, 3, 4))
        assert [tokenizer.piece(token) for token in range(5)] == [*SPECIAL_PIECES]
        assert len({tokenizer.piece(token) for token in range(size)}) == size


@pytest.mark.parametrize("name", TRAINERS)
def test_the_same_words_give_the_same_pieces(counts, name):
    """In any order, and in processes with other hashes and numbers of threads."""
    expected = digest(TRAINERS[name](counts, 1000, True))
    assert digest(TRAINERS[name](dict(reversed(counts.items())), 1000, True)) == expected
    code = (
        f"from tests.unit import test_json_training as t; "
        f"print(t.digest(t.TRAINERS[{name!r}](t.count(), 1000, True)))"
    )
    for threads, parallel in ((1, "false"), (7, "true")):
        environment = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": parallel}
        found = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | environment | {"PYTHONPATH": os.getcwd()},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert found.stdout.strip() == expected


def test_bytes_lose_nothing(counts):
    tokenizer = train_byte_bpe(counts, 1000, False)
    kept = [line for line in lines() if line.isascii()]
    assert len(kept) > 100
    for line, ids in zip(kept, tokenizer.encode(kept), strict=True):
        assert tokenizer.decode(ids) == line
    lowered = train_byte_bpe(counts, 1000, True)
    assert lowered.decode(lowered.encode(["The E\u0301"])[0]) == "the é"
    (ids,) = tokenizer.encode_with_masks(["(a [MASK] is"])
    assert [tokenizer.piece(token) for token in ids] == ["(", "a", "[MASK]", "Ġis"]


def test_frequent_words_are_pieces(counts, train):
    tokenizer = train(counts, 1000, True)
    frequent = [word for word, _ in counts.most_common(30) if word.isalpha()]
    assert len(frequent) > 20
    for word, ids in zip(frequent, tokenizer.encode([f" {word}" for word in frequent]), strict=True):
        assert [tokenizer.bare_piece(token) for token in ids] == [word.lower()]


def test_wordpiece_honours_case_and_leaves_rare_characters_out(counts):
    cased, uncased = (train_wordpiece(counts, 1000, lowercase) for lowercase in (False, True))
    assert [cased.piece(token) for token in cased.encode(["The"])[0]] == ["The"]
    assert [uncased.piece(token) for token in uncased.encode(["The"])[0]] == ["the"]
    rare = train_wordpiece(counts + collections.Counter({"東京": 1}), 1000, True)
    assert rare.encode(["東"]) == [[rare.unk_id]]
    frequent = train_wordpiece(counts + collections.Counter({"東京": 10_000}), 1000, True)
    assert frequent.unk_id not in frequent.encode(["東京"])[0]


def test_impossible_sizes_name_a_size_that_works(train):
    words = {"hello": 3, "help": 2, "held": 2, "yellow": 1, "mellow": 1}
    for impossible, bound in ((6, "least"), (5000, "most")):
        with pytest.raises(UserError, match=rf"model\.vocab_size={impossible} .*use at {bound} \d+") as error:
            train(words, impossible, True)
        size = int(str(error.value).rsplit(" ", 1)[1].rstrip("."))
        assert train(words, size, True).vocab_size == size


@pytest.mark.parametrize("kind", TRAINERS)
def test_prepared_alone_and_for_several_sources(tmp_path, kind):
    for name, some in (("a", paragraphs()[:40]), ("b", paragraphs()[40:60])):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(some))
    alone = DataConfig(source=f"text:{tmp_path}/a.txt", tokenizer=kind, held_out_fraction=0)
    dataset = prepare(alone, 600, tmp_path / "data_dir", workers=1)
    assert dataset.tokenizer.vocab_size == 600
    assert f"text-{kind}-600-" in dataset.directory.name
    mixed = DataConfig(
        source=f"text:{tmp_path}/a.txt@0.5,text:{tmp_path}/b.txt@0.5", tokenizer=kind, held_out_fraction=0
    )
    first = prepare_sources(mixed, 600, tmp_path / "data_dir", workers=1)
    again = prepare_sources(mixed, 600, tmp_path / "data_dir", workers=1)
    assert first.sha256 == again.sha256
    assert first.tokenizer_files() != dataset.tokenizer_files()
    assert first.tokenizer.vocab_size == 600


def test_training_is_quiet(counts, train, capfd):
    train(counts, 500, True)
    assert capfd.readouterr() == ("", "")


def test_character_coverage_of_wordpiece(counts):
    more = counts + collections.Counter({"東京": 3})
    assert train_wordpiece(more, 1000, True).encode(["東"]) == [[1]]
    assert train_wordpiece(more, 1000, True, character_coverage=1.0).encode(["東"]) != [[1]]
