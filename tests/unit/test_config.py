import dataclasses
import importlib.util
import json

import jax
import pytest

from bert_jax.config import (
    Config,
    check_key,
    config_files,
    default_config,
    find_config,
    from_checkpoint,
    from_dict,
    load_config,
    split_argument,
)
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training.config import sections
from bert_jax.training.step import abstract_model


@pytest.mark.parametrize("name", sorted(config_files()))
def test_shipped_configs_are_valid(name):
    spec = importlib.util.spec_from_file_location(name, find_config(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config().to_dict()
    if name.startswith("finetune/"):
        assert from_dict(values, FinetuneConfig).optimizer.learning_rate < 1e-3
    else:
        config = from_dict(values, Config)
        assert config.train.num_steps > config.optimizer.warmup_steps


# With the head's parameters; Transformers' ModernBertForMaskedLM has as many with these shapes.
@pytest.mark.parametrize(
    ("name", "parameters", "tokens"),
    [
        ("modernbert_base", 149_655_232, 2019),
        ("modernbert_large", 395_881_664, 2019),
        ("ettin:17m", 16_913_600, 2000),
        ("ettin:32m", 32_081_344, 2000),
        ("ettin:68m", 68_457_664, 2000),
        ("ettin:150m", 149_655_232, 2000),
        ("ettin:400m", 395_881_664, 2000),
        ("ettin:1b", 1_031_314_112, 2000),
    ],
)
def test_published_networks_and_tokens(name, parameters, tokens):
    config = from_dict(load_config(name)[1].to_dict(), Config)
    _, params = abstract_model(lambda rngs: BertForPreTraining(config.model, rngs))
    assert sum(x.size for x in jax.tree.leaves(params)) == parameters
    phases = config.phase_list()
    rows = sum(phase.num_rows * phase.config.data.max_seq_length for phase in phases)
    assert rows / 1e9 == pytest.approx(tokens, rel=1e-3)
    assert {phase.config.model.rope_theta for phase in phases[:-2]} == {10_000.0}
    assert {phase.config.model.rope_theta for phase in phases[-2:]} == {160_000.0}
    assert config.longest_row == 8192


def test_batches_of_modernbert_grow_with_equally_many_updates_of_each_size():
    phases = from_dict(load_config("modernbert_base")[1].to_dict(), Config).phase_list()
    sizes = [phase.config.data.global_batch_size for phase in phases]
    assert sizes == [768, 1536, 2304, 3072, 3840, 4608, 576, 576]
    assert {phase.num_steps for phase in phases[:5]} == {4238}


def test_shipped_names():
    names = {f"bert_{size}" for size in ("tiny", "mini", "small", "medium", "base", "large")}
    assert names <= config_files().keys()


def test_default_config_holds_every_field_once():
    assert from_dict(default_config().to_dict(), Config) == Config()
    assert set(default_config()) == {*sections(Config), "init_from", "init_growth", "phases"}


def test_through_json_and_back():
    config = from_dict(
        {"train": {"num_steps": 7}, "init_from": "runs/a", "optimizer": {"learning_rate": 1}}, Config
    )
    assert config.train.num_steps == 7
    assert from_dict(json.loads(json.dumps(config.to_dict())), Config) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "config.trian does not exist; did you mean train?"),
        ({"train": {"num_stepz": 5}}, "config.train.num_stepz does not exist; did you mean train.num_steps"),
        ({"train": {"learning_rate": 5.0}}, "did you mean optimizer.learning_rate"),
        ({"qqq": {}}, "config.qqq does not exist"),
        ({"train": {"num_steps": "5"}}, "config.train.num_steps='5' is of type str; it must be int."),
        ({"train": {"num_steps": 5.5}}, "config.train.num_steps=5.5 is of type float; it must be int."),
        ({"train": {"num_steps": True}}, "config.train.num_steps=True is of type bool; it must be int."),
        ({"train": {"num_steps": None}}, "config.train.num_steps=None is of type NoneType; it must be int."),
        ({"data": {"lowercase": 1}}, "config.data.lowercase=1 is of type int; it must be bool."),
        (
            {"optimizer": {"epsilon": "1e-6"}},
            "config.optimizer.epsilon='1e-6' is of type str; it must be float.",
        ),
        ({"train": 5}, "config.train=5 is of type int; it must be dict."),
        ({"init_from": 3}, "config.init_from=3 is of type int; it must be str."),
        (
            {"init_growth": "stack", "init_from": "a"},
            "init_growth='stack' is unknown; use one of none, tile, preserve.",
        ),
        (
            {"init_growth": "tile"},
            "init_growth=tile has nothing to start from; set init_from to a checkpoint.",
        ),
    ],
    ids=str,
)
def test_unknown_keys_and_wrong_types(values, message):
    with pytest.raises(UserError) as error:
        from_dict(values, Config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


NAN = float("nan")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.num_hidden_layers", 0),
        ("model.vocab_size", -1),
        ("model.num_attention_heads", 7),
        ("model.hidden_size", 100),
        ("model.hidden_act", "relu"),
        ("model.hidden_dropout", 1.0),
        ("model.attention_dropout", NAN),
        ("model.position_initializer", "rotary"),
        ("model.initializer_range", 0.0),
        ("model.layer_norm_eps", -1e-12),
        ("data.tokenizer", "words"),
        ("data.max_seq_length", 7),
        ("data.global_batch_size", 0),
        ("data.max_sequences_per_row", 0),
        ("data.objective", "prefix"),
        ("data.second_objective", "same_document"),
        ("data.masking", "sentence"),
        ("data.mask_rate", NAN),
        ("data.mask_rate", 0.0),
        ("data.held_out_fraction", 1.0),
        ("data.short_sequence_rate", 1.5),
        ("data.random_token_rate", 0.3),
        ("data.tokenizer_sample_mb", 0),
        ("data.input_workers", 0),
        ("data.prefetch_batches", 0),
        ("optimizer.name", "sgd"),
        ("optimizer.schedule", "step"),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.learning_rate", NAN),
        ("optimizer.learning_rate", float("inf")),
        ("optimizer.final_learning_rate", -1e-5),
        ("optimizer.warmup_steps", -1),
        ("optimizer.warmup_steps", 2**31),
        ("optimizer.weight_decay", -0.1),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", -0.1),
        ("optimizer.epsilon", 0.0),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.layer_decay", 0.0),
        ("optimizer.layer_decay", 1.5),
        ("train.num_steps", 0),
        ("train.num_steps", 2**31),
        ("train.seed", -1),
        ("train.seed", 2**32),
        ("train.gradient_accumulation_steps", 0),
        ("train.log_every", 0),
        ("train.eval_every", 0),
        ("train.eval_batches", 0),
        ("train.checkpoint_every", 0),
        ("train.keep_last", 0),
        ("train.keep_every", -1),
        ("train.remat", "some"),
        ("train.max_rollbacks", "float16"),
    ],
    ids=str,
)
def test_values_out_of_range_are_named(key, value):
    section, field = key.split(".")
    with pytest.raises(UserError) as error:
        from_dict({section: {field: value}}, Config)
    assert f"{key}={value!r}" in str(error.value)
    assert "\n" not in str(error.value)


