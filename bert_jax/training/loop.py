"""The training loop: every command that updates weights runs this one."""

import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from tqdm.contrib.logging import logging_redirect_tqdm

from bert_jax.config import Config, Phase
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.training import step as step_lib
from bert_jax.training.checkpoint import Checkpoints, open_checkpoint, params_digest, restore_params
from bert_jax.training.mesh import check_batch, make_mesh, process_rows, to_global
from bert_jax.training.metrics import MetricsFile, Recorder
from bert_jax.training.optimizer import make_optimizer, make_schedule
from bert_jax.training.report import record_start, write_examples, write_report
from bert_jax.training.workdir import open_workdir, versions

FINISHED, INTERRUPTED, START_AGAIN = 0, 130, 75  # exit codes: done; Ctrl-C; SIGTERM (sysexits' EX_TEMPFAIL)
log = logging.getLogger("bert_jax")

HostBatch = dict[str, np.ndarray]


class Task(step_lib.Task, Protocol):
    """An objective together with its data.

    Attributes:
        data_digest: of the dataset's content; part of the run's identity.
        files: what a checkpoint must carry to be used alone (name -> content).
    """

    data_digest: str
    files: dict[str, bytes]

    def build(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any, remat: str) -> nnx.Module: ...

    def initial_params(self, params: Any) -> Any:
        """What a new run starts from, given random parameters."""
        ...

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """The given rows of the global batches from `first_step` of the phase on."""
        ...

    def evaluations(self, final: bool) -> dict[str, Callable[[np.ndarray], Iterable[HostBatch]]]:
        """Held-out batches by the prefix of their metrics; `final` after the last step."""
        ...

    def examples(self, structure: nnx.GraphDef, params: Any) -> list[dict[str, Any]]:
        """What the model makes of some held-out text, for the report; computed by all processes."""
        ...


def train(config: Config, task: Task, workdir: epath.PathLike) -> int:
    """Trains from the newest checkpoint in `workdir`, or from the start, to the last step of the last phase.

    Returns:
        An exit code: `FINISHED`, or what the signal that stopped the run asks for.

    Raises:
        UserError: for a config that does not fit the devices or the workdir.
    """
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
    workdir = open_workdir(workdir, config, task.data_digest)
    with jax.set_mesh(mesh), StopRequest() as stop, logging_redirect_tqdm([log]):
        run = Run(config, task, workdir, mesh, stop)
        try:
            for phase in config.phases():
                run.train_phase(phase)
                if stop.requested:
                    return stop.exit_code
            run.finish()
            return FINISHED
        finally:
            run.close()
            write_report(workdir)


