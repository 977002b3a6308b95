import pathlib
import shutil
import struct

import jax
import numpy as np
import pyarrow as pa
import pytest

from bert_jax.errors import UserError
from bert_jax.interop import huggingface, tensorflow
from bert_jax.training.mesh import path_name

GOOGLE = pathlib.Path(__file__).parents[1] / "parity" / "google"  # written by TensorFlow
INDEX, DATA = "bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"


@pytest.fixture
def copy(tmp_path):
    return pathlib.Path(shutil.copytree(GOOGLE, tmp_path / "google"))


def counting(number, *shape):
    """What make_tensorflow.py put into a variable."""
    return number + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / np.float32(100)


def test_googles_variables_become_our_parameters():
    """The numbers are the places of the variables in make_tensorflow.py's list."""
    read = huggingface.read(GOOGLE)
    params = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(read.params)}
    expected = {
        "encoder/embeddings/token/embedding": counting(0, 8, 4),
        "encoder/embeddings/segment/embedding": counting(2, 2, 4),
        "encoder/embeddings/norm/bias": counting(3, 4),
        "encoder/embeddings/norm/scale": counting(4, 4),
        "encoder/layers/attention/query/kernel": np.stack([counting(5, 4, 4), counting(21, 4, 4)]),
        "encoder/layers/attention/value/bias": np.stack([counting(10, 4), counting(26, 4)]),
        "encoder/layers/intermediate/kernel": np.stack([counting(17, 4, 8), counting(33, 4, 8)]),
        "encoder/layers/output/kernel": np.stack([counting(19, 8, 4), counting(35, 8, 4)]),
        "encoder/layers/output_norm/bias": np.stack([counting(15, 4), counting(31, 4)]),
        "encoder/pooler/kernel": counting(37, 4, 4),
        "masked_lm/transform/kernel": counting(39, 4, 4),
        "masked_lm/bias": counting(43, 8),
        "next_sentence/kernel": counting(44, 2, 4).T,
        "next_sentence/bias": counting(45, 2),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(params[name], values, rtol=1e-6, err_msg=name)
    assert (read.initialised, read.ignored, len(params)) == ([], [], 30)
    assert (read.model.layer_norm_eps, read.max_length) == (1e-12, 8)
    assert read.tokenizer.encode(["A a ab"]) == [[5, 6, 6, 7]]


def test_a_saved_model_has_them_in_variables(copy):
    (copy / "variables").mkdir()
    for name in (INDEX, DATA):
        (copy / name).rename(copy / "variables" / name.replace("bert_model.ckpt", "variables"))
    assert huggingface.read(copy).initialised == []


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_a_changed_byte_is_an_error_or_changes_nothing(name, copy):
    whole, expected = (copy / name).read_bytes(), tensorflow.read_bert(GOOGLE / INDEX)
    errors = 0
    for place in range(0, len(whole), 7):
        (copy / name).write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            found = tensorflow.read_bert(copy / INDEX)
        except UserError:
            errors += 1
        else:
            assert all(np.array_equal(found[key], value) for key, value in expected.items())
    assert errors > 0.9 * len(whole) / 7


def test_missing_and_cut_files(copy):
    (copy / DATA).unlink()
    with pytest.raises(UserError, match="all files of the checkpoint are needed"):
        tensorflow.read_bert(copy / INDEX)
    (copy / INDEX).write_bytes((copy / INDEX).read_bytes()[:-1])
    with pytest.raises(UserError, match="the end of the index is missing"):
        tensorflow.read_bert(copy / INDEX)


def test_blocks_may_be_compressed():
    block = bytes(range(200)) * 3
    packed = pa.Codec("snappy").compress(block, asbytes=True)
    stored = packed + b"\1"
    stored += struct.pack("<I", tensorflow._masked_crc(stored))
    assert tensorflow._block(b"before" + stored, 6, len(packed)) == block


def test_masked_crc():
    """The CRCs of RFC 3720, B.4, rotated by 15 bits, and a constant added, as LevelDB's crc32c.h has it."""
    for content, crc in ((bytes(32), 0x8A9136AA), (bytes([0xFF]) * 32, 0x62A8AB43)):
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert tensorflow._masked_crc(content) == (rotated + 0xA282EAD8) & 0xFFFFFFFF
