"""The training loop of every command that updates weights."""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath
from flax import nnx
from tqdm.contrib.logging import logging_redirect_tqdm

from bert_jax.model.objectives import Objective
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.config import RunConfig
from bert_jax.training.evaluate import Evaluator, due
from bert_jax.training.executables import Executables, Shapes, Step
from bert_jax.training.fingerprints import params_digest
from bert_jax.training.hosts import RESTART, StopRequest, fail_fast
from bert_jax.training.memory import room_for
from bert_jax.training.mesh import make_mesh, to_global
from bert_jax.training.metrics import Console, MetricsFile, Recorder
from bert_jax.training.phases import Phase
from bert_jax.training.profiler import Profiler
from bert_jax.training.program import Program
from bert_jax.training.recovery import BadSteps, Recovery
from bert_jax.training.selection import Selection
from bert_jax.training.step import TrainState
from bert_jax.training.workdir import open_workdir, record_start, versions, write_examples, write_report

FINISHED, INTERRUPTED = 0, 130  # exit codes: done; Ctrl-C. SIGTERM exits with RESTART
log = logging.getLogger("bert_jax")


class Task(Protocol):
    """Objectives with their data.

    Attributes:
        data_digest: of the dataset's content; part of the run's identity.
        files: name -> content; a checkpoint carries them, so that it can be used alone.
        metric, patience: select the best checkpoint and end the run, see `Selection`; the name of a
            metric begins with that of its evaluator.
    """

    @property
    def objective(self) -> Objective:
        """What is evaluated."""
        ...

    def objective_of(self, phase: Phase) -> Objective:
        """Returns what the steps of a phase minimise, with the network of `objective`.

        It is the same object for phases that minimise the same: they may share a compiled step.
        """
        ...

    @property
    def evaluators(self) -> Sequence[Evaluator]:
        """Evaluators that run during training."""
        ...

    data_digest: str
    files: dict[str, bytes]
    metric: str
    patience: int

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """Returns the parameters of a new run, sharded as `abstract`, and logs their origin."""
        ...

    def batch_shapes(self, phase: Phase) -> Shapes:
        """Returns shape and dtype of every array of a phase's global batches."""
        ...

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Yields the given rows of the global batches from `first_step` of the phase on."""
        ...

    def exposure(self, step: int) -> dict[str, float]:
        """Returns how much of each source of a mixture the first `step` steps hold, by counting."""
        ...

    def examples(self, structure: nnx.GraphDef, params: Any) -> list[dict[str, Any]]:
        """Returns predictions on some held-out text for the report; all processes call it."""
        ...


def train(config: RunConfig, task: Task, workdir: epath.PathLike) -> int:
    """Trains from the newest checkpoint in `workdir`, or from the start, to the last step of the last phase.

    Returns:
        An exit code: `FINISHED`, or that of the signal that stopped the run.

    Raises:
        UserError: for a config that does not fit the devices, their memory or the workdir.
    """
    mesh = make_mesh(config.mesh)
    program = Program(config, task.objective, mesh)
    workdir = open_workdir(workdir, config, task.data_digest)
    with jax.set_mesh(mesh), StopRequest() as stop, logging_redirect_tqdm([log]):
        run = Run(program, task, workdir, stop)
        with room_for(config):
            run.resume()
        run.profiler.warn_if_outside(run.step, run.last_step)
        try:
            with fail_fast(), room_for(config):
                while run.step < run.last_step and not run.ended:
                    try:
                        run.train(phase := run.phase)
                    except BadSteps as bad:
                        run.roll_back(phase, bad)
                if run.stopped:
                    run.save()
                    log.info(
                        "stopped at step %d of %d; the same command resumes here", run.step, run.last_step
                    )
                    run.checkpoints.wait()
                    run.executables.wait()  # of a later phase: without its step the run could not end
                    return INTERRUPTED if stop.requested == signal.SIGINT else RESTART
                run.finish()
                return FINISHED
        finally:
            run.close()
            write_report(workdir)


class Run:
    """The state of a run, and the operations on it: resume, train, evaluate, save, roll back.

    Attributes:
        state: parameters, optimizer state and step; set by `resume`.
        stopped: whether a signal to any of the processes has asked to stop.
    """

    state: TrainState

    def __init__(self, program: Program, task: Task, workdir: epath.Path, stop: StopRequest):
        train = program.config.train
        self.program, self.task, self.workdir, self.stop = program, task, workdir, stop
        self.phases = program.config.phase_list()
        self.last_step = self.phases[-1].last_step
        self.programs = [program.of_phase(phase, task.objective_of(phase)) for phase in self.phases]
        self.executables = Executables()
        folder = workdir / "checkpoints"
        self.checkpoints = Checkpoints(folder, task.files, train.keep_last, train.keep_every)
        self.recovery = Recovery(train)
        self.selection = Selection(task.metric, task.patience)
        self.profiler = Profiler(train.profile_steps, workdir)
        self.stopped = False

    @property
    def step(self) -> int:
        """Steps done so far."""
        return int(self.state.step)

    @property
    def phase(self) -> Phase:
        """The phase of the next step; of a finished run, the last."""
        return next((phase for phase in self.phases if self.step < phase.last_step), self.phases[-1])

    @property
    def ended(self) -> bool:
        """Whether training ends here: stopped by a signal, or out of `patience`."""
        return self.stopped or self.selection.should_stop

    def resume(self, at_most: int | None = None) -> None:
        """Restores a checkpoint, chosen as in `Checkpoints.restore_newest`, or starts anew."""
        restored = self.checkpoints.restore_newest(self.program.abstract, at_most)
        if restored is None:
            params = self.task.initial_params(self.random_params, self.program.abstract.params)
            restored = self.program.initial_state(params), {}
        else:
            log.info(
                "resumed at step %d of %d from %s/checkpoints (params, opt_state, metrics window)",
                int(restored[0].step), self.last_step, self.workdir,
            )  # fmt: skip
        self.state, meta = restored
        self._saved_step = self.step
        self.recovery.restore(meta.get("recovery"))
        self.selection.restore(meta.get("selection"))
        self.file = MetricsFile(self.workdir, resumed_at=self.step)
        devices = _described(self.program.mesh)
        starts = record_start(self.workdir, self.step, devices)
        self.recorder = Recorder(
            self.file, Console(self.step, self.last_step), self.program.config.train.log_every,
            self.program.schedule, starts, meta.get("window"), self.program.ideal_seconds, self.phases,
            self.task.exposure,
        )  # fmt: skip
        data = self.phase.config.data
        log.info(
            "training %s parameters on %s (%s) to step %d, %s tokens a step%s; workdir: %s",
            f"{self.program.num_parameters:,}", devices, self.program.compute, self.last_step,
            f"{data.global_batch_size * data.max_seq_length:,}",
            " in this phase" if len(self.phases) > 1 else "", self.workdir,
        )  # fmt: skip

    def random_params(self) -> Any:
        """Makes random parameters; another thread compiles the first step meanwhile."""
        self.start_compiling(self.phases[0])
        return self.program.random_params()

    def train(self, phase: Phase) -> None:
        """Trains to the end of the phase, or to the next steps to skip, or until the run ends.

        Raises:
            BadSteps: when it is time to roll back.
        """
        if skip := self.recovery.skip_at(self.step):
            self.skip(*skip)
            return
        step, end = self.step, self.recovery.next_skip(self.step, phase.last_step)
        self.recovery.enter_phase(phase.index)
        if len(self.phases) > 1:
            log.info(
                "phase %d of %d: steps %d to %d", phase.index + 1, len(self.phases), step, phase.last_step
            )
        program = self.programs[phase.index]
        batches = self.task.batches(phase, step - phase.first_step, program.rows)
        update = self.start_compiling(phase).result()
        self.recorder.start_clock()
        to_compile = list(self.phases[phase.index + 1 : phase.index + 2])
        while step < end and not self.ended:
            batch = self.next_batch(program, batches)
            self.profiler.before(step, self.state)
            self.state, metrics = update(self.state, batch, program.key)
            step += 1
            done = self.recorder.add(step, metrics)
            self.check(done)
            while done and to_compile:  # not before: it competes with the first step for the host
                self.start_compiling(to_compile.pop())
            self.checkpoints.raise_if_failed()
            self.evaluate_and_save(step)
        self.check(self.recorder.flush())

    def next_batch(self, program: Program, batches: Iterator[dict[str, np.ndarray]]) -> dict[str, jax.Array]:
        """Returns the next global batch; `stop_requested` of a row is 1 if its process has to stop."""
        start = time.perf_counter()
        ends = self.stop.requested is not None or self.executables.failed
        asked = np.full(len(program.rows), ends, np.float32)
        batch = to_global(program.mesh, {**next(batches), "stop_requested": asked})
        self.recorder.add_wait(time.perf_counter() - start)
        return batch

    def start_compiling(self, phase: Phase) -> Future[Step]:
        """Starts to compile the step of a phase, unless that was done."""
        return self.executables.start(self.programs[phase.index], self.task.batch_shapes(phase))

    def check(self, done: dict[str, Any] | None) -> None:
        """Checks metrics for bad values and a request to stop; all processes have the same metrics.

        Args:
            done: what the recorder returned: metrics of the step before the newest, None before the first.

        Raises:
            BadSteps: when it is time to roll back.
        """
        if done:
            self.stopped = self.stopped or done["stop_requested"] > 0
            self.recovery.check(done["step"] - 1, done["loss"], done["grad_norm"])

    def evaluate_and_save(self, step: int) -> None:
        """Evaluates and saves what is due after `step` steps."""
        last = step == self.last_step
        evaluators = due(self.task.evaluators, step, last)
        save = last or step % self.program.config.train.checkpoint_every == 0
        # This step may be the best.
        save = save or any(self.task.metric.startswith(f"{each.name}_") for each in evaluators)
        if evaluators or save:
            self.check(self.recorder.flush())
            self.evaluate(step, evaluators)
            if save:
                self.save()
            write_report(self.workdir)
            self.recorder.start_clock()

    def evaluate(self, step: int, evaluators: Sequence[Evaluator]) -> None:
        """Runs these evaluators and writes one row with all their metrics."""
        row: dict[str, Any] = {"step": step}
        program = self.program.after(step)
        for evaluator in evaluators:
            found = evaluator.run(program, self.state.params)
            row |= {f"{evaluator.name}_{name}": value for name, value in found.items()}
        if len(row) == 1:
            return
        self.file.write(row)
        self.selection.update(row)
        log.info("step %d held-out %s", step, " ".join(f"{k} {v:.4f}" for k, v in row.items() if k != "step"))
        write_examples(self.workdir, self.task.examples(program.structure, self.state.params))

    def save(self) -> None:
        """Starts to save the state, unless this step is saved already."""
        if self.step == self._saved_step:
            return
        self._saved_step = self.step
        self.checkpoints.save(
            self.state,
            {
                "config": self.program.config.after(self.step).to_dict(),
                "data_digest": self.task.data_digest,
                "versions": versions(),
                "exposure": self.task.exposure(self.step),
                "window": self.recorder.window,
                "recovery": self.recovery.state_dict(),
                "selection": self.selection.state_dict(),
            },
            self.selection.best_step,
        )

    def skip(self, first: int, end: int, reason: str) -> None:
        """Skips steps: counts them as done without an update."""
        end = min(end, self.last_step)
        self.recorder.leave_out(self.step, end)
        log.warning("skipping steps %d to %d: %s", self.step, end - 1, reason)
        self.state = self.state.replace(
            step=jax.device_put(np.int32(end), self.program.abstract.step.sharding)
        )
        self.recovery.after_skip()
        self.file.write({"step": end, "skipped_from": first, "skipped_because": reason})
        if end == self.last_step:
            self.evaluate_and_save(end)

    def roll_back(self, phase: Phase, bad: BadSteps) -> None:
        """Restores a checkpoint from before the bad steps, which are skipped from now on.

        Raises:
            UserError: if the run was already rolled back `train.max_rollbacks` times.
        """
        self._keep_batches(phase, range(max(bad.first, phase.first_step), bad.last + 1))
        self.recorder.close()
        self.profiler.close(self.state)
        first = self.recovery.add_skip(bad)
        log.warning("%s: rolling back to a checkpoint of step %d or before", bad, first)
        self.checkpoints.wait()
        self.state = self.program.abstract  # frees the devices' memory, which may not hold two states
        self.resume(at_most=first)
        if self.step > first:  # amid the steps that are skipped: training goes on behind them
            log.warning(
                "no checkpoint of step %d or before is left, so that of step %d is used; keep more of them "
                "(train.keep_last)",
                first,
                self.step,
            )
        self.checkpoints.remove_after(self.step)

    def _keep_batches(self, phase: Phase, steps: range) -> None:
        """Writes this process's rows of the batches of bad steps into `bad_batches/`, for inspection."""
        rows, folder = self.programs[phase.index].rows, self.workdir / "bad_batches"
        batches = self.task.batches(phase, steps.start - phase.first_step, rows)
        for step, batch in zip(steps, batches, strict=False):
            arrays: dict[str, Any] = {"rows": rows, **batch}
            try:
                folder.mkdir(exist_ok=True)
                with (folder / f"step_{step}.process_{jax.process_index()}.npz").open("wb") as file:
                    np.savez_compressed(file, **arrays)
            except OSError as error:
                log.warning("the batch of step %d could not be written to %s: %s", step, folder, error)

    def finish(self) -> None:
        """Waits for the last checkpoint and writes the digest of the trained parameters."""
        self.checkpoints.wait()
        digest = params_digest(self.state.params)
        self.file.write({"step": self.step, "params_digest": digest})
        if (best := self.selection.best_step) is not None:
            log.info("best held-out %s at step %d", self.task.metric.removeprefix("eval_"), best)
        log.info(
            "finished step %d; checkpoint in %s/checkpoints; params_digest %s",
            self.step,
            self.workdir,
            digest,
        )

    def close(self) -> None:
        """Completes all files, also when the run ends with an error."""
        self.executables.close()
        self.profiler.close(self.state)
        self.recorder.close()
        self.checkpoints.close()


def _described(mesh: jax.sharding.Mesh) -> str:
    hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{mesh.size} × {mesh.devices.flat[0].device_kind}{hosts}"
