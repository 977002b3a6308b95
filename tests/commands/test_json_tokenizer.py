"""Pretraining with a tokenizer.json, and with one that is trained as such, by the commands."""

import signal
import sys

import pytest

from tests.json_tokenizers import modernbert
from tests.runs import Command, make_corpus

READ = "model.vocab_size=1280", "data.masking=whole_word"  # the tokenizer has fewer pieces
TRAINED = "model.vocab_size=400", "data.tokenizer=byte_bpe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    make_corpus(folder)
    for name in ("published", "changed"):
        (folder / name).mkdir()
        modernbert().save(str(folder / name / "tokenizer.json"))
    (folder / "changed/tokenizer_config.json").write_text('{"mask_token": "[unused0]"}')
    return folder


def of_file(folder, name):
    return f"data.tokenizer=tokenizer_json:{folder}/{name}/tokenizer.json"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["read", pytest.param("trained", marks=pytest.mark.variant)])
def test_trained_resumed_and_used(folder, kind):
    settings = (*READ, of_file(folder, "published")) if kind == "read" else TRAINED
    undisturbed = Command(folder, f"{kind}_undisturbed", *settings)
    code, output = undisturbed.run()
    assert code == 0, output
    stopped = Command(folder, f"{kind}_stopped", *settings, "train.log_every=1")
    code, output = stopped.interrupt(signal.SIGTERM, lambda: stopped.last_step_logged() >= 5)
    assert code in (0, 75), output
    code, output = stopped.run()
    assert code == 0, output
    digests = [one.rows()[-1]["params_digest"] for one in (undisturbed, stopped)]
    assert digests[0] == digests[1]

    predict = Command(folder, f"{kind}_predict")
    predict.words = [
        *(sys.executable, "-m", "bert_jax.predict", "fill-mask", "--text=Ba [MASK] de."),
        f"--checkpoint={stopped.workdir}",
    ]
    code, output = predict.run()
    assert code == 0, output
    assert "mask 1: " in output

    if kind == "read":
        other = Command(folder, "other", *READ, of_file(folder, "changed"), f"init_from={stopped.workdir}")
        code, output = other.run()
        assert code == 2
        assert "was trained with another tokenizer/tokenizer_config.json; use its tokenizer: " in output
        assert (
            f"data.tokenizer=tokenizer_json:{stopped.workdir}/checkpoints/12/tokenizer/tokenizer.j" in output
        )
