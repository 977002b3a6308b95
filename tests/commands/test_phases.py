"""A recipe of three phases is one run, which ends alike when it is killed in each phase and at both edges."""

import re
import signal
import subprocess

import pytest

from tests.runs import Command, make_corpus

pytestmark = pytest.mark.slow
EDGES = (8, 16)
PHASES = (
    *("train.num_steps=0", "train.log_every=2", "train.checkpoint_every=2", "train.eval_every=8"),
    *("phases[0].num_steps=8", "phases[0].data.max_seq_length=16"),
    *("phases[0].data.mask_rate=0.3", "phases[0].data.final_mask_rate=0.15"),
    *("phases[1].num_steps=8", "phases[1].data.global_batch_size=24"),
    *("phases[2].num_steps=8", "phases[2].data.global_batch_size=24"),
    *("phases[2].optimizer.learning_rate=5e-3", "phases[2].optimizer.schedule=trapezoid"),
    "phases[2].optimizer.decay_steps=4",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    make_corpus(folder)
    documents = (folder / "corpus.txt").read_text().split("\n\n")
    (folder / "other.txt").write_text("\n\n".join(documents[::3]))
    return folder


def overrides(folder):
    """The three phases on two sources, whose weights change with each of them."""
    source = "data.source=text:{0}/corpus.txt@{1},text:{0}/other.txt@{2}"
    shares = [source.format(folder, *weights) for weights in ((1, 1), (3, 1), (1, 1), (0.3, 0.7))]
    return [shares[0], *PHASES, *(f"phases[{index}].{share}" for index, share in enumerate(shares[1:]))]


def on_eight_devices(*words):
    return Command(*words, environment={})


@pytest.fixture(scope="module")
def undisturbed(folder):
    command = on_eight_devices(folder, "undisturbed", *overrides(folder))
    code, log = command.run()
    assert code == 0, log
    assert re.findall("compiled the training step of (.*) in", log) == [
        "16 rows of 16 tokens",
        "24 rows of 32 tokens",
    ]  # fmt: skip: the last two phases share theirs
    return command


def test_rows_know_their_phase_and_rate(undisturbed):
    rows = [row for row in undisturbed.rows() if "learning_rate" in row]
    assert [row["phase"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert [row["learning_rate"] for row in rows[7:]] == pytest.approx([1e-2, 5e-3, 5e-3, 3.75e-3, 1.25e-3])
    page = (undisturbed.workdir / "report.html").read_text()
    assert "Phases, in bands:" in page
    assert "learning_rate 0.005" in page


def test_killed_in_each_phase_and_at_both_edges(folder, undisturbed):
    command = on_eight_devices(folder, "killed", *overrides(folder))
    for step in (4, EDGES[0], 12, EDGES[1], 20):
        command.interrupt(signal.SIGKILL, lambda step=step: str(step) in command.checkpoints(finished=True))
    code, log = command.run()
    assert code == 0, log
    assert command.rows_without_timings() == undisturbed.rows_without_timings()


@pytest.mark.variant
def test_one_device_learns_the_same_of_the_same_batches(folder, undisturbed):
    alone = Command(folder, "alone", *overrides(folder))
    code, log = alone.run()
    assert code == 0, log
    assert "on 1 × cpu" in log
    assert "on 8 × cpu" in undisturbed.log.read_text()
    for found, expected in zip(alone.rows_without_timings(), undisturbed.rows_without_timings(), strict=True):
        assert found.keys() == expected.keys()
        found.pop("params_digest", None)
        assert found == {key: pytest.approx(expected[key], rel=1e-5, abs=1e-6) for key in found}


def test_phases_that_have_not_begun_may_change(folder):
    command = Command(folder, "changed", *overrides(folder))
    command.interrupt(signal.SIGKILL, lambda: "12" in command.checkpoints(finished=True))
    other = [value.replace("phases[1].num_steps=8", "phases[1].num_steps=9") for value in overrides(folder)]
    code, log = Command(folder, "changed", *other).run()
    assert code == 2
    assert "phases[1].num_steps is 8 there and 9 here" in log
    assert "Only phases that have not begun may change" in log
    longer = [value.replace("phases[2].num_steps=8", "phases[2].num_steps=10") for value in overrides(folder)]
    again = Command(folder, "changed", *longer, "phases[3].num_steps=2")
    code, log = again.run()
    assert code == 0, log
    assert again.rows()[-1]["step"] == 28


def test_inspect_shows_the_batch_of_a_phase(undisturbed):
    words = [word for word in undisturbed.words if "workdir" not in word]
    words[words.index("bert_jax.pretrain")] = "bert_jax.inspect"
    for step, shape in ((7, "16 rows of 16 tokens"), (17, "24 rows of 32 tokens")):
        out = subprocess.check_output([*words, f"--step={step}", "--rows=1"], text=True)
        assert f"step {step}, step {step % 8} of phase {step // 8 + 1}: {shape}" in out
