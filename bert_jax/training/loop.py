"""The training loop: every command that updates weights runs this one."""

import functools
import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.contrib.logging import logging_redirect_tqdm

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.training import step as step_lib
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.config import Phase, RunConfig
from bert_jax.training.fingerprints import params_digest
from bert_jax.training.flops import peak_flops, training_flops
from bert_jax.training.hosts import START_AGAIN, together
from bert_jax.training.mesh import check_batch, check_model, make_mesh, process_rows, to_global
from bert_jax.training.metrics import MetricsFile, Recorder
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.recovery import BadSteps, Recovery
from bert_jax.training.selection import Selection
from bert_jax.training.workdir import open_workdir, record_start, versions, write_examples, write_report

FINISHED, INTERRUPTED = 0, 130  # exit codes: done; Ctrl-C. SIGTERM gives START_AGAIN
log = logging.getLogger("bert_jax")

HostBatch = dict[str, np.ndarray]


class Task(step_lib.Task, Protocol):
    """An objective together with its data.

    Attributes:
        data_digest: of the dataset's content; part of the run's identity.
        files: what a checkpoint must carry to be used alone (name -> content).
        metric, patience: what chooses the best checkpoint and ends the run, see `Selection`.
    """

    data_digest: str
    files: dict[str, bytes]
    metric: str
    patience: int

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module: ...

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """What a new run starts from, laid out as `abstract` says; tells it in the log."""
        ...

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """The given rows of the global batches from `first_step` of the phase on."""
        ...

    def evaluations(self, final: bool) -> dict[str, Callable[[np.ndarray], Iterable[HostBatch]]]:
        """Held-out batches by the prefix of their metrics; `final` after the last step."""
        ...

    def scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """Metrics that are no means, from the outputs of `evaluate` for all held-out batches."""
        ...

    def examples(self, structure: nnx.GraphDef, params: Any) -> list[dict[str, Any]]:
        """What the model makes of some held-out text, for the report; computed by all processes."""
        ...


def train(config: RunConfig, task: Task, workdir: epath.PathLike) -> int:
    """Trains from the newest checkpoint in `workdir`, or from the start, to the last step of the last phase.

    Returns:
        An exit code: `FINISHED`, or what the signal that stopped the run asks for.

    Raises:
        UserError: for a config that does not fit the devices or the workdir.
    """
    mesh = make_mesh(config.mesh)
    check_model(mesh.shape, config.model)
    check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
    workdir = open_workdir(workdir, config, task.data_digest)
    with jax.set_mesh(mesh), StopRequest() as stop, logging_redirect_tqdm([log]):
        run = Run(config, task, workdir, mesh, stop)
        try:
            with together():
                for phase in config.phases():
                    run.train_phase(phase)
                    if run.stopped:
                        return INTERRUPTED if stop.requested == signal.SIGINT else START_AGAIN
                run.finish()
                return FINISHED
        finally:
            run.close()
            write_report(workdir)


class StopRequest:
    """While entered, SIGTERM and Ctrl-C ask for a stop; a second Ctrl-C kills."""

    def __init__(self) -> None:
        self.requested: int | None = None  # the signal's number

    def __enter__(self) -> "StopRequest":
        self._previous = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        log.info("%s: saving a checkpoint, then stopping", signal.Signals(number).name)
        self.requested = number


