import dataclasses
import shutil

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax.data.shown import piece_text
from bert_jax.errors import UserError
from bert_jax.inference import pretrained
from tests.saved import LONGEST, PIECES, save, sentencepiece, wordpiece
from tests.tiny import EURO, MODERN, Sequence, batch_of

TEXTS = [
    "The [MASK] of the union.",
    "[MASK] state",
    "We are [MASK]",
    "[MASK]",
    "[MASK][MASK] and [MASK]. It was so, [MASK] free people of a great state [MASK]!",
    "we are in god " * 6 + "[MASK]",
]


class Saved:
    """A checkpoint, what `load` makes of it, and the plain model, of which all is computed in one shape."""

    def __init__(self, folder, tokenizer):
        model = save(folder, tokenizer)
        self.folder, self.bert = folder, bert_jax.load(folder)
        self._model = jax.jit(lambda batch: (*model(batch), model.encoder(batch, all_hidden_states=True)))

    def plain(self, text):
        """Probabilities at the masks [masks, V], of IsNext, and all states [L + 1, tokens, D]."""
        masked_lm, next_sentence, states = self._model(row_of(self.bert, text))
        ids = ids_of(self.bert, text)
        probabilities = np.asarray(jax.nn.softmax(masked_lm))[0, : ids.count(self.bert.tokenizer.mask_id)]
        return probabilities, jax.nn.softmax(next_sentence)[0, 0, 0], np.asarray(states)[:, 0, : len(ids)]


@pytest.fixture(scope="module")
def with_sentencepiece(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("run"), sentencepiece())


@pytest.fixture(scope="module")
def with_wordpiece(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("run"), wordpiece())


@pytest.fixture(params=["with_sentencepiece", "with_wordpiece"])
def saved(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def bert(with_sentencepiece):
    return with_sentencepiece.bert


def ids_of(bert, text):
    (row,) = bert._rows([text])
    cls, sep = bert.tokenizer.cls_id, bert.tokenizer.sep_id
    return [cls, *row.a, sep, *([*row.b, sep] if row.b else [])]


def pieces(bert, text):
    return " ".join(map(bert.tokenizer.piece, ids_of(bert, text)))


def row_of(bert, text):
    """A batch of this text alone."""
    ids = np.array(ids_of(bert, text))
    positions = np.flatnonzero(ids == bert.tokenizer.mask_id)
    first = 1 + int(np.argmax(ids == bert.tokenizer.sep_id))
    row = Sequence(ids, (np.arange(len(ids)) >= first) * 1, positions, positions, 0)
    return batch_of([[row]], LONGEST, 8, 1)


def test_fill_mask_is_the_softmax_of_the_plain_model(saved):
    bert = saved.bert
    results = bert.fill_mask(TEXTS, top_k=bert.tokenizer.vocab_size)
    assert [len(masks) for masks in results] == [1, 1, 1, 1, 5, 1]
    for text, masks in zip(TEXTS, results, strict=True):
        for guesses, probabilities in zip(masks, saved.plain(text)[0], strict=True):
            order = np.argsort(-probabilities, kind="stable")
            np.testing.assert_allclose([p for _, p in guesses], probabilities[order], atol=1e-6)
            assert guesses[0].token == piece_text(bert.tokenizer, int(order[0]))
    assert bert.fill_mask(TEXTS[:2], top_k=3) == [[masks[0][:3]] for masks in results[:2]]


def test_next_sentence_is_the_softmax_of_the_plain_model(saved):
    pairs = [("We are free.", "It was so."), ("We are free.", "we are in god " * 5), ("", "so")]
    expected = [saved.plain(pair)[1] for pair in pairs]
    np.testing.assert_allclose(saved.bert.next_sentence(pairs), expected, atol=1e-6)
    assert np.ptp(expected) > 1e-3
    assert pieces(saved.bert, ("so", "it")).split()[0::2] == ["[CLS]", "[SEP]", "[SEP]"]


def test_encode_gives_every_layer_of_the_plain_model(saved):
    for text in ("the state of union.", ("so", "we are")):
        _, _, states = saved.plain(text)
        assert len(states) == 3
        for layer in (0, 1, 2, -1, -3):
            (actual,) = saved.bert.encode([text], layer)
            assert actual.dtype == np.float32
            np.testing.assert_allclose(actual, states[layer], atol=1e-6)


def test_features_are_pooled_states(saved):
    for layer in (-1, 1):
        states = [saved.plain(text)[2][layer] for text in TEXTS]
        means, firsts = (saved.bert.features(TEXTS, pooling, layer) for pooling in ("mean", "cls"))
        assert means.dtype == firsts.dtype == np.float32
        np.testing.assert_allclose(means, [state.mean(axis=0) for state in states], atol=1e-6)
        np.testing.assert_allclose(firsts, [state[0] for state in states], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "pooling"),
    [
        ({}, "mean"),  # BERT's [CLS] alone
        (MODERN | {"classifier_pooling": "cls"}, "cls"),
        (MODERN | {"classifier_pooling": "mean"}, "mean"),
        (EURO | {"classifier_pooling": "late"}, "mean"),
    ],
    ids=str,
)
def test_features_are_pooled_as_the_classifier_pools(tmp_path, changes, pooling):
    save(tmp_path, wordpiece(), changes)
    bert = bert_jax.load(tmp_path)
    assert bert.pooling == pooling
    np.testing.assert_array_equal(bert.features(TEXTS), bert.features(TEXTS, pooling))


