import runpy
import sys

import pytest
from absl import flags


@pytest.fixture
def predict(monkeypatch, capsys, tmp_path):
    """Runs the command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def predict(*arguments):
        known = set(flags.FLAGS)
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_module("bert_jax.predict", run_name="__main__", alter_sys=True)
        flags.FLAGS.remove_flag_values(dict.fromkeys(set(flags.FLAGS) - known))
        return exit_.value.code, *capsys.readouterr()

    return predict
