import subprocess
import sys

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import dataset_for
from bert_jax.errors import UserError


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bert_jax.prepare", "--config=bert_tiny", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def arguments(tmp_path):
    text = "\n\n".join(f"document {n} is about\nthe number {n * n}. Or so. It seems" for n in range(200))
    (tmp_path / "text.txt").write_text(text)
    return [
        f"--config.data.source=text:{tmp_path}/text.txt",
        "--config.data.tokenizer=bpe",
        "--config.model.vocab_size=60",
        f"--data_dir={tmp_path}/data_dir",
    ]


def test_prints_the_digest_and_finds_the_dataset_the_second_time(arguments):
    first, second = run(*arguments), run(*arguments)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.splitlines()[-1].startswith("dataset_sha256: ")
    assert "tokenizer: bpe of 60 pieces" in first.stdout
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert "tokenizer:" not in second.stdout


def test_bad_input_is_one_line(arguments):
    result = run(*arguments, "--config.data.source=text:/no/such/*.txt")
    assert result.returncode == 2
    assert result.stderr == "error: data.source='text:/no/such/*.txt' matches no file: check the path.\n"


def test_several_processes_do_not_prepare(tmp_path):
    (tmp_path / "text.txt").write_text("Some text. More text.")
    data = DataConfig(source=f"text:{tmp_path}/text.txt")
    config = "/home/me/cfg.py:large"
    command = r"first run python -m bert_jax\.prepare --config=/home/me/cfg\.py:large --data_dir="
    with pytest.raises(UserError, match=f"4 processes must not build it at once: {command}"):
        dataset_for(data, 100, tmp_path, processes=4, config=config)
