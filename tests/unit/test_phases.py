import contextlib
import dataclasses

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from bert_jax.config import Config, add_overrides_of_phases, check_key, default_config, from_dict
from bert_jax.corpus.config import DataConfig
from bert_jax.data import masking
from bert_jax.data.batch import max_predictions
from bert_jax.data.batches import Batches
from bert_jax.data.mixed_batches import phase_batches
from bert_jax.errors import UserError
from bert_jax.training.config import OptimizerConfig, TrainConfig
from bert_jax.training.phases import unlearned
from bert_jax.training.schedules import check_schedules, make_schedule, schedule_of_run
from tests.fakes import FakeTokenizer, MemoryStore, random_documents

VOCAB = 64
WARM_UP = (
    {"num_steps": 10, "data": {"global_batch_size": 4}},
    {"num_steps": 20, "data": {"global_batch_size": 8}},
    {"num_steps": 30, "data": {"max_seq_length": 64}},
    {"num_steps": 40, "optimizer": {"learning_rate": 0.5, "schedule": "constant"}},
)


def config_of(*phases, **sections):
    values = {"train": TrainConfig(num_steps=0)} | sections
    return Config(phases=phases, **values)


def test_phases_follow_each_other_with_their_overrides():
    config = config_of(*WARM_UP, data=DataConfig(max_seq_length=32, global_batch_size=16))
    phases = config.phase_list()
    assert config.train.num_steps == 100
    assert [(phase.first_step, phase.last_step) for phase in phases] == [
        (0, 10),
        (10, 30),
        (30, 60),
        (60, 100),
    ]
    assert [phase.config.data.global_batch_size for phase in phases] == [4, 8, 16, 16]
    assert [phase.config.data.max_seq_length for phase in phases] == [32, 32, 64, 32]
    assert [phase.own_schedule for phase in phases] == [False, False, False, True]
    # The second and the last go on with the rows of the phases that cut text alike: 10 × 4, and 20 × 8 more.
    before = [sum(same.num_rows for same in phase.same) for phase in phases]
    assert before == [0, 40, 0, 200]


def test_a_config_without_phases_is_one_phase():
    (phase,) = Config(train=TrainConfig(num_steps=7)).phase_list()
    assert (phase.first_step, phase.last_step, phase.same, phase.own_schedule) == (0, 7, (), False)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (
            ({"num_steps": 1, "data": {"mask_rat": 0.1}},),
            r"phases\[0\]: data.mask_rat cannot be set by a phase",
        ),
        (({"num_steps": 1, "model": {"hidden_size": 8}},), r"phases\[0\]: model.hidden_size cannot be set"),
        (
            ({"num_steps": 1, "train": {"seed": 8}},),
            r"phases\[0\]: train.seed cannot be set by a phase; these",
        ),
        (({"num_steps": 1, "init_from": "x"},), r"phases\[0\]: init_from cannot be set"),
        (
            ({"num_steps": 1}, {"num_steps": 0}),
            r"phases\[1\]: num_steps=0 must be a whole number, at least 1",
        ),
        (({"num_steps": 1}, {}), r"phases\[1\]: num_steps is missing\."),
        (({"num_step": 1},), r"phases\[0\]: num_step cannot be set by a phase; these can: num_steps, "),
        (({"num_steps": 1, "data": 3},), r"phases\[0\]: data=3 must be a dict\."),
        (({"num_steps": 2.0},), r"phases\[0\]: num_steps=2.0 must be a whole number"),
        (
            ({"num_steps": 1, "data": {"max_seq_length": 1024}},),
            r"phases\[0\]: data.max_seq_length=1024 is longer",
        ),
        (
            ({"num_steps": 1, "data": {"final_mask_rate": 1.5}},),
            r"phases\[0\]: data.final_mask_rate=1.5 must be",
        ),
        (
            ({"num_steps": 1, "data": {"mask_rate": "high"}},),
            r"data.mask_rate='high' is of type str, not float",
        ),
        (
            ({"num_steps": 1, "optimizer": {"learning_rate": -1.0}},),
            r"phases\[0\]: optimizer.learning_rate=-1.0",
        ),
    ],
    ids=str,
)
def test_a_phase_that_cannot_be_is_named(phases, message):
    with pytest.raises(UserError, match=message):
        config_of(*phases)


