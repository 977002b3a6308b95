import math

import pytest

from bert_jax.training.selection import Selection


def judged(metric, values, patience=0):
    selection = Selection(metric and f"eval_{metric}", patience)
    for step, value in enumerate(values, 1):
        selection.update({"step": step, f"eval_{metric}": value})
    return selection


def test_the_first_of_the_highest_is_the_best():
    assert judged("f1", [0.2, 0.5, 0.5, 0.4]).best_step == 2


def test_of_equal_ones_the_loss_decides():
    rows = [(0.5, 0.3), (0.6, 0.4), (0.6, 0.2), (0.6, 0.2), (0.5, 0.1), (0.6, math.nan)]
    selection = Selection("eval_f1", 4)
    for step, (value, loss) in enumerate(rows, 1):
        selection.update({"step": step, "eval_f1": value, "eval_loss": loss})
    assert selection.best_step == 3
    assert selection.should_stop  # four after the second: the third was not better, only surer


def test_a_run_of_before_losses_were_saved_goes_on():
    selection = Selection("eval_f1", 2)
    selection.restore({"best_step": 1, "best": 0.5, "since": 0})
    selection.update({"step": 2, "eval_f1": 0.5, "eval_loss": 0.1})
    assert selection.best_step == 1


@pytest.mark.parametrize("metric", ["loss", "squared_error"])
def test_of_losses_the_lowest_is_the_best(metric):
    assert judged(metric, [0.2, 0.1, 0.5]).best_step == 2


def test_patience_counts_evaluations_without_a_better_one():
    assert not judged("f1", [0.5, 0.4, 0.6, 0.6], patience=2).should_stop
    assert judged("f1", [0.5, 0.4, 0.6, 0.6, 0.1], patience=2).should_stop
    assert not judged("f1", [0.5] * 50).should_stop


def test_what_is_not_a_number_is_never_the_best():
    assert judged("f1", [math.nan, 0.1, math.nan]).best_step == 2


def test_rows_without_the_metric_and_runs_without_one_judge_nothing():
    selection = Selection("eval_f1", 1)
    selection.update({"step": 5, "loss": 1.0})
    assert selection.best_step is None
    assert judged("", [0.3]).best_step is None


def test_it_goes_on_from_what_was_saved():
    selection = Selection("eval_f1", 2)
    selection.restore(judged("f1", [0.5, 0.4]).state_dict())
    selection.update({"step": 3, "eval_f1": 0.45})
    assert selection.best_step == 1
    assert selection.should_stop


def test_another_metric_starts_anew():
    """`train.selection` may change when a run resumes."""
    saved = judged("f1", [0.5, 0.4]).state_dict()
    for metric in ("", "probe_topics_accuracy"):
        selection = Selection(metric, 0)
        selection.restore(saved)
        assert selection.best_step is None
    selection.update({"step": 3, "eval_f1": 0.9, "probe_topics_accuracy": 0.25})
    assert selection.best_step == 3
