"""Sources of nothing but copies, other content at the same size and time, and lines without end."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
from etils import epath

from bert_jax.corpus.building import building
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import find, prepare
from bert_jax.errors import UserError
from tests.source_files import message, write

BERT = {"tokenizer": "wordpiece:bert_uncased", "held_out_fraction": 0.01}
V = 30522


@pytest.mark.parametrize(("value", "shown"), [(3, "3"), (["a"], '["a"]'), ({}, "{}")])
def test_a_field_that_holds_no_text(tmp_path, value, shown):
    path = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{json.dumps({"n": 1, "text": value})}\n')
    assert message(f"jsonl:{path}") == (
        f"{path}, line 2: no text in the field 'text' (found: {shown} there); set data.text_field, or repair "
        "the record."
    )


@pytest.mark.parametrize("tokenizer", ["unigram", "bpe", "wordpiece"])
def test_nothing_that_a_tokenizer_could_learn(tmp_path, tokenizer):
    path = write(tmp_path / "a.txt", "\x01 \x02\n")
    data = DataConfig(source=f"text:{path}", tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"data\.source has no characters that a tokenizer could learn"):
        prepare(data, 400, tmp_path / "data_dir", workers=1)


def test_nothing_but_copies(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "\n\n".join(["The same document. It has two sentences."] * 2100))
    prepare(DataConfig(source=f"text:{path}", **BERT), V, tmp_path / "data_dir", workers=1)
    assert caplog.messages[-1] == (
        "no document is held out, so there is no evaluation; the 2,100 documents are copies of few: set "
        "data.drop_duplicates=documents, or add text."
    )
    # A tokenizer that is trained on them finds nothing to learn from.
    with pytest.raises(
        UserError, match=r"model\.vocab_size=400 is more than this text can fill: use at most"
    ):
        prepare(DataConfig(source=f"text:{path}"), 400, tmp_path / "data_dir", workers=1)


def test_few_documents_without_held_out_ones(tmp_path, caplog):
    path = write(tmp_path / "a.txt", "One document.\n\nA second document.\n")
    prepare(DataConfig(source=f"text:{path}", **BERT), V, tmp_path / "data_dir", workers=1)
    assert caplog.messages[-1].endswith("no evaluation; raise data.held_out_fraction.")


def test_other_content_at_the_same_size_and_time_is_another_dataset(tmp_path):
    path, data_dir = write(tmp_path / "a.txt", "Some words here.\n\nMore words.\n"), tmp_path / "data_dir"
    data = DataConfig(source=f"text:{path}", **BERT)
    first, before = prepare(data, V, data_dir, workers=1), path.stat()
    assert find(data, V, data_dir) == first
    path.write_text("Some words here.\n\nLess words.\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert find(data, V, data_dir) is None
    assert prepare(data, V, data_dir, workers=1).sha256 != first.sha256


READ = """
import resource, sys
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import open_sources
from bert_jax.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for chunk in open_sources(DataConfig(source=sys.argv[1]))[0].chunks():
        pass
except UserError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_line_of_a_gigabyte(tmp_path, kind):
    """It is refused, and takes less than 100 MB of memory."""
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(1000):
            file.write(b"word " * 200_000)
        file.write(b'"}\n')
    command = [sys.executable, "-c", READ, f"{kind}:{path}"]
    said, kilobytes = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.fullmatch(r".*a\.txt: the line that begins at byte 0 is longer than 16,777,216 bytes; .*", said)
    assert int(kilobytes) < 100_000


@pytest.mark.parametrize(("number", "expected"), [
    (errno.ENOSPC, r"--data_dir=.* cannot be written \(.*No space left on device\); give another"),
    (errno.EMFILE, r"short of open files, processes or memory \(.*Too many open files\); raise the limit"),
    (errno.EAGAIN, r"short of open files, processes or memory"),
])  # fmt: skip
def test_only_what_the_data_dir_lacks_is_said_of_it(tmp_path, number, expected):
    with pytest.raises(UserError, match=expected), building(epath.Path(tmp_path / "new"), "last"):
        raise OSError(number, os.strerror(number))
    for path, expected in (
        ("/elsewhere/a", OSError),
        (str(tmp_path), UserError),
        (f"{tmp_path}/a", UserError),
    ):
        with pytest.raises(expected), building(epath.Path(tmp_path / "new"), "last"):
            raise OSError(errno.EACCES, "Permission denied", path)
    with pytest.raises(BrokenPipeError), building(epath.Path(tmp_path / "new"), "last"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
