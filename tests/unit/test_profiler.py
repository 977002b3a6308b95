import jax
import pytest
from etils import epath

from bert_jax.training.profiler import Profiler


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([2, 3, 4, 5, 6], ["start", 5]),
        ([2, 3, 7, 8], ["start", 7]),  # 4 to 6 are skipped
        ([4, 5, 6], []),  # resumed inside the window
        ([3, 4, 5, 3, 4, 5], ["start", 5]),
    ],
)
def test_a_window_is_traced_once(monkeypatch, tmp_path, steps, expected):
    calls = []
    profiler = Profiler("3:5", epath.Path(tmp_path))
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(step))
    for step in steps:
        profiler.before(step, jax.numpy.zeros(1))
    assert calls == expected


def test_without_a_window_there_is_no_trace(monkeypatch, tmp_path):
    monkeypatch.delattr(jax.profiler, "start_trace")
    Profiler("", epath.Path(tmp_path)).before(0, None)


@pytest.mark.parametrize(
    ("step", "last", "warned"), [(0, 4, False), (3, 4, False), (4, 9, True), (0, 3, True)]
)
def test_a_window_outside_the_run_is_said(tmp_path, caplog, step, last, warned):
    Profiler("3:5", epath.Path(tmp_path)).warn_if_outside(step, last)
    assert (f"this command trains steps {step} to {last - 1}" in caplog.text) == warned


def test_a_run_without_a_window_or_without_steps_left_warns_of_nothing(tmp_path, caplog):
    Profiler("", epath.Path(tmp_path)).warn_if_outside(0, 9)
    Profiler("3:5", epath.Path(tmp_path)).warn_if_outside(9, 9)
    assert not caplog.text
