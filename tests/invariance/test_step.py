"""How an update is computed (in parts, again, on many devices, by a scan) changes nothing of the result.

In float64, where rounding cannot hide a difference, with dropout on.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec as P

from bert_jax.data.masking import gather_next
from bert_jax.model import heads
from bert_jax.model.dropout import dropout, fold_in_each
from bert_jax.model.encoder import EMBEDDING_DROPOUT, LAYER_DROPOUT
from bert_jax.model.objectives import CausalObjective, PretrainingObjective
from bert_jax.training.mesh import to_global
from bert_jax.training.step import make_evaluation_step
from tests.tiny import EURO, MASK, MODEL, MODERN, Training, mesh_of, random_batch

STEPS, ROWS, TOLERANCE = 20, 16, 1e-9
CHANGES = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "vocab_size": 65}  # which two do not share


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def training_on(axes, **options):
    """The training of a small network on a mesh of these axes."""
    return Training(mesh_of(**axes), dtype=jnp.float64, **CHANGES, **options)


def run(training):
    """Params after the steps, and the metrics of each step."""
    with jax.set_mesh(training.mesh):
        state, history = training.initial_state(), []
        assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float64")}
        for step in range(STEPS):
            batch = to_global(training.mesh, random_batch(step % 2, ROWS))
            state, metrics = training.train_step(state, batch, jax.random.key(7))
            history.append(jax.device_get(metrics))
    assert training.train_step._cache_size() == 1  # compiled once, and never again
    return jax.device_get(state.params), history


@pytest.fixture(scope="module")
def one_device():
    return training_on({"data": 1})


@pytest.fixture(scope="module")
def plain(one_device):
    return run(one_device)


def close(x, y):
    np.testing.assert_allclose(x, y, rtol=TOLERANCE, atol=TOLERANCE)


def test_random_parameters_do_not_depend_on_the_mesh(one_device):
    split = training_on({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(split.mesh):
        found = split.random_params()
    query = found["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == P(None, "fsdp", "tensor")
    jax.tree.map(np.testing.assert_array_equal, found, one_device.initial_state().params)


def test_the_steps_learn_something(plain):
    _, history = plain
    assert history[-2]["loss"] < history[0]["loss"] - 0.1
    assert history[0].keys() == {
        *("loss", "mlm_loss", "nsp_loss", "mlm_accuracy", "nsp_accuracy"),
        *("grad_norm", "padding_fraction", "tokens", "attended", "predictions", "stop_requested"),
    }
    sequence_ids = random_batch(0, ROWS)["sequence_ids"]
    assert history[0]["tokens"] == np.count_nonzero(sequence_ids)
    lengths = [np.sum(row == number) for row in sequence_ids for number in (1, 2)]
    assert history[0]["attended"] == np.sum(np.square(lengths))
    assert history[0]["predictions"] == random_batch(0, ROWS)["masked_lm_weights"].sum()
    close(history[0]["padding_fraction"], np.mean(sequence_ids == 0))
    close(history[0]["loss"], history[0]["mlm_loss"] + history[0]["nsp_loss"])


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ({"data": 1}, {"accumulation_steps": 2, "remat": "dots"}),
        ({"data": 1}, {"accumulation_steps": 4, "remat": "full"}),
        ({"data": 1}, {"unroll": True, "remat": "dots"}),
        ({"data": 8}, {}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation_steps": 4, "remat": "dots"}),
        pytest.param({"data": 8}, {"accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, {}, marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, {"remat": "full"}, marks=pytest.mark.slow),
        pytest.param({"data": 4, "tensor": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"data": 4, "tensor": 2}, {"accumulation_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_accumulation_remat_and_mesh_change_nothing(plain, axes, options):
    jax.tree.map(close, run(training_on(axes, **options)), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(MODERN, id="modern"), pytest.param(EURO, id="euro", marks=pytest.mark.variant)]
)
def test_other_encoders_do_not_depend_on_the_mesh_either(kind):
    expected = run(training_on({"data": 1}, **kind))
    assert expected[1][-2]["loss"] < expected[1][0]["loss"] - 0.1
    assert expected[1][0].keys().isdisjoint({"nsp_loss", "nsp_accuracy"})
    for axes, options in (
        ({"data": 8}, {"remat": "dots"}),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation_steps": 4, "remat": "full"}),
        ({"fsdp": 4, "tensor": 2}, {}),
    ):
        jax.tree.map(close, run(training_on(axes, **kind, **options)), expected)


@pytest.mark.parametrize(
    ("axes", "options", "at_once"),
    [
        ({"data": 1}, {}, 16 * 65 * 4),  # parts of three and of four of the six predictions of a row
        ({"data": 1}, {"accumulation_steps": 2}, 8 * 65 * 4),
        ({"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation_steps": 2}, 1),
        pytest.param({"data": 4, "tensor": 2}, {}, 4 * 33 * 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_logits_computed_part_by_part_change_nothing(monkeypatch, plain, axes, options, at_once):
    monkeypatch.setattr(heads, "LOGITS", at_once)
    jax.tree.map(close, run(training_on(axes, **options)), plain)


@pytest.mark.parametrize(
    "objective",
    [PretrainingObjective(MASK, np.arange(65.0)), CausalObjective()],  # unigram losses in float64 too
    ids=lambda objective: type(objective).__name__,
)
def test_losses_and_scores_computed_part_by_part_are_the_same(monkeypatch, one_device, objective):
    """Of masked and of causal tokens, in training and in evaluation."""
    params, batch = one_device.initial_state().params, random_batch(0, ROWS)
    if objective.causal:
        batch |= gather_next(batch["input_ids"], batch["sequence_ids"], 31)

    def terms():
        def compute(params):
            model = nnx.merge(one_device.structure, params)
            terms = objective.terms(model, batch, None)
            loss = sum(terms[name][0] for name in objective.losses)
            return loss, (terms, objective.evaluate(model, batch))

        return jax.jit(jax.value_and_grad(compute, has_aux=True))(params)

    whole = terms()
    for at_once in (1, 16 * 65, 16 * 65 * 5):
        monkeypatch.setattr(heads, "LOGITS", at_once)
        jax.tree.map(close, terms(), whole)


def test_logits_computed_part_by_part_take_less_memory(monkeypatch):
    training = Training(mesh_of(), vocab_size=4096)

    def temporaries():
        step = training.train_step.lower(training.abstract, random_batch(0, ROWS), jax.random.key(0))
        return step.compile().memory_analysis().temp_size_in_bytes

    whole, logits = temporaries(), 4 * ROWS * 6 * 4096  # bytes
    monkeypatch.setattr(heads, "LOGITS", ROWS * 4096)
    training.train_step.clear_cache()
    assert temporaries() < whole - logits


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_step(one_device, spoilt):
    batch = random_batch(0, ROWS)
    state = one_device.initial_state()
    if spoilt == "loss":
        batch["masked_lm_weights"][3] = np.nan
    else:  # finite losses, whose gradient overflows
        table = state.params["encoder"]["embeddings"]["token"]
        table["embedding"] = table["embedding"].at[0, 0].set(1e300)
        table["embedding"] = table["embedding"].at[1, 0].set(-1e300)
    before = jax.device_get(state)
    with jax.set_mesh(one_device.mesh):
        after, metrics = one_device.train_step(state, to_global(one_device.mesh, batch), jax.random.key(7))
    assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]))
    jax.tree.map(
        np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state)
    )
    assert int(after.step) == 1


def test_logits_over_a_split_vocabulary_are_never_gathered():
    training = Training(mesh_of(data=4, tensor=2), vocab_size=65)
    with jax.set_mesh(training.mesh):
        lowered = training.train_step.lower(training.abstract, random_batch(0, ROWS), jax.random.key(0))
    program = lowered.compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", program)
    assert "4,6,33" in re.findall(
        r"f32\[([\d,]+)\]", program
    )  # rows of a device, predictions, half the words
    assert [shape for shape in shapes if re.search(r",(65|66)$", shape)] == []


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_an_evaluation_in_parts_is_that_of_the_whole_batch(axes):
    """Sums, and outputs in the order of the rows, with less in memory at a time."""

    class Objective(PretrainingObjective):
        def evaluate(self, model, batch):
            return super().evaluate(model, batch)[0], {"ids": batch["input_ids"]}

    training, batch = training_on(axes), random_batch(0, ROWS)
    params = training.initial_state().params
    with jax.set_mesh(training.mesh):
        steps = [
            make_evaluation_step(training.structure, Objective(MASK, np.arange(65.0)), parts).lower(
                params, to_global(training.mesh, batch)
            ).compile()
            for parts in (1, 4)
        ]  # fmt: skip
        (whole, _), (parts, outputs) = (step(params, to_global(training.mesh, batch)) for step in steps)
    jax.tree.map(close, parts, whole)
    np.testing.assert_array_equal(outputs["ids"], batch["input_ids"])
    memory = [step.memory_analysis().temp_size_in_bytes for step in steps]
    assert memory[1] < memory[0]


def test_dropout_of_a_step_follows_key_and_step(one_device):
    batch = to_global(one_device.mesh, random_batch(0, ROWS))

    def loss(key, step):
        state = one_device.initial_state()
        state = state.replace(step=jax.device_put(np.int32(step), state.step.sharding))
        return float(one_device.train_step(state, batch, jax.random.key(key))[1]["loss"])

    with jax.set_mesh(one_device.mesh):
        losses = [loss(7, 0), loss(7, 1), loss(8, 0)]
        assert len(set(losses)) == 3
        assert loss(7, 1) == losses[1]


def test_scanned_layers_are_a_loop_over_layers(one_device):
    model = nnx.merge(one_device.structure, one_device.initial_state().params)
    batch, keys = random_batch(0, ROWS), jax.random.split(jax.random.key(3), ROWS)

    @jax.jit
    def loop():
        _, x = model.encoder.embeddings(batch["input_ids"], batch["token_type_ids"], batch["position_ids"])
        states = (dropout(x, fold_in_each(keys, EMBEDDING_DROPOUT), 0.1),)
        structure, weights = nnx.split(model.encoder.layers)
        for number in range(MODEL.num_hidden_layers):
            layer = nnx.merge(structure, jax.tree.map(lambda x, number=number: x[number], weights))
            layer_keys = fold_in_each(fold_in_each(keys, LAYER_DROPOUT), number)
            states = layer(states, batch["sequence_ids"], None, layer_keys, causal=False, window=0)
        return states[-1]

    close(jax.jit(lambda: model.encoder(batch, keys))(), loop())


def arrays_of(jaxpr):
    """Shapes of all arrays that a program computes, also inside its loops and calls."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(value, Jaxpr | ClosedJaxpr):
                yield from arrays_of(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def test_vocabulary_logits_only_where_something_is_predicted():
    """With a vocabulary of 101, which is no other size: no array of it is as large as all tokens' logits."""
    training = Training(mesh_of(), vocab_size=101)
    batch, predictions, tokens = random_batch(0, ROWS), 6, 32
    program = jax.make_jaxpr(training.train_step)(training.abstract, batch, jax.random.key(0))
    with_vocabulary = {shape for shape in arrays_of(program.jaxpr) if 101 in shape}
    assert (ROWS, predictions, 101) in with_vocabulary
    largest = max(np.prod(shape) for shape in with_vocabulary)
    assert largest == ROWS * predictions * 101 < ROWS * tokens * 101
