"""The pretrain command as a process of its own: it ends, stops, dies and goes on."""

import hashlib
import json
import re
import shutil
import signal

import pytest

from tests.runs import TIMINGS, Command, make_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of made-up words, a config for it, and room for data_dir and workdirs."""
    folder = tmp_path_factory.mktemp("pretrain")
    make_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """A run from the first to the last step: the command and its output."""
    command = Command(folder, "finished")
    code, output = command.run()
    assert code == 0, output
    return command, output


def test_what_a_run_leaves(finished):
    command, output = finished
    rows = command.rows()
    assert [row["step"] for row in rows] == [3, 6, 6, 9, 12, 12, 12]
    assert rows[0].keys() == TIMINGS | {
        *("step", "loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"),
        *("grad_norm", "learning_rate", "padding_fraction"),
    }
    held_out = {
        *("eval_loss", "eval_mlm_loss", "eval_nsp_loss", "eval_mlm_accuracy", "eval_nsp_accuracy"),
        *("eval_mask_token_loss", "eval_unigram_loss"),
    }
    assert rows[2].keys() == {"step"} | held_out
    shuffled = {name.replace("eval_", "eval_shuffled_") for name in held_out}
    assert rows[5].keys() == {"step"} | held_out | shuffled
    assert rows[6].keys() == {"step", "params_digest"}
    assert rows[0]["learning_rate"] == pytest.approx(1e-2 * 2 / 4)  # of the third step
    assert rows[4]["learning_rate"] == pytest.approx(1e-2)
    assert 0 < rows[0]["padding_fraction"] < 0.5
    assert 4 < rows[0]["mlm_loss"] < 7  # log(200) = 5.3
    assert rows[5]["eval_unigram_loss"] == rows[2]["eval_unigram_loss"]

    assert sorted(command.checkpoints(finished=True)) == ["10", "12", "5"]
    assert command.checkpoints(finished=False) == []
    saved = json.loads((command.workdir / "config.json").read_text())
    assert saved["config"]["train"]["num_steps"] == 12
    assert saved["versions"].keys() >= {"bert_jax", "jax", "flax", "optax"}
    assert (command.workdir / "checkpoints/12/tokenizer").is_dir()
    assert output.index("exports as BertForPreTraining") < output.index(
        "started at step 0 with random weights"
    )
    (finish,) = [line for line in output.splitlines() if line.startswith("finished step 12; ")]
    assert finish.endswith(f"params_digest {rows[6]['params_digest']}")


def test_finished_run_stays_as_it_is_whatever_run_time_keys_say(finished, folder):
    command, _ = finished
    before = (command.workdir / "metrics.jsonl").read_bytes()
    code, output = Command(folder, "finished", "train.log_every=1", "data.input_workers=4").run()
    assert code == 0, output
    assert "resumed at step 12 of 12" in output
    assert command.last_step_logged() == 0
    assert (command.workdir / "metrics.jsonl").read_bytes() == before


def test_workdir_of_another_run_is_refused(finished, folder):
    code, output = Command(folder, "finished", "optimizer.learning_rate=2e-3", "train.seed=5").run()
    assert code == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"--workdir={finished[0].workdir} holds another run" in line
    assert "optimizer.learning_rate is 0.01 there and 0.002 here" in line
    assert "train.seed is 0 there and 5 here" in line
    assert "Traceback" not in output


def test_init_from_starts_anew_with_given_weights(finished, folder):
    """The first step of a warm-up has a rate of 0: after it the weights are still those that were given."""
    source, _ = finished
    command = Command(folder, "from", f"init_from={source.workdir}", "train.num_steps=1")
    code, output = command.run()
    assert code == 0, output
    started = f"started at step 0 with the weights of {source.workdir}/checkpoints/12"
    assert f"{started}; optimizer and schedule are new" in output
    ours, theirs = command.rows(), source.rows()
    assert ours[0]["learning_rate"] == 0.0
    assert ours[1] == theirs[5] | {"step": 1}  # held-out losses
    assert ours[2] == theirs[6] | {"step": 1}  # params_digest


def test_init_from_another_tokenizer_is_refused(finished, folder, tmp_path):
    source, _ = finished
    other = tmp_path / "other"
    shutil.copytree(source.workdir / "checkpoints/12", other)
    (file,) = (other / "tokenizer").iterdir()
    file.write_bytes(file.read_bytes() + b"\x7a\x00")  # an empty field that SentencePiece does not know
    sums = json.loads((other / "checksums.json").read_text())
    sums["files"][f"tokenizer/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (other / "checksums.json").write_text(json.dumps(sums))
    code, output = Command(folder, "mixed", f"init_from={other}", "train.num_steps=1").run()
    assert code == 2
    assert f"init_from: {other} was trained with another tokenizer/{file.name}" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_run_that_resumes_inside_the_profiled_window(folder):
    options = ("train.num_steps=1000000", "train.log_every=1")
    command = Command(folder, "profiled", *options, "train.profile_steps=1:100000")
    code, output = command.interrupt(signal.SIGTERM, lambda: command.last_step_logged() > 2)
    assert code == 75, output
    assert "trace of train.profile_steps: " in output  # it ends with the run
    step = command.last_step_logged()
    command = Command(folder, "profiled", *options, f"train.profile_steps=1:{step + 2}")
    code, output = command.interrupt(signal.SIGTERM, lambda: command.last_step_logged() > step + 4)
    assert code == 75, output
    assert "Traceback" not in output


@pytest.mark.slow
def test_signals_save_and_the_same_command_goes_on(folder):
    """And it compiles nothing again: what was compiled is kept."""
    no_evaluation = "train.eval_every=1000000"  # it would compile more, in the run that comes so far
    command = Command(folder, "stopped", "train.num_steps=1000000", "train.log_every=1", no_evaluation)
    command.environment = {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    step, compiled = 0, set()
    for number, name, expected in ((signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "SIGINT", 130)):
        code, output = command.interrupt(number, lambda: command.last_step_logged() > 2)
        assert code == expected, output
        assert f"{name}: saving a checkpoint, then stopping" in output
        assert "Traceback" not in output
        kept = {path.name for path in (folder / "compiled").glob("*-cache")}
        assert "jit_train_step" in " ".join(kept)
        if step:
            assert kept == compiled
            assert f"resumed at step {step} of 1000000" in output
            assert f"\nstep {step + 1}/1000000 " in output
        compiled = kept
        step = int(re.search(r"stopped at step (\d+) of 1000000; the same command resumes here", output)[1])
        assert str(step) in command.checkpoints(finished=True)
        assert command.checkpoints(finished=False) == []
        assert command.rows()[-1]["step"] == step
    assert [row["step"] for row in command.rows() if "loss" in row] == list(range(1, step + 1))


def test_two_runs_in_one_folder_are_refused(folder):
    first = Command(folder, "shared", "train.num_steps=1000000", "train.log_every=1")
    second = Command(folder, "shared", "train.num_steps=1000000", "train.log_every=1")
    second.log = folder / "second.log"
    outputs = []

    def refused():
        if first.last_step_logged():
            outputs.append(second.run())
        return bool(outputs)

    first.interrupt(signal.SIGTERM, refused)
    code, output = outputs[0]
    assert code == 2
    assert f"--workdir={first.workdir} is in use: another run trains in it" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_killed_three_times_is_as_if_never_killed(folder):
    overrides = (
        *("train.num_steps=900", "train.checkpoint_every=150", "train.eval_every=450"),
        "optimizer.schedule=linear",
    )
    undisturbed, killed = (Command(folder, name, *overrides) for name in ("undisturbed", "killed"))
    code, output = undisturbed.run()
    assert code == 0, output

    resumed_at = 0
    for observed, during_a_save in ((240, False), (480, True), (720, False)):

        def when(observed=observed, during_a_save=during_a_save):
            saving = any(killed.checkpoints(finished=False))
            return killed.last_step_logged() > observed and saving == during_a_save

        code, output = killed.interrupt(signal.SIGKILL, when)
        assert code == -signal.SIGKILL
        assert_went_on_from(output, resumed_at)
        resumed_at = max(map(int, killed.checkpoints(finished=True)))
        if during_a_save:
            (unfinished,) = killed.checkpoints(finished=False)
            assert resumed_at == int(unfinished.split(".")[0]) - 150
        else:
            assert observed - 150 <= resumed_at < 900
    code, output = killed.run()
    assert code == 0, output
    assert_went_on_from(output, resumed_at)

    assert killed.rows_without_timings() == undisturbed.rows_without_timings()
    assert "params_digest" in killed.rows()[-1]


def assert_went_on_from(output, step):
    if step:
        assert f"resumed at step {step} of 900" in output
    else:
        assert "started at step 0" in output
    logged = [int(number) for number in re.findall(r"^step (\d+)/", output, re.MULTILINE)]
    assert logged[0] == 3 * (step // 3) + 3  # the first multiple of log_every after it: no step is done again
    assert logged == sorted(logged)
