"""One update: the state, its initial value, and the jitted train and evaluation steps."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError
from bert_jax.model import chunked
from bert_jax.model.attention import kernel_of
from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.kernels import KERNELS
from bert_jax.model.losses import Term
from bert_jax.model.objectives import Objective
from bert_jax.training.config import TrainConfig
from bert_jax.training.flops import attended_tokens
from bert_jax.training.mesh import shardings

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """What an update changes. `step` numbers the next step and so decides its batch and learning rate."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def compute_of(train: TrainConfig, mesh: Mesh, tokens: int = 0, attention_dropout: float = 0.0) -> Compute:
    """Decides how networks compute on the devices of a mesh.

    Args:
        train: what the user has chosen.
        mesh: of devices of one kind.
        tokens: of a row; on CPU short rows have plain attention.
        attention_dropout: as in `ModelConfig`; on CPU plain attention computes it.

    Raises:
        UserError: for bfloat16 on a CPU that cannot multiply it.
    """
    platform, dtype = mesh.devices.flat[0].platform, train.activation_dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" and not bfloat16_is_fast() else "bfloat16"
    if dtype == "bfloat16" and platform == "cpu" and (problem := _bfloat16_problem()):
        raise UserError(
            "train.activation_dtype=bfloat16: this CPU cannot multiply in bfloat16 with this version of JAX "
            f"({problem}); use float32 or auto."
        )
    kernel = kernel_of(platform) if train.attention == "auto" else train.attention
    if kernel == KERNELS["cpu"]:
        query = jax.ShapeDtypeStruct((1, tokens, 1, 1), dtype)
        kernel = kernel if chunked.fits(query) and not attention_dropout else "plain"
    unroll = platform == "gpu" if train.layers == "auto" else train.layers == "unrolled"
    return Compute(jnp.dtype(dtype), train.remat, kernel, unroll)


@functools.cache
def bfloat16_is_fast() -> bool:
    """Returns whether this CPU multiplies bfloat16 faster than float32, which JAX makes use of since 0.12."""
    if jax.__version_info__ < (0, 12):
        return False
    try:
        about = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", about)) and not _bfloat16_problem()


def _bfloat16_problem() -> str:
    """Returns the error of a batched bfloat16 product with float32 sums on this machine; "" if none."""
    x = jnp.ones((2, 4, 4), jnp.bfloat16)
    try:
        jax.block_until_ready(jnp.matmul(x, x, preferred_element_type=jnp.float32))
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def abstract_model(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Any]:
    """Returns a module's structure, and its parameters as nested ShapeDtypeStructs; computes nothing."""
    structure, params = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0)))))
    return structure, nnx.to_pure_dict(params)


def abstract_state(abstract_params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state as ShapeDtypeStructs with shardings: what to compile for and to restore into."""

    def init(params):
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

    return with_shardings(jax.eval_shape(init, abstract_params), mesh)


def with_shardings(tree: Any, mesh: Mesh) -> Any:
    """Turns arrays or ShapeDtypeStructs of parameters or a state into ShapeDtypeStructs with shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(mesh, tree),
    )


def init_params(build: Callable[[nnx.Rngs], nnx.Module], abstract: TrainState, seed: int) -> Any:
    """Makes random parameters on the devices that hold them: no host or device holds them whole."""

    def init(key):
        return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(params=key)))[1])

    sharded = jax.tree.map(lambda leaf: leaf.sharding, abstract.params)
    return jax.jit(init, out_shardings=sharded)(jax.random.key(seed))


def init_state(params: Any, optimizer: optax.GradientTransformation, abstract: TrainState) -> TrainState:
    """Makes the state before the first update from parameters."""
    sharded = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    fresh = jax.jit(
        lambda p: (jnp.zeros((), jnp.int32), optimizer.init(p)),
        out_shardings=(sharded.step, sharded.opt_state),
    )
    step, opt_state = fresh(params)
    return TrainState(step, params, opt_state)


