"""Splits by hash, batches by step, and what a fine-tuned run says of where it comes from."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from bert_jax.config import from_dict
from bert_jax.data.mixture import EpochRows
from bert_jax.errors import UserError
from bert_jax.files import read_rows
from bert_jax.inference.pretrained import load
from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.tasks.finetuning import Experiment, Finetuning, check_base, open_init_from, provenance
from bert_jax.tasks.packed import TrainingBatches
from bert_jax.tasks.registry import TASK_CLASSES, task_class
from bert_jax.training import step as step_lib
from bert_jax.training.checkpoint import committed_steps, find_checkpoint
from bert_jax.training.fingerprints import params_digest
from bert_jax.training.loop import FINISHED, train
from bert_jax.training.optimizer import make_optimizer
from tests.saved import WORDS, save, wordpiece
from tests.tiny import EURO, MODERN, mesh_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuning")
    save(folder / "base", wordpiece())
    rng = np.random.default_rng(0)
    rows = [(label, " ".join(rng.choice(WORDS, rng.integers(1, 9)))) for label in ("no", "yes") * 60]
    (folder / "train.tsv").write_text("label\ttext\n" + "".join(f"{a}\t{b}\n" for a, b in rows))
    return folder


def config_of(folder, **sections):
    values = {
        "init_from": str(folder / "base"),
        "data": {"train": str(folder / "train.tsv"), "max_seq_length": 32, "global_batch_size": 4,
                 "max_sequences_per_row": 3, "test_fraction": 0.2},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return from_dict(values, FinetuneConfig)


def experiment(folder, **sections):
    config = config_of(folder, **sections)
    return Experiment.read(config, open_init_from(config.init_from))


def test_a_text_is_on_one_side_whatever_the_order(folder, tmp_path):
    _, _, _, splits, *_ = experiment(folder)
    sides = [{example.split_key for example in part} for part in splits[:3]]
    assert sum(map(len, splits[:3])) == 120
    assert len(set.union(*sides)) == sum(map(len, sides))
    header, *lines = (folder / "train.tsv").read_text().splitlines()
    (tmp_path / "other.tsv").write_text("\n".join([header, *lines[::-1]]))
    _, _, _, again, *_ = experiment(folder, data={"train": str(tmp_path / "other.tsv")})
    assert [{example.split_key for example in part} for part in again[:3]] == sides
    assert again.digest != splits.digest


def test_every_example_is_in_the_test_of_one_fold(folder):
    folds = []
    for fold in range(5):
        _, _, _, splits, *_ = experiment(folder, data={"test_fraction": 0.0, "num_folds": 5, "fold": fold})
        sides = [{example.split_key for example in part} for part in splits[:3]]
        assert sum(map(len, splits[:3])) == 120
        assert len(set.union(*sides)) == sum(map(len, sides))
        assert len(splits.eval) < 30
        folds.append(splits.test)
    texts = [example.split_key for test in folds for example in test]
    everything = experiment(folder).splits
    assert sorted(texts) == sorted(example.split_key for part in everything[:3] for example in part)
    assert all(len(test) > 10 for test in folds)
    assert folds[0] == everything.test  # a fifth as well


def test_files_of_their_own_are_taken_whole(folder):
    train = str(folder / "train.tsv")
    splits = experiment(folder, data={"eval": train, "test": train}).splits
    assert [len(part) for part in splits[:3]] == [120, 120, 120]


def test_batches_are_a_function_of_the_step_and_hold_every_example_once_an_epoch(folder):
    _, _, _, splits, train, _ = experiment(folder)
    rows = train.rows
    batches, all_rows = TrainingBatches(rows, 4, seed=0), np.arange(4)
    for step in (0, rows.num_rows // 4, 100):  # the second of them straddles two epochs
        whole = batches(step, all_rows)
        for part in (np.array([2]), np.array([3, 0])):
            some = batches(step, part)
            assert all((some[name] == whole[name][part]).all() for name in whole)
    steps = [batches(step, all_rows) for step in range(rows.num_rows)]  # so four epochs
    count = sum(batch["sequence_weights"].sum() for batch in steps)
    assert count == 4 * len(splits.train)
    other = TrainingBatches(rows, 4, seed=1)(0, all_rows)
    assert (other["input_ids"] != steps[0]["input_ids"]).any()


def test_rows_of_the_run_are_rows_of_epochs():
    counted = []

    def count_rows(epoch):
        counted.append(epoch)
        return (3, 4, 3)[epoch]

    def found(*numbers):
        parts = epochs(np.array(numbers))
        return [(epoch, which.tolist(), in_epoch.tolist()) for epoch, which, in_epoch in parts]

    epochs = EpochRows(count_rows)
    assert found(2, 4, 3) == [(0, [0], [2]), (1, [1, 2], [1, 0])]
    assert counted == [0, 1]
    assert found(9) == [(2, [0], [2])]
    assert found(0, 7) == [(0, [0], [0]), (2, [1], [0])]
    assert counted == [0, 1, 2]
    assert found() == []


def test_epochs_become_steps(folder):
    found = experiment(folder, train={"num_epochs": 2.0, "warmup_share": 0.25, "evaluations_per_epoch": 2})
    run, rows = found.run(seed=3), found.train.rows.num_rows
    assert run.train.num_steps == round(2 * rows / 4)
    assert run.optimizer.warmup_steps == round(0.25 * run.train.num_steps)
    assert run.train.eval_every == run.train.checkpoint_every == round(rows / 8)
    assert run.train.seed == 3
    assert run.model.hidden_dropout == 0.1


@pytest.mark.parametrize(("family", "shared"), [(MODERN, True), (EURO, False)])
def test_the_head_starts_from_what_it_shares_with_the_masked_lm_head(folder, tmp_path, family, shared):
    save(tmp_path / "base", wordpiece(), family)
    found = experiment(folder, init_from=str(tmp_path / "base"))
    task = Finetuning(found, seed=0)
    _, abstract = step_lib.abstract_model(
        lambda rngs: task.objective.build(found.run(0).model, rngs, Compute())
    )
    abstract = step_lib.with_shardings(abstract, mesh_of())
    random = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
    params, base = task.initial_params(lambda: random, abstract), load(tmp_path / "base").params
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], base["encoder"])
    expected = {name: base["masked_lm"][name] for name in ("transform", "norm")} if shared else random["head"]
    jax.tree.map(np.testing.assert_array_equal, params["head"], expected)
    assert not np.any(params["classifier"]["kernel"])


def test_a_base_of_a_newer_version_is_one_line(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "newer")
    checkpoint = tmp_path / "newer/checkpoints/0"
    meta = json.loads((checkpoint / "meta/metadata").read_text())
    meta["config"]["model"]["rotary"] = True
    (checkpoint / "meta/metadata").write_text(json.dumps(meta))
    checksums = json.loads((checkpoint / "checksums.json").read_text())
    content = (checkpoint / "meta/metadata").read_bytes()
    checksums["files"]["meta/metadata"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "checksums.json").write_text(json.dumps(checksums))
    with pytest.raises(UserError, match=r"rotary") as error:
        open_init_from(str(tmp_path / "newer"))
    assert "\n" not in str(error.value)


def test_a_task_is_found_by_its_name():
    assert [task_class(kind.name) for kind in TASK_CLASSES] == list(TASK_CLASSES)
    with pytest.raises(UserError, match=r"task\.name=.clasification. is unknown; use one of classif"):
        task_class("clasification")


@pytest.mark.parametrize("random_weights", [False, True])
def test_the_encoder_comes_from_the_base_and_the_head_is_new(folder, random_weights):
    found = experiment(folder, task={"random_weights": random_weights})
    run, finetuning = found.run(seed=0), Finetuning(found, seed=0)

    def build(rngs):
        return finetuning.objective.build(run.model, rngs, Compute())

    _, abstract = step_lib.abstract_model(build)
    state = step_lib.abstract_state(abstract, make_optimizer(run.optimizer), mesh_of())
    params = finetuning.initial_params(lambda: step_lib.init_params(build, state, 0), state.params)
    assert params["classifier"]["kernel"].shape == (16, 2)
    ours, theirs = params_digest(params["encoder"]), params_digest(_encoder_of(found.init_from, state))
    assert (ours == theirs) == (not random_weights)


def _encoder_of(base, state):
    encoder = {"encoder": state.params["encoder"]}
    return base.params(encoder)["encoder"]


def test_the_cards_of_the_text_go_from_the_base_into_a_fine_tuned_checkpoint(folder, tmp_path):
    cards = {"dataset_cards.json": b"{}"}
    save(tmp_path / "base", wordpiece(), files=cards)
    base = Finetuning(experiment(folder, init_from=str(tmp_path / "base")), seed=0)
    assert cards.items() < base.files.items()
    assert not cards.keys() & Finetuning(experiment(folder), seed=0).files.keys()


def test_a_checkpoint_names_its_base_by_digest(folder):
    facts = json.loads(Finetuning(experiment(folder), seed=0).files["task.json"])
    assert facts["labels"] == ["no", "yes"]
    whole = load(folder / "base").params
    assert facts["base"] == {
        "checkpoint": "base/0", "params_digest": params_digest(whole), "data_digest": None
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"train": ""}}, "data.train is missing"),
        ({"data": {"train": "nowhere.tsv"}}, "data.train=nowhere.tsv cannot be read"),
        (
            {"data": {"text": "question"}},
            "data.text='question': .* has no such column; it has 'label', 'text'",
        ),
        ({"data": {"labels": "no,maybe"}}, "the label 'yes' is unknown; the classes are no, maybe"),
        ({"data": {"label": "text"}}, "is unknown; the classes are"),
        (
            {"task": {"metric": "bleu"}},
            "task.metric='bleu' is unknown to classification; use one of accuracy, f1",
        ),
        ({"data": {"num_folds": 500, "fold": 0}}, "leaves no example to test; give more examples, fewer"),
        ({"init_from": ""}, "init_from is missing"),
        ({"init_from": "nowhere"}, "init_from: there is no checkpoint in"),
    ],
    ids=str,
)
def test_mistakes_are_one_line(folder, sections, message):
    values = {
        "init_from": str(folder / "base"),
        "data": {"train": str(folder / "train.tsv"), "max_seq_length": 32},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    config = from_dict(values, FinetuneConfig)
    with pytest.raises(UserError, match=message):
        Experiment.read(config, open_init_from(config.init_from))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"warmup_steps": 10}}, "set train.warmup_share"),
        ({"train": {"num_epochs": 0.0}}, "leave nothing to do"),
        (
            {"train": {"num_steps": 50}},
            "train.num_steps=50 has no effect in fine-tuning; set train.num_epochs",
        ),
        ({"train": {"eval_batches": 2}}, "train.eval_batches=2 has no effect .* reads all held-out"),
        ({"train": {"unigram_bias": True}}, "train.unigram_bias=True has no effect"),
        (
            {"train": {"evaluations_per_epoch": 1, "eval_every": 5}},
            "train.eval_every=5 .* set train.evaluations_per_epoch, to 0 if",
        ),
        (
            {"train": {"evaluations_per_epoch": 1, "checkpoint_every": 5}},
            "train.checkpoint_every=5 has no effect",
        ),
        ({"train": {"num_epochs": -1.0}}, "train.num_epochs=-1.0 must be at least 0"),
        ({"train": {"warmup_share": 1.0}}, "train.warmup_share=1.0"),
        ({"task": {"frozen": "svm"}}, "task.frozen='svm': 'svm' is unknown"),
        ({"data": {"labels": "a,b,a"}}, "data.labels='a,b,a' names a class twice"),
        (
            {"data": {"eval_fraction": 0.0}},
            "data.eval_fraction=0.0 must be above 0; or give a file",
        ),
        ({"data": {"eval_fraction": 0.6, "test_fraction": 0.5}}, "must leave something to train on"),
        (
            {"data": {"num_folds": 5, "test_fraction": 0.2}},
            "data.num_folds=5: every fold has its own test share of data.train",
        ),
        (
            {"data": {"num_folds": 5, "test_fraction": 0.0, "eval_fraction": 0.8}},
            "data.num_folds=5 must leave",
        ),
        (
            {"data": {"num_folds": 5, "test_fraction": 0.0, "fold": 5}},
            "data.fold=5 is not below data.num_folds=5",
        ),
        ({"task": {"patience": -1}}, "task.patience=-1 must be at least 0"),
        ({"tasks": {}}, "config.tasks does not exist; did you mean task"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_one_line(sections, message):
    with pytest.raises(UserError, match=message):
        from_dict(sections, FinetuneConfig).check_file()


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"data": {"text_pair": "b"}}, "data.text_pair=b"),
        ({"task": {"name": "question_answering"}}, "question answering"),
    ],
)
def test_pairs_for_a_network_of_one_segment_are_refused(sections, what):
    """Its table of segments has one row: the second text would be no number."""
    config = from_dict(sections | {"init_from": "a"}, FinetuneConfig)
    with pytest.raises(UserError, match=f"{what} needs two segments, and a has model.type_vocab_size=1"):
        config.for_run(ModelConfig(type_vocab_size=1), 10, seed=0)
    config.for_run(ModelConfig(type_vocab_size=2), 10, seed=0)


def test_a_run_does_not_go_on_from_other_weights(tmp_path):
    def opened(digest):
        meta = {"digests": {"params/a": digest, "opt_state/b": "0"}}
        return SimpleNamespace(folder=epath.Path("runs/base/checkpoints/9"), meta=meta)

    saved = tmp_path / "checkpoints" / "5"
    saved.mkdir(parents=True)
    (saved / "checksums.json").write_text("{}")
    (saved / "task.json").write_text(json.dumps({"base": provenance(opened("1"))}))
    check_base(epath.Path(tmp_path), opened("1"))
    with pytest.raises(UserError, match=r"init_from=runs/base/checkpoints/9 has other weights than those"):
        check_base(epath.Path(tmp_path), opened("2"))
    for content in ("{}", "{"):  # of an older version, and damaged
        (saved / "task.json").write_text(content)
        check_base(epath.Path(tmp_path), opened("2"))
    (saved / "task.json").unlink()
    check_base(epath.Path(tmp_path), opened("2"))


def test_rows_longer_than_the_base_knows_are_refused(folder):
    found = experiment(folder, data={"max_seq_length": 64})
    with pytest.raises(UserError, match=r"data.max_seq_length=64 is longer than the 32 positions of"):
        found.run(seed=0)


def test_scores_are_of_the_held_out_examples_in_their_order(folder):
    """Outputs that are right for every sequence give a score of 1, though rows hold them in another order."""
    finetuning = Finetuning(experiment(folder), seed=0)
    (evaluator,) = finetuning.evaluators
    outputs = [{"probabilities": np.eye(2)[batch["labels"]]} for batch in evaluator.batches(np.arange(4))]
    assert evaluator.scores(outputs)["accuracy"] == 1.0
    wrong = [{"probabilities": 1.0 - jax.device_get(output["probabilities"])} for output in outputs]
    assert evaluator.scores(wrong)["accuracy"] == 0.0


def test_the_best_of_any_evaluations_has_a_checkpoint(folder, tmp_path):
    """Also where the config counts steps, and checkpoints are rarer than evaluations."""
    steps = {"num_epochs": 3.0, "evaluations_per_epoch": 0, "eval_every": 2, "checkpoint_every": 1000}
    found = experiment(folder, train=steps, task={"patience": 1}, data={"global_batch_size": 8})
    assert train(found.run(seed=0), Finetuning(found, seed=0), tmp_path) == FINISHED
    rows = [row for row in read_rows(tmp_path / "metrics.jsonl") if "eval_loss" in row]
    steps_saved = committed_steps(tmp_path / "checkpoints")
    best = max(rows, key=lambda row: (row["eval_accuracy"], -row["eval_loss"]))["step"]
    assert best in steps_saved
    assert find_checkpoint(tmp_path).name == str(best)