def test_texts_do_not_change_each_others_results(bert, monkeypatch):
    """Alone, backwards, among so many others that batches overflow, and a row and two masks at a time."""
    alone = [bert.encode([text])[0] for text in TEXTS]
    guesses = [bert.fill_mask([text])[0] for text in TEXTS]
    pairs = [("so", text) for text in TEXTS[:4]]
    one_by_one = [bert.next_sentence([pair])[0] for pair in pairs]
    np.testing.assert_allclose(bert.next_sentence(pairs), one_by_one, atol=1e-6)

    def check():
        for actual, expected in zip(bert.encode(TEXTS * 70), alone * 70, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-6)
        for masks, expected in zip(bert.fill_mask(TEXTS[::-1]), guesses[::-1], strict=True):
            for ours, theirs in zip(masks, expected, strict=True):
                assert [token for token, _ in ours] == [token for token, _ in theirs]
                np.testing.assert_allclose([p for _, p in ours], [p for _, p in theirs], atol=1e-6)

    check()
    monkeypatch.setattr(pretrained, "TOKENS", 1)
    monkeypatch.setattr(pretrained, "MASKS", 2)
    check()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The [MASK] of", "▁the [MASK] ▁of"),
        ("We are [MASK].", "▁we ▁are [MASK] ."),  # not ▁ and . as of a new word
        ("We are [MASK] .", "▁we ▁are [MASK] ▁ ."),
        ("[MASK]", "[MASK]"),
        (" [MASK] [MASK] ", "[MASK] [MASK]"),
        ("[MASK][MASK]", "[MASK] [MASK]"),
        ("so[MASK]so", "▁so [MASK] s o"),
        ("([MASK]), so", "▁ ( [MASK] ) , ▁so"),
        ("We are [MASK]é家 é", "▁we ▁are [MASK] [UNK] ▁ [UNK]"),  # unknown ones are not lost
        ("[MASK]\tso\n[MASK]\u3000so", "[MASK] ▁so [MASK] ▁so"),
        ("[mask] [CLS]", "▁ [UNK] as [UNK] ▁ [UNK] l s [UNK]"),
        ("", ""),
    ],
)
def test_masks_are_encoded_as_in_training(bert, text, expected):
    assert pieces(bert, text).split()[1:-1] == expected.split()


def test_masks_in_wordpiece(with_wordpiece):
    bert = with_wordpiece.bert
    assert pieces(bert, "(The [MASK], of[MASK].)") == "[CLS] ( the [MASK] , of [MASK] . ) [SEP]"
    assert pieces(bert, ("[MASK]ment", "s[MASK]")) == "[CLS] [MASK] [UNK] [SEP] s [MASK] [SEP]"
    vocabulary = [bert.tokenizer.piece(token) for token in range(bert.tokenizer.vocab_size)]
    assert [piece_text(bert.tokenizer, token) for token in range(bert.tokenizer.vocab_size)] == vocabulary


def test_pieces_as_people_read_them(bert):
    shown = {bert.tokenizer.piece(token): piece_text(bert.tokenizer, token) for token in range(PIECES)}
    expected = {"▁the": "the", "▁": "▁", "s": "##s", ".": ".", "[UNK]": "[UNK]", "[MASK]": "[MASK]"}
    assert shown.items() >= expected.items()