class StopRequest:
    """While entered, SIGTERM and Ctrl-C ask for a stop after the step in hand; a second Ctrl-C kills."""

    def __init__(self) -> None:
        self.requested: int | None = None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.requested == signal.SIGINT else START_AGAIN

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

    def __init__(self, config: Config, task: Task, workdir: epath.Path, mesh: Mesh, stop: StopRequest):
        self.config, self.task, self.workdir, self.mesh, self.stop = config, task, workdir, mesh, stop
        self.last_step = config.phases()[-1].last_step
        self.rows = process_rows(mesh, config.data.global_batch_size)
        self.schedule = make_schedule(config.optimizer, self.last_step)
        optimizer = make_optimizer(config.optimizer, self.schedule)
        self.structure, abstract_params = step_lib.abstract_model(self._build)
        self.abstract = step_lib.abstract_state(abstract_params, optimizer, mesh)
        self.checkpoints = Checkpoints(
            workdir / "checkpoints", task.files, config.train.keep_last, config.train.keep_every
        )
        self.state, meta = self._initial_state(optimizer)
        self._tracing = False
        first_step = self._saved_step = int(self.state.step)
        self.file = MetricsFile(workdir, resumed_at=first_step)
        self.recorder = Recorder(
            self.file, config.train.log_every, first_step, self.last_step, self.schedule, meta.get("window")
        )
        devices = f"{mesh.size} × {mesh.devices.flat[0].device_kind}"
        record_start(workdir, first_step, devices)
        tokens = config.data.global_batch_size * config.data.max_seq_length
        parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params))
        log.info(
            "training %s parameters on %s to step %d, %s tokens a step; everything is kept in %s",
            f"{parameters:,}", devices, self.last_step, f"{tokens:,}", workdir,
        )  # fmt: skip
        self._train_step = step_lib.make_train_step(
            self.structure, task, optimizer, self.abstract, config.train.gradient_accumulation_steps
        )
        self._evaluation_step = step_lib.make_evaluation_step(self.structure, task)
        self.key = jax.random.key(
            config.train.seed, impl={"threefry": "threefry2x32", "rbg": "rbg"}[config.train.prng]
        )

    def _build(self, rngs: nnx.Rngs) -> nnx.Module:
        name = self.config.train.activation_dtype
        if name == "auto":
            name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        return self.task.build(self.config.model, rngs, jnp.dtype(name), self.config.train.remat)

    def _initial_state(self, optimizer: Any) -> tuple[step_lib.TrainState, dict[str, Any]]:
        """Resumed from this workdir, else started from `init_from`, else random; the log says which."""
        train = self.config.train
        if (restored := self.checkpoints.restore_newest(self.abstract)) is not None:
            state, meta = restored
            log.info(
                "resumed at step %d of %d from %s/checkpoints (params, opt_state, metrics window)",
                int(state.step), self.last_step, self.workdir,
            )  # fmt: skip
            return state, meta
        if self.config.init_from:
            folder, meta = open_checkpoint(self.config.init_from)
            self._check_files(folder)
            params = restore_params(folder, meta, self.config.model, self.abstract.params)
            log.info("started at step 0 with the weights of %s; optimizer and schedule are new", folder)
        else:
            params = self.task.initial_params(step_lib.init_params(self._build, self.abstract, train.seed))
            log.info("started at step 0 with random weights (seed %d)", train.seed)
        return step_lib.init_state(params, optimizer, self.abstract), {}

    def _check_files(self, folder: epath.Path) -> None:
        """Raises UserError if the weights of a checkpoint belong to another tokenizer."""
        for name, content in self.task.files.items():
            if not (folder / name).exists() or (folder / name).read_bytes() != content:
                raise UserError(
                    f"init_from: {folder} was trained with another {name}; use its tokenizer: "
                    f"data.tokenizer=sentencepiece:{folder / name} or wordpiece:VOCAB.txt."
                )

    def train_phase(self, phase: Phase) -> None:
        """Steps from where the state is to the end of the phase, or to where a signal asks to stop."""
        step, train = int(self.state.step), self.config.train
        if step >= phase.last_step:
            return
        batches = self.task.batches(phase, step - phase.first_step, self.rows)
        self.recorder.start_clock()
        compiled = None
        while step < phase.last_step and not self.stop.requested:
            waiting = time.perf_counter()
            batch = to_global(self.mesh, next(batches))
            self.recorder.waited(time.perf_counter() - waiting)
            if compiled is None:
                compiled = self.compile(batch)
            self.profile(step)
            self.state, metrics = compiled(self.state, batch, self.key)
            step += 1
            self.recorder.add(step, metrics)
            self.checkpoints.raise_if_failed()
            last = step == self.last_step
            evaluate = last or step % train.eval_every == 0
            save = last or step % train.checkpoint_every == 0
            if evaluate or save:
                self.recorder.flush()
                if evaluate:
                    self.evaluate(step, last)
                if save:
                    self.save()
                write_report(self.workdir)
                self.recorder.start_clock()
        if self.stop.requested:
            self.recorder.flush()
            self.save()
            log.info("stopped at step %d of %d; the same command goes on from here", step, self.last_step)

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
            for batch in batches(self.rows):
                terms = jax.device_get(self._evaluation_step(self.state.params, to_global(self.mesh, batch)))
                total = {name: total.get(name, 0.0) + np.float64(term) for name, term in terms.items()}
            means = {name: float(sums / max(weight, 1.0)) for name, (sums, weight) in total.items()}
            row[f"{prefix}_loss"] = sum(means[name] for name in self.task.objective)
            row |= {f"{prefix}_{name}": mean for name, mean in means.items()}
        self.file.write(row)
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
            },
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
        self.file.write({"step": self.last_step, "params_digest": digest})
        log.info(
            "finished step %d; checkpoint in %s/checkpoints; params_digest %s",
            self.last_step,
            self.workdir,
            digest,
        )
