import dataclasses
import itertools
import types
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.config import Config, from_dict
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer_files import read_tokenizer
from bert_jax.data import batches as batches_lib
from bert_jax.errors import UserError
from bert_jax.model.heads import BertForPreTraining
from bert_jax.tasks import pretraining
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.evaluate import due
from bert_jax.training.growing import grow
from bert_jax.training.step import abstract_model, with_shardings
from tests.fakes import FakeTokenizer, MemoryStore, prepared, random_documents
from tests.saved import save, sentencepiece, wordpiece
from tests.tiny import MODEL, mesh_of

VOCABULARY = 100


def task_of(train_documents, held_out_documents, data=(), probes=(), **train):
    config = from_dict(
        {
            "data": {"max_seq_length": 32, "global_batch_size": 4} | dict(data),
            "model": {"vocab_size": VOCABULARY},
            "train": train,
        },
        Config,
    )
    splits = {"train": train_documents, "heldout": held_out_documents}
    stores = {name: MemoryStore(documents, VOCABULARY) for name, documents in splits.items()}
    return Pretraining(config, prepared({"corpus": stores}, FakeTokenizer(VOCABULARY)), probes)


@pytest.mark.parametrize(
    ("theirs", "ours", "data", "name", "remedy"),
    [
        (wordpiece(), sentencepiece(), {}, "sentencepiece.model", "use its tokenizer: {wordpiece}"),
        (wordpiece(), sentencepiece(), {"lowercase": False}, "sentencepiece.model",
         "use its tokenizer: {wordpiece} and data.lowercase=True"),
        (sentencepiece(), wordpiece(), {}, "vocab.txt", "use its tokenizer: {sentencepiece}"),
        (wordpiece(), wordpiece(["new"]), {}, "vocab.txt", "use its tokenizer: {wordpiece}"),
        (wordpiece(), wordpiece(lowercase=False), {"lowercase": False}, "tokenizer_config.json",
         "use its tokenizer: {wordpiece} and data.lowercase=True"),
        (wordpiece(tokenize_chinese_chars=False), wordpiece(), {}, "tokenizer_config.json",
         "no setting of data gives its rules tokenize_chinese_chars=False, so it can only be fine-tuned"),
    ],
)  # fmt: skip
def test_weights_of_another_tokenizer_are_refused_and_the_remedy_works(
    tmp_path, theirs, ours, data, name, remedy
):
    save(tmp_path, theirs)
    config = from_dict({"data": data, "init_from": str(tmp_path)}, Config)
    files = {f"tokenizer/{name}": content for name, content in ours.files().items()}
    stores = {"train": MemoryStore([]), "heldout": MemoryStore([])}
    task = Pretraining(config, prepared({"corpus": stores}, ours, files))
    folder = tmp_path / "checkpoints/0"
    settings = {
        "wordpiece": f"data.tokenizer=wordpiece:{folder}/tokenizer/vocab.txt",
        "sentencepiece": f"data.tokenizer=sentencepiece:{folder}/tokenizer/sentencepiece.model",
    }
    with pytest.raises(UserError) as error:
        task.check_tokenizer(folder)
    expected = f"init_from: {folder} was trained with another tokenizer/{name}; {remedy.format(**settings)}."
    assert str(error.value) == expected
    if "use its tokenizer" in remedy:
        words = remedy.format(**settings).removeprefix("use its tokenizer: ").split(" and ")
        given = dict(word.removeprefix("data.").split("=", 1) for word in words)
        given["lowercase"] = given.get("lowercase", str(data.get("lowercase", True))) == "True"
        assert read_tokenizer(DataConfig(**given), theirs.vocab_size).files() == theirs.files()


