"""The vocabulary report: words, pieces and characters are counted on the stored tokens."""

import logging

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.vocabulary_fit import fit, scripts, used_together

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *SPECIAL, "the", "cat", "un", "##break", "##able", "s", "##s", ",", ".", "ใช้", "##งาน", "今", "天", "no",
]  # fmt: skip


@pytest.fixture
def dataset_of(tmp_path):
    def make(text, **settings):
        (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        data = DataConfig(
            **{
                "source": f"text:{tmp_path}/text.txt", "tokenizer": f"wordpiece:{tmp_path}/vocab.txt",
                "held_out_fraction": 0.0, "lowercase": False,
            } | settings
        )  # fmt: skip
        return prepare(data, len(PIECES), tmp_path / "data_dir", workers=1)

    return make


def test_words_pieces_and_characters_are_counted(dataset_of):
    """the | cat, | unbreakables | . and then | dog, which is unknown | the."""
    found = fit(dataset_of("the cat, unbreakables.\n\ndog the"))
    assert found.tokens == 10
    assert found.pieces_per_word == (1 + 1 + 4 + 1 + 1) / 5
    assert found.pieces_per_character == 10 / (3 + 3 + 1 + 12 + 1 + 1 + 3)
    assert found.unknown == 0.1
    assert found.used == 8 / 14  # the cat , un ##break ##able ##s . of all but the special ones
    assert found.longest == ("un|break|able|s", "the", "cat")
    assert (found.language, found.split) == ("en", "train")


def test_text_without_spaces_has_no_words(dataset_of):
    found = fit(dataset_of("今天今天 ใช้งาน the", language="zh"))
    assert found.tokens == 7
    assert found.pieces_per_word is None
    assert found.pieces_per_character == 7 / (4 + 3 + 3 + 3)
    assert found.longest == ("the",)
    assert found.language == "zh"


def test_the_log_names_rules_and_lost_accents(dataset_of, caplog):
    with caplog.at_level(logging.INFO, "bert_jax"):
        dataset_of("the cat", language="th", lowercase=True)
    rules = "sentences: th: rules of en (sentencex has none of th), and at spaces between Thai letters"
    assert rules in caplog.messages
    (warning,) = [message for message in caplog.messages if "accents" in message]
    assert "for language th set data.lowercase=False" in warning
    caplog.clear()
    with caplog.at_level(logging.INFO, "bert_jax"):
        dataset_of("the cat s", language="th")
        dataset_of("the cat s", lowercase=True)
    assert "accents" not in caplog.text


def test_held_out_text_is_counted_if_there_is_some(dataset_of):
    documents = "\n\n".join(f"the cat{' s' * count}" for count in range(40))
    dataset = dataset_of(documents, held_out_fraction=0.5)
    found = fit(dataset)
    assert found.split == "heldout"
    assert found.tokens == dataset.split("heldout").index.num_tokens


def test_pieces_by_script_and_by_several_datasets(dataset_of):
    first, second = dataset_of("the cat"), dataset_of("the s, s")
    assert scripts(first.tokenizer) == {
        "latin": 8 / 14, "no letter": 2 / 14, "thai": 2 / 14, "cjk": 2 / 14,
    }  # fmt: skip
    assert [fit(one).used for one in (first, second)] == [2 / 14, 3 / 14]
    assert used_together([first, second]) == 4 / 14