def test_bounds_are_written_in_full():
    with pytest.raises(UserError, match=r"must be at least 0 and at most 2147483647\.$"):
        from_dict({"train": {"num_steps": 2**31}}, Config)
    with pytest.raises(UserError, match=r"must be at least 0 and below 4294967296\.$"):
        from_dict({"train": {"seed": -1}}, Config)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"data": {"max_seq_length": 1024}},
            ["data.max_seq_length=1024", "model.max_position_embeddings=512"],
        ),
        ({"model": {"type_vocab_size": 1}}, ["model.type_vocab_size=1", "data.second_objective=none"]),
        (
            {"model": {"type_vocab_size": 1}, "data": {"second_objective": "sentence_order"}},
            ["model.type_vocab_size=1", "data.second_objective=none"],
        ),
        (
            {"data": {"objective": "causal"}},
            ["data.objective=causal", "data.second_objective=next_sentence", "data.second_objective=none."],
        ),
        (
            {"train": {"gradient_accumulation_steps": 3}},
            ["data.global_batch_size=256", "train.gradient_accumulation_steps=3"],
        ),
    ],
    ids=str,
)
def test_values_that_do_not_fit_together(values, named):
    with pytest.raises(UserError) as error:
        from_dict(values, Config)
    assert all(name in str(error.value) for name in named)