@pytest.mark.parametrize("growth", ["none", "tile"])
def test_a_larger_network_grows_from_the_weights_of_init_from_on_any_mesh(tmp_path, growth):
    saved = nnx.to_pure_dict(nnx.state(save(tmp_path, tokenizer := wordpiece())))
    small = dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)
    sizes = {"hidden_size": 24, "num_attention_heads": 6} if growth == "tile" else {}
    large = dataclasses.replace(small, **sizes)
    data = DataConfig(max_seq_length=32)
    config = Config(model=large, data=data, init_from=str(tmp_path), init_growth=growth)
    files = {f"tokenizer/{name}": content for name, content in tokenizer.files().items()}
    stores = {name: MemoryStore([], tokenizer.vocab_size) for name in ("train", "heldout")}
    task = Pretraining(config, prepared({"corpus": stores}, tokenizer, files))
    _, abstract = abstract_model(lambda rngs: BertForPreTraining(large, rngs))
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        params = task.initial_params(dict, abstract := with_shardings(abstract, mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(lambda x: x.sharding, abstract)
    jax.tree.map(np.testing.assert_array_equal, params, grow(saved, small, large))


def test_unigram_bias_is_the_log_of_the_frequencies_and_nothing_else():
    """98 tokens, numbers 5 to 99 once, 5 to 7 twice; each counted once more than it occurs."""
    params = {"masked_lm": {"bias": jnp.zeros(VOCABULARY), "other": jnp.ones(3)}, "encoder": jnp.ones(2)}
    task = task_of([[49, 49]], [[20, 20]], unigram_bias=True)
    biased = task.initial_params(lambda: params, None)
    expected = np.log(np.array([1] * 5 + [3] * 3 + [2] * 92) / 198)
    np.testing.assert_allclose(biased["masked_lm"].pop("bias"), expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, biased, {**params, "masked_lm": {"other": jnp.ones(3)}})
    assert task_of([[49, 49]], [[20, 20]]).initial_params(lambda: params, None) is params


class FixedLogits:
    """A network that says the same of everything: token 6, and IsNext."""

    def encoder(self, *_):
        return None

    def words(self, _, slots, of):
        return of(jnp.zeros((*slots["masked_lm_ids"].shape, VOCABULARY)).at[..., 6].set(2.0), slots)

    def pairs(self, _, cls_positions):
        return jnp.broadcast_to(jnp.array([1.0, 0.0]), (*cls_positions.shape, 2))


def test_evaluation_looks_at_mask_tokens_apart():
    batch = {
        "input_ids": np.array([[2, 4, 6, 50, 4, 3]]),  # [CLS] [MASK] kept replaced [MASK] [SEP]
        "masked_lm_positions": np.array([[1, 2, 3, 4, 0]]),
        "masked_lm_ids": np.array([[6, 6, 9, 7, 0]]),
        "masked_lm_weights": np.array([[1.0, 1.0, 1.0, 1.0, 0.0]]),
        "cls_positions": np.array([[0]]),
        "next_sentence_labels": np.array([[1]]),
        "next_sentence_weights": np.array([[1.0]]),
    }
    terms, _ = task_of([[49, 49]], [[20, 20]]).objective.evaluate(
        FixedLogits(), jax.tree.map(jnp.asarray, batch)
    )
    other = np.log(99 + np.exp(2.0))  # -log p of any token but number 6
    expected = {
        "mlm_loss": (4 * other - 2 * 2.0, 4),
        "mlm_accuracy": (2, 4),
        "nsp_loss": (np.log(1 + np.e), 1),
        "nsp_accuracy": (0, 1),
        "mask_token_loss": (2 * other - 2.0, 2),  # tokens 6 and 7
        "unigram_loss": (2 * np.log(198 / 3), 2),
    }
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(term, expected[name], rtol=1e-5, err_msg=name)


def held_out_batches(task, final=False, rows=(0, 1, 2, 3)):
    return {
        each.name: list(each.batches(np.array(rows))) for each in due(task.evaluators, 10_000, last=final)
    }


def test_held_out_batches_are_the_same_at_every_evaluation_and_for_every_seed():
    documents = random_documents(20), random_documents(40, seed=1)
    first = held_out_batches(task_of(*documents, eval_batches=3))
    again = held_out_batches(task_of(*documents, eval_batches=3, seed=9))
    assert first.keys() == {"eval"}
    assert len(first["eval"]) == 3
    jax.tree.map(np.testing.assert_array_equal, first, again)
    some = held_out_batches(task_of(*documents, eval_batches=3), rows=[1, 3])
    for whole, part in zip(first["eval"], some["eval"], strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[[1, 3]], y), whole, part)


def test_after_the_last_step_visible_tokens_are_shuffled_too():
    batches = held_out_batches(task_of(random_documents(20), random_documents(40, seed=1)), final=True)
    assert batches.keys() == {"eval", "eval_shuffled"}
    for plain, shuffled in zip(batches["eval"], batches["eval_shuffled"], strict=True):
        assert not np.array_equal(plain["input_ids"], shuffled["input_ids"])
        np.testing.assert_array_equal(np.sort(plain["input_ids"]), np.sort(shuffled["input_ids"]))
        for name in plain.keys() - {"input_ids"}:
            np.testing.assert_array_equal(plain[name], shuffled[name])


def test_causal_phases_share_an_objective_and_are_evaluated_with_masks():
    documents = random_documents(20), random_documents(40, seed=1)
    causal = task_of(*documents, eval_batches=2, data={"objective": "causal", "second_objective": "none"})
    masked = task_of(*documents, eval_batches=2, data={"second_objective": "none"})
    jax.tree.map(np.testing.assert_array_equal, held_out_batches(causal), held_out_batches(masked))
    for task, own in ((causal, False), (masked, True)):
        (phase,) = task._config.phase_list()
        assert (task.objective_of(phase) is task.objective) == own
        assert task.objective_of(phase) is task.objective_of(phase)
        assert set(task.objective.losses) == {"mlm_loss", "nsp_loss"}
        shapes = task.batch_shapes(phase)
        batch = next(task.batches(phase, 0, np.arange(4)))
        assert {name: (values.shape, values.dtype) for name, values in batch.items()} == shapes
    assert set(causal.objective_of(causal._config.phase_list()[0]).losses) == {"clm_loss"}


def test_no_more_evaluation_than_there_is_text():
    assert len(held_out_batches(task_of(random_documents(20), [[9, 9]] * 3, eval_batches=8))["eval"]) == 1
    assert held_out_batches(task_of(random_documents(20), [])) == {}


def test_the_best_checkpoint_is_selected_by_any_metric_of_the_evaluations():
    probe = types.SimpleNamespace(name="probe_topics", metric="accuracy", every=5)
    documents = random_documents(20), random_documents(40, seed=1)
    for metric in ("", "eval_loss", "eval_mask_token_loss", "eval_nsp_accuracy", "probe_topics_accuracy"):
        task = task_of(*documents, probes=[probe], selection=metric)
        assert (task.metric, task.patience) == (metric, 0)
        assert task.evaluators[-1] is probe
    for metric in ("mask_token_loss", "eval_shuffled_loss", "probe_topics_majority"):
        with pytest.raises(UserError) as error:
            task_of(*documents, probes=[probe], selection=metric)
        assert str(error.value) == (
            f"train.selection={metric!r} is no metric of this run's evaluations; use one of eval_loss, "
            "eval_mask_token_loss, eval_mlm_accuracy, eval_mlm_loss, eval_nsp_accuracy, eval_nsp_loss, "
            "eval_unigram_loss, probe_topics_accuracy."
        )


def test_held_out_text_without_pairs_is_told_at_once():
    with pytest.raises(UserError, match=r"set data\.second_objective=none"):
        task_of(random_documents(20), [[9], [12]])


def test_training_batches_follow_the_seed_and_go_on_from_any_step():
    def batches(seed, first_step, count):
        task = task_of(random_documents(20), [], seed=seed, num_steps=50)
        (phase,) = task._config.phase_list()
        iterator = task.batches(phase, first_step, np.arange(4))
        try:
            return [batch["input_ids"] for batch in itertools.islice(iterator, count)]
        finally:
            iterator.close()

    whole = batches(0, 0, 5)
    np.testing.assert_array_equal(whole[3:], batches(0, 3, 2))
    assert not np.array_equal(whole, batches(1, 0, 5))


def test_going_back_does_not_plan_the_epoch_again():
    """As after a bad step, when the same batches are asked for once more, from an earlier step on."""
    task = task_of(random_documents(20), [], num_steps=50)
    (phase,) = task._config.phase_list()
    for first_step in (3, 1, 2):
        iterator = task.batches(phase, first_step, np.arange(4))
        next(iterator)
        iterator.close()
    assert batches_lib._plans(task._train[0].index).cache_info().misses == 1


def mixture_of(held_out_of_second, weights=(3, 1), **train):
    config = from_dict(
        {
            "data": {
                "source": f"text:a@{weights[0]},text:b@{weights[1]}", "max_seq_length": 32,
                "global_batch_size": 4,
            },
            "model": {"vocab_size": VOCABULARY},
            "train": train,
        },
        Config,
    )  # fmt: skip
    documents = {
        "a": (random_documents(20), random_documents(10, seed=1)),
        "b": (random_documents(4, seed=2), held_out_of_second),
    }
    sources = {
        name: dict(zip(("train", "heldout"), (MemoryStore(part, VOCABULARY) for part in parts), strict=True))
        for name, parts in documents.items()
    }
    return Pretraining(config, prepared(sources, FakeTokenizer(VOCABULARY)))


def test_the_held_out_text_of_each_source_is_evaluated_beside_the_mixture():
    task = mixture_of(random_documents(10, seed=3), eval_batches=2)
    batches = held_out_batches(task, final=True)
    assert list(batches) == ["eval", "eval_a", "eval_b", "eval_shuffled"]
    assert len(batches["eval_b"]) == 2
    a = np.concatenate([batch["input_ids"] for batch in batches["eval_a"]])
    first, second = batches["eval"]
    np.testing.assert_array_equal(first["input_ids"][[0, 1, 3]], a[:3])  # three of four rows
    np.testing.assert_array_equal(second["input_ids"][[0, 1, 3]], a[3:6])


def test_a_source_without_held_out_text_or_without_a_share():
    assert list(held_out_batches(mixture_of([]))) == ["eval", "eval_a"]
    assert list(held_out_batches(mixture_of([], weights=(0, 1)))) == ["eval_a"]
    assert list(held_out_batches(mixture_of([[9, 9]] * 9, weights=(0, 1)))) == ["eval", "eval_a", "eval_b"]
    assert mixture_of([], weights=(0, 1)).examples(None, None) == []


def test_the_unigram_loss_of_a_mixture_is_that_of_its_weighted_frequencies():
    counts = [np.array([0.0, 9.0, 4.0]), np.array([1.0, 0.0, 1.0])]
    loss = pretraining._unigram_loss(counts, [Fraction(3, 4), Fraction(1, 4)])
    expected = [0.75 * 1 / 16 + 0.25 * 2 / 5, 0.75 * 10 / 16 + 0.25 * 1 / 5, 0.75 * 5 / 16 + 0.25 * 2 / 5]
    np.testing.assert_allclose(loss, -np.log(expected), rtol=1e-6)


def test_exposure_is_told_of_mixtures_alone():
    assert task_of(random_documents(20), []).exposure(7) == {}
    found = mixture_of([]).exposure(7)
    assert list(found) == ["share_a", "share_b", "token_share_a", "token_share_b", "epochs_a", "epochs_b"]
    assert (found["share_a"], found["share_b"]) == (0.75, 0.25)