@pytest.mark.parametrize("value", [5, {"num_steps": 5}, [5], ("data",)])
def test_phases_are_a_list_of_dicts(value):
    values = default_config().to_dict() | {"phases": value}
    with pytest.raises(UserError, match=r"config.phases\[0\]=.* must be a dict like"):
        from_dict(values, Config)


def test_phases_that_contradict_the_number_of_steps():
    with pytest.raises(UserError, match=r"train.num_steps=5, but the phases have 10 \+ 20 = 30 steps; set"):
        Config(phases=WARM_UP[:2], train=TrainConfig(num_steps=5))
    assert Config(phases=WARM_UP[:2], train=TrainConfig(num_steps=30)).train.num_steps == 30
    with pytest.raises(UserError, match=r"train\.num_steps=0 must be at least 1"):
        Config(train=TrainConfig(num_steps=0))


def test_the_command_line_sets_keys_of_phases_and_adds_a_phase():
    values = default_config()
    values.phases = ({"num_steps": 5},)
    keys = ("phases[0].data.mask_rate", "phases[0].num_steps", "train.seed", "phases[1].num_steps")
    add_overrides_of_phases(values, keys, Config)
    assert values.phases == ({"num_steps": 5, "data": {"mask_rate": 0.15}}, {"num_steps": 0})
    with pytest.raises(
        UserError,
        match=r"config.phases\[4\].num_steps: there are 2 phases, counted from 0; the next is phases\[2\]",
    ):
        add_overrides_of_phases(values, ["phases[4].num_steps"], Config)
    with pytest.raises(
        UserError, match=r"config.phases\[0\].data.tokenizer cannot be set by a phase; these can"
    ):
        check_key("phases[0].data.tokenizer")
    near = r"did you mean phases\[0\]\.data\.mask_rate"
    with pytest.raises(UserError, match=rf"config\.phases\[0\]\.data\.mask_rat does not exist; {near}"):
        check_key("phases[0].data.mask_rat")
    untouched = ml_collections.ConfigDict({"phases": ()})
    add_overrides_of_phases(untouched, ["train.seed"], Config)
    assert untouched.phases == ()


def test_the_rate_spans_the_run_except_where_a_phase_brings_its_own():
    config = config_of(
        {"num_steps": 10},
        {"num_steps": 10, "optimizer": {"learning_rate": 2.0, "schedule": "linear", "warmup_steps": 4}},
        {"num_steps": 20, "data": {"mask_rate": 0.2}},
        {"num_steps": 10, "optimizer": {"final_learning_rate": 0.25}},
        optimizer=OptimizerConfig(learning_rate=1.0, warmup_steps=5),
    )
    rate = schedule_of_run(config.optimizer, config.phase_list())
    whole = make_schedule(config.optimizer, 50)
    expected = {step: float(whole(step)) for step in (0, 3, 5, 9, 20, 39)}
    expected |= {10: 0.0, 12: 1.0, 14: 2.0, 17: 1.0}  # up over 4 steps, down over 6
    expected |= {40: 1.0, 45: 0.625, 50: 0.25}  # without a warm-up of its own
    assert {step: float(rate(step)) for step in expected} == pytest.approx(expected)
    assert float(rate(jnp.int32(12))) == 1.0


