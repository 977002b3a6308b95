"""Faults injected into a run: it goes back, leaves bad steps out, and ends the same however often it dies."""

import itertools
import json
import re

import jax
import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.batch import batch_shapes
from bert_jax.data.batches import Batches
from bert_jax.errors import UserError
from bert_jax.model.objectives import PretrainingObjective
from bert_jax.training import executables
from bert_jax.training.checkpoint import Checkpoints
from bert_jax.training.config import OptimizerConfig, TrainConfig
from bert_jax.training.loop import train
from bert_jax.training.memory import room_for
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import MASK, MODEL, mesh_of

TIMINGS = {"time", "tokens_per_second", "data_wait_fraction", "goodput", "lost_seconds", "restarts"}
DATA = DataConfig(max_seq_length=32, global_batch_size=16, max_sequences_per_row=2)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=4)
BAD = {12, 13, 14, 26, 27, 28}
RANDOM = []
TRAIN = TrainConfig(num_steps=30, log_every=5, eval_every=100, checkpoint_every=5)


@pytest.fixture(scope="module", autouse=True)
def _one_device():
    """Eight virtual devices would only make these small steps slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bert_jax.training.loop.make_mesh", lambda _: mesh_of())
        yield


class Crash(Exception):
    """Stands in for a process that dies."""


class Faulty:
    """Pretraining on made-up documents; some steps' batches are spoilt, and at one the process dies."""

    data_digest = "made up"
    metric, patience = "", 0

    def __init__(self, not_finite=(), absurd=(), dies_at=None):
        self.objective = PretrainingObjective(MASK, np.zeros(MODEL.vocab_size, np.float32))
        self.evaluators = ()
        self.files = {"tokenizer/none": b""}
        self._not_finite, self._absurd, self._dies_at = not_finite, absurd, dies_at

    def initial_params(self, random_params, abstract):
        """The same in all runs of this module, which took a third of their time."""
        if not RANDOM:
            RANDOM.append(jax.device_get(random_params()))
        return jax.tree.map(lambda leaf, value: jax.device_put(value, leaf.sharding), abstract, RANDOM[0])

    def batches(self, phase, first_step, rows):
        store = MemoryStore(random_documents(200), MODEL.vocab_size)
        batches = Batches(store, DATA, FakeTokenizer(MODEL.vocab_size), seed=3)
        for step in itertools.count(phase.first_step + first_step):
            if step == self._dies_at:
                raise Crash
            batch = batches(step, rows)
            if step in self._not_finite:
                batch["masked_lm_weights"] = batch["masked_lm_weights"] * np.float32("nan")
            if step in self._absurd:
                batch["masked_lm_ids"] = np.zeros_like(batch["masked_lm_ids"])  # [PAD], which is never right
            yield batch

    def objective_of(self, _):
        return self.objective

    def batch_shapes(self, phase):
        return batch_shapes(phase.config.data)

    def exposure(self, _):
        return {}

    def examples(self, *_):
        return []


def config(phases=(), **changes):
    settings = TRAIN.__dict__ | changes
    return Config(model=MODEL, data=DATA, optimizer=OPTIMIZER, train=TrainConfig(**settings), phases=phases)


class Result:
    def __init__(self, workdir):
        self.workdir = workdir
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        self.rows = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
        self.skips = [row for row in self.rows if "skipped_from" in row]
        self.starts = [
            json.loads(line)["step"] for line in (workdir / "starts.jsonl").read_text().splitlines()
        ]


def run(workdir, task, phases=(), **changes):
    assert train(config(phases, **changes), task, workdir) == 0
    return Result(workdir)


def test_a_single_bad_step_is_survived_without_its_update(tmp_path):
    result = run(tmp_path, Faulty(not_finite={12}))
    assert [row.get("bad_steps") for row in result.rows] == [None, None, 1, None, None, None, None]
    assert all(np.isfinite(row.get("loss", 0.0)) for row in result.rows)
    assert result.starts == [0]
    assert result.skips == []


def test_several_are_left_out_after_going_back(tmp_path):
    result = run(tmp_path, Faulty(not_finite={12, 13, 14}))
    assert result.starts == [0, 10]
    reason = "loss is nan at step 14"
    assert result.skips == [{"step": 15, "skipped_from": 12, "skipped_because": reason}]
    assert [row["step"] for row in result.rows] == [5, 10, 15, 20, 25, 30, 30]
    kept = sorted(path.name for path in (tmp_path / "bad_batches").iterdir())
    assert kept == [f"step_{step}.process_0.npz" for step in (12, 13, 14)]
    batch = np.load(tmp_path / "bad_batches" / kept[0])
    assert batch["input_ids"].shape == (16, 32)
    assert np.isnan(batch["masked_lm_weights"]).any()
    meta = json.loads((tmp_path / "checkpoints/30/meta/metadata").read_text())
    assert meta["recovery"]["skips"] == [[12, 15, reason]]
    log_rates = {row["step"]: row["learning_rate"] for row in result.rows if "learning_rate" in row}
    assert log_rates[30] == pytest.approx(1e-2 / 26)  # the rate follows the step's number, left out or not


def test_the_steps_after_are_those_of_a_run_that_never_did_the_bad_ones(tmp_path):
    """A step whose update is not applied changes nothing, so both runs learn from the same batches."""
    survived = run(tmp_path / "a", Faulty(not_finite={12, 13, 14}), max_bad_steps=4)
    left_out = run(tmp_path / "b", Faulty(not_finite={12, 13, 14}), max_bad_steps=3)
    assert survived.rows[-1]["params_digest"] == left_out.rows[-1]["params_digest"]
    assert survived.starts == [0]
    assert left_out.starts == [0, 10]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"), Faulty(not_finite=BAD))


