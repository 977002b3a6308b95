"""Compares the training step with that of Transformers in PyTorch: same text, same call, in turns.

Each variant of PyTorch's runs in a process of its own, `peer_worker.py`.
"""

import contextlib
import dataclasses
import json
import pathlib
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from bert_jax.benchmarks.measure import COLUMNS, Steps, in_turns
from bert_jax.benchmarks.step import CompiledStep, described, shape
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.data.mixed_batches import phase_batches
from bert_jax.errors import UserError
from bert_jax.interop import heads, huggingface
from bert_jax.interop.bert import BERT
from bert_jax.interop.families import family_of
from bert_jax.interop.modernbert import MODERN_BERT
from bert_jax.interop.tensors import Network, from_params
from bert_jax.model.config import ModelConfig
from bert_jax.report.text_table import text_table
from bert_jax.scaling.compile import program_without_data
from bert_jax.training.flops import attended_tokens, peak_flops, training_flops
from bert_jax.training.opening import first_device_mesh
from bert_jax.training.phases import Phase

WORKER = pathlib.Path(__file__).with_name("peer_worker.py")
VARIANTS = [(precision, mode) for precision in ("float32", "bfloat16") for mode in ("eager", "compiled")]
PEERS = (BERT, MODERN_BERT)
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # JAX's name -> PyTorch's
IGNORED = -100  # the label of what is not predicted
Arrays = dict[str, np.ndarray]


class PeerError(RuntimeError):
    """A variant that cannot run; its message is one line."""