def test_no_texts_and_empty_texts(bert):
    assert (bert.fill_mask([]), bert.encode([]), bert.next_sentence([]).shape) == ([], [], (0,))
    assert bert.features([]).shape == (0, 16)
    texts = ["", "so", ("so", ""), ("", ""), ("", "so")]  # an empty second text is none, as in training
    assert [len(state) for state in bert.encode(texts)] == [2, 3, 3, 2, 4]
    assert np.isfinite(bert.features(["", "  "])).all()


def test_vocabulary_wide_arrays_are_bounded(bert):
    """However many masks: 64 at a time, gathered before the vocabulary comes in."""
    (masks,) = bert.fill_mask(["[MASK]" * (LONGEST - 2)])
    assert len(masks) == LONGEST - 2
    batch = row_of(bert, "so")
    hidden = np.zeros((64, LONGEST, 16), np.float32)
    places = np.zeros(pretrained.MASKS, int)
    jaxpr = str(jax.make_jaxpr(bert._guesses, static_argnums=4)(bert.params, hidden, places, places, 5))
    assert f"{pretrained.MASKS},{bert.tokenizer.vocab_size}" in jaxpr
    vocabulary = f",{bert.tokenizer.vocab_size}]"
    assert vocabulary not in str(jax.make_jaxpr(bert._states, static_argnums=2)(bert.params, batch, 2))


def test_bfloat16_is_near_and_comes_out_as_float32(with_sentencepiece):
    exact, near = with_sentencepiece.bert, bert_jax.load(with_sentencepiece.folder, dtype="bfloat16")
    a, b = exact.features(TEXTS), near.features(TEXTS)
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.1
    (guesses,) = near.fill_mask(["We are [MASK]"], top_k=PIECES)[0]
    assert sum(probability for _, probability in guesses) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="dtype='float16' is unknown; use float32 or bfloat16"):
        bert_jax.load(with_sentencepiece.folder, dtype="float16")


def test_checkpoint_of_several_devices_on_one(tmp_path, bert):
    save(tmp_path, sentencepiece(), data=2, fsdp=2, tensor=2)
    loaded = bert_jax.load(tmp_path / "checkpoints/0")
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(loaded.params)} == {1}
    np.testing.assert_allclose(loaded.features(TEXTS), bert.features(TEXTS), atol=1e-6)


def test_errors(bert, tmp_path):
    for call, message in (
        (lambda: bert.fill_mask(["so [MASK]", "so it"]), r"text 'so it' has no \[MASK\]"),
        (lambda: bert.fill_mask(["[MASK]"], 0), f"top_k=0 must be between 1 and {PIECES}"),
        (lambda: bert.fill_mask(["[MASK]"], PIECES + 1), f"top_k={PIECES + 1} must be between"),
        (lambda: bert.fill_mask("so [MASK]"), r"texts='so \[MASK\]' is a single text; give a list"),
        (lambda: bert.features("so"), "texts='so' is a single text; give a list of texts"),
        (lambda: bert.features(["so"], "max"), "pooling='max' is unknown; use mean or cls"),
        (lambda: bert.encode(["so"], 3), "layer=3 does not exist: 0 is the embeddings, 2 "),
        (lambda: bert.features(["so"], layer=-4), "layer=-4 does not exist"),
        (lambda: bert.next_sentence(["so", "it"]), "text 'so' is not a pair"),
        (lambda: bert.encode(["so", "\udcff"]), r"text '.*udcff.*' is not valid Unicode"),
        (lambda: bert.encode(["so " * 31]), r"text 'so so .*… has 33 tokens .*data.max_seq_length=32"),
        (lambda: bert.next_sentence([("so " * 15, "so " * 15)]), r"has 33 tokens"),
        (lambda: bert_jax.load(tmp_path), "there is no checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert len(bert.encode(["so " * 30])[0]) == LONGEST


def test_network_without_pairs(bert, monkeypatch):
    data = dataclasses.replace(bert.config.data, second_objective="none")
    monkeypatch.setattr(bert, "config", dataclasses.replace(bert.config, data=data))
    assert bert.features(["so"]).shape == (1, 16)
    for call in (bert.next_sentence, bert.encode):
        with pytest.raises(
            UserError, match=r"'so | it': this network does not support pairs.*second_objective=none"
        ):
            call([("so", "it")])


def test_damaged_checkpoint_is_named(with_sentencepiece, tmp_path):
    shutil.copytree(with_sentencepiece.folder, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "checkpoints/0/tokenizer/sentencepiece.model"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"damaged: {model} has changed since it was written"):
        bert_jax.load(tmp_path)
