import gzip
import io
import logging
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest

from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import prepare
from bert_jax.corpus.mixture import dataset_for
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
    card = pathlib.Path(first.stdout.splitlines()[-2].removeprefix("dataset_card: "))
    assert (card.name, card.is_file()) == ("dataset_card.html", True)
    assert second.stdout.splitlines()[-2] == f"dataset_card: {card}"
    assert "tokenizer: bpe of 60 pieces" in first.stdout
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    assert "tokenizer:" not in second.stdout


def test_bad_input_is_one_line(arguments):
    result = run(*arguments, "--config.data.source=text:/no/such/*.txt")
    assert result.returncode == 2
    assert result.stderr == "error: data.source='text:/no/such/*.txt' matches no file: check the path.\n"


def test_an_archive_is_refused_before_a_tokenizer_is_trained_on_it(arguments, tmp_path):
    with io.BytesIO() as buffer, tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(tmp_path / "text.txt", "text.txt")
        archive.close()
        (tmp_path / "story.tar.gz").write_bytes(gzip.compress(buffer.getvalue()))
    result = run(*arguments, f"--config.data.source=text:{tmp_path}/story.tar.gz")
    assert (result.returncode, result.stderr) == (
        2,
        f"error: {tmp_path}/story.tar.gz is no text file but a tar archive: unpack it first, with tar -xf.\n",
    )
    assert [path.name for path in (tmp_path / "data_dir").iterdir()] == ["digests.json"]


def test_other_content_of_the_same_size_and_time_is_another_dataset(arguments, tmp_path):
    path, digests = tmp_path / "text.txt", []
    for word in ("about", "among"):
        path.write_text(path.read_text().replace("about", word))
        os.utime(path, (10**9, 10**9))
        digests.append(run(*arguments).stdout.splitlines()[-1])
    assert digests[0].startswith("dataset_sha256: ")
    assert digests[0] != digests[1]


def data_of(path):
    return DataConfig(source=f"text:{path}", tokenizer="bpe", held_out_fraction=0)


@pytest.mark.usefixtures("arguments")
def test_text_that_changes_while_it_is_read_makes_no_dataset(tmp_path, monkeypatch):
    path, right = tmp_path / "text.txt", dataset_lib.train_tokenizer

    def changing(*arguments):
        path.write_text(path.read_text().replace("about", "among"))
        return right(*arguments)

    monkeypatch.setattr(dataset_lib, "train_tokenizer", changing)
    with pytest.raises(UserError, match=r"text\.txt' changed while it was read; run the command again"):
        prepare(data_of(path), 60, tmp_path / "data_dir")
    assert [entry.name for entry in (tmp_path / "data_dir").iterdir()] == ["digests.json"]


@pytest.mark.usefixtures("arguments")
def test_a_data_dir_with_brackets_in_its_path(tmp_path, caplog):
    """Also where the dataset is found without its text."""
    path, data_dir = tmp_path / "text.txt", tmp_path / "data[1]" / "*?"
    first = prepare(data_of(path), 60, data_dir)
    assert prepare(data_of(path), 60, data_dir) == first
    path.unlink()
    with caplog.at_level(logging.WARNING, "bert_jax"):
        assert prepare(data_of(path), 60, data_dir) == first
    assert "whether it is up to date cannot be checked" in caplog.text


def test_several_processes_do_not_prepare(tmp_path):
    (tmp_path / "text.txt").write_text("Some text. More text.")
    data = DataConfig(source=f"text:{tmp_path}/text.txt")
    config = "/home/me/cfg.py:large"
    command = r"first run python -m bert_jax\.prepare --config=/home/me/cfg\.py:large --data_dir="
    with pytest.raises(UserError, match=f"4 processes must not build it at once: {command}"):
        dataset_for(data, 100, tmp_path, processes=4, config=config)