def make_train_step(
    structure: nnx.GraphDef,
    model: ModelConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[jax.Array], Any],
    abstract: TrainState,
    accumulation_steps: int = 1,
    compiler_options: dict[str, Any] | None = None,
) -> Any:
    """Builds the jitted update (state, batch, key) -> (state, metrics), which donates `state`.

    The loss is the sum over `objective.losses` of each term's mean over the whole global batch. Dropout of a
    row depends on (key, step, row) alone, and sums are divided by weights of the whole batch, so accumulation
    and sharding change only rounding.

    The learning rate is `schedule(step)`. If the loss or a gradient is not finite, parameters and optimizer
    stay as they are, and only `step` advances.

    `batch` may hold `stop_requested`, float32 [B], 1 in the rows of a host that was asked to stop. Its sum is
    a metric, so all hosts see the request at the same step.
    """

    def loss_of(params, batch, dropout_keys, weights):
        terms = objective.terms(nnx.merge(structure, params), batch, dropout_keys)
        loss = sum(terms[name][0] / jnp.maximum(weights[name], 1.0) for name in weights)
        return loss, terms

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    sharded = jax.tree.map(lambda leaf: leaf.sharding, abstract)

    # The new state has the shardings of the old one, so that one executable serves all steps.
    @functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(sharded, None), compiler_options=compiler_options
    )
    def train_step(state, batch, key):
        rows = jax.tree.leaves(batch)[0].shape[0]
        step_key = jax.random.fold_in(key, state.step)
        row_keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(jnp.arange(rows))
        weights = {name: jnp.sum(batch[array]) for name, array in objective.losses.items()}
        compute = functools.partial(gradient_of, state.params, weights=weights)
        (loss, terms), gradients = _accumulated(compute, (batch, row_keys), accumulation_steps)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        rate = -schedule(state.step)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: rate * update, updates))
        grad_norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
        )
        counts = _counts(batch, model, objective.causal)
        metrics = {"loss": loss, **means(terms), "grad_norm": grad_norm, **counts}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_evaluation_step(structure: nnx.GraphDef, objective: Objective, parts: int = 1) -> Any:
    """Builds the jitted evaluation (params, batch) -> (terms, outputs), both replicated.

    A batch is evaluated in as many `parts` as the update takes it: all at once it may not fit.
    """

    @functools.partial(jax.jit, out_shardings=P())
    def evaluation_step(params, batch):
        evaluate = functools.partial(objective.evaluate, nnx.merge(structure, params))
        if parts == 1:
            return evaluate(batch)
        terms, outputs = jax.lax.map(evaluate, _micro_batches(batch, parts))
        together = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), terms), together

    return evaluation_step


def _counts(batch: Batch, model: ModelConfig, causal: bool) -> Metrics:
    """Computes counts of the batch, in float32 like the losses, so that one collective sums both."""
    lengths = sequence_lengths(batch)
    tokens, none = jnp.sum(lengths), jnp.zeros(len(lengths), jnp.float32)
    return {
        "padding_fraction": 1.0 - tokens / batch["sequence_ids"].size,
        "tokens": tokens,
        "attended": jnp.sum(attended_tokens(lengths, model, causal)),
        "predictions": jnp.sum(batch.get("masked_lm_weights", none)),
        "stop_requested": jnp.sum(batch.get("stop_requested", none)),
    }


def sequence_lengths(batch: Batch) -> jax.Array:
    """Counts the tokens of every sequence: float32 [B, S], 0 where there is none."""
    numbers = 1 + jnp.arange(batch["cls_positions"].shape[1])
    return jnp.sum(batch["sequence_ids"][..., None] == numbers, axis=1, dtype=jnp.float32)


def means(terms: dict[str, Term]) -> Metrics:
    """Divides each term's sum by its weight; 0 where the weight is 0."""
    return {name: total / jnp.maximum(weight, 1.0) for name, (total, weight) in terms.items()}


def _accumulated(compute: Callable, inputs: Any, steps: int) -> Any:
    """Sums `compute(*micro)` over `steps` micro-batches of the rows of `inputs`, one in memory at a time."""
    if steps == 1:
        return compute(*inputs)
    micros = _micro_batches(inputs, steps)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute, *first))

    def add(total, micro):
        return jax.tree.map(jnp.add, total, compute(*micro)), None

    return jax.lax.scan(add, zeros, micros)[0]


def _micro_batches(inputs: Any, steps: int) -> Any:
    """[B, …] -> [steps, B / steps, …]; row r is in r % steps: every device keeps rows of its own in each."""
    return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]).swapaxes(0, 1), inputs)
