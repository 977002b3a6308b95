"""FLOPs, descriptions, the compiler's errors and the search; needs no TPU compiler."""

import dataclasses
import math
import re
import types

import jax
import numpy as np
import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.batch import batch_shapes
from bert_jax.data.batches import Batches
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.plan import key_of_phase
from bert_jax.scaling import described, topology
from bert_jax.scaling import search as search_lib
from bert_jax.scaling.collectives import Collective
from bert_jax.scaling.compile import Compiled, Estimate, Memory, _exceeded, _squares, compile_step
from bert_jax.scaling.profile import Cost
from bert_jax.training.config import MeshConfig
from bert_jax.training.flops import peak_flops, training_flops
from bert_jax.training.mesh import make_mesh
from tests.fakes import FakeTokenizer, MemoryStore, random_documents
from tests.tiny import MODEL


def test_flops_by_hand():
    model = ModelConfig(
        num_hidden_layers=1, hidden_size=2, num_attention_heads=1, intermediate_size=4, vocab_size=5
    )
    layer = 10 * (8 * 2 * 2 + 4 * 2 * 4) + 30 * 4 * 2
    assert training_flops(model, 10, 30, 3) == 3 * (layer + 3 * 2 * (2 * 2 + 2 * 5)) == 2892
    # Six FLOPs a parameter and token, as everybody says, where attention and vocabulary do not count.
    assert training_flops(ModelConfig(), 1, 0, 0) == 6 * 12 * (4 * 768**2 + 2 * 768 * 3072)


def test_peak_of_devices():
    v5e = types.SimpleNamespace(device_kind="TPU v5 lite", num_cores=1)
    v5p = types.SimpleNamespace(device_kind="TPU v5", num_cores=2)
    assert peak_flops([v5e, v5e]) == 2 * 197e12
    assert peak_flops([v5p]) == 459e12
    assert peak_flops([v5e, types.SimpleNamespace(device_kind="cpu")]) is None


@pytest.mark.parametrize("packed", [1, 4])
@pytest.mark.parametrize(
    ("pairs", "objective"), [("next_sentence", "masked"), ("none", "masked"), ("none", "causal")]
)
def test_shapes_of_a_batch_without_data(packed, pairs, objective):
    data = DataConfig(
        max_seq_length=64, global_batch_size=4, max_sequences_per_row=packed, second_objective=pairs,
        objective=objective,
    )  # fmt: skip
    batch = Batches(MemoryStore(random_documents(50)), data, FakeTokenizer(), seed=0)(0)
    assert {name: (array.shape, array.dtype.type) for name, array in batch.items()} == batch_shapes(data)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
        "Used 30.60G of 15.75G hbm. Exceeded hbm capacity by 14.85G.",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries "
        "(30.60G) exceeds available HBM (15.75G).",
    ],
    ids=["used", "exceeds"],
)
def test_memory_of_a_step_that_does_not_fit_comes_from_the_compilers_error(message):
    memory = _exceeded(message)
    assert memory is not None
    assert not memory.fits
    assert (memory.total - memory.capacity) / 2**30 == pytest.approx(14.85)


def test_other_errors_of_the_compiler_have_no_memory():
    assert _exceeded("INTERNAL: something else") is None


CONFIG = Config(
    model=dataclasses.replace(MODEL, max_position_embeddings=128, num_attention_heads=2),
    data=DataConfig(max_seq_length=128, global_batch_size=16),
)


def compiled_of(total=6, capacity=16, config=CONFIG, **changes):
    mesh = make_mesh(config.mesh, jax.devices())
    memory = Memory(2 << 30, (total - 2) << 30, total << 30, capacity << 30)
    sent = [Collective("all-reduce", "data", "f32", 420 << 20, 24, alone=105 << 20)]
    return Compiled(config, mesh, 1_234_567, {}, 1.0, memory, sent)._replace(**changes)


def test_description_of_a_step_that_fits():
    text = described.describe([compiled_of()])
    assert "mesh        data 8 × fsdp 1 × tensor 1" in text
    assert "batch       16 rows of 128 tokens, 2 on a device" in text
    assert "layers      scanned\n" in text
    assert "parameters  1,234,567" in text
    assert "  total                          6.00\n" in text
    assert "  all-reduce  data  f32  420.0  75% beside computing\n" in text
    assert "attention scores of all pairs of tokens are not in memory" in text
    assert text.endswith("verdict: fits")


def test_a_profile_lists_operations_down_to_a_hundredth():
    found = [
        Cost("backward", "layers", "dot_general", 1200),
        Cost("update", "outside", "unnamed", 240),
        Cost("forward", "outside", "dropout", 12),
    ]
    text = re.sub(" +", "  ", described.describe([compiled_of(costs=found)], profile=True))
    assert "  backward  layers  dot_general  82.6%\n  update  outside  unnamed  16.5%\n" in text
    assert "dropout" not in text


