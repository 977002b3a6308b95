"""Parameters from the tensors of a file of a family of encoders (see `Family`), and back."""

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.interop.family import Family, Place
from bert_jax.interop.heads import POOLER, Head
from bert_jax.model.config import ModelConfig
from bert_jax.training.mesh import path_name
from bert_jax.training.opening import first_device_mesh, fresh_network
from bert_jax.training.step import abstract_model, with_shardings

BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq", "freqs_cis")  # no parameters, in some files
SEED = 0  # of the initial values of modules that a file does not have
Tensors = dict[str, np.ndarray]


class Network(NamedTuple):
    """A network of a family with a head, and where the tensors of its modules are."""

    family: Family
    model: ModelConfig
    head: Head
    num_labels: int

    @property
    def places(self) -> dict[str, Place]:
        return {**self.family.places(self.model), **self.head.places(self.family)}

    @property
    def build(self) -> Callable[[nnx.Rngs], nnx.Module]:
        return self.head.build(self.model, self.num_labels)

    def pieces(self, path: str) -> list[tuple[str, np.ndarray | None]]:
        """Returns the tensors of one of our parameters, of each layer where it is stacked, and their rows."""
        module, leaf = path.rsplit("/", 1)
        place, kind = self.places[module], "bias" if leaf == "bias" else "weight"
        layers = self.model.num_hidden_layers
        numbers = range(layers) if "/layers/" in path else range(1)
        return [(f"{place.of_layer(number, layers)}.{kind}", place.rows) for number in numbers]


def to_params(tensors: Tensors, network: Network, origin: pathlib.Path) -> tuple[Any, list[str], list[str]]:
    """Makes parameters on one device from tensors by their names in Transformers.

    Returns:
        The parameters in float32; modules that the file lacks and that have initial values; tensors left out.

    Raises:
        UserError: a list of all tensors that are missing, of another shape, or not known.
    """
    family = network.family
    _, abstract = abstract_model(network.build)
    expected = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    pieces = {path: network.pieces(path) for path in expected}
    own = {name for names in pieces.values() for name, _ in names}
    foreign = tuple(head for head in family.heads if not any(name.startswith(head) for name in own))
    lacking = _lacking(network, pieces, tensors)
    initialised, of_these = [*lacking], set().union(*lacking.values())
    ignored = [name for name in tensors if name.startswith(foreign) or name in of_these]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    wrong = _untied(tensors, network)
    left = tuple(f"{module}/" for module in initialised)
    kept = {path: shape for path, shape in expected.items() if not path.startswith(left)}
    shapes = _shapes(kept, pieces)
    wrong += _problems([(name, tensors.get(name), shape) for name, shape in shapes.items()])
    unknown = [name for name in tensors if name not in shapes]
    remedy = (
        "" if wrong or not unknown else f" To import the others, give {_leave_out_flag(unknown, shapes)}."
    )
    wrong += [f"{name} is not known" for name in unknown]
    if wrong:
        raise UserError(
            f"{origin}: the tensors are not those of config.json's {family.name}: {'; '.join(wrong)}.{remedy}"
        )
    arrays = {path: _assembled(path, pieces[path], tensors) for path in kept}
    return _filled(arrays, network.build, abstract), initialised, ignored


