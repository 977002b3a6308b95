"""Which files a source means: patterns, paths with characters of patterns, and what is no file."""

import os
import string

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import MissingInput, files, open_sources, read_text
from tests.source_files import STORY, message, read, write

CHARACTERS = sorted({*string.printable, *"é\u0301ß日\u200b\U0001f600"} - {"/"})


@pytest.mark.parametrize("character", CHARACTERS, ids=lambda c: f"U+{ord(c):04X}")
def test_a_path_that_exists_as_it_is_written_is_that_file(tmp_path, character):
    """Whatever pattern it would be, and whatever other file that pattern would match."""
    for name in (f"a{character}b", f"a[{character}]b", f"a[b{character}]*?"):
        folder, file = tmp_path / name, f"{name}.txt"
        write(folder / file, "right")
        for other in ("ab", "acb", "abb", f"a{character}b", "ab1"):
            if other != name:
                write(tmp_path / other / f"{other}.txt", "wrong")
                write(folder / f"{other}.txt", "wrong")
        assert read(f"text:{folder}/{file}") == [["right"]]
        names = sorted(path.name for path in folder.iterdir())
        found = open_sources(DataConfig(source=f"text:{folder}/*.txt"))[0].paths
        assert found == [f"{folder}/{name}" for name in names]


def test_brackets_and_stars_in_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "notes[1].txt", "right")
    write(tmp_path / "notes1.txt", "wrong")
    assert list(read_text("text:notes[1].txt")) == [["right"]]
    assert list(read_text("text:notes[[]1].txt")) == [["right"]]
    assert list(read_text("text:notes[12].txt")) == [["wrong"]]
    assert list(read_text("text:notes*.txt")) == [["wrong"], ["right"]]
    write(tmp_path / "dir[1]" / "deep" / "a[2].txt", "deep")
    assert list(read_text("text:dir[1]/**/a[[]*.txt")) == [["deep"]]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        (
            "other[1].txt",
            "check the path; [ ] stands for one of the characters inside, and [[] for a bracket",
        ),
        ("other[1]/*.txt", "check the path; [ ] stands for one of the characters inside, and [[] for a"),
        ("dir[1]/*.md", "matches no file: check the path."),
        ("dir[1]", "it is a directory, use text:dir[1]/*"),
        ("dir*", "there are only directories, use text:dir*/*"),
        ("dir[1]/a.txt/", "dir[1]/a.txt/ is no directory but a file; leave out the last /."),
        ("dir[1]/a.txt,other.txt", "check the path; several sources are KIND:GLOB,KIND:GLOB."),
        ("dir[1]/a.txt,dir[1]/b.txt", "check the path; several sources are KIND:GLOB,KIND:GLOB."),
        ("dir[1]/a.txt text:dir[1]/b.txt", "check the path; several sources are KIND:GLOB,KIND:GLOB."),
        ("my dir/a.txt", "matches no file: check the path."),
        ("dir[1]/a.txt text:other.txt", "check the path; several sources are KIND:GLOB,KIND:GLOB."),
        ("other.txt@50%", "check the path; a weight is a decimal number, as in KIND:GLOB@0.7,KIND:GLOB@0.3."),
    ],
)
def test_a_pattern_without_match(tmp_path, monkeypatch, pattern, hint):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dir[1]" / "a.txt", "")
    assert hint in message(f"text:{pattern}", MissingInput)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz", "A.NDJSON"])
def test_a_json_file_that_is_read_as_text_is_told(tmp_path, caplog, name):
    path = write(tmp_path / name, "")
    open_sources(DataConfig(source=f"jsonl:{path},text:{write(tmp_path / 'json.txt', '')}"))
    assert caplog.messages == []
    open_sources(DataConfig(source=f"text:{tmp_path}/*"))
    assert caplog.messages == [
        f"text:{tmp_path}/*: {path} is read as plain text, with all of its braces; JSON is read with jsonl:"
    ]


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != f"{tmp_path}/locked")  # root may read all
    (tmp_path / "locked").mkdir()
    hint = f"{tmp_path}/locked may not be read; correct its permissions (chmod u+rx)."
    assert hint in message(f"text:{tmp_path}/locked/*.txt", MissingInput)
    assert "check the path" in message(f"text:{tmp_path}/*.txt", MissingInput)


def test_brackets_in_buckets(tmp_path, monkeypatch):
    """With epath's local backend in the place of a bucket's: both take all brackets for a pattern."""
    write(tmp_path / "dir[1]" / "a[2].txt", "right")
    write(tmp_path / "dir1" / "a2.txt", "wrong")
    path = files.epath.Path
    monkeypatch.setattr(files.epath, "Path", lambda name: path(str(name).removeprefix("gs://")))
    for pattern in ("dir[1]/a[2].txt", "dir[1]/*.txt", "dir[1]/a[[]*.txt", "*/a[[]2].txt"):
        (source,) = open_sources(DataConfig(source=f"text:gs://{tmp_path}/{pattern}"))
        assert source.paths[0].removeprefix("gs://") == f"{tmp_path}/dir[1]/a[2].txt"


def test_what_is_no_file(tmp_path):
    """None of them hangs or is left out in silence, as written or in a pattern."""
    (tmp_path / "folder.txt").mkdir()
    assert f"it is a directory, use text:{tmp_path}/folder.txt/*" in message(f"text:{tmp_path}/folder.txt")
    assert "there are only directories" in message(f"text:{tmp_path}/*.txt", MissingInput)
    write(tmp_path / "a.txt", STORY)
    assert len(read(f"text:{tmp_path}/*.txt")) == 2
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone")
    for pattern in ("link.txt", "*.txt"):
        said = message(f"text:{tmp_path}/{pattern}", MissingInput)
        assert f"link.txt is a link to {tmp_path}/gone, which does not exist; restore that file" in said
    (tmp_path / "gone").symlink_to("a.txt")
    assert len(read(f"text:{tmp_path}/link.txt")) == 2
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (f"{tmp_path}/pipe.txt", f"{tmp_path}/*.txt", "/dev/null"):
        assert "is a pipe or a device, and text is read more than once: write it" in message(f"text:{path}")