@pytest.mark.parametrize("dies_at", [(13,), (14, 17), (17, 29)], ids=str)
def test_dying_meanwhile_changes_nothing(undisturbed, tmp_path, dies_at):
    for step in dies_at:
        with pytest.raises(Crash):
            train(config(), Faulty(not_finite=BAD, dies_at=step), tmp_path)
    disturbed = run(tmp_path, Faulty(not_finite=BAD))
    assert len(undisturbed.skips) == 2
    assert disturbed.rows == undisturbed.rows


def test_a_spike_is_left_out_with_the_steps_before_it(tmp_path):
    changes = {"num_steps": 100, "skip_margin": 3}
    result = run(tmp_path, Faulty(absurd={82}), **changes)
    ((skip),) = result.skips
    assert (skip["skipped_from"], skip["step"]) == (79, 83)
    assert "a spike" in skip["skipped_because"]
    assert result.starts == [0, 75]
    assert max(row["loss"] for row in result.rows[10:] if "loss" in row) < 6.0


def test_bad_steps_around_the_only_checkpoint_do_not_start_the_run_again(tmp_path, caplog):
    result = run(tmp_path, Faulty(not_finite={24, 25, 26}), keep_last=1)
    assert result.starts == [0, 25]
    assert [(skip["skipped_from"], skip["step"]) for skip in result.skips] == [(24, 27)]
    assert "no checkpoint of step 24 or before is left, so that of step 25 is used" in caplog.text


def test_after_bad_steps_at_its_start_a_phase_of_higher_losses_has_no_spikes(tmp_path):
    phases = {"num_steps": 70}, {"num_steps": 10}
    task = Faulty(not_finite={70, 71, 72}, absurd=set(range(73, 80)))
    result = run(tmp_path, task, phases, num_steps=0, checkpoint_every=35)
    assert [(skip["skipped_from"], skip["step"]) for skip in result.skips] == [(70, 73)]


def test_the_log_tells_the_tokens_of_the_phase_that_begins(tmp_path, caplog):
    caplog.set_level("INFO", "bert_jax")
    phases = {"num_steps": 1, "data": {"global_batch_size": 8}}, {"num_steps": 1}
    with pytest.raises(Crash):
        train(config(phases, num_steps=0), Faulty(dies_at=0), tmp_path)
    assert re.findall(r"to step 2, (.*); workdir", caplog.text) == ["256 tokens a step in this phase"]


def test_bad_steps_at_the_end_still_end_in_a_checkpoint(tmp_path):
    result = run(tmp_path, Faulty(not_finite={27, 28, 29}))
    assert result.skips[0]["step"] == 30
    assert "params_digest" in result.rows[-1]
    assert (tmp_path / "checkpoints/30/checksums.json").exists()


def test_a_run_that_keeps_failing_stops_and_says_why(tmp_path):
    with pytest.raises(UserError, match=r"loss is nan at step \d+, so training stops after 2 rollbacks"):
        train(config(max_rollbacks=2), Faulty(not_finite=set(range(12, 30))), tmp_path)
    assert (tmp_path / "checkpoints/10/checksums.json").exists()


def test_before_the_first_checkpoint_it_goes_back_to_the_start(tmp_path):
    result = run(tmp_path, Faulty(not_finite={0, 1, 2}))
    assert result.starts == [0, 0]
    assert result.skips[0]["step"] == 3
    assert "params_digest" in result.rows[-1]


def test_a_rollback_ends_the_trace_which_is_taken_once(tmp_path, monkeypatch):
    starts, stops = [], []
    monkeypatch.setattr("jax.profiler.start_trace", starts.append)
    monkeypatch.setattr(
        "jax.profiler.stop_trace", lambda: stops.append((tmp_path / "starts.jsonl").read_text().count("\n"))
    )
    result = run(tmp_path, Faulty(not_finite={12, 13, 14}), profile_steps="11:20")
    assert result.starts == [0, 10]
    assert len(starts) == 1
    assert stops == [1]  # before the second start of the run


def test_a_rollback_frees_the_state_before_it_restores_another(tmp_path, monkeypatch):
    restore, embeddings = Checkpoints.restore_newest, []

    def counted(*args):
        shape = MODEL.vocab_size, MODEL.hidden_size
        embeddings.append(sum(array.shape == shape for array in jax.live_arrays()))
        return restore(*args)

    monkeypatch.setattr(Checkpoints, "restore_newest", counted)
    run(tmp_path, Faulty(not_finite={12, 13, 14}))
    before, at_rollback = embeddings
    assert at_rollback <= before  # neither the table nor its two moments


def test_a_step_that_does_not_fit_into_memory_is_an_error_of_the_config(tmp_path, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("bert_jax.training.executables._compile", full)
    with pytest.raises(UserError, match=r"Out of memory\). To make room use train\.remat=full"):
        train(config(), Faulty(), tmp_path)


def test_a_later_phase_that_cannot_be_compiled_ends_the_run_at_once_and_loses_nothing(tmp_path, monkeypatch):
    """Only when that phase begins it would have been weeks."""
    compile_step = executables._compile

    def second_is_too_large(program, shapes):
        if shapes["input_ids"][0][0] == 32:
            with room_for(program.config):
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return compile_step(program, shapes)

    monkeypatch.setattr(executables, "_compile", second_is_too_large)
    phases = ({"num_steps": 20_000}, {"num_steps": 10, "data": {"global_batch_size": 32}})
    with pytest.raises(UserError, match=r"Out of memory\). To make room use train\.remat=full"):
        train(config(phases, num_steps=0), Faulty(), tmp_path)
    (saved,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    assert 5 <= saved < 100