def from_params(params: Any, network: Network) -> Tensors:
    """Makes the tensors of its architecture by their names there; `to_params` reads them back exactly."""
    arrays = {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    if network.head.per_token:  # their heads of tokens have no pooler
        arrays = {path: array for path, array in arrays.items() if not path.startswith(f"{POOLER}/")}
    pieces = {path: network.pieces(path) for path in arrays}
    shapes = _shapes({path: array.shape for path, array in arrays.items()}, pieces)
    tensors = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
    for path, array in arrays.items():
        array = np.swapaxes(array, -1, -2) if path.endswith("kernel") else array
        parts = array if "/layers/" in path else array[None]
        for (name, rows), part in zip(pieces[path], parts, strict=True):
            tensors[name][... if rows is None else rows] = part
    return tensors


def canonical(tensors: Tensors, family: Family) -> Tensors:
    """Renames the tensors of old files, and of files of the encoder alone; leaves out what is no parameter.

    DataParallel writes `module.` before every name; LayerNorm once had gamma and beta.
    """
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    result = {}
    for name, tensor in tensors.items():
        name = f"{family.base}{name}" if name.startswith(family.bare) else name
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not name.endswith(BUFFERS):
            result[name] = tensor
    return result


def without(tensors: Tensors, prefixes: Sequence[str], network: Network) -> tuple[Tensors, list[str]]:
    """Leaves out tensors by name, or by what their names begin with before a dot.

    Returns:
        The other tensors, and the names of those left out.

    Raises:
        UserError: for a prefix that no tensor has, or that a tensor of the network has.
    """
    layers = range(network.model.num_hidden_layers)
    modules = {place.of_layer(n, len(layers)) for place in network.places.values() for n in layers}
    left_out: dict[str, None] = {}
    for prefix in prefixes:
        begins = prefix.removesuffix("*").removesuffix(".")
        found = [name for name in tensors if name == begins or name.startswith(f"{begins}.")]
        if not found:
            raise UserError(f"--leave_out={prefix} is no tensor, nor the beginning of its name before a dot.")
        for name in found:
            if name in network.family.tied or name.rpartition(".")[0] in modules:
                raise UserError(f"--leave_out={prefix} would leave out {name}, which the network needs.")
        left_out |= dict.fromkeys(found)
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, [*left_out]


def _untied(tensors: Tensors, network: Network) -> list[str]:
    """Takes copies of tied tensors out, which some files have; returns what is wrong with them."""
    wrong = []
    for copy, original in network.family.tied.items() if network.model.tie_word_embeddings else ():
        found = tensors.pop(copy, None)
        if found is not None and not np.array_equal(tensors.setdefault(original, found), found):
            wrong.append(f"{copy} is not tied to {original}")
    return wrong


def _lacking(
    network: Network, pieces: Mapping[str, list[tuple[str, np.ndarray | None]]], tensors: Tensors
) -> dict[str, set[str]]:
    """Finds the optional modules that a file lacks, and the names of their tensors.

    A name that the family's fine-tuned heads have too (`head.dense` of ModernBERT) proves nothing.
    """
    shared, lacking = {place.module for place in network.family.task_places.values()}, {}
    for module in network.head.optional:
        names = {name for path in pieces if path.startswith(f"{module}/") for name, _ in pieces[path]}
        own = {name for name in names if name.rpartition(".")[0] not in shared} or names
        if names and not own & tensors.keys():
            lacking[module] = names
    return lacking


def _shapes(
    arrays: Mapping[str, tuple[int, ...]], pieces: Mapping[str, list[tuple[str, np.ndarray | None]]]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name, from those of our parameters; pieces of one are added up."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, shape in arrays.items():
        one = shape[1:] if "/layers/" in path else shape
        one = one[::-1] if path.endswith("kernel") else one
        for name, rows in pieces[path]:
            before = shapes[name][0] if rows is not None and name in shapes else 0
            shapes[name] = (before + one[0], *one[1:])
    return shapes


def _assembled(path: str, pieces: Sequence[tuple[str, np.ndarray | None]], tensors: Tensors) -> np.ndarray:
    """Makes one of our parameters of its tensors, stacked where it is of all layers."""
    parts = [
        np.asarray(tensors[name] if rows is None else tensors[name][rows], np.float32)
        for name, rows in pieces
    ]
    parts = [part.T for part in parts] if path.endswith("kernel") else parts
    return np.stack(parts) if "/layers/" in path else parts[0]


def _leave_out_flag(unknown: Iterable[str], own: Iterable[str]) -> str:
    """Writes the flag that leaves out tensors: by their beginnings, where no tensor of the network has it."""
    beginnings = {name.partition(".")[0] for name in own}
    flags = [name if (begins := name.partition(".")[0]) in beginnings else begins for name in unknown]
    return f"--leave_out={','.join(dict.fromkeys(flags))}"


def _problems(found: Iterable[tuple[str, np.ndarray | None, tuple[int, ...]]]) -> list[str]:
    problems = []
    for name, tensor, shape in found:
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
