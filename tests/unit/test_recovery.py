import contextlib
import json

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.training.config import TrainConfig
from bert_jax.training.recovery import LEAST_HISTORY, BadSteps, Recovery

NAN = float("nan")


def after(losses, **config):
    """A recovery that has judged these losses of the steps from 0 on."""
    recovery = Recovery(TrainConfig(**config))
    for step, loss in enumerate(losses):
        recovery.check(step, loss, 1.0)
    return recovery


def noise(count, seed=0):
    return (5.0 + 0.05 * np.random.default_rng(seed).standard_normal(count)).tolist()


@pytest.mark.parametrize("values", [(NAN, 1.0), (float("inf"), 1.0), (2.0, NAN)], ids=str)
def test_some_steps_in_a_row_that_are_not_finite(values):
    recovery = after([2.0, 2.0], max_bad_steps=3)
    recovery.check(2, *values)
    recovery.check(3, *values)
    with pytest.raises(BadSteps, match=r"is (nan|inf) at step 4") as raised:
        recovery.check(4, *values)
    assert (raised.value.first, raised.value.last) == (2, 4)


def test_a_finite_step_between_starts_the_count_anew():
    after([2.0, NAN, NAN, 2.0, NAN, NAN, 2.0], max_bad_steps=3)


def test_bad_steps_on_both_sides_of_steps_left_out_are_not_in_a_row():
    """Steps 2 and 3 are left out: with 1 and 4 bad, the two newest in a row would begin at step 3."""
    recovery = after([2.0, NAN], max_bad_steps=2)
    recovery.after_skip()
    recovery.check(4, NAN, 1.0)
    with pytest.raises(BadSteps) as raised:
        recovery.check(5, NAN, 1.0)
    assert (raised.value.first, raised.value.last) == (4, 5)


def test_a_loss_that_stands_out_rolls_back_at_once():
    recovery = after(noise(200))
    recovery.check(200, 5.5, 1.0)  # ten deviations: not enough
    with pytest.raises(BadSteps, match=r"loss is 7 at step 201, a spike \(z-score \d\d\)"):
        recovery.check(201, 7.0, 1.0)


def test_no_spike_without_enough_to_compare_with_nor_downwards_nor_when_switched_off():
    after([*noise(LEAST_HISTORY - 1), 50.0])
    after([*noise(LEAST_HISTORY), 0.0])
    after([*noise(LEAST_HISTORY), 50.0], spike_z_score=0.0)
    with pytest.raises(BadSteps):
        after([*noise(LEAST_HISTORY), 50.0])


def test_losses_that_hardly_vary_make_no_spike_of_a_small_step():
    recovery = after([5.0] * 100)
    recovery.check(100, 5.1, 1.0)


def test_a_spike_is_not_what_later_losses_are_compared_with():
    recovery = after(noise(128))
    for step in range(128, 400):
        with pytest.raises(BadSteps):
            recovery.check(step, 9.0, 1.0)


def test_a_resumed_run_judges_as_one_that_was_not_interrupted():
    losses = [*noise(150), NAN]
    whole, resumed = after(losses), Recovery(TrainConfig())
    resumed.restore(json.loads(json.dumps(whole.state_dict())))
    for recovery in (whole, resumed):
        recovery.check(151, NAN, 1.0)
        with pytest.raises(BadSteps) as raised:
            recovery.check(152, NAN, 1.0)
        assert (raised.value.first, raised.value.last) == (150, 152)
    assert resumed.state_dict() == whole.state_dict()


def test_losses_are_compared_with_those_of_their_own_phase():
    recovery = after(noise(100))
    recovery.enter_phase(1)
    recovery.check(100, 50.0, 1.0)
    for step, loss in enumerate(noise(100), 101):
        recovery.enter_phase(1)  # again, after skipped steps or a restart
        recovery.check(step, loss, 1.0)
    resumed = Recovery(TrainConfig())
    resumed.restore(json.loads(json.dumps(recovery.state_dict())))
    resumed.enter_phase(1)
    with pytest.raises(BadSteps):
        resumed.check(201, 50.0, 1.0)


@pytest.mark.parametrize(("index", "spikes"), [(0, True), (1, False)])
def test_a_checkpoint_of_an_older_version_does_not_name_the_phase_of_its_losses(index, spikes):
    recovery = Recovery(TrainConfig())
    recovery.restore({"losses": noise(100), "bad_steps": 0, "skips": []})
    recovery.enter_phase(index)
    with pytest.raises(BadSteps) if spikes else contextlib.nullcontext():
        recovery.check(100, 50.0, 1.0)


def test_which_steps_are_left_out():
    recovery = Recovery(TrainConfig(skip_margin=5))
    assert recovery.add_skip(BadSteps(20, 22, "loss is nan at step 22")) == 15
    assert recovery.add_skip(BadSteps(3, 3, "a spike")) == 0
    assert recovery.next_skip(4, 100) == 15
    assert recovery.next_skip(15, 100) == 100
    assert recovery.next_skip(4, 10) == 10
    assert recovery.skip_at(14) is None
    assert recovery.skip_at(15) == recovery.skip_at(22) == [15, 23, "loss is nan at step 22"]
    assert recovery.skip_at(23) is None
    recovery.restore(None)  # a checkpoint of before knows nothing of them
    assert recovery.skip_at(0) == [0, 4, "a spike"]


def test_enough_is_enough():
    recovery = Recovery(TrainConfig(max_rollbacks=1))
    bad = BadSteps(7, 9, "loss is nan at step 9")
    recovery.add_skip(bad)
    with pytest.raises(
        UserError, match=r"loss is nan at step 9, so training stops after 1 rollbacks .*learning_rate"
    ):
        recovery.add_skip(bad)
