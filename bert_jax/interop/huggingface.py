"""Reads and writes directories as Transformers has them: config.json, weights and vocabulary."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.interop import heads
from bert_jax.interop.directory import read_json
from bert_jax.interop.families import FAMILIES, family_of
from bert_jax.interop.family import THEIRS, Family
from bert_jax.interop.heads import HEADS
from bert_jax.interop.tensors import Network, canonical, to_params, without
from bert_jax.interop.vocabulary import read_vocabulary
from bert_jax.interop.weights import read_weights
from bert_jax.model.config import ModelConfig


class Source(NamedTuple):
    """The content of a directory."""

    family: Family
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
    architecture: str | None  # that its config names


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
    family, model = read_config(settings, path, hidden_act)
    tokenizer, longest = read_vocabulary(directory)
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"{directory}: the vocabulary has {tokenizer.vocab_size} pieces and the config has "
            f"vocab_size={model.vocab_size}; they must be of one model."
        )
    found, origin = read_weights(directory)
    task = task or heads.detect_task(settings, family)
    try:
        HEADS[task].check(family)
    except UserError as error:
        raise UserError(f"{path}: {error} --task=none imports the encoder alone.") from None
    tensors = canonical(found, family)
    label_info = heads.read_label_info(task, settings, tensors, overrides or {}, path)
    network = Network(family, model, HEADS[task], heads.num_labels(task, label_info))
    tensors, left_out = without(tensors, leave_out, network)
    loaded = to_params(tensors, network, directory)
    limit = model.max_position_embeddings
    length = min(longest or limit, limit)
    architecture = heads.architecture_of(settings)
    return Source(family, task, label_info, model, tokenizer, length, *loaded, origin, left_out, architecture)


def read_config(
    settings: dict[str, Any], path: pathlib.Path, hidden_act: str | None
) -> tuple[Family, ModelConfig]:
    """Reads the content of the config at `path`.

    Raises:
        UserError: for a network of no known family, or an activation that is not known.
    """
    name = settings.get("model_type", "bert")
    if name not in FAMILIES:
        architecture = heads.architecture_of(settings)
        named = f" ({architecture})" if architecture else ""
        raise UserError(f"{path}: model_type={name!r}{named}; only {', '.join(FAMILIES)} can be imported.")
    if hidden_act:
        keys = ("hidden_act", "hidden_activation", "classifier_activation")
        settings = settings | dict.fromkeys(keys, THEIRS[hidden_act])
    return FAMILIES[name], ModelConfig(**FAMILIES[name].read(settings, path))


def write_config(
    model: ModelConfig, tokenizer: Tokenizer, task: str, label_info: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the content of config.json; raises UserError if the network is of no family."""
    family = family_of(model)
    return heads.write_settings(task, label_info, family) | {
        "model_type": family.model_type,
        **{key: getattr(tokenizer, name) for key, name in family.special_ids.items()},
        "torch_dtype": "float32",
        **family.write(model),
    }


def exports_as(model: ModelConfig, task: str = heads.PRETRAINING) -> str:
    """Returns a line for people: as what `export` can write a network, or which settings stand in the way."""
    try:
        family = family_of(model)
        HEADS[task].check(family)
    except UserError as error:
        return str(error)
    return f"exports as {HEADS[task].architecture(family)}{f', for {family.code}' if family.code else ''}"