@pytest.mark.parametrize("steps", ["10", "a:b", "20:10", "10:10"])
def test_profiled_steps_are_a_range(steps):
    with pytest.raises(UserError, match=f"train.profile_steps='{steps}'"):
        from_dict({"train": {"profile_steps": steps}}, Config)


def test_one_segment_is_enough_without_pairs():
    config = from_dict({"model": {"type_vocab_size": 1}, "data": {"second_objective": "none"}}, Config)
    assert config.model.type_vocab_size == 1


def test_identity_is_all_but_what_may_change_when_a_run_resumes():
    everything = {f"{s}.{f.name}" for s, kind in sections(Config).items() for f in dataclasses.fields(kind)}
    may_change = everything - Config().identity().keys()
    assert may_change == {
        *("mesh.data", "mesh.fsdp", "mesh.tensor"),
        "train.profile_steps",
        *("data.wikipedia_mirror", "data.download_dir", "data.input_workers", "data.prefetch_batches"),
        *("train.log_every", "train.eval_every", "train.eval_batches", "train.checkpoint_every"),
        *("train.keep_last", "train.keep_every", "train.gradient_accumulation_steps", "train.remat"),
        *("train.max_rollbacks", "train.attention", "train.layers"),
        *("train.probes", "train.probe_every", "train.probe_examples", "train.selection"),
        *("train.num_epochs", "train.warmup_share", "train.num_seeds"),  # what they decide is part of it
    }
    assert Config().identity()["init_from"] == ""
    assert Config().identity()["init_growth"] == "none"


def test_one_phase_for_now():
    config = from_dict({"train": {"num_steps": 30}}, Config)
    (phase,) = config.phase_list()
    assert (phase.config, phase.first_step, phase.last_step) == (config, 0, 30)


def test_check_key():
    check_key("train.num_steps")
    check_key("init_from")
    with pytest.raises(UserError, match=r"config\.data\.globl_batch_size .* data\.global_batch_size"):
        check_key("data.globl_batch_size")


def test_find_config(tmp_path):
    assert find_config("bert_base").name == "bert_base.py"
    path = tmp_path / "mine.py"
    with pytest.raises(UserError, match=f"--config={path}: there is no such file"):
        find_config(str(path))
    path.write_text("")
    assert find_config(str(path)) == path
    with pytest.raises(UserError, match="no config of this name; did you mean bert_base"):
        find_config("bert_bass")
    with pytest.raises(UserError, match=r"shipped: .*bert_base"):
        find_config("qqqqqq")


def run_of(rows_per_epoch, batch=10, **train):
    settings = dataclasses.replace(FinetuneConfig().train, **train)
    data = dataclasses.replace(FinetuneConfig().data, global_batch_size=batch)
    return FinetuneConfig(train=settings, data=data).for_run(ModelConfig(), rows_per_epoch, seed=3)


@pytest.mark.parametrize(
    ("rows_per_epoch", "epochs", "per_epoch", "evaluated"),
    [
        (104, 3.0, 1, [11, 22, 31]),  # not at 10, 20, 30 and 31
        (100, 3.0, 1, [10, 20, 30]),
        (100, 1.0, 4, [2, 4, 6, 8, 10]),  # not at 3, 6, 9 and 10
        (250, 1.0, 12, [*range(2, 25, 2), 25]),  # not at 3, …, 24 and 25
        (96, 2.0, 1, [10, 19]),
        (4, 2.0, 3, [1]),
    ],
)
def test_evaluations_of_fine_tuning_are_spread_evenly_and_end_with_the_last_step(
    rows_per_epoch, epochs, per_epoch, evaluated
):
    run = run_of(rows_per_epoch, num_epochs=epochs, evaluations_per_epoch=per_epoch)
    steps, every = run.train.num_steps, run.train.eval_every
    assert sorted({*range(every, steps + 1, every), steps}) == evaluated
    assert run.train.checkpoint_every == every


