import contextlib
import errno
import io
import json
import logging
import time

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from bert_jax.training.metrics import Console, MetricsFile, Recorder, _duration
from bert_jax.training.phases import Phase

TIMINGS = {"tokens_per_second", "data_wait_fraction", "time", "goodput", "lost_seconds", "restarts"}
STARTS = [{"step": 0, "time": 0.0}, {"step": 3, "time": 50.0}]


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "metrics.jsonl")


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(loss, tokens=100):
    return {
        "loss": jnp.float32(loss), "grad_norm": jnp.float32(2 * loss), "tokens": jnp.int32(tokens),
        "attended": jnp.float32(1000), "predictions": jnp.float32(10), "stop_requested": jnp.float32(0),
    }  # fmt: skip


class Unfinished:
    """An array that the devices have yet to compute, when it is asked."""

    def __init__(self, value):
        self.value = value

    def is_ready(self):
        return False

    def __array__(self, *args, **kwargs):
        return np.asarray(self.value)


def test_cut_back_to_the_step_resumed_at(path):
    rows = [{"step": 2, "loss": 0.1}, {"step": 4, "loss": 1 / 3}, {"step": 4, "eval_loss": 2.5}]
    later = [{"step": 6, "loss": 0.3}, {"step": 6, "params_digest": "ab"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows + later))
    before = path.read_bytes()
    file = MetricsFile(path.parent, resumed_at=5)
    assert rows_of(path) == rows
    assert before.startswith(path.read_bytes())
    file.write({"step": 6, "loss": 0.3})
    assert rows_of(path) == [*rows, later[0]]


def test_closing_row_goes_and_comes_back(path):
    path.write_text('{"step": 6, "loss": 0.3}\n{"step": 6, "params_digest": "ab"}\n')
    MetricsFile(path.parent, resumed_at=6)
    assert rows_of(path) == [{"step": 6, "loss": 0.3}]


@pytest.mark.parametrize("torn", ['{"st', '{"step": 4, "loss": 0.3', '{"step": 4}\n{"step"'])
def test_half_written_last_line_is_cut_off(path, torn):
    path.write_text('{"step": 2, "loss": 0.5}\n' + torn)
    MetricsFile(path.parent, resumed_at=8).write({"step": 8})
    whole = [{"step": 4}] if torn.startswith('{"step": 4}\n') else []
    assert rows_of(path) == [{"step": 2, "loss": 0.5}, *whole, {"step": 8}]


def test_new_run_starts_an_empty_file(path):
    path.write_text('{"step": 2, "loss": 0.5}\n')
    MetricsFile(path.parent, resumed_at=0)
    assert path.read_text() == ""


def test_not_a_number_survives(path):
    MetricsFile(path.parent, resumed_at=0).write({"step": 1, "loss": float("nan")})
    MetricsFile(path.parent, resumed_at=1)
    assert path.read_text() == '{"step": 1, "loss": NaN}\n'


def recorder_of(path, resumed_at=0, window=None):
    file = MetricsFile(path.parent, resumed_at)
    return Recorder(file, Console(0, 8), 3, lambda step: 0.1 * step, STARTS, window)


def without_timings(rows):
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


EXPECTED = [
    {"step": 3, "loss": 2.0, "grad_norm": 4.0, "learning_rate": 0.2},
    {"step": 6, "loss": 5.0, "grad_norm": 10.0, "learning_rate": 0.5},
    {"step": 8, "loss": 7.5, "grad_norm": 15.0, "learning_rate": 0.7},
]


def test_rows_are_means_over_their_windows(path):
    recorder = recorder_of(path)
    for step in range(1, 9):
        recorder.add(step, metrics(loss=step))
        assert len(rows_of(path)) == (step - 1) // 3  # one step late
    recorder.flush()
    rows = rows_of(path)
    assert without_timings(rows) == [pytest.approx(row) for row in EXPECTED]
    assert all(row.keys() > TIMINGS and row["tokens_per_second"] > 0 for row in rows)


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4, 7])
def test_a_window_goes_on_after_resuming(path, stopped_after):
    recorder = recorder_of(path)
    for step in range(1, stopped_after + 1):
        recorder.add(step, metrics(loss=step))
    recorder.flush()
    saved = json.loads(json.dumps(recorder.window))
    recorder.add(stopped_after + 1, metrics(loss=1e9))  # done, but not saved
    recorder.flush()

    recorder = recorder_of(path, stopped_after, saved)
    for step in range(stopped_after + 1, 9):
        recorder.add(step, metrics(loss=step))
    recorder.flush()
    assert without_timings(rows_of(path)) == [pytest.approx(row) for row in EXPECTED]


