import concurrent.futures
import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.training.checkpoint import (
    CHECKSUMS,
    Checkpoints,
    committed_steps,
    find_checkpoint,
    find_verified,
    restore,
)
from bert_jax.training.fingerprints import digests, params_digest
from bert_jax.training.step import TrainState
from tests.tiny import mesh_of

FILES = {"tokenizer/vocab.txt": b"[PAD]\n[UNK]\n", "tokenizer/tokenizer.json": b"{}"}
MODEL = ModelConfig()
META = {"config": {"model": dataclasses.asdict(MODEL)}, "window": {"steps": 1, "sums": {"loss": 0.1}}}
SHAPES = {
    "params": {"encoder": {"kernel": (jnp.float32, (8, 16)), "bias": (jnp.float32, (24,))}},
    "opt_state": {"mu": (jnp.float32, (8, 2, 3)), "nu": (jnp.bfloat16, (16, 8)), "count": (jnp.int32, ())},
}
ONE = {"data": 1}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO)
    return caplog


def abstract_on(axes):
    """What to restore on a mesh of these axes; the first dimension of every array is cut over all of it."""
    mesh = mesh_of(**axes)

    def leaf(dtype, shape):
        spec = P(("data", "fsdp", "tensor")) if shape else P()
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    trees = jax.tree.map(lambda entry: leaf(*entry), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return TrainState(step=leaf(jnp.int32, ()), **trees)


def state_of(step, axes=ONE):
    """A state whose every array is different from those of other steps."""
    rng = np.random.default_rng(step)
    state = jax.tree.map(
        lambda x: jax.device_put(np.asarray(100 * rng.standard_normal(x.shape), x.dtype), x.sharding),
        abstract_on(axes),
    )
    return state.replace(step=jnp.int32(step))


def save(directory, *steps, keep_last=3, keep_every=0):
    checkpoints = Checkpoints(directory, FILES, keep_last, keep_every)
    for step in steps:
        checkpoints.save(state_of(step), META)
    checkpoints.close()


def restored(directory, axes=ONE):
    checkpoints = Checkpoints(directory, FILES, 3, 0)
    try:
        return checkpoints.restore_newest(abstract_on(axes))
    finally:
        checkpoints.close()


def steps_of(directory):
    return committed_steps(epath.Path(directory))


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with checkpoints 5 and 10; copy it before changing it."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 5, 10)
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_round_trip_is_exact_and_self_contained(saved):
    state, meta = restored(saved)
    assert_identical(state, state_of(10))
    assert {name: meta[name] for name in META} == META
    assert meta["step"] == 10
    for name, content in FILES.items():
        assert (saved / "10" / name).read_bytes() == content


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_round_trip_over_another_mesh_is_exact(saved, tmp_path, axes):
    state, _ = restored(saved, axes)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(state)} == {8}
    assert_identical(state, state_of(10))
    checkpoints = Checkpoints(tmp_path, FILES, 3, 0)
    checkpoints.save(state, META)
    checkpoints.close()
    assert_identical(restored(tmp_path)[0], state_of(10))


