"""Opens a checkpoint as a network with its tokenizer on one device, whatever devices it was trained on."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.tokenizer_files import load_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.attention import kernel_of
from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.training import checkpoint, growing
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh
from bert_jax.training.step import TrainState, abstract_model, init_params, with_shardings

Build = Callable[[nnx.Rngs], nnx.Module]


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint whose files have been found and checked; its arrays are read by `network` or `params`.

    Attributes:
        folder: `…/checkpoints/STEP`.
        meta: step, config, versions, digests and what else the run saved there.
        model: the shape of its network.
        tokenizer: text to ids and back.
    """

    folder: epath.Path
    meta: dict[str, Any]
    model: ModelConfig
    tokenizer: Tokenizer

    @property
    def is_finetuned(self) -> bool:
        """Whether it has the head of a task instead of those of pretraining."""
        return "task" in self.meta["config"]

    def network(self, build: Build) -> tuple[nnx.GraphDef, Any]:
        """Builds the network; restores its parameters on this process's first device.

        `build` may make a part of the network, e.g. an encoder without heads.

        Raises:
            UserError: when the checkpoint is damaged.
        """
        structure, abstract = abstract_model(build)
        return structure, self.params(with_shardings(abstract, first_device_mesh()))

    def params(self, abstract: Any) -> Any:
        """Restores parameters with the shardings of `abstract`, ShapeDtypeStructs of all or some of them.

        Raises:
            UserError: when the checkpoint is damaged.
        """
        return checkpoint.restore(self.folder, self.meta, abstract)

    def grown_params(self, build: Build, model: ModelConfig, abstract: Any, growth: str) -> Any:
        """Makes the parameters of a larger network, see `growing`.

        Args:
            build: the checkpoint's network.
            model: the larger network.
            abstract: its parameters as ShapeDtypeStructs with shardings.
            growth: as in `growing.grow`.

        Raises:
            UserError: when the checkpoint is damaged.
        """
        everywhere = NamedSharding(jax.tree.leaves(abstract)[0].sharding.mesh, PartitionSpec())
        small = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            abstract_model(build)[1],
        )
        sharded = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        grow = functools.partial(growing.grow, small=self.model, large=model, growth=growth)
        return jax.jit(grow, out_shardings=sharded)(self.params(small))

    def check_network(self, model: ModelConfig, growth: str = "none") -> None:
        """Raises UserError when the checkpoint holds another network than `model`; dropout may differ.

        With `growth` sizes may differ too, where `growing.grow` makes the parameters of `model`. A
        fine-tuned checkpoint is another one: it has no heads of pretraining.
        """
        if self.is_finetuned:
            base = self.meta["config"].get("init_from")
            raise UserError(
                f"checkpoint {self.folder} is fine-tuned and has no heads of pretraining; give one of "
                f"pretraining{f', like {base}, from which it was made' if base else ''}."
            )
        differing = {
            name: f"model.{name} is {getattr(self.model, name)!r} there and {value!r} here"
            for name, value in dataclasses.asdict(model).items()
            if getattr(self.model, name) != value and "dropout" not in name and "initializer" not in name
        }
        others = [stated for name, stated in differing.items() if name not in growing.SIZES]
        obstacles = others or growing.smaller_sizes(self.model, model)
        if growth != "none" and obstacles:
            needs = "networks that differ in size alone" if others else "a network that is nowhere smaller"
            raise UserError(
                f"init_growth={growth} needs {needs}; of checkpoint {self.folder} {'; '.join(obstacles)}. "
                "Take its values or another checkpoint."
            )
        if growth == "preserve" and model.tie_word_embeddings and not model.head_transform:
            raise UserError(
                "init_growth=preserve needs model.head_transform=True or model.tie_word_embeddings=False; "
                "use init_growth=tile."
            )
        if growth == "none" and differing:
            larger = "" if obstacles else ", or grow this network from it with init_growth=preserve"
            raise UserError(
                f"checkpoint {self.folder} holds another network: {'; '.join(differing.values())}. Take its "
                f"values or another checkpoint{larger}."
            )


def open_checkpoint(path: epath.PathLike, key: str = "checkpoint") -> OpenedCheckpoint:
    """Finds a checkpoint (see `checkpoint.find_checkpoint`) and checks every file of it.

    Args:
        path: a run's folder or one of its `checkpoints/STEP`.
        key: the flag or config key that `path` was given with, for errors.

    Raises:
        UserError: when there is no checkpoint, it is damaged, a newer version of bert_jax wrote it, or its
            vocabulary is not that of its network.
    """
    folder, meta = checkpoint.find_verified(path, key)
    model = ModelConfig.from_checkpoint(meta["config"]["model"], folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"{key}: the vocabulary of {folder} has {tokenizer.vocab_size} pieces and its network "
            f"model.vocab_size={model.vocab_size}; they must be of one model."
        )
    return OpenedCheckpoint(folder, meta, model, tokenizer)


def fresh_network(build: Build, seed: int) -> tuple[nnx.GraphDef, Any]:
    """Builds a network with random parameters on this process's first device."""
    structure, abstract = abstract_model(build)
    placed = TrainState(jnp.int32(0), with_shardings(abstract, first_device_mesh()), ())
    return structure, init_params(build, placed, seed)


def first_device_compute(dtype: str = "float32") -> Compute:
    """How networks compute on this process's first device, with activations of `dtype`."""
    return Compute(jnp.dtype(dtype), attention=kernel_of(jax.local_devices()[0].platform))


def first_device_mesh() -> Mesh:
    """Makes a mesh of this process's first device."""
    return make_mesh(MeshConfig(), jax.local_devices()[:1])