def test_a_window_ends_with_its_phase(path):
    """Steps 1 to 4 and 5 to 8 have losses of different names."""
    phases = Phase(None, 0, 4), Phase(None, 4, 8, index=1)
    file = MetricsFile(path.parent, 0)
    recorder = Recorder(file, Console(0, 8), 3, lambda _: 0.0, STARTS, phases=phases)
    for step in range(1, 9):
        name = "clm_loss" if step < 5 else "mlm_loss"
        recorder.add(step, metrics(loss=step) | {name: jnp.float32(step)})
    recorder.flush()
    found = [(row["step"], row["phase"], row.get("clm_loss"), row.get("mlm_loss")) for row in rows_of(path)]
    assert found == [(3, 1, 2.0, None), (4, 1, 4.0, None), (6, 2, None, 5.5), (8, 2, None, 7.5)]


@pytest.mark.parametrize(("skipped", "ends"), [(5, True), (3, False)])
def test_a_window_ends_before_skipped_steps_that_reach_into_another_phase(path, skipped, ends):
    phases = Phase(None, 0, 4), Phase(None, 4, 8, index=1)
    recorder = Recorder(MetricsFile(path.parent, 0), Console(0, 8), 8, lambda _: 0.0, STARTS, phases=phases)
    recorder.add(1, metrics(loss=1) | {"clm_loss": jnp.float32(1)})
    recorder.flush()
    recorder.leave_out(1, skipped)
    assert [(row["step"], row["phase"], row["clm_loss"]) for row in rows_of(path)] == [(1, 1, 1.0)] * ends
    recorder.add(8, metrics(loss=3) | {"mlm_loss": jnp.float32(3)})
    recorder.flush()
    assert rows_of(path)[-1]["mlm_loss"] == (3.0 if ends else 1.5)


def test_mfu_is_the_time_at_peak_over_the_time_taken(path):
    """Three steps that would take 0.1 s each at the peak rate."""
    counts = []

    def ideal_seconds(**totals):
        counts.append(totals)
        return 0.3

    file = MetricsFile(path.parent, 0)
    recorder = Recorder(file, Console(0, 3), 3, lambda _: 0.0, STARTS, ideal_seconds=ideal_seconds)
    time.sleep(0.1)
    for step in (1, 2, 3):
        recorder.add(step, metrics(1.0))
    recorder.flush()
    assert counts == [{"tokens": 300.0, "attended": 3000.0, "predictions": 30.0}]
    (row,) = rows_of(path)
    assert row["mfu"] == pytest.approx(0.3 * row["tokens_per_second"] / 300.0, rel=0.01)


