import os
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath

from bert_jax import files
from bert_jax.errors import UserError
from bert_jax.training import checkpoint, stored_arrays
from bert_jax.training.checkpoint import Checkpoints, committed_steps, find_checkpoint
from bert_jax.training.fingerprints import digests, host_digest
from tests.unit.test_checkpoint import FILES, META, ONE, abstract_on, assert_identical, save, state_of

PRINTABLE = "".join(map(chr, range(32, 127))).replace("/", "") + "üß日😀\u0301"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32"])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4, 5)])
def test_the_host_computes_the_fingerprint_of_the_devices(dtype, shape, monkeypatch):
    monkeypatch.setattr("bert_jax.training.fingerprints.HOST_WORDS", 8)
    rng = np.random.default_rng(0)
    array = np.asarray(100 * rng.standard_normal(shape), np.dtype(getattr(ml_dtypes, dtype, dtype)))
    assert host_digest(array) == digests({"x": jax.numpy.asarray(array)})["x"]
    with jax.enable_x64(True):
        wide = rng.standard_normal(shape)
        assert host_digest(wide) == digests({"x": jax.numpy.asarray(wide)})["x"]


def test_the_host_knows_every_place_of_an_array():
    array = np.zeros(100, np.float32)
    found = set()
    for place in range(100):
        array[place] = 1
        found.add(host_digest(array))
        array[place] = 0
    assert len(found) == 100


@pytest.mark.parametrize("name", [PRINTABLE, "run[1]", "[!a]", "b\\s", "st*r", "wh?t", "a[b", "[", "]["])
def test_a_checkpoint_is_read_in_a_folder_of_any_name(tmp_path, name):
    for other in ("run1", "b", "str", "whet", "st*r2"):  # which the name would match as a pattern
        save(tmp_path / other / "checkpoints", 4)
    directory = tmp_path / name / "checkpoints"
    save(directory, 5, 10)
    checkpoints = Checkpoints(directory, FILES, 3, 0)
    state, _ = checkpoints.restore_newest(abstract_on(ONE))
    checkpoints.close()
    assert_identical(state, state_of(10))
    assert find_checkpoint(tmp_path / name) == epath.Path(directory / "10")
    assert sorted(path.name for path in directory.iterdir()) == ["10", "5"]


def test_the_name_of_a_folder_with_patterns_is_passed_on_as_one_link(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    plain, special = epath.Path(tmp_path / "a"), epath.Path(tmp_path / "a[1]")
    assert files.without_patterns(plain) is plain
    link = files.without_patterns(special)
    assert (os.readlink(link), files.without_patterns(special)) == (str(special), link)
    assert link.parent == epath.Path(tmp_path / "tmp" / f"bert_jax-{os.getuid()}")
    os.unlink(link)
    os.symlink("/elsewhere", link)  # by whatever: it is made anew
    assert os.readlink(files.without_patterns(special)) == str(special)
    os.unlink(link)
    link.parent.rmdir()
    os.symlink(tmp_path, link.parent)
    with pytest.raises(OSError, match="belongs to another user"):
        files.without_patterns(special)


def failed_save(directory, step):
    checkpoints = Checkpoints(directory, FILES, 3, 0)
    checkpoints.save(state_of(step), META)
    with pytest.raises(UserError) as raised:
        checkpoints.wait()
    checkpoints.close()
    return str(raised.value)


@pytest.mark.parametrize("most_bytes", [1, stored_arrays.READ_BACK_BYTES])
def test_arrays_that_are_not_read_back_as_written_are_no_checkpoint(tmp_path, monkeypatch, most_bytes):
    monkeypatch.setattr(stored_arrays, "READ_BACK_BYTES", most_bytes)
    save(tmp_path, 5)
    read_back = checkpoint.read_back

    def after_a_bad_disk(folder, *rest):
        shutil.rmtree(folder / "opt_state")
        shutil.copytree(tmp_path / "5/opt_state", folder / "opt_state")  # sound files of other arrays
        read_back(folder, *rest)

    monkeypatch.setattr(checkpoint, "read_back", after_a_bad_disk)
    message = failed_save(tmp_path, 10)
    assert "checkpoint 10 could not be written" in message
    assert re.search("array opt_state/count in .* is not what was saved", message)
    assert committed_steps(epath.Path(tmp_path)) == [5]


@pytest.mark.parametrize("name", ["tokenizer/vocab.txt", "meta/metadata"])
def test_files_that_are_not_read_back_as_written_are_no_checkpoint(tmp_path, monkeypatch, name):
    sha256 = checkpoint._sha256

    def after_a_bad_disk(path):
        if str(path).endswith(name):
            path.write_text("{}")
        return sha256(path)

    monkeypatch.setattr(checkpoint, "_sha256", after_a_bad_disk)
    assert "is not read back as it was written" in failed_save(tmp_path, 10)
    assert committed_steps(epath.Path(tmp_path)) == []


def test_errors_of_the_storage_are_one_line_without_its_specification():
    error = ValueError("NOT_FOUND: no file [tensorstore_spec='{\"base\": 1}']\nTraceback")
    assert stored_arrays.first_line(error) == "NOT_FOUND: no file"
    assert stored_arrays.first_line(RuntimeError()) == "RuntimeError"
    full = (
        'RESOURCE_EXHAUSTED: Error writing "a/0" in "/x/": Failed writing: "/x/d/1": Failed to write 9 bytes'
    )
    full = f"{full} to file 15: No space left on device [os_error_code='28'] [tensorstore_spec='…']"
    assert stored_arrays.first_line(ValueError(full)) == "No space left on device"
