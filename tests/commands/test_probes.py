"""A run with probes, as a process of its own: killed and resumed, and as several processes."""

import pathlib
import signal

import numpy as np
import pytest

from tests.runs import Command, make_corpus

pytestmark = pytest.mark.slow
LAUNCHER = str(pathlib.Path(__file__).parents[2] / "launch" / "local.py")
OVERRIDES = (
    *("train.num_steps=300", "train.checkpoint_every=50", "train.eval_every=60", "train.probe_every=45"),
    *("train.probes[0].file=topics.tsv", "train.selection=probe_topics_accuracy"),
    *("train.probes[1].file=alike.csv", "train.probes[1].kind=similarity", "train.probes[1].layer=1"),
    *("train.probes[1].text_pair=second", "train.probes[1].label=score", "train.probes[1].pooling=cls"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus, texts of two classes that differ in their words, and pairs that share words."""
    folder = tmp_path_factory.mktemp("probes")
    make_corpus(folder)
    words = sorted({word.strip(".").lower() for word in (folder / "corpus.txt").read_text().split()})
    rng = np.random.default_rng(0)
    rows = ["text\tlabel"]
    for label in rng.integers(0, 2, 600):
        own = words[20 * label : 20 * label + 20]
        rows.append(f"{' '.join([*rng.choice(own, 7), *rng.choice(words, 1)])}\t{label}")
    (folder / "topics.tsv").write_text("\n".join(rows))
    rows = ["text,second,score"]
    for score in rng.integers(0, 9, 100):
        first = rng.choice(words, 8)
        rows.append(f"{' '.join(first)},{' '.join([*first[:score], *rng.choice(words, 8 - score)])},{score}")
    (folder / "alike.csv").write_text("\n".join(rows))
    return folder


def command(folder, name, *overrides, **options):
    given = [override.replace(".file=", f".file={folder}/") for override in (*OVERRIDES, *overrides)]
    return Command(folder, name, *given, **options)


@pytest.fixture(scope="module")
def undisturbed(folder):
    run = command(folder, "undisturbed")
    code, output = run.run()
    assert code == 0, output
    return run, output


def scores(run):
    return {row["step"]: row["probe_topics_accuracy"] for row in run.rows() if "probe_topics_accuracy" in row}


def test_what_probes_leave(undisturbed):
    run, output = undisturbed
    found = scores(run)
    assert list(found) == [45, 90, 135, 180, 225, 270, 300]
    rows = {row["step"]: row for row in run.rows() if "loss" not in row and "params_digest" not in row}
    assert list(rows) == [45, 60, 90, 120, 135, 180, 225, 240, 270, 300]
    probes = {"probe_topics_accuracy", "probe_topics_majority", "probe_alike_spearman"}
    assert rows[45].keys() == {"step"} | probes
    assert rows[180].keys() > {"step", "eval_loss"} | probes
    assert found[300] > rows[300]["probe_topics_majority"] + 0.1
    assert rows[300]["probe_alike_spearman"] > 0.3
    best = next(step for step, accuracy in found.items() if accuracy == max(found.values()))
    assert f"best held-out probe_topics_accuracy at step {best}\n" in output
    assert str(best) in run.checkpoints(finished=True)
    assert f"probe topics: accuracy {found[45]:.3f} (majority " in output
    assert "probe alike, spearman " in output
    assert "Probe topics, accuracy" in (run.workdir / "report.html").read_text()


@pytest.mark.variant
def test_killed_and_resumed_has_the_same_rows(folder, undisturbed):
    killed = command(folder, "killed")
    for step in (100, 220):
        code, output = killed.interrupt(signal.SIGKILL, lambda step=step: killed.last_step_logged() > step)
        assert code == -signal.SIGKILL, output
    code, output = killed.run()
    assert code == 0, output
    assert "resumed at step 2" in output
    assert killed.rows_without_timings() == undisturbed[0].rows_without_timings()
    assert killed.checkpoints(finished=True) == undisturbed[0].checkpoints(finished=True)


def test_probes_may_change_when_a_run_resumes(folder, undisturbed):
    run = command(folder, "undisturbed", "train.probes[0].layer=0", "train.selection=eval_loss")
    code, output = run.run()
    assert code == 0, output
    assert "resumed at step 300 of 300" in output
    assert run.rows() == undisturbed[0].rows()


@pytest.mark.usefixtures("undisturbed")  # it makes the dataset
def test_two_processes_have_the_same_scores(folder):
    """Up to rounding, which may tip a text of the 100 and more that are held out."""
    short = ("train.num_steps=45", "train.probe_every=15")
    launcher = (LAUNCHER, "--processes=2", "--devices=2")
    together = command(folder, "together", *short, "mesh.fsdp=2", launcher=launcher)
    alone = command(folder, "alone", *short)
    for run in (together, alone):
        code, output = run.run()
        assert code == 0, output
    assert scores(together).keys() == scores(alone).keys() == {15, 30, 45}
    for ours, theirs in zip(together.rows(), alone.rows(), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if name.startswith("probe_"):
                assert value == pytest.approx(theirs[name], abs=0.011), name
    output = together.log.read_text()
    assert output.count("probe topics: accuracy") == 3  # one process tells


def test_a_file_that_cannot_be_used_ends_at_once(folder):
    code, output = command(folder, "none", "train.probes[0].label=class").run()
    assert code == 2
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: train.probes[0].label='class': ")
    assert "Traceback" not in output