def test_speed_counts_tokens_over_training_time_alone(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    recorder = recorder_of(path)
    now[0] = 100.0  # compiling
    recorder.start_clock()
    for step in (1, 2, 3):
        recorder.add_wait(1.0)
        now[0] += 4.0
        recorder.add(step, metrics(loss=1, tokens=50))
    recorder.flush()
    (row,) = rows_of(path)
    assert row["tokens_per_second"] == 12.5  # 150 tokens in 12 seconds
    assert row["data_wait_fraction"] == 0.25


def test_a_batch_that_comes_while_the_devices_work_is_not_waited_for(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    recorder = recorder_of(path)
    recorder.start_clock()
    for step in (1, 2, 3):
        recorder.add_wait(1.0)  # only the first: from then on the devices have a step to do
        now[0] += 4.0
        recorder.add(step, metrics(loss=1) | {"loss": Unfinished(jnp.float32(1))})
    recorder.flush()
    (row,) = rows_of(path)
    assert row["data_wait_fraction"] == 0.0833  # 1 of 12 seconds


def test_line_for_people(path, caplog):
    caplog.set_level(logging.INFO)
    recorder = recorder_of(path)
    for step in (1, 2, 3):
        recorder.add(step, metrics(loss=1.25))
    recorder.flush()
    assert caplog.messages[0].startswith("step 3/8 loss 1.25 learning_rate 0.2 tokens/s ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0m00s"), (59.6, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (90_061, "25h01m")],
)
def test_duration(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_steps_without_an_update_are_counted_and_not_averaged(path, name):
    recorder = recorder_of(path)
    recorder.add(1, metrics(0.5))
    recorder.add(2, metrics(0.7) | {name: jnp.float32("nan")})
    recorder.add(3, metrics(1.5))
    recorder.flush()
    (row,) = without_timings(rows_of(path))
    assert row == pytest.approx(
        {"step": 3, "loss": 1.0, "grad_norm": 2.0, "bad_steps": 1, "learning_rate": 0.2}
    )


def test_what_was_added_is_handed_back_one_step_late(path):
    recorder = recorder_of(path)
    assert recorder.add(1, metrics(0.5)) is None
    assert recorder.add(2, metrics(1.5)) == {"step": 1, **metrics(0.5)}
    assert recorder.flush()["loss"] == 1.5
    assert recorder.flush() is None


def test_goodput_is_the_time_of_steps_that_count_over_all_time_since_the_first_start(path, monkeypatch):
    """A checkpoint knows how long its steps took; what was done after it and lost is not in it."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 70.0 + now[0])
    window = {"steps": 0, "sums": {}, "bad_steps": 0, "useful_seconds": 30.0}
    recorder = recorder_of(path, window=window)
    for step in (1, 2, 3):
        now[0] += 10.0
        recorder.add(step, metrics(loss=1))
    recorder.flush()
    (row,) = rows_of(path)
    assert (row["goodput"], row["lost_seconds"], row["restarts"]) == (0.6, 40.0, 1)


@pytest.mark.parametrize(("at_start", "a_second"), [(20.0, -1.0), (-1e6, 0.0), (29.0, 1.0)])
def test_a_wall_clock_that_is_set_back_leaves_shares_and_durations_right(
    path, monkeypatch, at_start, a_second
):
    """What came before this start took at least the time of its training; from here on time is monotonic."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.time", lambda: at_start + a_second * now[0])
    window = {"steps": 0, "sums": {}, "bad_steps": 0, "useful_seconds": 30.0}
    recorder = recorder_of(path, window=window)
    now[0] += 20.0  # e.g. compiling
    recorder.start_clock()
    for step in (1, 2, 3):
        now[0] += 10.0
        recorder.add(step, metrics(loss=1))
    recorder.flush()
    (row,) = rows_of(path)
    assert (row["goodput"], row["lost_seconds"]) == (0.75, 20.0)


def test_rows_are_tensorboard_events_too(path):
    file = MetricsFile(path.parent, resumed_at=0)
    file.write({"step": 3, "loss": 0.5, "eval_loss": 0.25, "probe_a_accuracy": 0.5, "params_digest": "ab"})
    (events,) = (path.parent / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"training/loss" in content
    assert b"held-out/loss" in content
    assert b"probes/a_accuracy" in content
    assert b"params_digest" not in content


def test_a_disk_that_takes_no_events_costs_only_the_events(path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = MetricsFile(path.parent, resumed_at=0)
    monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.flush", full)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        for step in range(50):  # more than a queue would hold
            file.write({"step": step, "loss": 0.5})
    assert [row["step"] for row in rows_of(path)] == list(range(50))
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard events are no longer written: [Errno 28] No space left on device; metrics.jsonl is"
    ]


class Bucket:
    """A path in a bucket, whose objects can be written and read, and not appended to."""

    def __init__(self, objects, name="gs://bucket/run"):
        self.objects, self.name = objects, name

    def __str__(self):
        return self.name

    def __truediv__(self, name):
        return Bucket(self.objects, f"{self.name}/{name}")

    def with_name(self, name):
        return Bucket(self.objects, f"{self.name.rsplit('/', 1)[0]}/{name}")

    def mkdir(self, **_):
        pass

    def exists(self):
        return self.name in self.objects

    def read_bytes(self):
        return self.objects[self.name].encode()

    def open(self, mode):
        assert mode == "wb"
        file = io.BytesIO()
        file.close = lambda: self.write_text(file.getvalue().decode())
        return contextlib.closing(file)

    def write_text(self, text):
        self.objects[self.name] = text

    def replace(self, other):
        self.objects[other.name] = self.objects.pop(self.name)


def test_in_a_bucket_all_rows_are_written_again(monkeypatch):
    def no_client(_):
        raise ImportError("google-cloud-storage")

    monkeypatch.setattr("bert_jax.training.metrics.EventsWriter", no_client)
    objects = {"gs://bucket/run/metrics.jsonl": '{"step": 1}\n{"step": 2}\n'}
    file = MetricsFile(Bucket(objects), resumed_at=1)
    for step in (2, 3):
        file.write({"step": step})
    assert objects == {"gs://bucket/run/metrics.jsonl": '{"step": 1}\n{"step": 2}\n{"step": 3}\n'}
