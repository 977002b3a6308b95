"""Reads and writes Hugging Face's BERT: names and layout of its tensors, and its config.json.

The weight of a torch Linear is [out, in], our kernels are [in, out]; its layers are numbered, ours are
stacked along a leading axis.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import heads
from bert_jax.interop.directory import read_json
from bert_jax.interop.heads import HEADS, POOLER, PREFIXES, Head
from bert_jax.interop.vocabulary import read_vocabulary
from bert_jax.interop.weights import read_weights
from bert_jax.model.config import ModelConfig
from bert_jax.training.mesh import path_name
from bert_jax.training.opening import first_device_mesh, fresh_network
from bert_jax.training.step import abstract_model, with_shardings

ENCODER = {
    "encoder/embeddings/token": "bert.embeddings.word_embeddings",
    "encoder/embeddings/position": "bert.embeddings.position_embeddings",
    "encoder/embeddings/segment": "bert.embeddings.token_type_embeddings",
    "encoder/embeddings/norm": "bert.embeddings.LayerNorm",
    "encoder/layers/attention/query": "bert.encoder.layer.{}.attention.self.query",
    "encoder/layers/attention/key": "bert.encoder.layer.{}.attention.self.key",
    "encoder/layers/attention/value": "bert.encoder.layer.{}.attention.self.value",
    "encoder/layers/attention/output": "bert.encoder.layer.{}.attention.output.dense",
    "encoder/layers/attention_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
    "encoder/layers/intermediate": "bert.encoder.layer.{}.intermediate.dense",
    "encoder/layers/output": "bert.encoder.layer.{}.output.dense",
    "encoder/layers/output_norm": "bert.encoder.layer.{}.output.LayerNorm",
    POOLER: "bert.pooler.dense",
}
# Config keys: ours -> theirs. Where a file has no value, that of BERT-base holds for both.
SAME = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps")  # fmt: skip
DROPOUT = {"hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}
CONFIG = {name: name for name in SAME} | DROPOUT
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
SEED = 0  # of the initial values of modules that a file does not have


class Source(NamedTuple):
    """The content of a directory."""

    task: str  # see `heads`
    label_info: dict[str, Any]  # of the task
    model: ModelConfig
    tokenizer: Tokenizer
    max_length: int  # tokens of a row
    params: Any  # nested dict of arrays, as in training
    initialised: list[str]  # modules that the file does not have
    ignored: list[str]  # tensors of another task's head
    origin: str  # the files of the weights
    left_out: list[str]  # tensors that the user left out


def read(
    directory: pathlib.Path,
    hidden_act: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, bool] | None = None,
    leave_out: Sequence[str] = (),
) -> Source:
    """Reads a directory as `save_pretrained` writes it, or one of Google's with a TensorFlow checkpoint.

    Args:
        hidden_act: overrules its config.
        task: whose head is read (default: that of its config's architecture).
        overrides: as in `heads.read_label_info`.
        leave_out: names of tensors that are not part of the network, or what they begin with before a dot.

    Raises:
        UserError: for a missing, broken or foreign file, and with a list of all tensors that do not fit.
    """
    google = directory / "bert_config.json"
    path = google if google.exists() else directory / "config.json"
    settings = read_json(path)
    model = read_config(settings, path, hidden_act)
    tokenizer, longest = read_vocabulary(directory)
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"{directory}: the vocabulary has {tokenizer.vocab_size} pieces and the config has "
            f"vocab_size={model.vocab_size}; they must be of one model."
        )
    found, origin = read_weights(directory)
    task = task or heads.detect_task(settings)
    tensors, left_out = _without(_canonical(found), leave_out, model, HEADS[task])
    label_info = heads.read_label_info(task, settings, tensors, overrides or {}, path)
    loaded = to_params(tensors, model, HEADS[task], heads.num_labels(task, label_info), directory)
    limit = model.max_position_embeddings
    return Source(task, label_info, model, tokenizer, min(longest or limit, limit), *loaded, origin, left_out)


def read_config(settings: dict[str, Any], path: pathlib.Path, hidden_act: str | None) -> ModelConfig:
    """Reads the content of the config at `path`.

    Raises:
        UserError: for a network that is not BERT, or an activation that is not known.
    """
    for key, ours in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (value := settings.get(key, ours)) != ours:
            raise UserError(f"{path}: {key}={value!r}; only {ours!r} can be imported.")
    theirs = str(settings.get("hidden_act", "gelu"))
    if hidden_act is None and theirs not in GELU:
        known = ", ".join(GELU)
        raise UserError(f"{path}: hidden_act={theirs!r} is not one of {known}; give --hidden_act.")
    values = {ours: settings[theirs] for ours, theirs in CONFIG.items() if theirs in settings}
    for name, value in values.items():
        if type(value) not in (int, type(getattr(ModelConfig, name))):
            raise UserError(f"{path}: {CONFIG[name]}={value!r} is not a number of that kind.")
    return ModelConfig(**values, hidden_act=hidden_act or GELU[theirs])


def to_params(
    tensors: dict[str, np.ndarray], model: ModelConfig, head: Head, num_labels: int, origin: pathlib.Path
) -> tuple[Any, list[str], list[str]]:
    """Makes parameters on one device from tensors by Hugging Face's names.

    Returns:
        The parameters in float32; modules that the file lacks and that have initial values; tensors left out.

    Raises:
        UserError: a list of all tensors that are missing, of another shape, or not known.
    """
    own = tuple(f"{name}." for name in head.names.values())
    foreign = tuple(prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in own))
    ignored = [name for name in tensors if name.startswith(foreign)]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    build, wrong = head.build(model, num_labels), []
    _, abstract = abstract_model(build)
    expected = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    parts = {path: _names(path, head, model.num_hidden_layers) for path in expected}
    for tied, original in TIED.items():  # copies, that older files leave out
        copy = tensors.pop(tied, None)
        if copy is not None and not np.array_equal(tensors.setdefault(original, copy), copy):
            wrong.append(f"{tied} is not tied to {original}")
    initialised = [
        module for module in head.optional
        if not any(name in tensors for path in parts if path.startswith(f"{module}/") for name in parts[path])
    ]  # fmt: skip
    arrays = {}
    for path, shape in expected.items():
        if path.startswith(tuple(f"{module}/" for module in initialised)):
            continue
        found = [(name, tensors.pop(name, None)) for name in parts[path]]
        one = shape[1:] if "/layers/" in path else shape
        if problems := _problems(found, one[::-1] if path.endswith("kernel") else one):
            wrong += problems
            continue
        values = [np.asarray(x, np.float32) for _, x in found]
        values = [x.T for x in values] if path.endswith("kernel") else values
        arrays[path] = np.stack(values) if "/layers/" in path else values[0]
    remedy = "" if wrong else f" To import the others, give {_leave_out_flag(tensors, parts)}."
    wrong += [f"{name} is not known" for name in tensors]
    if wrong:
        raise UserError(
            f"{origin}: the tensors are not those of config.json's BERT: {'; '.join(wrong)}.{remedy}"
        )
    return _filled(arrays, build, abstract), initialised, ignored


def from_params(params: Any, head: Head) -> dict[str, np.ndarray]:
    """Makes the tensors of its architecture by Hugging Face's names; `to_params` reads them back exactly."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        ours, array = path_name(path), np.asarray(leaf)
        if ours.startswith(f"{POOLER}/") and head.per_token:  # their heads of tokens have no pooler
            continue
        array = np.swapaxes(array, -1, -2) if ours.endswith("kernel") else array
        parts = array if "/layers/" in ours else array[None]
        for name, part in zip(_names(ours, head, len(parts)), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part)
    return tensors


def write_config(model: ModelConfig, pad_id: int, task: str, label_info: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the content of config.json."""
    return heads.write_settings(task, label_info) | {
        "model_type": "bert",
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[model.hidden_act],
        "pad_token_id": pad_id,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        **{theirs: getattr(model, ours) for ours, theirs in CONFIG.items()},
    }


def _names(path: str, head: Head, layers: int) -> list[str]:
    """Lists their names of one of our parameters: one name, or one for each layer where it is stacked."""
    module, leaf = path.rsplit("/", 1)
    name = f"{(ENCODER | head.names)[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    return [name.format(layer) for layer in range(layers)] if "{}" in name else [name]


def _without(
    tensors: dict[str, np.ndarray], prefixes: Sequence[str], model: ModelConfig, head: Head
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Leaves out tensors by name, or by what their names begin with before a dot.

    Returns:
        The other tensors, and the names of those left out.

    Raises:
        UserError: for a prefix that no tensor has, or that a tensor of the network has.
    """
    modules = {
        name.format(layer)
        for name in (ENCODER | head.names).values()
        for layer in range(model.num_hidden_layers)
    }
    left_out: dict[str, None] = {}
    for prefix in prefixes:
        begins = prefix.removesuffix("*").removesuffix(".")
        found = [name for name in tensors if name == begins or name.startswith(f"{begins}.")]
        if not found:
            raise UserError(f"--leave_out={prefix} is no tensor, nor the beginning of its name before a dot.")
        for name in found:
            if name in TIED or name.rpartition(".")[0] in modules:
                raise UserError(f"--leave_out={prefix} would leave out {name}, which the network needs.")
        left_out |= dict.fromkeys(found)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, [*left_out]


def _leave_out_flag(unknown: Iterable[str], parts: Mapping[str, list[str]]) -> str:
    """Writes the flag that leaves out tensors: by their beginnings, where no tensor of the network has it."""
    own = {name.partition(".")[0] for names in parts.values() for name in names}
    beginnings = [name if (begins := name.partition(".")[0]) in own else begins for name in unknown]
    return f"--leave_out={','.join(dict.fromkeys(beginnings))}"


def _canonical(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames tensors of old files: adds the prefix, LayerNorm has weight and bias, no buffers.

    DataParallel writes `module.` before every name.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    result = {}
    for name, tensor in tensors.items():
        name = f"bert.{name}" if name.startswith(("embeddings.", "encoder.", "pooler.")) else name
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name not in ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"):
            result[name] = tensor
    return result


def _problems(found: list[tuple[str, np.ndarray | None]], shape: tuple[int, ...]) -> list[str]:
    problems = []
    for name, tensor in found:
        if tensor is None:
            problems.append(f"{name} is missing")
        elif tensor.shape != shape:
            problems.append(f"{name} is {list(tensor.shape)} and must be {list(shape)}")
        elif not jnp.issubdtype(tensor.dtype, jnp.floating):
            problems.append(f"{name} is of type {tensor.dtype}")
    return problems


def _filled(arrays: dict[str, np.ndarray], build: Callable[[nnx.Rngs], nnx.Module], abstract: Any) -> Any:
    """Makes the tree of parameters, with initial values where there is no array."""
    if len(arrays) == len(jax.tree.leaves(abstract)):
        tree = with_shardings(abstract, first_device_mesh())
    else:  # compiling it takes most of the time
        tree = fresh_network(build, SEED)[1]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(arrays.get(path_name(path), leaf), leaf.sharding), tree
    )