class Worker:
    """A process that trains one variant on the content of a folder, see `peer_worker.py`.

    Args:
        python: runs it.
        folder: of `write_folder`.
        precision, mode: the variant.
        limit: seconds until the first answer.

    Attributes:
        answer: to the last request.
    """

    def __init__(
        self, python: str, folder: pathlib.Path, precision: str, mode: str, limit: float | None = None
    ):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            [python, "-P", str(WORKER), str(folder), precision, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._limit, self._timer = limit, threading.Timer(limit or 0.0, self._process.kill)
        if limit is not None:
            self._timer.start()
        self.answer: dict[str, Any] = {}

    def run(self, steps: int) -> float:
        """Takes some steps; returns the mean seconds of one.

        Raises:
            PeerError: if the process ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        self._timer.cancel()
        if not line:
            raise PeerError(self._problem())
        self.answer = json.loads(line)
        return self.answer["seconds"]

    def _problem(self) -> str:
        """Returns the last error of the process in one line."""
        code = self._process.wait()
        if code < 0:
            limit = "" if self._limit is None else f"; the limit was {self._limit:.0f} s"
            return f"ended by signal {-code}{limit}"
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace")
        errors = re.findall(r"^[\w.]+: .*", text, re.MULTILINE) or text.strip().splitlines()
        return errors[-1] if errors else f"ended with exit code {code}"

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.__exit__(None, None, None)
        self._errors.close()


def compare(config: Config, data_dir: str, repeats: int, python: str, rows: str) -> None:
    """Measures our step and variants of the peer's; the last line is `ratio: X` against the best one.

    Args:
        config: whose last phase with masks is compared, on one device.
        data_dir: of prepared datasets.
        repeats: turns of each.
        python: a program with torch and transformers.
        rows: a regular expression; variants ("float32 compiled") with such names are measured.

    Raises:
        UserError: if it has neither, no variant runs, or the network is none of `PEERS`.
    """
    if (backend := jax.default_backend()) not in DEVICES:
        raise UserError(f"--peer=transformers runs on CPU and GPU, not on {backend}; leave it out.")
    check_python(python)
    phase = comparable(config)
    data, mesh = phase.config.data, first_device_mesh()
    dataset = mixture.prepare(data, config.model.vocab_size, data_dir)
    batch = phase_batches(dataset.stores("train"), dataset.tokenizer, phase)(0)
    theirs = one_sequence_a_row(batch, data.global_batch_size, dataset.tokenizer.pad_id)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        program, folder = program_without_data(phase.config, mesh), pathlib.Path(name)
        params = program.random_params()
        write_folder(folder, phase.config, dataset.tokenizer, theirs, DEVICES[backend], params)
        ours = CompiledStep(program, program.initial_state(params), batch)
        workers, problems = start(python, folder, stack, rows)
        runs = {"ours": ours.run, **{name: worker.run for name, worker in workers.items()}}
        seconds = in_turns(runs, repeats)
    peak = peak_flops(mesh.devices.ravel().tolist())
    peers = {
        name: measured(config.model, peak, theirs, seconds[name], worker.answer)
        for name, worker in workers.items()
    }
    row = [f"ours: {described(program)}", shape(data)]
    size = "×".join(map(str, theirs["input_ids"].shape))
    print(report(row, ours.measured(seconds["ours"]), size, peers, problems))


def check_python(python: str) -> None:
    """Raises UserError if there is no such program, or it lacks a package."""
    find = "print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))"
    command = [python, "-P", "-c", f"import importlib.util, sys; {find}", "torch", "transformers"]
    try:
        missing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"--peer_python={python} cannot be run ({error}); give a Python 3.11 or later."
        ) from None
    if missing:
        raise UserError(
            f"--peer=transformers: {python} has no {' and no '.join(missing)}; install the extra `peer` "
            "(pip install 'bert_jax[peer]'), or give --peer_python, a Python that has torch and transformers."
        )


def comparable(config: Config) -> Phase:
    """Returns the last phase that predicts masked tokens, with AdamW at a constant rate as the peer."""
    phases = [phase for phase in config.phase_list() if phase.config.data.objective == "masked"]
    if not phases:
        raise UserError("--peer=transformers needs a phase with data.objective=masked; leave it out.")
    phase = phases[-1]
    changes: dict[str, Any] = {"name": "adamw", "schedule": "constant", "warmup_steps": 0, "layer_decay": 1.0}
    optimizer = dataclasses.replace(phase.config.optimizer, **changes)
    return dataclasses.replace(phase, config=dataclasses.replace(phase.config, optimizer=optimizer))


def one_sequence_a_row(batch: Mapping[str, np.ndarray], rows: int, pad_id: int) -> Arrays:
    """Lays the sequences of a batch into rows of their own, padded to T, with the masks that they have.

    Args:
        batch: as `bert_jax.data.batch` has it.
        rows: of the result; the sequences are chosen evenly if there are more.
        pad_id: of the tokenizer.

    Returns:
        The arguments of their networks, int64: `input_ids`, `attention_mask`, `token_type_ids` and `labels`
        [rows, T], and `next_sentence_label` [rows] if any sequence has one. Labels are -100 where there is
        nothing to predict.
    """
    sequence_ids, weights = batch["sequence_ids"], batch["masked_lm_weights"]
    labels = np.full(sequence_ids.shape, IGNORED)
    row, slot = np.nonzero(weights)
    labels[row, batch["masked_lm_positions"][row, slot]] = batch["masked_lm_ids"][row, slot]

    counts = sequence_ids.max(axis=1)
    first, place = np.cumsum(counts) - counts, np.nonzero(sequence_ids)
    target = first[place[0]] + sequence_ids[place] - 1, batch["position_ids"][place]
    total = counts.sum()
    chosen = np.arange(min(rows, total)) * total // min(rows, total)

    def laid(values: np.ndarray, empty: int) -> np.ndarray:
        result = np.full((total, sequence_ids.shape[1]), empty, np.int64)
        result[target] = values[place]
        return result[chosen]

    judged = np.where(batch["next_sentence_weights"] > 0, batch["next_sentence_labels"], IGNORED)
    judged = judged[np.arange(judged.shape[1]) < counts[:, None]].astype(np.int64)[chosen]
    return {
        "input_ids": laid(batch["input_ids"], pad_id),
        "attention_mask": laid(np.ones_like(sequence_ids), 0),
        "token_type_ids": laid(batch["token_type_ids"], 0),
        "labels": laid(labels, IGNORED),
    } | ({"next_sentence_label": judged} if np.any(judged != IGNORED) else {})


def write_folder(
    folder: pathlib.Path,
    config: Config,
    tokenizer: Tokenizer,
    arrays: Arrays,
    device: str,
    params: Any = None,
    shrinks: bool = False,
) -> None:
    """Writes what a worker reads.

    Args:
        folder: it is there.
        config: whose network, dropout and optimizer the worker has.
        tokenizer: its special ids.
        arrays: of `one_sequence_a_row`.
        device: cpu or cuda.
        params: its weights; None: random ones.
        shrinks: whether a batch that does not fit is halved.

    Raises:
        UserError: if the network is none of `PEERS`.
    """
    model, optimizer = config.model, config.optimizer
    family = family_of(model)
    if family not in PEERS:
        names = " and ".join(known.name for known in PEERS)
        raise UserError(
            f"--peer=transformers is for {names}, with equal dropout; this network is {family.name}; leave "
            "it out."
        )
    head = heads.HEADS[heads.PRETRAINING]
    if params is not None:
        tensors = from_params(params, Network(family, model, head, 0))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = huggingface.write_config(model, tokenizer, heads.PRETRAINING, {})
    (folder / "config.json").write_text(json.dumps(settings))
    decoupled = optimizer.weight_decay_mode == "decoupled"
    rate = model.attention_output_dropout
    training = {
        "device": device,
        "shrinks": shrinks,
        "attention_output_dropout": model.hidden_dropout if rate < 0 else rate,
        "lr": optimizer.learning_rate,
        "betas": (optimizer.beta1, optimizer.beta2),
        "eps": optimizer.epsilon,
        "weight_decay": optimizer.weight_decay / (optimizer.learning_rate if decoupled else 1.0),
        "clip_norm": optimizer.clip_norm,
    }
    (folder / "training.json").write_text(json.dumps(training))
    unknown = () if model.type_vocab_size else ("token_type_ids",)
    known: Any = {name: array for name, array in arrays.items() if name not in unknown}
    np.savez(folder / "batch.npz", **known)


def start(
    python: str, folder: pathlib.Path, stack: contextlib.ExitStack, rows: str
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Starts the variants whose names have the regular expression `rows`, and takes a step of each.

    Returns:
        Those that run, by name, to be closed with `stack`; and why the others do not.

    Raises:
        UserError: if none does.
    """
    workers, problems = {}, {}
    chosen = [(precision, mode) for precision, mode in VARIANTS if re.search(rows, f"{precision} {mode}")]
    if not chosen:
        raise UserError(f"--rows={rows}: no variant of the peer has such a name.")
    for precision, mode in chosen:
        worker = Worker(python, folder, precision, mode)
        stack.callback(worker.close)
        try:
            worker.run(1)
        except PeerError as error:
            problems[f"{precision} {mode}"] = str(error)
        else:
            workers[f"{precision} {mode}"] = worker
    if not workers:
        reasons = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise UserError(f"--peer=transformers: no variant runs here ({reasons}); leave it out.")
    return workers, problems


def measured(
    model: ModelConfig, peak: float | None, arrays: Arrays, seconds: list[float], answer: Mapping[str, Any]
) -> Steps:
    """Returns the figures of a variant.

    Args:
        model: the network.
        peak: FLOP/s of the device, if known.
        arrays: of `one_sequence_a_row`; it may have trained on their first rows alone.
        seconds: of a step in each turn.
        answer: the worker's last one.
    """
    real = arrays["attention_mask"][: answer["rows"]].sum(axis=1)
    tokens, predictions = int(real.sum()), int((arrays["labels"][: answer["rows"]] != IGNORED).sum())
    attended = float(np.sum(attended_tokens(real.astype(np.float32), model)))
    ideal_seconds = peak and training_flops(model, tokens, attended, predictions) / peak
    return Steps(seconds, tokens, ideal_seconds, answer["peak_bytes"])


def report(
    row: list[str], ours: Steps, size: str, peers: Mapping[str, Steps], problems: Mapping[str, str]
) -> str:
    """Returns the table of a comparison, why variants do not run, and the ratio to the best of the others.

    Args:
        row: the first cells of ours: its name, and the shape of its batch.
        ours: what was measured of it.
        size: the shape of their batch.
        peers: what was measured of each variant.
        problems: why the others do not run.
    """
    rows = [[*row, *ours.cells()]]
    for name, steps in peers.items():
        rows.append([f"transformers: {name}", size, *steps.cells(), f"{ours.rate / steps.rate:.2f}"])
    rows += [[f"transformers: {name}", "does not run here"] for name in problems]
    reasons = [f"{name} does not run here: {problem}" for name, problem in problems.items()]
    ratio = ours.rate / max(steps.rate for steps in peers.values())
    table = text_table(rows, ["", "rows × tokens", *COLUMNS, "ours / theirs"], left=2)
    return "\n".join([table, *reasons, f"ratio: {ratio:.2f}"])