def test_evaluations_of_an_epoch_are_part_of_the_identity():
    """With patience they decide when training ends."""
    one, two = (run_of(104, evaluations_per_epoch=count).identity() for count in (1, 2))
    assert {key for key in one if one[key] != two[key]} == {"train.evaluations_per_epoch"}


def test_dropout_of_fine_tuning_is_in_the_network_of_the_run():
    config = from_dict({"task": {"hidden_dropout": 0.3}}, FinetuneConfig)
    run = config.for_run(ModelConfig(hidden_dropout=0.0), 100, seed=0)
    assert run.model.hidden_dropout == 0.3
    assert run.identity()["model.hidden_dropout"] == 0.3


@pytest.mark.parametrize("name", ["num_epochs", "warmup_share", "evaluations_per_epoch", "num_seeds"])
def test_settings_that_count_examples_are_of_fine_tuning(name):
    value = 0.5 if name == "warmup_share" else 2.0 if name == "num_epochs" else 2
    with pytest.raises(UserError, match=f"train.{name}={value} is a setting of fine-tuning; use "):
        from_dict({"train": {name: value}}, Config)


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("bert_tiny", ["bert_tiny"]),
        ("bert_tiny:large", ["bert_tiny", "large"]),
        ("my.py", ["my.py"]),
        ("my.py:large:1", ["my.py", "large:1"]),
        ("a:b/my.py", ["a:b/my.py"]),
        ("a:b/my.py:x.txt", ["a:b/my.py", "x.txt"]),
        ("there.py:1.py", ["there.py:1.py"]),  # a file
    ],
)
def test_the_argument_of_a_config_is_behind_its_name(tmp_path, monkeypatch, typed, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py:1.py").touch()
    assert split_argument(typed) == parts


@pytest.mark.parametrize(
    ("of_run", "of_phases", "expected"),
    [
        ("next_sentence", [], "next_sentence"),
        ("none", [], "none"),
        ("next_sentence", ["sentence_order", "none"], "sentence_order"),
        ("none", ["next_sentence", "none"], "next_sentence"),
        ("next_sentence", ["none", "none"], "none"),
    ],
)
def test_the_head_judges_by_the_second_objective_of_the_last_phase_that_has_one(of_run, of_phases, expected):
    phases = [{"num_steps": 5, "data": {"second_objective": objective}} for objective in of_phases]
    steps = 5 * max(1, len(phases))
    values = {"data": {"second_objective": of_run}, "phases": phases, "train": {"num_steps": steps}}
    assert from_dict(values, Config).second_objective == expected


def test_pairs_of_either_kind_are_cut_alike():
    """So that a phase goes on behind the rows of the other kind; rows without pairs are others."""
    objectives = "next_sentence", "none", "sentence_order", "none"
    phases = [{"num_steps": 5, "data": {"second_objective": objective}} for objective in objectives]
    config = from_dict({"train": {"num_steps": 20}, "phases": phases}, Config)
    assert [[same.index for same in phase.same] for phase in config.phase_list()] == [[], [], [0], [1]]


def test_settings_that_decided_nothing_are_read_and_not_taken():
    values = {"train": {"num_steps": 7, "prng": "rbg"}}
    assert (
        from_dict(values, Config)
        == from_checkpoint(values, Config, "x")
        == from_dict({"train": {"num_steps": 7}}, Config)
    )
    with pytest.raises(UserError) as error:
        check_key("train.prng")
    assert str(error.value) == "config.train.prng has no effect any more; leave it out."
