"""Which of the files of a directory are read as its weights."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from bert_jax.errors import UserError
from bert_jax.interop import huggingface, pytorch
from bert_jax.interop.weights import read_weights

PARITY = pathlib.Path(__file__).parents[1] / "parity"
PYTORCH, LEGACY, GOOGLE = PARITY / "pytorch_model.bin", PARITY / "pytorch_model_legacy.bin", PARITY / "google"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"


def google(folder, *names, checkpoint=None, damaged=()):
    """Writes a directory of Google's with TensorFlow checkpoints of these names."""
    shutil.copytree(GOOGLE, folder)
    for name in names:
        for path in GOOGLE.glob("bert_model.ckpt*"):
            shutil.copy(path, folder / path.name.replace("bert_model.ckpt", name))
    for path in folder.glob("bert_model.ckpt*"):
        path.unlink()
    for name in damaged:
        (folder / f"{name}.index").write_bytes(b"damaged")
    if checkpoint is not None:
        (folder / "checkpoint").write_text(checkpoint)
    return folder


def newest(path):
    return f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "model.ckpt-10"\n'


TEN, TWENTY = "model.ckpt-10", "model.ckpt-20"


@pytest.mark.parametrize(
    ("names", "checkpoint", "origin"),
    [
        ([TEN, TWENTY], newest(TEN), "model.ckpt-10, which the file checkpoint names"),
        ([TEN, TWENTY], newest(TWENTY), "model.ckpt-20, which the file checkpoint names"),
        ([TEN, TWENTY], newest("/home/me/run [x]/model.ckpt-20"), "model.ckpt-20, which the file"),
        ([TEN, TWENTY], newest(r"C:\\\\me\\\\model.ckpt-20"), "model.ckpt-20, which the file"),
        (
            [TEN, TWENTY],
            r'  model_checkpoint_path : "gs://b/model.ckpt\05520" ',
            "model.ckpt-20, which the file",
        ),
        ([TEN, TWENTY, "model.ckpt-200"], newest(TWENTY), "model.ckpt-20, which the file checkpoint names"),
        ([TWENTY], None, "model.ckpt-20"),
        ([TWENTY], "", "model.ckpt-20"),
        (
            [TWENTY],
            newest(TEN),
            "model.ckpt-20 (the file checkpoint names model.ckpt-10, which is not there)",
        ),
    ],
)
def test_the_tensorflow_checkpoint_that_is_meant(tmp_path, names, checkpoint, origin):
    """The others are damaged, so that none of them was read."""
    others = [name for name in names if name != origin.split(",")[0].split(" ")[0]]
    folder = google(tmp_path / "theirs", *names, checkpoint=checkpoint, damaged=others)
    read = huggingface.read(folder)
    assert read.origin.startswith(origin)
    jax.tree.map(np.testing.assert_array_equal, read.params, huggingface.read(GOOGLE).params)


@pytest.mark.parametrize(
    ("checkpoint", "told"),
    [
        (None, "no file checkpoint names one"),
        ("", "no file checkpoint names one"),
        ('all_model_checkpoint_paths: "model.ckpt-10"', "no file checkpoint names one"),
        (newest("model.ckpt-30"), "the file checkpoint names model.ckpt-30"),
    ],
)
def test_several_tensorflow_checkpoints_without_a_name(tmp_path, checkpoint, told):
    folder = google(tmp_path / "theirs", TEN, TWENTY, checkpoint=checkpoint)
    with pytest.raises(UserError) as error:
        read_weights(folder)
    assert str(error.value) == (
        f"{folder} holds several TensorFlow checkpoints, model.ckpt-10, model.ckpt-20, and {told}; keep the "
        'files of one, or write a file checkpoint with the line model_checkpoint_path: "model.ckpt-20".'
    )
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-20"')
    assert read_weights(folder).origin == "model.ckpt-20, which the file checkpoint names"


def test_the_first_kind_of_file_is_read_and_the_others_are_named(tmp_path):
    folder = google(tmp_path / "theirs", TEN)
    assert read_weights(folder).origin == "model.ckpt-10"
    shutil.copy(LEGACY, folder / "pytorch_model.bin")
    assert read_weights(folder).origin == "pytorch_model.bin"
    assert len(read_weights(folder).tensors) == 9
    tensors = {"a": np.float32([1, 2])}
    safetensors.numpy.save_file(tensors, folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_bytes(b"\xef\xbb\xbf" + json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode())
    read = read_weights(folder)
    assert read.origin == "model.safetensors.index.json, and not pytorch_model.bin, which is there too"
    assert {name: x.tolist() for name, x in read.tensors.items()} == {"a": [1, 2]}
    safetensors.numpy.save_file({"b": np.float32([3])}, folder / "model.safetensors")
    read = read_weights(folder)
    assert read.origin == (
        "model.safetensors, and not model.safetensors.index.json, pytorch_model.bin, which is there too"
    )
    assert [*read.tensors] == ["b"]


@pytest.mark.parametrize("second", [PYTORCH, LEGACY], ids=lambda path: path.stem)
def test_shards_of_pytorch(tmp_path, second):
    expected = pytorch.read_tensors(PYTORCH)
    for number, path in ((1, PYTORCH), (2, second)):
        shutil.copy(path, tmp_path / f"pytorch_model-{number:05}-of-00002.bin")
    weight_map = {name: f"pytorch_model-{1 + (name > 'n'):05}-of-00002.bin" for name in expected}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path).tensors, expected)
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"not beside it: pytorch_model-00001-of-00002\.bin"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "bert_model.ckpt.index"),
        *("bert_config.json", "vocab.txt", "bert_model.ckpt.data-00000-of-00001"),
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    shutil.copytree(GOOGLE, folder := tmp_path / "theirs")
    (folder / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"/{name} is a pointer of git-lfs, not the file itself; fetch it"):
        huggingface.read(folder)