@pytest.mark.parametrize("shape", ["linear", "one_minus_sqrt"])
def test_a_trapezoid_is_stable_and_then_falls(shape):
    config = OptimizerConfig(
        learning_rate=0.8, warmup_steps=4, schedule="trapezoid", decay_steps=16, decay_shape=shape,
        final_learning_rate=0.2,
    )  # fmt: skip
    rate = make_schedule(config, 40)
    done = {"linear": lambda x: x, "one_minus_sqrt": np.sqrt}[shape]
    expected = {2: 0.4, 4: 0.8, 23: 0.8, 24: 0.8, 50: 0.2}
    expected |= {step: 0.8 - 0.6 * done((step - 24) / 16) for step in range(24, 41)}
    assert {step: float(rate(step)) for step in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("phases", "problem"),
    [
        (
            (),
            "optimizer.decay_steps=16 is more than the 14 steps of train.num_steps=18 after "
            "optimizer.warmup_steps=4; lower it.",
        ),
        (
            ({"num_steps": 8}, {"num_steps": 10}),
            "optimizer.decay_steps=16 is more than the 14 steps of train.num_steps=18",
        ),
        (({"num_steps": 18, "optimizer": {"decay_steps": 18}},), None),
        (
            ({"num_steps": 18, "optimizer": {"decay_steps": 19}},),
            "phases[0]: optimizer.decay_steps=19 is more than "
            "the 18 steps of num_steps=18 after optimizer.warmup_steps=0; lower it.",
        ),
        (
            ({"num_steps": 12}, {"num_steps": 6, "optimizer": {"schedule": "constant"}}),
            "optimizer.decay_steps=16 is",
        ),
        (({"num_steps": 30}, {"num_steps": 6, "optimizer": {"schedule": "constant"}}), None),
        (
            ({"num_steps": 30, "optimizer": {"decay_steps": 0}},),
            "phases[0]: optimizer.decay_steps=0: a trapezoid that never falls; raise it, or set "
            "optimizer.schedule=constant.",
        ),
    ],
)
def test_a_trapezoid_that_would_fall_from_its_first_step_on(phases, problem):
    """Its rate would jump at the end of the warm-up."""
    optimizer = OptimizerConfig(schedule="trapezoid", warmup_steps=4, decay_steps=16)
    config = config_of(*phases, optimizer=optimizer, train=TrainConfig(num_steps=0 if phases else 18))
    with pytest.raises(UserError) if problem else contextlib.nullcontext() as error:
        check_schedules(config)
    assert problem is None or str(error.value).startswith(problem)


@pytest.mark.parametrize(
    ("schedule", "done", "free"),
    [
        # Of the last of three phases of 10 steps; the second has a schedule of its own.
        (
            "constant",
            0,
            {"phases[0].num_steps", "phases[1].data.mask_rate", "phases[2].x", "train.num_steps"},
        ),
        ("constant", 10, {"phases[1].data.mask_rate", "phases[2].x", "train.num_steps"}),
        ("constant", 11, {"phases[2].x", "train.num_steps"}),
        ("linear", 11, {"phases[2].x"}),
        ("cosine", 21, set()),
        ("rsqrt", 30, {"train.num_steps"}),
    ],
)
def test_what_has_not_been_learned_from_may_change(schedule, done, free):
    config = config_of(
        {"num_steps": 10}, {"num_steps": 10, "optimizer": {"schedule": "constant"}}, {"num_steps": 10}
    )
    may_change = unlearned(config.phase_list(), schedule, done)
    keys = ("phases[0].num_steps", "phases[1].data.mask_rate", "phases[2].x", "train.num_steps", "train.seed",
            "data.mask_rate")  # fmt: skip
    assert {key for key in keys if may_change(key)} == free


def test_settings_of_a_schedule_that_change_nothing(caplog):
    def checked(num_steps, **settings):
        optimizer = OptimizerConfig(learning_rate=1e-3, **settings)
        check_schedules(config_of(optimizer=optimizer, train=TrainConfig(num_steps=num_steps)))

    with pytest.raises(
        UserError, match=r"decay_steps=5 has no effect with optimizer\.schedule=linear; set it"
    ):
        checked(10, warmup_steps=1, decay_steps=5)
    phase = {"num_steps": 10, "optimizer": {"schedule": "trapezoid"}}
    check_schedules(config_of(phase, optimizer=OptimizerConfig(decay_steps=5)))  # which the phase inherits
    checked(10, warmup_steps=10)
    assert caplog.messages == []
    checked(10, warmup_steps=11)
    assert caplog.messages == [
        "optimizer.warmup_steps=11 is more than train.num_steps=10: the learning rate does not reach 0.001; "
        "lower it, unless this is a trial"
    ]


