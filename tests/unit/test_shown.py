import types

import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.data import shown
from tests.fakes import FakeTokenizer

PAD, UNK, CLS, SEP, MASK = FakeTokenizer.special_ids
TOKENIZER = FakeTokenizer(100, np.arange(100) < 50)


@pytest.fixture
def batch():
    return {
        "input_ids": np.array(
            [
                [CLS, 5, MASK, SEP, 60, 8, SEP, CLS, 9, SEP, PAD],
                [CLS, 10, UNK, 51, SEP, MASK, MASK, SEP, PAD, PAD, PAD],
            ]
        ),
        "sequence_ids": np.array([[1] * 7 + [2] * 3 + [0], [1] * 8 + [0] * 3]),
        "token_type_ids": np.array([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]]),
        "position_ids": np.array([[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0], [*range(8), 0, 0, 0]]),
        "masked_lm_positions": np.array([[2, 4, 8, 0], [5, 6, 0, 0]]),
        "masked_lm_ids": np.array([[6, 7, 9, 0], [11, 52, 0, 0]]),
        "masked_lm_weights": np.array([[1, 1, 1, 0], [1, 1, 0, 0]]),
        "cls_positions": np.array([[0, 7], [0, 0]]),
        "next_sentence_labels": np.array([[0, 0], [1, 0]]),
        "next_sentence_weights": np.array([[1, 0], [1, 0]]),
    }


def test_sequences_as_a_person_reads_them(batch):
    assert list(shown.sequences(batch, 0, TOKENIZER, DataConfig())) == [
        "row 0, sequence 1: IsNext, 7 tokens\n"
        "  A         [CLS] w5 [MASK] [SEP]\n"
        "  B         ##60 w8 [SEP]\n"
        "  masked    2 w6\n"
        "  replaced  4 w7 [##60]",
        "row 0, sequence 2: no B, 3 tokens\n"
        "  A         [CLS] w9 [SEP]\n"
        "  kept      1 w9",
    ]  # fmt: skip
    assert list(shown.sequences(batch, 1, TOKENIZER, DataConfig())) == [
        "row 1, sequence 1: NotNext, 8 tokens\n"
        "  A         [CLS] w10 [UNK] ##51 [SEP]\n"
        "  B         [MASK] [MASK] [SEP]\n"
        "  masked    5 w11, 6 ##52"
    ]


def test_sentence_order(batch):
    order = DataConfig(second_objective="sentence_order")
    first, alone = shown.sequences(batch, 0, TOKENIZER, order)
    assert first.startswith("row 0, sequence 1: InOrder, 7 tokens\n")
    assert alone.startswith("row 0, sequence 2: no B, 3 tokens\n")
    (second,) = shown.sequences(batch, 1, TOKENIZER, order)
    assert second.startswith("row 1, sequence 1: Swapped, 8 tokens\n")
    assert "3 sequences, 50.0% of the pairs Swapped, " in shown.summary(batch, TOKENIZER, order)


def test_causal(batch):
    causal = DataConfig(second_objective="none", objective="causal")
    batch["next_sentence_weights"][:] = 0
    assert list(shown.sequences(batch, 0, TOKENIZER, causal)) == [
        "row 0, sequence 1: no B, 7 tokens\n"
        "  A         [CLS] w5 [MASK] [SEP]\n"
        "  B         ##60 w8 [SEP]",
        "row 0, sequence 2: no B, 3 tokens\n"
        "  A         [CLS] w9 [SEP]",
    ]  # fmt: skip
    assert shown.summary(batch, TOKENIZER, causal).endswith(
        "\n3 sequences, 5 tokens to be predicted from those before them"
    )


def test_summary(batch):
    assert shown.summary(batch, TOKENIZER, DataConfig()) == (
        "2 rows of 11 tokens, 81.8% filled, 4 slots for predictions in each\n"
        "3 sequences, 50.0% of the pairs NotNext, "
        "55.6% of the text to be predicted (60.0% masked, 20.0% replaced, 20.0% kept)"
    )


def test_summary_without_pairs(batch):
    batch["next_sentence_weights"][:] = 0
    batch["masked_lm_weights"][:] = 0
    batch["input_ids"][batch["input_ids"] == MASK] = 7
    assert shown.summary(batch, TOKENIZER, DataConfig()).endswith(
        "0.0% of the pairs NotNext, 0.0% of the text to be predicted (0.0% masked, 0.0% replaced, 0.0% kept)"
    )


def test_pieces_marked_or_joined_to_a_text():
    pieces = [5, 60, MASK]
    assert [shown.piece_text(TOKENIZER, piece) for piece in pieces] == ["w5", "##60", "[MASK]"]
    assert [shown.piece_text(TOKENIZER, piece, spaces=True) for piece in pieces] == [" w5", "60", " [MASK]"]
    marks = types.SimpleNamespace(
        bare_piece=["the", "▁", "ing", ","].__getitem__, word_starts=[True, True, False, False]
    )
    assert [shown.piece_text(marks, piece) for piece in range(4)] == ["the", "▁", "##ing", ","]
    assert [shown.piece_text(marks, piece, spaces=True) for piece in range(4)] == [" the", " ▁", "ing", ","]


def test_an_example_with_the_guesses_of_a_model(batch):
    guesses, probabilities = np.array([[6, 60, 8, 0]] * 2), np.array([[0.5, 0.25, 0.125, 0.0]] * 2)
    follows = np.array([[0.75, 0.0]] * 2)
    arguments = TOKENIZER, batch, 0
    assert shown.example(*arguments, 0, guesses, probabilities, follows) == {
        "sentences": [
            [
                {"text": " w5"},
                {"text": " [MASK]", "fate": "masked", "truth": " w6", "guess": " w6", "probability": 0.5},
            ],
            [
                {"text": "60", "fate": "replaced", "truth": " w7", "guess": "60", "probability": 0.25},
                {"text": " w8"},
            ],
        ],
        "next_sentence": {"truth": True, "probability": 0.75},
    }
    assert shown.example(*arguments, 1, guesses, probabilities, follows) == {
        "sentences": [
            [{"text": " w9", "fate": "kept", "truth": " w9", "guess": " w8", "probability": 0.125}]
        ],
        "next_sentence": None,
    }