def test_a_step_waits_for_what_is_sent_alone_and_for_links_that_are_busy_longer_than_it_computes():
    assert Estimate(computing=0.5, sending=0.25, alone=0.125).step == 0.625
    assert Estimate(computing=0.5, sending=0.75, alone=0.125).step == 0.75


def test_description_of_a_step_that_does_not_fit_has_the_excess_and_advice():
    *_, verdict, advice = described.describe([compiled_of(total=20)]).splitlines()
    assert verdict == "verdict: does not fit"
    assert advice.startswith("4.00 GiB too much on every device. Try --config.train.remat=dots")
    assert "--config.train.gradient_accumulation_steps=2" in advice
    assert "--config.mesh.fsdp=N" in advice
    split = dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=8))
    assert "--config.mesh.fsdp=N" not in described.describe([compiled_of(total=20, config=split)])


def test_flops_of_a_causal_step():
    """Pairs of a token and itself or one before it, and logits for every token."""
    data = dataclasses.replace(CONFIG.data, second_objective="none", objective="causal")
    compiled = compiled_of(config=dataclasses.replace(CONFIG, data=data))
    tokens = 16 * 128
    assert compiled.flops == training_flops(CONFIG.model, tokens, 16 * 128 * 129 / 2, tokens)
    assert compiled_of().flops == training_flops(CONFIG.model, tokens, tokens * 128, tokens * 0.15)


def test_the_step_of_this_machine_is_planned_too():
    """Data parallel over the eight virtual devices: gradients are summed once, in float32.

    The token table's gradient has two parts, of look-ups and logits, which this compiler sums apart.
    """
    compiled = compile_step(CONFIG, jax.devices())
    sent = sum(c.bytes for c in compiled.collectives if c.kind == "all-reduce" and c.axes == "data")
    assert compiled.memory.fits
    assert sent == pytest.approx(4 * (compiled.parameters + 64 * 16), rel=0.02)
    assert compiled.scores  # the plain attention of CPUs
    assert compiled.squares >= 2 * CONFIG.model.num_attention_heads  # of two rows a device
    assert compiled.shardings["encoder/layers/intermediate/kernel"] == "(None, 'fsdp', 'tensor')"


def test_scores_are_squares_of_tokens_for_every_row_and_head():
    """A kernel of 128 × 128 for each of some layers is none of them."""
    assert _squares("f32[2,12,128,128]{3,2,1,0} x, bf16[3,128,128], f32[128,64]", 128) == 24
    assert _squares("f32[2,12,128,64]", 128) == 0
    needed = 2 * CONFIG.model.num_attention_heads
    assert compiled_of(squares=needed).scores
    assert not compiled_of(squares=needed - 1).scores
    assert not compiled_of(squares=needed, kernel=True).scores


@pytest.mark.parametrize(("limit", "expected"), [(40, (64, "none")), (11, (64, "dots")), (3, (16, "dots"))])
def test_the_search_finds_the_largest_batch(monkeypatch, limit, expected):
    """A step takes 2 + rows × (0.5 or, with remat, 0.05) GiB; larger batches have more tokens a step."""
    tried = []

    def fake(config, devices):
        rows = config.data.global_batch_size // len(devices)
        tried.append(rows)
        temporaries = int(rows * (0.5 if config.train.remat == "none" else 0.05) * 2**30)
        memory = Memory(2 << 30, temporaries, (2 << 30) + temporaries, limit << 30)
        return compiled_of(config=config, memory=memory)

    monkeypatch.setattr(search_lib, "compile_step", fake)
    monkeypatch.setattr(search_lib, "_meshes", lambda *_: [MeshConfig()])
    monkeypatch.setattr(search_lib, "MOST_ROWS", 64)
    best = search_lib.search(CONFIG, jax.devices(), lambda _: None)
    assert best is not None
    rows = best.compiled.config.data.global_batch_size // 8
    assert (rows, best.compiled.config.train.remat) == expected
    assert len(tried) <= 12