@pytest.fixture(scope="module")
def store():
    return MemoryStore(random_documents(60), VOCAB)


def shares(batches, steps):
    """The share of the tokens to predict among those that can be, in the batch of every step."""
    found = []
    for step in steps:
        batch = batches(step)
        maskable = np.count_nonzero(batch["sequence_ids"]) - 3 * np.count_nonzero(
            batch["next_sentence_weights"]
        )
        found.append(batch["masked_lm_weights"].sum() / maskable)
    return found


def test_the_rate_of_the_last_step_is_not_beyond_its_end(store):
    """By rounding it was 0.5 and a bit here, and one more prediction than there is room for."""
    data = DataConfig(max_seq_length=128, global_batch_size=32, mask_rate=0.05, final_mask_rate=0.5)
    batches = Batches(store, data, FakeTokenizer(VOCAB), seed=1, num_steps=20_000)
    assert batches.mask_rate(19_999) == 0.5
    down = dataclasses.replace(data, mask_rate=0.5, final_mask_rate=0.05)
    assert Batches(store, down, FakeTokenizer(VOCAB), seed=1, num_steps=20_000).mask_rate(0) == 0.5


def test_the_rate_of_masks_goes_linearly_to_its_end(store):
    data = DataConfig(max_seq_length=128, global_batch_size=32, mask_rate=0.4, final_mask_rate=0.1)
    batches = Batches(store, data, FakeTokenizer(VOCAB), seed=1, num_steps=11)
    assert [batches.mask_rate(step) for step in (0, 5, 10)] == pytest.approx([0.4, 0.25, 0.1])
    assert shares(batches, range(11)) == pytest.approx(np.linspace(0.4, 0.1, 11), abs=0.01)
    reverse = dataclasses.replace(data, mask_rate=0.1, final_mask_rate=0.4)
    assert max_predictions(data) == max_predictions(reverse)
    assert max_predictions(data) == max_predictions(dataclasses.replace(data, final_mask_rate=0.0))
    assert shares(Batches(store, data, FakeTokenizer(VOCAB), seed=1), [0]) == pytest.approx([0.4], abs=0.01)


def test_the_most_predictions_are_counted_once_for_all_phases_that_have_the_same(monkeypatch):
    counted, count = [], masking.max_predictions
    monkeypatch.setattr(masking, "max_predictions", lambda *args: counted.append(args) or count(*args))
    data = DataConfig(max_seq_length=40, mask_rate=0.37, final_mask_rate=0.2)
    assert max_predictions(data) == round(0.37 * 37)
    for change in ({"global_batch_size": 8}, {"masking": "span"}, {"final_mask_rate": 0.0}):
        assert max_predictions(dataclasses.replace(data, **change)) == round(0.37 * 37)
    assert len(counted) == 1
    assert max_predictions(dataclasses.replace(data, second_objective="none")) == round(0.37 * 38)
    assert max_predictions(dataclasses.replace(data, max_sequences_per_row=2)) >= round(0.37 * 37)
    assert max_predictions(dataclasses.replace(data, mask_rate=0.8)) == round(0.8 * 37)


def test_batches_of_phases_are_those_of_one_stretch_of_rows(store):
    """A batch that grows by phases reads the text as one that does not: nothing twice, nothing left out."""
    data = DataConfig(max_seq_length=32, global_batch_size=8, max_sequences_per_row=2)
    grown = Config(
        data=data, train=TrainConfig(num_steps=0, seed=5),
        phases=({"num_steps": 6, "data": {"global_batch_size": 2}}, {"num_steps": 3}),
    )  # fmt: skip
    parts = [
        phase_batches([store], FakeTokenizer(VOCAB), phase)(step)
        for phase in grown.phase_list()
        for step in range(phase.num_steps)
    ]
    whole = Batches(store, dataclasses.replace(data, global_batch_size=36), FakeTokenizer(VOCAB), seed=5)(0)
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values, err_msg=name)
