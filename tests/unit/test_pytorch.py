"""Files of torch.save, in both of its formats: every tensor is read, and nothing in them is run."""

import contextlib
import io
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest

from bert_jax.errors import UserError
from bert_jax.interop import pickles, pytorch

PARITY = pathlib.Path(__file__).parents[1] / "parity"  # both written by make_pytorch.py
ZIPPED, LEGACY = PARITY / "pytorch_model.bin", PARITY / "pytorch_model_legacy.bin"
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
FOUR = np.arange(4, dtype="<f4").tobytes()
DATA = struct.pack("<q", 4) + FOUR  # as the older format has it


def body(value):
    """A pickle that leaves a value on the stack, without its frame."""
    return pickle.dumps(value, 2)[2:-1]


def called(name, *arguments):
    """A call of a global; arguments are bodies."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


def stored(key="0", count=4, kind=b"ctorch\nFloatStorage\n", view=None, what="storage"):
    return b"(" + body(what) + kind + body(key) + body("cpu") + body(count) + body(view) + b"tQ"


def rebuilt(storage=None, offset=0, size=(4,), stride=(1,)):
    values = map(body, (offset, size, stride, False))
    hooks = called("collections OrderedDict")
    return called("torch._utils _rebuild_tensor_v2", storage or stored(), *values, hooks)


def state(*tensors):
    """A pickle of {"a": …, "b": …}."""
    items = b"".join(body(name) + tensor for name, tensor in zip("abc", tensors, strict=False))
    return b"\x80\x02}(" + items + b"u."


def legacy(content, keys=("0",), data=DATA, magic=MAGIC, protocol=1001, system=SYSTEM):
    start = b"".join(pickle.dumps(value, 2) for value in (magic, protocol, system))
    return start + content + (keys if isinstance(keys, bytes) else pickle.dumps([*keys], 2)) + data


def read(path, content):
    path.write_bytes(content)
    return pytorch.read_tensors(path)


def read_zipped(path, content, **storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, values in {"0": FOUR, **storages}.items():
            archive.writestr(f"archive/data/{key}", values)
    return pytorch.read_tensors(path)


@pytest.mark.parametrize("path", [ZIPPED, LEGACY], ids=lambda path: path.stem)
def test_every_type_stride_and_storage(path):
    assert {name: x.tolist() for name, x in pytorch.read_tensors(path).items()} == {
        "matrix": [[0, 1, 2], [3, 4, 5]],
        "transposed": [[0, 3], [1, 4], [2, 5]],
        "parameter": [0.5, -2],
        "bfloat16": [1.5, 3],
        "position_ids": [[0, 1, 2, 3]],
        "empty": [],
        "scalar": 7,
        "slice": [[4, 5]],
        "tied": [[4, 5]],
    }


def test_both_formats_hold_the_same():
    assert (ZIPPED.read_bytes()[:2], LEGACY.read_bytes()[:2]) == (b"PK", b"\x80\x02")
    zipped, older = pytorch.read_tensors(ZIPPED), pytorch.read_tensors(LEGACY)
    assert list(zipped) == list(older)
    for name, tensor in zipped.items():
        assert (older[name].dtype, older[name].shape) == (tensor.dtype, tensor.shape)
        assert older[name].tobytes() == tensor.tobytes()


def test_what_older_versions_wrote(tmp_path):
    """Views of storages, dicts and names of Python 2, the first _rebuild_tensor, other protocols."""
    viewed = rebuilt(stored(view=("9", 1, 2)), size=(2,))
    assert read(tmp_path / "x", legacy(state(viewed)))["a"].tolist() == [1, 2]
    name = pickle.SHORT_BINSTRING + b"\x01a"
    items = b"](](" + name + rebuilt() + b"ee"
    python2 = b"\x80\x02" + called("collections OrderedDict", items) + b"."
    assert read(tmp_path / "x", legacy(python2))["a"].tolist() == [0, 1, 2, 3]
    first = called("torch._utils _rebuild_tensor", stored(), body(2), body((2,)), body((1,)))
    assert read(tmp_path / "x", legacy(state(first)))["a"].tolist() == [2, 3]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        value = {"name": [1, -1, 2**40, 2**100, 1.5, None, True, (), (1,), (1, 2, 3, 4), [], {}, "é"] * 2}
        assert pickles.Machine({}, id).run(io.BytesIO(pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(1, (2, 3), (1, 5)), (-1, (2,), (1,)), (11, (2,), (-1,))]
)
def test_a_tensor_outside_its_storage(offset, size, stride):
    with pytest.raises(pickle.UnpicklingError, match="outside its storage"):
        pytorch._strided(np.zeros(12, np.float32), offset, size, stride)


class Harm:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def harms(harm):
    """Calls that would make the file `harm`, as bodies, and the names that errors show."""
    inner = pickle.dumps(Harm(os.mkdir, str(harm)), 2)
    make = f"open({str(harm)!r}, 'w').close()"
    return {
        "posix.mkdir": body(Harm(os.mkdir, str(harm))),
        "os.system": called("os system", body(f"touch {harm}")),
        "builtins.eval": called("builtins eval", body(make)),
        "__builtin__.exec": called("__builtin__ exec", body(make)),
        "torch.storage._load_from_bytes": called("torch.storage _load_from_bytes", body(inner)),
        "pickle.loads": called("pickle loads", body(inner)),
        "numpy.core.multiarray._reconstruct": called(
            "numpy.core.multiarray _reconstruct", b"cnumpy\nndarray\n", body((0,)), body("b")
        ),
        "builtins.getattr": called("builtins getattr", called("builtins __import__", body("os")), body("x")),
        "the operation INST": b"(" + body(f"touch {harm}") + b"ios\nsystem\n",
        "the operation OBJ": b"(" + body("os.system") + body(f"touch {harm}") + b"o",
        "the operation NEWOBJ": body(1) + b")\x81",
        "the operation EXT1": b"\x82\x01",
        "the operation REDUCE": body("os.system") + body((make,)) + b"R",
    }


PLACES = {
    "the object": lambda harm: b"\x80\x02" + harm + b".",
    "a tensor": lambda harm: state(rebuilt(), harm),
    "a storage": lambda harm: state(rebuilt(harm)),
    "an argument": lambda harm: state(called("torch._utils _rebuild_parameter", rebuilt(), harm)),
    "an id": lambda harm: b"\x80\x02" + harm + b"Q.",
    "attributes": lambda harm: b"\x80\x02}" + harm + b"b.",
    "a dict in a dict": lambda harm: b"\x80\x02}(" + body("a") + b"}(" + body("b") + harm + b"uu.",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", harms("x"))
def test_no_call_is_run_wherever_it_stands(tmp_path, name, place):
    harm = tmp_path / "harm"
    content = PLACES[place](harms(harm)[name])
    message = name.replace(".", r"\.")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.bin", legacy(content))
    with pytest.raises(UserError, match=message):
        read_zipped(tmp_path / "x.bin", content)
    assert not harm.exists()


@pytest.mark.parametrize("name", harms("x"))
@pytest.mark.parametrize("number", range(5))
def test_no_call_is_run_in_any_pickle_of_a_file(tmp_path, name, number):
    harm = tmp_path / "harm"
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, SYSTEM)] + [
        state(rebuilt()),
        pickle.dumps(["0"]),
    ]
    parts[number] = b"\x80\x02" + harms(harm)[name] + b"."
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        read(tmp_path / "x.bin", b"".join(parts) + DATA)
    assert not harm.exists()


def test_the_calls_above_would_do_harm(tmp_path):
    """Or the tests above could not fail."""
    for name in ("posix.mkdir", "os.system", "builtins.eval", "pickle.loads"):
        pickle.loads(b"\x80\x02" + harms(tmp_path / name)[name] + b".")
        assert (tmp_path / name).exists()


NESTED = body(()) + b"".join(
    b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)
)  # 2^60 leaves


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (state(rebuilt(size=(5,))), "outside its storage"),
        (state(rebuilt(offset=-1)), "outside its storage"),
        (state(rebuilt(stride=(-1,))), "outside its storage"),
        (state(rebuilt(size=(2,), stride=(2**62,))), "outside its storage"),
        (state(rebuilt(size=(2**40,), stride=(0,))), "more values than its storage"),
        (state(rebuilt(size=(0, 2**70), stride=(1, 1))), "cannot be read"),
        (state(rebuilt(size=(4, 1), stride=(1,))), "cannot be read"),
        (state(rebuilt(size=(1,) * 99, stride=(1,) * 99)), "cannot be read"),
        (state(rebuilt(size=(2.0,))), "described by other things than numbers"),
        (state(rebuilt(size=4)), "cannot be read"),
        (state(rebuilt(body("0"))), "described by other things"),
        (state(rebuilt(stored(count=-4))), "storage"),
        (state(rebuilt(stored(count=2**62))), "storage"),
        (state(rebuilt(stored(count=5))), "storage"),
        (state(rebuilt(stored(kind=b"ctorch\nDoubleStorage\n", count=4))), "does not have 4 values"),
        (state(rebuilt(stored(kind=body("Float")))), "no storage of numbers"),
        (state(rebuilt(stored(kind=b"ctorch\nComplexStorage\n"))), r"torch\.ComplexStorage"),
        (state(rebuilt(stored(key=("0",)))), "no storage of numbers"),
        (state(rebuilt(stored(what="module"))), "no storage of numbers"),
        (state(rebuilt(stored(key="1"))), "storage"),
        (state(rebuilt(stored(view=("1", 2, 4)))), "outside its storage"),
        (state(rebuilt(stored(view=("1", -1, 2)), size=(1,))), "outside its storage"),
        (state(rebuilt(stored(view=5))), "cannot be read"),
        (state(body(1)), "holds more than tensors"),
        (b"\x80\x02" + body([1]) + b".", "holds more than tensors"),
        (b"\x80\x02}" + body(1) + rebuilt() + b"s.", "keys that are not names"),
        (b"\x80\x02}" + NESTED + rebuilt() + b"s.", "keys that are not names"),
        (b"\x80\x02" + body("x") + body("y") + body("z") + b"s.", "fills what is neither"),
        (b"\x80\x02}2.", "the operation DUP"),
        (b"\x80\x02\x8d" + struct.pack("<Q", 2**60) + b"x.", "cannot be read"),
        (b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b"x.", "cannot be read"),
        (b"\x80\x02}j\xff\xff\xff\xff.", "cannot be read"),
        (b"\x80\x02}}.", "cannot be read"),
        (b"\x80\x02s.", "cannot be read"),
        (b"\x80\x02(.", "holds more than tensors"),
        (b"\x80\x02t.", "cannot be read"),
        (b"\x80\x02", "cannot be read"),
    ],
)  # fmt: skip
def test_hostile_files(tmp_path, content, message):
    keys, data = (["0"], DATA) if b"Storage" in content else ([], b"")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x", legacy(content, keys, data))
    with pytest.raises(UserError, match=message):
        read_zipped(tmp_path / "x", content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 1}, "a pickle, but not one of torch.save"),
        ({"protocol": 1002}, "a pickle, but not one of torch.save"),
        ({"system": SYSTEM | {"little_endian": False}}, "not little-endian"),
        ({"system": [1]}, "not little-endian"),
        ({"keys": []}, "storage 0 is missing"),
        ({"keys": ["1"]}, "of another size, or of none"),
        ({"keys": [["0"]]}, "of another size, or of none"),
        ({"keys": pickle.dumps(5)}, "cannot be read"),
        ({"keys": ["0"] * 2}, "cannot be read"),
        ({"data": struct.pack("<q", -4) + FOUR}, "-4 values for a storage of another size"),
        ({"data": struct.pack("<q", 2**61) + FOUR}, "of another size"),
        ({"data": struct.pack("<q", 4) + FOUR[:-1]}, "does not have 4 values"),
        ({"data": b"\4"}, "cannot be read"),
    ],
)
def test_storages_that_do_not_fit_the_pickle(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x", legacy(state(rebuilt()), **changes))


def test_a_storage_of_two_types(tmp_path):
    other = rebuilt(stored(kind=b"ctorch\nIntStorage\n"))
    with pytest.raises(UserError, match="describes storage 0 in two ways"):
        read(tmp_path / "x", legacy(state(rebuilt(), other)))


def test_a_list_of_items_is_used_once():
    """Or a small file could take its memory a million times."""
    items = [["a", 1], ["b", 2]]
    assert [pytorch._ordered_dict(items), pytorch._ordered_dict(items)] == [{"a": 1, "b": 2}, {}]


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "x", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state(rebuilt()))
        archive.writestr("archive/data/0", bytes(10**6))
    with pytest.raises(UserError, match="compressed or overlap"):
        pytorch.read_tensors(tmp_path / "x")
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("archive/data.pkl", state(rebuilt()))
        archive.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="not little-endian"):
        pytorch.read_tensors(tmp_path / "x")
    for content, message in (
        (b"", "is no file of PyTorch"),
        (b"\x93NUMPY", "is no file of PyTorch"),
        (bytes(257) + b"ustar", r"is a tar file, as before PyTorch 0\.2"),
        (b"PK\3\4", "cannot be read as tensors"),
        (pickle.dumps({}), "not one of torch.save"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "x", content)


@pytest.mark.parametrize("path", [ZIPPED, LEGACY], ids=lambda path: path.stem)
def test_a_file_that_is_cut_or_changed(path, tmp_path):
    """The older format has no checksums: a changed value of a tensor is not seen."""
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        with pytest.raises(UserError, match=r"^[^\n]*$"):
            read(tmp_path / "x", whole[:place])
        changed = whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        with contextlib.suppress(UserError):
            assert all(isinstance(x, np.ndarray) for x in read(tmp_path / "x", changed).values())


def test_all_operations_are_named_as_python_names_them():
    known = {operation.name for operation in pickletools.opcodes}
    assert pickles.ARGUMENTS | set(pickles.CONSTANTS) < known
