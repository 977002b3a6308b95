import pytest

from bert_jax.benchmarks import step
from bert_jax.errors import UserError


def test_what_was_measured_is_printed_where_a_later_phase_does_not_fit(monkeypatch, capsys):
    def measured(*_):
        yield ["256×128", "masked, bfloat16", *["7"] * len(step.COLUMNS)]
        raise UserError("the run does not fit")

    monkeypatch.setattr(step, "_measured", measured)
    with pytest.raises(UserError, match="does not fit"):
        step.measure(None, "", 1)
    assert "256×128" in capsys.readouterr().out
