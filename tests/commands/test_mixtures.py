"""A run on a mixture, as a process of its own: in two phases of other weights, killed and resumed."""

import json
import signal

import pytest

from tests.runs import Command, make_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two files of text, one three times the size of the other, and a config."""
    folder = tmp_path_factory.mktemp("mixtures")
    make_corpus(folder)
    documents = (folder / "corpus.txt").read_text().split("\n\n")
    (folder / "big.txt").write_text("\n\n".join(documents[:225]))
    (folder / "small.txt").write_text("\n\n".join(documents[225:]))
    return folder


def source_of(folder, big, small):
    return f"data.source=text:{folder}/big.txt@{big},text:{folder}/small.txt@{small}"


def overrides(folder):
    return (
        source_of(folder, 0.7, 0.3),
        *("train.num_steps=0", "phases[0].num_steps=40", "phases[1].num_steps=60"),
        f"phases[1].{source_of(folder, 1, 4)}",
        *("train.checkpoint_every=20", "train.eval_every=50", "train.log_every=5"),
    )


def test_a_run_that_is_killed_in_each_phase_ends_as_if_it_never_was(folder):
    undisturbed, killed = (Command(folder, name, *overrides(folder)) for name in ("undisturbed", "killed"))
    code, output = undisturbed.run()
    assert code == 0, output
    rows = {row["step"]: row for row in undisturbed.rows() if "share_big" in row}
    for step, row in rows.items():
        first, weight = (0, 0.7) if step <= 40 else (40, 0.2)
        seen = 16 * (step - first)
        assert abs(row["share_big"] * seen - weight * seen) < 1
        assert row["share_big"] + row["share_small"] == pytest.approx(1, abs=1e-5)
        assert row["token_share_big"] == pytest.approx(weight, abs=0.05)
    assert rows[100]["epochs_small"] > rows[40]["epochs_small"] > rows[40]["epochs_big"] > 1
    assert "share_big 0.7 share_small 0.3" in output
    (held_out,) = [row for row in undisturbed.rows() if row["step"] == 50 and "eval_loss" in row]
    assert held_out["eval_big_loss"] != held_out["eval_small_loss"]
    meta = (undisturbed.workdir / "checkpoints/100/meta/metadata").read_text()
    assert json.loads(meta)["exposure"] == {
        name: value for name, value in rows[100].items() if name.split("_")[-1] in ("big", "small")
    }

    for observed in (24, 66):
        code, output = killed.interrupt(
            signal.SIGKILL, lambda observed=observed: killed.last_step_logged() > observed
        )
        assert code == -signal.SIGKILL
    code, output = killed.run()
    assert code == 0, output
    assert "resumed at step" in output
    assert killed.rows_without_timings() == undisturbed.rows_without_timings()
    assert "params_digest" in killed.rows()[-1]


def test_inspect_tells_the_source_of_every_row(folder):
    command = Command(folder, "inspected", *overrides(folder))
    command.words = [*command.words[:1], "-m", "bert_jax.inspect", *command.words[3:4], *command.words[5:]]
    command.words += ["--step=41", "--rows=2"]
    code, output = command.run()
    assert code == 0, output
    assert "\nstep 41, step 1 of phase 2: 16 rows of 32 tokens" in f"\n{output}"
    assert "\nrows by source: big 3 (18.8%; " in output
    assert ", small 13 (81.2%; " in output
    assert output.count("\nrow 0 is row ") == output.count("\nrow 1 is row ") == 1


def test_inspect_tells_how_the_vocabulary_fits_each_source(folder):
    command = Command(folder, "vocabulary", *overrides(folder), "data.language=de,en")
    command.words = [*command.words[:1], "-m", "bert_jax.inspect", *command.words[3:4], *command.words[5:]]
    command.words += ["--what=vocabulary"]
    code, output = command.run()
    assert code == 0, output
    assert "\nvocabulary by script: latin " in output
    table = [line.split() for line in output[output.index("\nsource ") :].splitlines()[2:4]]
    assert [row[:2] for row in table] == [["big", "de"], ["small", "en"]]
    assert "\nlongest words of small: " in output
