"""Words that are added to a tokenizer and to the network that it belongs to."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.new_words import add_words, read_words
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.tokenizer import SPECIAL_PIECES
from bert_jax.corpus.tokenizer_files import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.inference.pretrained import Pretrained, Row, batch_of
from bert_jax.interop import tokenizer_json
from bert_jax.interop.convert import convert
from bert_jax.interop.export import export
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.growing import add_words as add_rows
from bert_jax.training.opening import open_checkpoint
from bert_jax.training.step import abstract_model
from tests.saved import WORDS, save, save_finetuned, sentencepiece, wordpiece
from tests.tiny import mesh_of

NEW = ["greatest", "Godpeople", "unionstate"]


def lines(count=200):
    """Text of the words that the tokenizers know, of others, and of characters that they do not."""
    rng = np.random.default_rng(0)
    words = [*WORDS, "governs", "statement", "(free)", "Strong!", "ζ", "wegod,"]
    return [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(count)]


def unigram():
    counts = dict.fromkeys([*WORDS, *(f"{word}." for word in WORDS), "so,", "(free)"], 5)
    return SentencePieceTokenizer.train(counts, "unigram", 46, lowercase=True)


def library(pre_tokenizer, decoder, **model):
    """A tokenizer.json of another kind, trained on the lines."""
    built = tokenizers.Tokenizer(tokenizers.models.BPE(**model))
    built.pre_tokenizer, built.decoder = pre_tokenizer, decoder
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL_PIECES), show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    built.train_from_iterator(lines(), trainer)
    return JsonTokenizer(built.to_str().encode(), {})


def byte_level():
    pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return library(pre_tokenizer, tokenizers.decoders.ByteLevel())


def metaspace():
    return library(tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace(), unk_token="[UNK]")


TOKENIZERS = [wordpiece, sentencepiece, unigram, byte_level, metaspace]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_new_words_are_one_token_and_all_other_text_keeps_its_ids(make, tmp_path):
    old = make()
    new, pieces = add_words(old, NEW)
    assert new.vocab_size == old.vocab_size + 3
    ids = range(old.vocab_size, old.vocab_size + 3)
    assert pieces == dict(zip(ids, old.encode([f" {word}" for word in NEW]), strict=True))
    assert new.special_ids == old.special_ids
    assert new.encode(lines()) == old.encode(lines())
    first = old.vocab_size
    (is_, the), text = old.encode([" is", " the"]), "the the greatest is Godpeople the unionstate"
    assert new.encode([text]) == [[*old.encode(["the"])[0], *the, first, *is_, first + 1, *the, first + 2]]
    assert new.word_starts[first:].all()
    np.testing.assert_array_equal(new.word_starts[:first], old.word_starts)
    new.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.encode([text]), again.files()) == (new.encode([text]), new.files())
    more, _ = add_words(again, ["greatest", "peoplestate"])
    assert more.encode([f"{text} peoplestate"]) == [[*new.encode([text])[0], first + 3]]


@pytest.mark.parametrize("make", [wordpiece, sentencepiece, unigram])
def test_an_export_finds_new_words_where_we_do(make):
    new, _ = add_words(make(), NEW)
    written = tokenizer_json.build(new)
    texts = [*lines(), "Greatest, greatest!", "the greatests of Unionstates.", "agreatest (greatest)"]
    assert [written.encode(text, add_special_tokens=False).ids for text in texts] == new.encode(texts)


def test_words_that_are_there_already_and_repeated_ones_are_skipped():
    new, pieces = add_words(wordpiece(), ["state", "greatest", "The", "Greatest", "greatest", "⊕"])
    assert [new.piece(token) for token in range(new.vocab_size - 2, new.vocab_size)] == ["greatest", "⊕"]
    assert len(pieces) == 2
    with pytest.raises(UserError, match="each of the 2 words is one token already"):
        add_words(wordpiece(), ["state", "union"])


@pytest.mark.parametrize(
    ("make", "word"),
    [(wordpiece, "covid-19"), (wordpiece, "[MASK]"), (wordpiece, "##s"), (byte_level, "[MASK]")],
)
def test_a_word_that_cannot_be_a_token_is_named(make, word):
    with pytest.raises(UserError) as error:
        add_words(make(), ["greatest", word])
    assert f"--add_words: {word} cannot be a token" in str(error.value)


def test_words_are_read_from_lines(tmp_path):
    (tmp_path / "words.txt").write_text("\ufeffgreatest\r\n\n  Größe \n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == ["greatest", "Größe"]
    (tmp_path / "words.txt").write_text("a\nb c\n")
    with pytest.raises(UserError, match=r"words.txt, line 2 \('b c'\) has several words; give one a line"):
        read_words(tmp_path / "words.txt")
    (tmp_path / "words.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"words\.txt is not a UTF-8 text file"):
        read_words(tmp_path / "words.txt")
    with pytest.raises(UserError, match="nowhere cannot be read: No such file"):
        read_words(tmp_path / "nowhere")
    (tmp_path / "words.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"words\.txt holds no word"):
        read_words(tmp_path / "words.txt")


def test_rows_are_means_of_those_of_the_pieces_wherever_words_have_rows():
    params = {
        "encoder": {"embeddings": {"token": {"embedding": jnp.array([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])},
                                   "norm": {"bias": jnp.ones(3)}}},
        "masked_lm": {"decoder": {"embedding": jnp.array([[0.0, 4.0], [2.0, 0.0], [4.0, 5.0]])},
                      "bias": jnp.array([1.0, 2.0, 6.0]), "transform": {"bias": jnp.ones(2)}},
    }  # fmt: skip
    new = add_rows(params, {3: [0, 1], 4: [0, 1, 2, 2]})
    embedding = new["encoder"]["embeddings"]["token"]["embedding"]
    assert embedding.tolist() == [[1, 2], [3, 6], [5, 1], [2, 4], [3.5, 2.5]]
    assert new["masked_lm"]["decoder"]["embedding"].tolist()[3:] == [[1, 2], [2.5, 3.5]]
    among = add_rows(params, {1: [0, 2]})["encoder"]["embeddings"]["token"]["embedding"]
    assert among.tolist() == [[1, 2], [3, 1.5], [5, 1]]  # rows that no piece has had
    assert new["masked_lm"]["bias"].tolist() == [1, 2, 6, 1.5, 3.75]
    assert new["encoder"]["embeddings"]["norm"]["bias"].tolist() == [1, 1, 1]
    assert new["masked_lm"]["transform"]["bias"].tolist() == [1, 1]


def logits(bert, texts):
    """Logits of every token, [texts, T, V]; the last token of a row is masked."""
    rows = [Row([*ids[:20], bert.tokenizer.mask_id], []) for ids in bert.tokenizer.encode(texts)]
    batch = batch_of(rows, (len(rows), 32), bert.tokenizer)
    structure, _ = abstract_model(lambda rngs: BertForPreTraining(bert.config.model, rngs))
    batch |= {"masked_lm_positions": batch["position_ids"]}
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            jax.jit(lambda params: nnx.merge(structure, params)(batch)[0])(jax.device_get(bert.params))
        )


@pytest.mark.parametrize("make", [wordpiece, sentencepiece, byte_level])
def test_a_run_with_new_words_gives_the_old_ones_their_logits(make, tmp_path, caplog):
    caplog.set_level(logging.INFO, "bert_jax")
    save(tmp_path / "run", old := make())
    convert(tmp_path / "run", tmp_path / "new", words=[*NEW, "the", "greatest"])
    assert f"3 of 5 words added, model.vocab_size={old.vocab_size + 3}" in caplog.text
    before, after = (Pretrained(open_checkpoint(tmp_path / name)) for name in ("run", "new"))
    assert after.config.model.vocab_size == after.tokenizer.vocab_size == old.vocab_size + 3
    theirs, ours = logits(before, lines(8)), logits(after, lines(8))
    assert ours.shape[-1] == old.vocab_size + 3
    np.testing.assert_allclose(ours[..., : old.vocab_size], theirs, atol=1e-6, rtol=0)
    assert after.meta["imported"]["initialised"] == ["3 words added to the vocabulary"]


def test_padding_of_the_vocabulary_at_run_time_is_behind_the_new_words(tmp_path):
    save(tmp_path / "run", old := wordpiece(["even"]))
    convert(tmp_path / "run", tmp_path / "new", words=["greatest"])
    bert = Pretrained(open_checkpoint(tmp_path / "new"))
    alone = logits(bert, lines(8))
    assert alone.shape[-1] == old.vocab_size + 1 == 35
    with jax.set_mesh(mesh_of(tensor=2)):
        padded = logits(bert, lines(8))
    assert padded.shape[-1] == 36
    np.testing.assert_allclose(padded[..., :35], alone, atol=1e-5)
    assert np.isneginf(padded[..., 35]).all()


@pytest.mark.parametrize("make", [wordpiece, sentencepiece])
def test_published_weights_with_new_words_and_out_again(make, tmp_path):
    """`export` compares tokens and logits itself."""
    save(tmp_path / "run", make())
    for name in ("published", "out"):
        (tmp_path / name).mkdir()
    export(tmp_path / "run", tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "new", words=NEW)
    export(tmp_path / "new", tmp_path / "out")
    convert(tmp_path / "out", tmp_path / "again")
    ours, theirs = (Pretrained(open_checkpoint(tmp_path / name)) for name in ("new", "again"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    text = "the greatest unionstate is great"
    assert ours.tokenizer.encode([text]) == theirs.tokenizer.encode([text])
    assert "parts without training: 3 words added" in (tmp_path / "out/README.md").read_text()


def test_a_fine_tuned_network_keeps_its_head(tmp_path):
    facts = {"pairs": False, "labels": ["a", "b"]}
    save_finetuned(tmp_path / "run", wordpiece(), "classification", facts)
    convert(tmp_path / "run", tmp_path / "new", words=NEW)
    before, after = (load_finetuned(tmp_path / name) for name in ("run", "new"))
    assert after.task.label_info == before.task.label_info
    jax.tree.map(np.testing.assert_array_equal, after.params["classifier"], before.params["classifier"])
    assert after.params["encoder"]["embeddings"]["token"]["embedding"].shape[0] == wordpiece().vocab_size + 3


def test_a_checkpoint_without_new_words_needs_no_import(tmp_path):
    save(tmp_path / "run", wordpiece())
    for folder in ("run", "run/checkpoints", "run/checkpoints/0"):
        with pytest.raises(UserError, match="is a checkpoint of bert_jax already; give --add_words"):
            convert(tmp_path / folder, tmp_path / "new")
