import io
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from bert_jax import files
from bert_jax.errors import UserError, reason
from bert_jax.files import new_folder, whole_folder, write


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def fail(file):
    file.write(b"half")
    raise OSError("no space")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write(path, "één")
    assert path.read_bytes() == "één".encode()
    with pytest.raises(OSError, match="no space"):
        write(path, fail)
    assert path.read_bytes() == "één".encode()
    write(str(path), lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["a.txt"]


def test_an_array_on_a_full_disk_is_an_error(tmp_path):
    array = np.arange(5.0)
    with (tmp_path / "a.npy").open("wb") as file:
        files.write_array(file, array)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), array)
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as full:
        files.write_array(full, array)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "some" / "out"

    def build(content):
        with new_folder(output) as folder:
            (folder / "a").touch()
            (folder / "b").write_text(content)

    with pytest.raises(TypeError):
        build(None)
    assert list((tmp_path / "some").iterdir()) == []
    output.mkdir()  # an empty folder may be there
    build("text")
    assert names(tmp_path) == ["some/out/a", "some/out/b"]
    with pytest.raises(UserError, match=r"--output=.*out exists; give another"), new_folder(output):
        pass
    with pytest.raises(UserError, match=r"--output=.* cannot be written"), new_folder(output / "a" / "b"):
        pass
    assert names(tmp_path) == ["some/out/a", "some/out/b"]


def test_a_folder_that_is_there_keeps_its_place(tmp_path, monkeypatch):
    """It may be where a disk is mounted, or the directory that a shell is in: `--output=.`"""
    output = tmp_path / "out"
    output.mkdir()
    (tmp_path / "link").symlink_to(output)
    monkeypatch.chdir(output)
    inode = output.stat().st_ino
    for path in (".", "../out", str(output), str(tmp_path / "link")):
        (output / f".building-{socket.gethostname()}-{2**22 + 1}").mkdir()  # of a killed process
        with pytest.raises(RuntimeError), new_folder(pathlib.Path(path)):
            raise RuntimeError
        assert list(output.iterdir()) == []
        with new_folder(pathlib.Path(path)) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "a").touch()
            assert not (output / "sub").exists()
        assert sorted(os.listdir()) == ["sub"]
        assert output.stat().st_ino == inode
        with pytest.raises(UserError, match="exists; give another"), new_folder(pathlib.Path(path)):
            pass
        shutil.rmtree(output / "sub")


def test_links_and_streams_stay_what_they_are(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for content in (b"new", b"old"):  # a link to a file that is not there yet, too
        write(link, content)
        assert link.is_symlink()
        assert target.read_bytes() == content
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    write(fifo, lambda file: np.save(file, np.arange(3)))  # which asks for its place in the file
    content, _ = reader.communicate(timeout=30)
    assert fifo.is_fifo()
    assert np.load(io.BytesIO(content)).tolist() == [0, 1, 2]
    write("/dev/null", "nothing")
    assert pathlib.Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["folder/target", "link"]


@pytest.mark.parametrize("mode", ["w", "a"])
def test_standard_output_is_written_to_where_it_stands(tmp_path, mode):
    path = tmp_path / "out.txt"
    path.write_text("before\n")
    code = "print('first'); files.write('/dev/stdout', 'text\\n'); print('last')"
    with path.open(mode) as file:
        subprocess.run([sys.executable, "-c", f"from bert_jax import files; {code}"], stdout=file, check=True)
    before = ["before"] if mode == "a" else []
    assert path.read_text().splitlines() == [*before, "first", "text", "last"]


def test_a_reason_is_never_empty():
    assert reason(OSError(28, "No space left on device")) == "No space left on device"
    assert reason(OSError("the client is not installed")) == "the client is not installed"
    assert reason(OSError()) == "OSError"


def test_what_came_into_the_folder_meanwhile_is_kept(tmp_path):
    def build():
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").touch()

    with pytest.raises(OSError, match="not empty"):
        build()
    assert names(tmp_path) == ["out/mine"]


def test_a_folder_without_its_last_file_is_replaced_and_one_with_it_stays(tmp_path):
    path = epath.Path(tmp_path / "data")
    path.mkdir()
    (path / "part").touch()

    def build(content):
        with whole_folder(path, last="manifest") as folder:
            (folder / "manifest").write_text(content)

    build("first")
    build("second")  # as another process does that was slower
    assert (path / "manifest").read_text() == "first"
    assert names(tmp_path) == ["data/manifest"]


def test_a_complete_folder_that_comes_at_the_last_moment_stays(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "data")
    move = os.replace

    def late(source, target):
        path.mkdir(exist_ok=True)
        (path / "manifest").write_text("theirs")
        move(source, target)

    monkeypatch.setattr(os, "replace", late)
    with whole_folder(path, last="manifest") as folder:
        (folder / "manifest").write_text("ours")
    assert (path / "manifest").read_text() == "theirs"
    assert names(tmp_path) == ["data/manifest"]


def test_folders_of_killed_processes_are_removed_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = os.uname().nodename
    left, elsewhere, running = (
        tmp_path / f".x.building-{name}"
        for name in (f"{host}-{ended.pid}", f"another-host-{os.getpid()}", f"{host}-{os.getppid()}")
    )
    for folder in (left, elsewhere, running):
        folder.mkdir()
    with new_folder(tmp_path / "out"):
        assert not left.exists()
        assert elsewhere.exists()
        assert running.exists()


def test_a_folder_in_which_a_container_writes_is_not_removed(tmp_path, caplog):
    """It may have the name of this machine, and the number of this process."""
    caplog.set_level("INFO")
    (tmp_path / "empty").mkdir()
    for output in (tmp_path / "new", tmp_path / "empty"):  # built beside it, and inside
        with new_folder(output) as folder:
            files._remove_abandoned(folder.parent)
            assert folder.exists()
    killed = f".x.building-{os.uname().nodename}-{os.getpid()}-0123abcd"
    (tmp_path / killed).mkdir()
    (tmp_path / f"{killed}{files.LOCK}").touch()
    with new_folder(tmp_path / "other"):
        assert not list(tmp_path.glob(".x.*"))
    assert caplog.messages == [f"removing {tmp_path / killed}, left by a process that was killed"]
    assert sorted(os.listdir(tmp_path)) == ["empty", "new", "other"]


def test_a_copy_to_a_bucket_gets_the_last_file_last(tmp_path, monkeypatch):
    source = tmp_path / "source"
    (source / "z").mkdir(parents=True)
    for name in ("b", "a", "z/c", "manifest", files.LOCK):
        (source / name).write_text(name)
    written = []
    path_type = type(epath.Path(tmp_path))
    write_bytes = path_type.write_bytes
    monkeypatch.setattr(
        path_type, "write_bytes", lambda path, data: (written.append(path.name), write_bytes(path, data))
    )
    files._copy(epath.Path(source), epath.Path(tmp_path / "copy"), "manifest")
    assert sorted(written[:-1]) == ["a", "b", "c"]
    assert written[-1] == "manifest"
    assert sorted([files.LOCK, *names(tmp_path / "copy")]) == names(source)
    assert (tmp_path / "copy" / "z" / "c").read_text() == "z/c"


def test_rows_may_hold_any_character_and_end_before_a_line_that_was_cut(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [{"text": "a\u2028b\x85c\nd"}, {"text": "×"}]
    files.write_rows(path, rows)
    assert files.read_rows(path) == rows
    path.write_bytes(path.read_bytes() + '{"text": "×'.encode()[:-1])
    assert files.read_rows(path) == rows