@pytest.mark.parametrize("slices", [1, 2, 4])
@pytest.mark.parametrize("count", [4, 8])
def test_every_mesh_of_the_search_fits_the_slices(monkeypatch, slices, count):
    """`data` spans the slices, so parameters are split inside one slice only."""
    monkeypatch.setattr("jax.experimental.mesh_utils.create_device_mesh", lay_out)
    monkeypatch.setattr("jax.experimental.mesh_utils.create_hybrid_device_mesh", lay_out_slices)
    devices = [types.SimpleNamespace(platform="tpu", slice_index=n * slices // count) for n in range(count)]
    meshes = search_lib._meshes(CONFIG, devices)
    assert [mesh.fsdp for mesh in meshes] == ([1, count // slices] if slices < count else [1])
    for mesh in meshes:
        assert make_mesh(mesh, devices).shape["data"] % slices == 0


def lay_out(shape, *_, **__):
    return np.array(jax.devices()[: math.prod(shape)]).reshape(shape)


def lay_out_slices(inner, outer, *_, **__):
    return lay_out(tuple(np.multiply(inner, outer)))


@pytest.mark.parametrize(("hidden_size", "fsdp"), [(96, 16), (1024, 16), (40, 8), (7, 1)])
def test_parameters_are_split_over_what_divides_the_hidden_size(hidden_size, fsdp):
    devices = [types.SimpleNamespace(platform="cpu")] * 256
    config = types.SimpleNamespace(model=types.SimpleNamespace(hidden_size=hidden_size))
    assert search_lib._meshes(config, devices)[-1].fsdp == fsdp


def test_the_search_names_all_flags_that_it_changed(monkeypatch):
    given = dataclasses.replace(CONFIG, mesh=MeshConfig(tensor=2))
    monkeypatch.setattr(search_lib, "compile_step", lambda config, _: compiled_of(config=config))
    monkeypatch.setattr(search_lib, "_meshes", lambda *_: [MeshConfig()])
    monkeypatch.setattr(search_lib, "MOST_ROWS", 8)
    best = search_lib.search(given, jax.devices(), lambda _: None)
    assert best is not None
    assert best.overrides.split() == [
        "--config.data.global_batch_size=64",
        "--config.train.remat=none",
        "--config.mesh.fsdp=1",
        "--config.mesh.tensor=1",
    ]


def test_a_value_of_a_phase_has_the_key_of_the_phase():
    config = types.SimpleNamespace(phases=({"num_steps": 1}, {"data": {"global_batch_size": 32}}))
    keys = [key_of_phase(config, index, "data.global_batch_size") for index in (0, 1)]
    assert keys == ["data.global_batch_size", "phases[1].data.global_batch_size"]
    assert key_of_phase(config, 1, "train.remat") == "train.remat"
    assert key_of_phase(CONFIG, 0, "data.global_batch_size") == "data.global_batch_size"


def test_the_search_goes_on_after_a_refused_mesh(monkeypatch):
    """A mesh that cannot be compiled costs a line; only when all are refused is it an error."""

    def fake(config, _):
        if config.mesh.fsdp == 2:
            raise UserError("mesh.fsdp=2 is not possible here.")
        return compiled_of(config=config)

    monkeypatch.setattr(search_lib, "compile_step", fake)
    monkeypatch.setattr(search_lib, "MOST_ROWS", 8)
    lines = []
    monkeypatch.setattr(search_lib, "_meshes", lambda *_: [MeshConfig(fsdp=2), MeshConfig()])
    best = search_lib.search(CONFIG, jax.devices(), lines.append)
    assert best is not None
    assert best.overrides.endswith("mesh.fsdp=1")
    assert lines[0] == "mesh.fsdp=2 is refused: mesh.fsdp=2 is not possible here."
    monkeypatch.setattr(search_lib, "_meshes", lambda *_: [MeshConfig(fsdp=2)])
    with pytest.raises(UserError, match=r"mesh\.fsdp=2 is not possible here"):
        search_lib.search(CONFIG, jax.devices(), lines.append)


def test_no_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs the TPU compiler, libtpu \(no TPU\); .*tpu-aot"):
        topology.topology_devices("v5e:4x4")


def test_another_libtpu_is_one_line(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(topology.metadata, "version", lambda _: "0.0.1")
    monkeypatch.setattr(topology, "_wanted_libtpu", lambda: "0.0.42")
    with pytest.raises(UserError, match=r"libtpu 0.0.1 is installed, but JAX .* requires 0.0.42.\*"):
        topology.topology_devices("v5e:4x4")


def test_jax_says_which_libtpu_it_wants():
    assert topology._wanted_libtpu().startswith("0.0.")


def test_a_mesh_that_does_not_fit_is_an_error_before_compiling():
    with pytest.raises(UserError, match="do not fit 8 devices"):
        compile_step(dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=3)), jax.devices())


def test_topologies_that_cannot_be_planned_for_are_refused_before_a_compilation(monkeypatch):
    old = types.SimpleNamespace(devices=[types.SimpleNamespace(device_kind="TPU v3")])
    monkeypatch.setattr(topology, "_check_libtpu", lambda: None)
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **_: old)
    with pytest.raises(UserError, match=r"--topology=v3:2x2: there are no rates of TPU v3 .* take v5e:4x4"):
        topology.topology_devices("v3:2x2")
    with pytest.raises(UserError, match="--slices=2 is for TPUs; leave it out with --topology=local"):
        topology.topology_devices("local", slices=2)
