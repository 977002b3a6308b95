"""Metrics of a run: `metrics.jsonl` and TensorBoard events for programs, a bar or log lines for people."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import tqdm
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from bert_jax.files import read_rows, write, write_rows
from bert_jax.training.phases import Phase

log = logging.getLogger("bert_jax")
GROUPS = {"eval": "held-out", "probe": "probes"}  # of TensorBoard, by the first word of a metric
COUNTS = {"tokens", "attended", "predictions", "stop_requested"}  # of a step: sums, no metrics of a row


class MetricsFile:
    """Writes `metrics.jsonl`, a JSON object with its `step` a line, and the same as TensorBoard events.

    Only the first process writes.

    Args:
        workdir: of the run.
        resumed_at: rows after this step, half-written lines and the closing row of a finished run are cut
            off, so that a resumed run ends with the same file as an undisturbed one.
    """

    def __init__(self, workdir: epath.Path, resumed_at: int):
        self._path = path = workdir / "metrics.jsonl"
        if jax.process_index():
            return
        rows = [row for row in read_rows(path) if row["step"] <= resumed_at and "params_digest" not in row]
        write_rows(path, rows if resumed_at else [])
        # Objects of a bucket cannot be appended to: there all rows are written again.
        self._text = path.read_bytes().decode() if "://" in str(path) else None
        self._events = _Events(workdir / "tensorboard", resumed_at)

    def write(self, row: dict[str, Any]) -> None:
        if jax.process_index():
            return
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if self._text is not None:
            self._text += line
            write(self._path, self._text)
        else:
            with self._path.open("ab") as file:
                file.write(line.encode())
        self._events.write(row)


class _Events:
    """Writes rows as TensorBoard events, at once.

    tensorboardX's SummaryWriter uses a thread, which a full disk kills; its queue then blocks training for
    ever. Here a failure costs the events and nothing else.
    """

    def __init__(self, folder: epath.Path, resumed_at: int):
        self._writer: EventsWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        except (OSError, ImportError) as error:  # the latter where a bucket's client is not installed
            self._disable(error)
        # TensorBoard forgets what an interrupted run wrote from this step on.
        self._put(Event(step=resumed_at + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and name != "time":
                prefix, _, rest = name.partition("_")
                group = GROUPS.get(prefix, "training")
                summary = scalar(f"{group}/{rest if prefix in GROUPS else name}", value)
                self._put(Event(step=row["step"], wall_time=time.time(), summary=summary))

    def _put(self, event: Event) -> None:
        if self._writer is not None:
            try:
                self._writer.write_event(event)
                self._writer.flush()
            except OSError as error:
                self._disable(error)

    def _disable(self, error: Exception) -> None:
        self._writer = None
        log.warning("TensorBoard events are no longer written: %s; metrics.jsonl is", error)


class Console:
    """Shows progress: a bar on a terminal, else a log line for each row.

    Args:
        first_step, last_step: of the run, from here on.
    """

    def __init__(self, first_step: int, last_step: int):
        self.last_step = last_step
        self._bar = tqdm.tqdm(
            total=last_step,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty() or jax.process_index() > 0,
        )

    def show_step(self, step: int) -> None:
        self._bar.update(step - self._bar.n)

    def show_row(self, row: dict[str, Any], seconds_per_step: float) -> None:
        """Shows losses, accuracies, learning rate and speed of a row, and how long the rest will take."""
        shown = {
            name: f"{row[name]:.4g}"
            for name in row
            if name.endswith(("loss", "accuracy", "_rate")) or name.startswith(("share_", "epochs_"))
        }
        speed, step = row["tokens_per_second"], row["step"]
        if self._bar.disable:
            line = " ".join(f"{name} {value}" for name, value in shown.items())
            left = _duration((self.last_step - step) * seconds_per_step)
            log.info("step %d/%d %s tokens/s %.0f left %s", step, self.last_step, line, speed, left)
        else:
            self._bar.set_postfix(shown | {"tokens/s": f"{speed:,.0f}"})

    def close(self) -> None:
        self._bar.close()


class Recorder:
    """Averages the steps of a window into a row, one step late so that the devices never wait for the host.

    Args:
        file, console: where the rows go.
        log_every: steps of a window.
        schedule: step -> learning rate.
        starts: rows of `starts.jsonl`: when and how often the run was started.
        window: of the checkpoint that the run resumes from.
        phases: of the run; if there are several, a row has the number of its phase, from 1. A window ends
            where its phase does.
        ideal_seconds: seconds that steps with so many tokens, attended tokens and predictions would take at
            the devices' peak rate; None where that is not known.
        exposure: step -> shares and epochs of the sources of a mixture, which a row has, too.

    Attributes:
        window: sums since the last row. Checkpoints keep it, so that a resumed run writes the same averages.
    """

    def __init__(
        self,
        file: MetricsFile,
        console: Console,
        log_every: int,
        schedule: Callable[[int], Any],
        starts: list[dict[str, Any]],
        window: dict[str, Any] | None = None,
        ideal_seconds: Callable[..., float] | None = None,
        phases: Sequence[Phase] = (),
        exposure: Callable[[int], dict[str, float]] = lambda _: {},
    ):
        self._phases, self._exposure = phases, exposure
        self._file, self._console, self._log_every, self._schedule = file, console, log_every, schedule
        self._restarts, self._ideal_seconds = len(starts) - 1, ideal_seconds
        empty = {"steps": 0, "sums": {}, "bad_steps": 0, "useful_seconds": 0.0}
        self.window: dict[str, Any] = empty | (window or {})
        # Wall clocks are set back and differ between hosts: they count from start to start only, where each
        # took at least the time of its training; from here on the monotonic clock does.
        since_first = time.time() - starts[0]["time"]
        self._lasted_before = max(since_first, self.window["useful_seconds"])
        self._started = time.perf_counter()
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._reset_times()
        self._mark = time.perf_counter()

    def close(self) -> None:
        """Ends the bar."""
        self._console.close()

    def start_clock(self) -> None:
        """Counts time from here on as training time (evaluation and saving are not)."""
        self._mark = time.perf_counter()

    def add_wait(self, seconds: float) -> None:
        """Counts time that a batch took, if at its end the devices have nothing left to do."""
        if self._pending is None or self._pending[1]["loss"].is_ready():  # type: ignore[attr-defined]
            self._waited += seconds

    def add(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float] | None:
        """Takes the metrics of `step`, which may not be computed yet; returns those of the step before."""
        previous, self._pending = self._pending, (step, metrics)
        return self._finish(previous)

    def flush(self) -> dict[str, float] | None:
        """Waits for the last step and returns its metrics."""
        previous, self._pending = self._pending, None
        return self._finish(previous)

    def leave_out(self, step: int, end: int) -> None:
        """Ends the window after `step` steps if its phase ends among those up to `end`, which are skipped."""
        counted = self.window["steps"] or self.window["bad_steps"]
        if counted and any(step < phase.last_step <= end for phase in self._phases):
            self._write_row(step)

    def _finish(self, entry: tuple[int, dict[str, jax.Array]] | None) -> dict[str, float] | None:
        values = None
        if entry is not None:
            step, arrays = entry
            values = {name: float(value) for name, value in jax.device_get(arrays).items()}
            self._console.show_step(step)
            self._add_to_window(values)
        now = time.perf_counter()
        self._busy += now - self._mark
        self.window["useful_seconds"] += now - self._mark
        self._mark = now
        ends = {self._console.last_step, *(phase.last_step for phase in self._phases)}
        if entry is not None and (step % self._log_every == 0 or step in ends):
            self._write_row(step)
        return None if values is None else {"step": step, **values}

    def _add_to_window(self, values: dict[str, float]) -> None:
        for name in self._timed:
            self._timed[name] += values[name]
        self._timed_steps += 1
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            self.window["bad_steps"] += 1  # its update was not applied: it would only spoil the averages
            return
        self.window["steps"] += 1
        for name, value in values.items():
            if name not in COUNTS:
                self.window["sums"][name] = self.window["sums"].get(name, 0.0) + value

    def _write_row(self, step: int) -> None:
        row: dict[str, Any] = {"step": step}
        row |= {name: total / self.window["steps"] for name, total in self.window["sums"].items()}
        if self.window["bad_steps"]:
            row["bad_steps"] = self.window["bad_steps"]
        if len(self._phases) > 1:
            row["phase"] = 1 + next(phase.index for phase in self._phases if step <= phase.last_step)
        row |= self._exposure(step)
        busy = max(self._busy, 1e-9)
        if self._ideal_seconds:
            row["mfu"] = round(self._ideal_seconds(**self._timed) / busy, 4)
        lasted = max(self._lasted_before + time.perf_counter() - self._started, 1e-9)
        row |= {
            "learning_rate": float(self._schedule(step - 1)),
            "tokens_per_second": round(self._timed["tokens"] / busy, 1),
            "data_wait_fraction": round(self._waited / busy, 4),
            "goodput": round(self.window["useful_seconds"] / lasted, 4),
            "lost_seconds": round(lasted - self.window["useful_seconds"], 1),
            "restarts": self._restarts,
            "time": round(time.time(), 3),
        }
        self._file.write(row)
        self._console.show_row(row, self._busy / max(self._timed_steps, 1))
        self.window |= {"steps": 0, "sums": {}, "bad_steps": 0}
        self._reset_times()

    def _reset_times(self) -> None:
        self._busy = self._waited = self._timed_steps = 0.0
        self._timed = {"tokens": 0.0, "attended": 0.0, "predictions": 0.0}


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