class Run:
    """The state of a run and what is done to it: resume, train, evaluate, save."""

    def __init__(self, config: RunConfig, task: Task, workdir: epath.Path, mesh: Mesh, stop: StopRequest):
        self.config, self.task, self.workdir, self.mesh, self.stop = config, task, workdir, mesh, stop
        self.last_step = config.phases()[-1].last_step
        self.rows = process_rows(mesh, config.data.global_batch_size)
        self.schedule = make_schedule(config.optimizer, self.last_step)
        optimizer = make_optimizer(config.optimizer)
        self.structure, abstract_params = step_lib.abstract_model(self._build)
        self.abstract = step_lib.abstract_state(abstract_params, optimizer, mesh)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", task.files, config.train.keep_last, config.train.keep_every
        )
        self.recovery = Recovery(config.train)
        self.selection = Selection(task.metric, task.patience)
        self.stopped = False  # by a signal to any of the processes
        self._tracing = False
        self._optimizer = optimizer
        self._start()
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params))
        tokens = config.data.global_batch_size * config.data.max_seq_length
        log.info(
            "training %s parameters on %s to step %d, %s tokens a step; everything is kept in %s",
            f"{parameters:,}", self._devices, self.last_step, f"{tokens:,}", workdir,
        )  # fmt: skip
        self._train_step = step_lib.make_train_step(
            self.structure, task, optimizer, self.schedule, self.abstract,
            config.train.gradient_accumulation_steps,
        )  # fmt: skip
        self._compiled: Any = None
        self._evaluation_step = step_lib.make_evaluation_step(self.structure, task)
        implementation = {"threefry": "threefry2x32", "rbg": "rbg"}[config.train.prng]
        self.key = jax.jit(
            lambda: jax.random.key(config.train.seed, impl=implementation),
            out_shardings=NamedSharding(mesh, P()),
        )()

    @property
    def _devices(self) -> str:
        hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        return f"{self.mesh.size} × {self.mesh.devices.flat[0].device_kind}{hosts}"

    def _start(self, at_most: int | None = None) -> None:
        """Takes up the newest sound checkpoint of step `at_most` or before, and what was recorded by then."""
        self.state, meta = self._initial_state(at_most)
        self.recovery.rewind(meta.get("recovery"))
        self.selection.rewind(meta.get("selection"))
        step = self._saved_step = int(self.state.step)
        self.file = MetricsFile(self.workdir, resumed_at=step)
        starts = record_start(self.workdir, step, self._devices)
        self.recorder = Recorder(
            self.file, self.config.train.log_every, step, self.last_step, self.schedule, starts,
            meta.get("window"), self._ideal_seconds,
        )  # fmt: skip

    @property
    def _ideal_seconds(self) -> Callable[..., float] | None:
        peak = peak_flops(self.mesh.devices.ravel().tolist())
        return (lambda **counts: training_flops(self.config.model, **counts) / peak) if peak else None

    def _build(self, rngs: nnx.Rngs) -> nnx.Module:
        compute = step_lib.compute_of(self.config.train, self.mesh)
        return self.task.build(self.config.model, rngs, compute)

    def _initial_state(self, at_most: int | None) -> tuple[step_lib.TrainState, dict[str, Any]]:
        """Resumed from this workdir, else started from `init_from`, else random; the log says which."""
        if (restored := self.checkpoints.restore_newest(self.abstract, at_most)) is not None:
            log.info(
                "resumed at step %d of %d from %s/checkpoints (params, opt_state, metrics window)",
                int(restored[0].step), self.last_step, self.workdir,
            )  # fmt: skip
            return restored
        random = functools.partial(step_lib.init_params, self._build, self.abstract, self.config.train.seed)
        params = self.task.initial_params(random, self.abstract.params)
        return step_lib.init_state(params, self._optimizer, self.abstract), {}

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to train, for now or for good."""
        return self.stopped or self.selection.enough

    def train_phase(self, phase: Phase) -> None:
        """Steps from where the state is to the end of the phase, or to where a signal asks to stop."""
        while (step := int(self.state.step)) < phase.last_step and not self.ended:
            try:
                if skip := self.recovery.skip_at(step):
                    self.skip(*skip)
                else:
                    self.train_stretch(phase, self.recovery.next_skip(step, phase.last_step))
            except BadSteps as bad:
                self.roll_back(phase, bad)
        if self.stopped:
            self.save()
            log.info(
                "stopped at step %d of %d; the same command goes on from here",
                int(self.state.step), self.last_step,
            )  # fmt: skip

    def train_stretch(self, phase: Phase, end: int) -> None:
        """Steps from where the state is to `end`.

        Raises:
            BadSteps: when it is time to roll back.
        """
        step = int(self.state.step)
        batches = self.task.batches(phase, step - phase.first_step, self.rows)
        self.recorder.start_clock()
        while step < end and not self.ended:
            waiting = time.perf_counter()
            stop_requested = np.full(len(self.rows), self.stop.requested is not None, np.float32)
            batch = to_global(self.mesh, {**next(batches), "stop_requested": stop_requested})
            self.recorder.waited(time.perf_counter() - waiting)
            if self._compiled is None:
                self._compiled = self.compile(batch)
            self.profile(step)
            self.state, metrics = self._compiled(self.state, batch, self.key)
            step += 1
            self.take_note(self.recorder.add(step, metrics))
            self.checkpoints.raise_if_failed()
            self.pause(step)
        self.take_note(self.recorder.flush())

    def take_note(self, done: dict[str, Any] | None) -> None:
        """Judges a step by its metrics, which all processes see alike, and so does what they ask for.

        Raises:
            BadSteps: when it is time to roll back.
        """
        if done:
            self.stopped = self.stopped or done["stop_requested"] > 0
            self.recovery.judge(done["step"] - 1, done["loss"], done["grad_norm"])

    def pause(self, step: int) -> None:
        """Evaluates and saves if it is time for that."""
        train, last = self.config.train, step == self.last_step
        evaluate = last or step % train.eval_every == 0
        save = last or step % train.checkpoint_every == 0
        if evaluate or save:
            self.take_note(self.recorder.flush())
            if evaluate:
                self.evaluate(step, last)
            if save:
                self.save()
            write_report(self.workdir)
            self.recorder.start_clock()

    def skip(self, first: int, end: int, reason: str) -> None:
        """Goes on behind steps that are left out, as if they had been done."""
        end = min(end, self.last_step)
        log.warning("steps %d to %d are left out: %s", int(self.state.step), end - 1, reason)
        self.state = self.state.replace(step=jax.device_put(np.int32(end), self.abstract.step.sharding))
        self.file.write({"step": end, "skipped_from": first, "skipped_because": reason})
        if end == self.last_step:
            self.pause(end)

    def roll_back(self, phase: Phase, bad: BadSteps) -> None:
        """Goes back to a checkpoint from before the bad steps, which are left out from now on.

        Raises:
            UserError: when that was done too often already.
        """
        for step in range(bad.first, bad.last + 1):
            self._keep_batch(phase, step)
        self.recorder.close()
        first = self.recovery.leave_out(bad)
        log.warning("%s: going back to a checkpoint of step %d or before", bad, first)
        self._start(at_most=first)
        self.checkpoints.remove_after(int(self.state.step))

    def _keep_batch(self, phase: Phase, step: int) -> None:
        """Writes this process's rows of a bad step's batch, for whoever wants to know."""
        batch: dict[str, Any] = next(self.task.batches(phase, step - phase.first_step, self.rows))
        folder = self.workdir / "bad_batches"
        try:
            folder.mkdir(exist_ok=True)
            with (folder / f"step_{step}.process_{jax.process_index()}.npz").open("wb") as file:
                np.savez_compressed(file, rows=self.rows, **batch)
        except OSError as error:
            log.warning("the batch of step %d could not be kept in %s: %s", step, folder, error)

    def profile(self, step: int) -> None:
        """Starts or ends the trace that `train.profile_steps` asks for."""
        if not self.config.train.profile_steps:
            return
        first, last = map(int, self.config.train.profile_steps.split(":"))
        if step == first:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self._tracing = True
        elif step == last:
            self._end_trace()

    def _end_trace(self) -> None:
        """Writes the trace if one is being taken; a run that resumes inside the window takes none."""
        if self._tracing:
            self._tracing = False
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()
            log.info("trace of the steps asked for: xprof --logdir %s/profile", self.workdir)

    def compile(self, batch: step_lib.Batch) -> Any:
        """Compiles the step once, ahead of time: a later recompilation is impossible, not just unlikely."""
        start = time.perf_counter()
        compiled = self._train_step.lower(self.state, batch, self.key).compile()
        log.info("compiled the training step in %.1f s", time.perf_counter() - start)
        self.recorder.start_clock()
        return compiled

    def evaluate(self, step: int, final: bool) -> None:
        """Writes one row of held-out metrics: means over all examples, not means of batches' means."""
        row: dict[str, Any] = {"step": step}
        for prefix, batches in self.task.evaluations(final).items():
            total: dict[str, Any] = {}
            outputs = []
            for batch in batches(self.rows):
                evaluated = self._evaluation_step(self.state.params, to_global(self.mesh, batch))
                terms, output = jax.device_get(evaluated)
                total = {name: total.get(name, 0.0) + np.float64(term) for name, term in terms.items()}
                outputs.append(output)
            means = {name: float(sums / max(weight, 1.0)) for name, (sums, weight) in total.items()}
            row[f"{prefix}_loss"] = sum(means[name] for name in self.task.objective)
            row |= {f"{prefix}_{name}": value for name, value in (means | self.task.scores(outputs)).items()}
        if len(row) == 1:
            return  # no text is held out
        self.file.write(row)
        self.selection.judge(row)
        log.info("step %d held-out %s", step, " ".join(f"{k} {v:.4f}" for k, v in row.items() if k != "step"))
        write_examples(self.workdir, self.task.examples(self.structure, self.state.params))

    def save(self) -> None:
        """Starts to save the state, unless this step is saved already."""
        if int(self.state.step) == self._saved_step:
            return
        self._saved_step = int(self.state.step)
        self.checkpoints.save(
            self.state,
            {
                "config": self.config.to_dict(),
                "data_digest": self.task.data_digest,
                "versions": versions(),
                "window": self.recorder.window,
                "recovery": self.recovery.to_save(),
                "selection": self.selection.to_save(),
            },
            self.selection.best_step,
        )

    def close(self) -> None:
        """Waits for what is being written, also when the run ends with an error."""
        self._end_trace()
        self.recorder.close()
        self.checkpoints.close()

    def finish(self) -> None:
        """Waits for the last checkpoint and writes the digest of the trained parameters."""
        self.checkpoints.wait()
        digest = params_digest(self.state.params)
        step = int(self.state.step)
        self.file.write({"step": step, "params_digest": digest})
        if (best := self.selection.best_step) is not None:
            log.info("best held-out %s at step %d", self.task.metric, best)
        log.info(
            "finished step %d; checkpoint in %s/checkpoints; params_digest %s", step, self.workdir, digest
        )