def test_no_checkpoint_yet(tmp_path):
    assert restored(tmp_path / "checkpoints") is None


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        byte = {"first": 0, "middle": len(content) // 2, "last": -1}[how]
        content[byte] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("how", ["first", "middle", "last", "truncated", "emptied", "deleted"])
def test_damage_to_any_file_is_named_and_the_next_older_checkpoint_used(copied, log, how):
    checkpoints = Checkpoints(copied, FILES, 3, 0)
    files = sorted(path for path in (copied / "10").rglob("*") if path.is_file())
    assert {"checksums.json", "vocab.txt", "manifest.ocdbt", "metadata"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        damage(path, how)
        log.clear()
        state, _ = checkpoints.restore_newest(abstract_on(ONE))
        assert int(state.step) == 5, path
        if (path.name, how) != (CHECKSUMS, "deleted"):  # without it, the save was never finished
            assert "checkpoint 10 is damaged and not used" in log.text
            # A changed list of checksums can only say which of its entries does not fit.
            assert str(path) in log.text or path.name == CHECKSUMS
        path.write_bytes(content)
    assert int(checkpoints.restore_newest(abstract_on(ONE))[0].step) == 10
    checkpoints.close()


@pytest.mark.parametrize(("at_most", "step"), [(None, 10), (10, 10), (9, 5), (5, 5), (4, 5), (0, 5)])
def test_the_newest_of_a_step_or_before_else_the_oldest(copied, at_most, step):
    checkpoints = Checkpoints(copied, FILES, 3, 0)
    assert int(checkpoints.restore_newest(abstract_on(ONE), at_most)[0].step) == step
    damage(copied / "5/params/_METADATA", "middle")
    assert int(checkpoints.restore_newest(abstract_on(ONE), at_most)[0].step) == 10
    checkpoints.close()


def test_array_that_is_not_what_was_saved_is_named(copied, log):
    """Files that are sound, and yet not those of this checkpoint: only the fingerprints can tell."""
    sums = {step: json.loads((copied / step / CHECKSUMS).read_text()) for step in ("5", "10")}
    shutil.rmtree(copied / "10/params")
    shutil.copytree(copied / "5/params", copied / "10/params")
    files = {name: digest for name, digest in sums["10"]["files"].items() if not name.startswith("params/")}
    files |= {name: digest for name, digest in sums["5"]["files"].items() if name.startswith("params/")}
    (copied / "10" / CHECKSUMS).write_text(json.dumps(sums["10"] | {"files": files}))
    state, _ = restored(copied)
    assert_identical(state, state_of(5))
    assert "checkpoint 10 is damaged and not used: array params/encoder/" in log.text


@pytest.mark.parametrize("key", ["files", "arrays"])
def test_a_flipped_bit_in_a_key_of_the_checksums_is_damage(copied, log, key):
    file = copied / "10" / CHECKSUMS
    file.write_text(file.read_text().replace(f'"{key}"', f'"{key[:-1]}r"', 1))
    state, _ = restored(copied)
    assert_identical(state, state_of(5))
    assert f"checkpoint 10 is damaged and not used: {file} is not valid" in log.text


@pytest.mark.parametrize("what", ["files", "arrays"])
def test_all_damaged_is_an_error_not_a_new_start(copied, what):
    for step in ("5", "10"):
        if what == "files":
            damage(copied / step / "meta/metadata", "middle")
        else:
            sums = json.loads((copied / step / CHECKSUMS).read_text())
            sums["arrays"] = dict.fromkeys(sums["arrays"], "0" * 16)
            (copied / step / CHECKSUMS).write_text(json.dumps(sums))
    with pytest.raises(UserError, match=f"every checkpoint in {copied} is damaged"):
        restored(copied)
    assert steps_of(copied) == [5, 10]


def test_too_little_memory_is_no_damage(copied, monkeypatch):
    def restore(*_, **__):
        raise MemoryError("no more of it")

    monkeypatch.setattr(ocp.Checkpointer, "restore", restore)
    with pytest.raises(MemoryError, match="no more of it"):
        restored(copied)


def test_unfinished_save_is_ignored_and_removed(copied, log):
    (copied / "10" / CHECKSUMS).unlink()  # killed after Orbax was done, before the last file
    (copied / "15.orbax-checkpoint-tmp/params").mkdir(parents=True)  # killed while Orbax was writing
    assert steps_of(copied) == [5]
    state, _ = restored(copied)
    assert_identical(state, state_of(5))
    assert sorted(path.name for path in copied.iterdir()) == ["5"]
    assert "removed unfinished checkpoints [10]" in log.text


def test_run_goes_on_over_damaged_checkpoints(copied):
    """A step that is damaged can be saved again, and does not push the good ones out."""
    damage(copied / "10/params/_METADATA", "middle")
    checkpoints = Checkpoints(copied, FILES, 1, 0)
    assert int(checkpoints.restore_newest(abstract_on(ONE))[0].step) == 5
    checkpoints.save(state_of(7), META)
    checkpoints.wait()
    assert_identical(checkpoints.restore_newest(abstract_on(ONE))[0], state_of(7))
    checkpoints.save(state_of(10), META)
    checkpoints.close()
    assert steps_of(copied) == [10]
    assert_identical(restored(copied)[0], state_of(10))


def test_keep_last_and_keep_every(tmp_path):
    save(tmp_path, *range(1, 9), keep_last=2, keep_every=3)
    assert steps_of(tmp_path) == [3, 6, 7, 8]
    save(tmp_path, 9, keep_last=1)
    assert steps_of(tmp_path) == [9]


def test_meta_is_that_of_the_moment_of_saving(tmp_path):
    checkpoints = Checkpoints(tmp_path, FILES, 3, 0)
    meta = {"window": {"steps": 1}}
    for step in (1, 2):
        checkpoints.save(state_of(step), meta)
        meta["window"]["steps"] += 1  # while the save goes on
    checkpoints.close()
    assert restored(tmp_path)[1]["window"] == {"steps": 2}


def test_arrays_are_those_of_the_moment_of_saving(tmp_path):
    """The next update reuses the memory of the state while it is being written."""
    update = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, FILES, 3, 0)
    state = state_of(5)
    checkpoints.save(state, META)
    state = update(state)
    checkpoints.close()
    assert int(state.step) == 6
    assert_identical(restored(tmp_path)[0], state_of(5))


@pytest.mark.parametrize("below", [False, True], ids=["is a file", "in a file"])
def test_unwritable_directory_is_named(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    directory = tmp_path / "file" / "checkpoints" if below else tmp_path / "file"
    with pytest.raises(UserError, match=f"cannot be written to {directory}"):
        Checkpoints(directory, FILES, 3, 0)


def test_save_that_fails_in_the_background_is_an_error_of_the_next_call(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"meta": b"there is a folder of this name"}, 3, 0)
    checkpoints.save(state_of(5), META)
    with pytest.raises(UserError, match=f"checkpoint 5 could not be written to {tmp_path}: .*directory"):
        checkpoints.save(state_of(6), META)
    assert steps_of(tmp_path) == []
    checkpoints.close()


def test_failed_save_is_told_without_waiting_for_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"meta": b"there is a folder of this name"}, 3, 0)
    checkpoints.raise_if_failed()  # nothing was saved yet
    checkpoints.save(state_of(5), META)
    concurrent.futures.wait([checkpoints._pending])
    with pytest.raises(UserError, match=f"checkpoint 5 could not be written to {tmp_path}"):
        checkpoints.raise_if_failed()
    checkpoints.close()


