"""Pretraining runs whose phases have different objectives."""

import signal

import pytest

from tests.runs import TIMINGS, Command, make_corpus

# Causal for 7 steps, then masked spans and the order of sentences for 5.
PHASES = (
    *("train.num_steps=0", "train.checkpoint_every=3"),
    *("phases[0].num_steps=7", "phases[0].data.objective=causal", "phases[0].data.second_objective=none"),
    *("phases[1].num_steps=5", "phases[1].data.second_objective=sentence_order"),
    "phases[1].data.masking=span",
)
COMMON = TIMINGS | {"step", "phase", "loss", "grad_norm", "learning_rate", "padding_fraction"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objectives")
    make_corpus(folder)
    return folder


@pytest.mark.slow
def test_causal_then_masked(folder):
    """Rows hold the losses of their own phase; a run that is stopped in each phase is as if it never was."""
    undisturbed = Command(folder, "undisturbed", *PHASES)
    code, output = undisturbed.run()
    assert code == 0, output
    rows = [row for row in undisturbed.rows() if "loss" in row]
    assert [(row["step"], row["phase"]) for row in rows] == [(3, 1), (6, 1), (7, 1), (9, 2), (12, 2)]
    for row in rows[:3]:
        assert row.keys() == COMMON | {"clm_loss", "clm_accuracy"}
        assert row["loss"] == row["clm_loss"]
        assert 3 < row["clm_loss"] < 7  # log(200) = 5.3
    for row in rows[3:]:
        assert row.keys() == COMMON | {"mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"}
    (held_out, *_) = (row for row in undisturbed.rows() if "eval_loss" in row)
    assert held_out["step"] == 6
    assert {"eval_mlm_loss", "eval_mask_token_loss"} < held_out.keys()  # masked, in any phase
    assert "Causal-LM loss" in (undisturbed.workdir / "report.html").read_text()

    stopped = Command(folder, "stopped", *PHASES, "train.log_every=1")
    for last in (1, 8):
        code, output = stopped.interrupt(signal.SIGTERM, lambda last=last: stopped.last_step_logged() >= last)
        assert code in (0, 75), output
    code, output = stopped.run()
    assert code == 0, output
    (digest,) = (row["params_digest"] for row in undisturbed.rows() if "params_digest" in row)
    assert stopped.rows()[-1]["params_digest"] == digest


def test_a_causal_phase_with_pairs_is_refused(folder):
    code, output = Command(folder, "refused", "train.num_steps=0", *PHASES[2:4]).run()
    assert code == 2
    assert (
        "error: phases[0]: data.objective=causal has no second objective, and data.second_objective="
        "next_sentence; set data.second_objective=none." in output
    )