def test_failed_save_is_told_once(tmp_path, monkeypatch):
    """Orbax raises it again when it is closed, which would hide the one line behind a stack trace."""

    def full():
        raise ValueError("No space left on device")

    checkpoints = Checkpoints(tmp_path, FILES, 3, 0)
    monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: full())
    monkeypatch.setattr(checkpoints._manager, "close", full)
    with pytest.raises(UserError, match=f"checkpoint 5 could not be written to {tmp_path}: No space left"):
        checkpoints.save(state_of(5), META)
    checkpoints.close()


def test_find_checkpoint(copied):
    expected = epath.Path(copied / "10")
    assert find_checkpoint(copied.parent) == find_checkpoint(copied) == find_checkpoint(expected) == expected
    assert find_checkpoint(copied / "5") == epath.Path(copied / "5")
    with pytest.raises(UserError, match=f"no checkpoint in {copied / '15'}"):
        find_checkpoint(copied / "15")


def test_of_several_runs_one_is_to_be_named(saved, tmp_path):
    for fold in (0, 1):
        shutil.copytree(saved, tmp_path / f"fold_{fold}" / "checkpoints")
    with pytest.raises(UserError, match=f"no checkpoint in {tmp_path}; give one of .* {tmp_path}/fold_0"):
        find_checkpoint(tmp_path)


def test_params_alone(copied):
    abstract = abstract_on({"data": 8}).params
    folder, meta = find_verified(copied / "10")
    assert_identical(restore(folder, meta, abstract), state_of(10).params)
    damage(folder / "params/_METADATA", "middle")
    with pytest.raises(UserError, match=f"{folder} is damaged: {folder / 'params/_METADATA'} has changed"):
        find_verified(folder)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_fingerprint_changes_with_any_bit(dtype):
    clean = np.asarray(np.random.default_rng(0).standard_normal((3, 5)) * 100, dtype)
    fingerprints = {digests(clean)[""]}
    words = clean.view(f"uint{8 * clean.itemsize}")
    for place in np.ndindex(words.shape):
        for bit in range(8 * clean.itemsize):
            flipped = words.copy()
            flipped[place] ^= words.dtype.type(1 << bit)
            fingerprints.add(digests(flipped.view(clean.dtype))[""])
    assert len(fingerprints) == 1 + 15 * 8 * clean.itemsize


def test_fingerprint_knows_order_and_sign():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    others = (x[::-1], x[:, ::-1], np.roll(x, 1), -x, x + 1)
    assert len({digests(y)[""] for y in (x, *others)}) == 6


def test_fingerprint_is_that_of_the_values_on_any_mesh():
    expected = digests(state_of(3))
    assert set(expected) == {
        *("step", "params/encoder/kernel", "params/encoder/bias"),
        *("opt_state/mu", "opt_state/nu", "opt_state/count"),
    }
    for axes in ({"data": 8}, {"fsdp": 4, "tensor": 2}):
        assert digests(state_of(3, axes)) == expected
        assert params_digest(state_of(3, axes).params) == params_digest(state_of(3).params)
    assert params_digest(state_of(4).params) != params_digest(state_of(3).params)
