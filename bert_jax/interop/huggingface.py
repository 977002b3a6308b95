"""Hugging Face's BERT: names and layout of its tensors, its config.json, its vocabularies; both ways.

A torch Linear keeps its weight as [out, in], we keep kernels as [in, out]; its layers are numbered, ours are
stacked along a leading axis.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
from flax import nnx

from bert_jax.data.tokenizer import SentencePieceTokenizer, Tokenizer, WordPieceTokenizer
from bert_jax.errors import UserError
from bert_jax.interop import pytorch, tensorflow
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh, path_name
from bert_jax.training.step import TrainState, abstract_model, init_params, with_shardings

MODULES = {
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
    "encoder/pooler": "bert.pooler.dense",
    "masked_lm": "cls.predictions",
    "masked_lm/transform": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "next_sentence": "cls.seq_relationship",
}
OPTIONAL = ("encoder/pooler", "masked_lm", "next_sentence")  # not every architecture has them
TASK_HEAD = "classifier."  # of BertForSequenceClassification; pretraining has no place for it
# Config keys: ours -> theirs. What a file leaves out is as in BERT-base, there as here.
CONFIG = {
    "num_hidden_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
}
GELU = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
TOKENIZER_DEFAULTS = {"tokenize_chinese_chars": True, "strip_accents": None}
SEED = 0  # of heads that a file does not have


class Source(NamedTuple):
    """What was read from a directory; `params` is a tree as training has it."""

    model: ModelConfig
    tokenizer: Tokenizer
    max_length: int  # tokens of a row
    params: Any
    initialised: list[str]  # heads that the file does not have
    ignored: list[str]  # tensors that pretraining has no place for


def read(directory: pathlib.Path, hidden_act: str | None = None) -> Source:
    """Reads a directory as `save_pretrained` writes it, or one of Google's with a `bert_model.ckpt.index`.

    Raises:
        UserError: for a missing, broken or foreign file, and with a list of all tensors that do not fit.
    """
    google = directory / "bert_config.json"
    settings = read_json(google if google.exists() else directory / "config.json")
    model = read_config(settings, directory, hidden_act)
    tokenizer, longest = read_vocabulary(directory)
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"{directory}: the vocabulary has {tokenizer.vocab_size} pieces and the config says "
            f"vocab_size={model.vocab_size}; they must be of one model."
        )
    params, initialised, ignored = to_params(read_tensors(directory), model, directory)
    limit = model.max_position_embeddings
    return Source(model, tokenizer, min(longest or limit, limit), params, initialised, ignored)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object; raises UserError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; --input is a folder of Hugging Face files."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def read_config(settings: dict[str, Any], directory: pathlib.Path, hidden_act: str | None) -> ModelConfig:
    """A config.json as ours.

    Raises:
        UserError: for a network that is not BERT, or an activation that is not known.
    """
    for key, ours in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (value := settings.get(key, ours)) != ours:
            raise UserError(f"{directory}/config.json: {key}={value!r}; only {ours!r} can be imported.")
    theirs = str(settings.get("hidden_act", "gelu"))
    if hidden_act is None and theirs not in GELU:
        known = ", ".join(GELU)
        raise UserError(
            f"{directory}/config.json: hidden_act={theirs!r} is not of {known}; give --hidden_act."
        )
    values = {ours: settings[theirs] for ours, theirs in CONFIG.items() if theirs in settings}
    for name, value in values.items():
        if type(value) not in (int, type(getattr(ModelConfig, name))):
            raise UserError(
                f"{directory}/config.json: {CONFIG[name]}={value!r} is not a number of that kind."
            )
    return ModelConfig(**values, hidden_act=hidden_act or GELU[theirs])


def read_tensors(directory: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors by name, of the first kind of file that is there; raises UserError without any."""
    if (path := directory / "model.safetensors").exists():
        try:
            return {name: np.asarray(x) for name, x in safetensors.flax.load_file(path).items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error}); fetch it again.") from None
    if (path := directory / "pytorch_model.bin").exists():
        return pytorch.read_tensors(path)
    for folder in (directory, directory / "variables"):
        if indices := sorted(folder.glob("*.index")):
            return tensorflow.read_bert(indices[0])
    raise UserError(
        f"{directory} holds neither model.safetensors nor pytorch_model.bin nor a TensorFlow checkpoint; "
        "shards cannot be read."
    )


def to_params(
    tensors: dict[str, np.ndarray], model: ModelConfig, origin: pathlib.Path
) -> tuple[Any, list[str], list[str]]:
    """Parameters on one device from tensors by Hugging Face's names, with or without the prefix `bert.`.

    Returns:
        The parameters in float32; heads that were missing and have initial values; names of what is left out.

    Raises:
        UserError: that lists all tensors which are missing, of another shape, or not known.
    """
    tensors, wrong = _canonical(tensors), []
    _, abstract = abstract_model(lambda rngs: BertForPreTraining(model, rngs))
    expected = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    parts = {path: _names(path, model.num_hidden_layers) for path in expected}
    table, bias = parts["encoder/embeddings/token/embedding"][0], parts["masked_lm/bias"][0]
    for tied, original in (("weight", table), ("bias", bias)):  # copies, that older files leave out
        copy = tensors.pop(f"cls.predictions.decoder.{tied}", None)
        if copy is not None and not np.array_equal(tensors.setdefault(original, copy), copy):
            wrong.append(f"cls.predictions.decoder.{tied} is not tied to {original}")
    initialised = [
        head for head in OPTIONAL
        if not any(name in tensors for path in parts if path.startswith(f"{head}/") for name in parts[path])
    ]  # fmt: skip
    arrays = {}
    for path, shape in expected.items():
        if path.startswith(tuple(f"{head}/" for head in initialised)):
            continue
        found = [(name, tensors.pop(name, None)) for name in parts[path]]
        one = shape[1:] if "/layers/" in path else shape
        if problems := _problems(found, one[::-1] if path.endswith("kernel") else one):
            wrong += problems
            continue
        values = [np.asarray(x, np.float32) for _, x in found]
        values = [x.T for x in values] if path.endswith("kernel") else values
        arrays[path] = np.stack(values) if "/layers/" in path else values[0]
    ignored = [name for name in tensors if name.startswith(TASK_HEAD)]
    wrong += [f"{name} is not known" for name in tensors if name not in ignored]
    if wrong:
        raise UserError(f"{origin}: the tensors are not those of config.json's BERT: {'; '.join(wrong)}.")
    return _filled(arrays, model, abstract), initialised, ignored


def from_params(params: Any) -> dict[str, np.ndarray]:
    """Tensors by Hugging Face's names: what `to_params` reads, bit for bit."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        ours, array = path_name(path), np.asarray(leaf)
        array = np.swapaxes(array, -1, -2) if ours.endswith("kernel") else array
        parts = array if "/layers/" in ours else array[None]
        for name, part in zip(_names(ours, len(parts)), parts, strict=True):
            tensors[name] = np.ascontiguousarray(part)
    return tensors


def write_config(model: ModelConfig, pad_id: int) -> dict[str, Any]:
    """What config.json is to hold."""
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[model.hidden_act],
        "pad_token_id": pad_id,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
    } | {theirs: getattr(model, ours) for ours, theirs in CONFIG.items()}


def read_vocabulary(directory: pathlib.Path) -> tuple[Tokenizer, int | None]:
    """The tokenizer of a directory, and how many tokens it lets through if it says so.

    A sentencepiece.model is what our own export puts beside the tokenizer.json made from it.

    Raises:
        UserError: if there is none, or it normalises as ours cannot.
    """
    path = directory / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    longest = settings.get("model_max_length")
    longest = longest if isinstance(longest, int) and longest >= 8 else None  # 10^30 says: no limit
    if (path := directory / SentencePieceTokenizer.FILE).exists():
        return SentencePieceTokenizer(path.read_bytes(), str(path)), longest
    if (path := directory / "vocab.txt").exists():
        try:
            vocabulary = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not a UTF-8 text file ({error}).") from None
    elif (path := directory / "tokenizer.json").exists():
        content = read_json(path)
        try:
            kind, pieces = content["model"]["type"], content["model"]["vocab"]
            vocabulary = sorted(pieces, key=pieces.__getitem__) if kind == "WordPiece" else []
            settings = {"do_lower_case": (content["normalizer"] or {}).get("lowercase")} | settings
        except (KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not a file of the tokenizers library.") from None
        if kind != "WordPiece":
            raise UserError(f"{path} is a tokenizer of type {kind!r}; only WordPiece can be imported.")
    else:
        raise UserError(f"{directory} holds no vocabulary: neither vocab.txt nor tokenizer.json.")
    if (lowercase := settings.get("do_lower_case")) is None:  # Google's checkpoints say it in their name only
        lowercase = all(piece == piece.lower() for piece in vocabulary if not piece.startswith("["))
    for key, default in TOKENIZER_DEFAULTS.items():
        if (value := settings.get(key, default)) not in (default, lowercase if value is not None else None):
            raise UserError(f"{directory}/tokenizer_config.json: {key}={value} cannot be honoured.")
    return WordPieceTokenizer(vocabulary, lowercase, str(path)), longest


def _names(path: str, layers: int) -> list[str]:
    """Their name of one of our parameters: one for each layer where it is stacked."""
    module, leaf = path.rsplit("/", 1)
    name = f"{MODULES[module]}.{'bias' if leaf == 'bias' else 'weight'}"
    return [name.format(layer) for layer in range(layers)] if "{}" in name else [name]


def _canonical(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names as of today: with prefix, and LayerNorm as weight and bias; without buffers."""
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


def _filled(arrays: dict[str, np.ndarray], model: ModelConfig, abstract: Any) -> Any:
    """The tree of parameters, with initial values where there is no array."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return BertForPreTraining(model, rngs)

    placed = with_shardings(abstract, make_mesh(MeshConfig(), jax.local_devices()[:1]))
    initial = init_params(build, TrainState(jnp.int32(0), placed, ()), SEED)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.device_put(arrays.get(path_name(path), leaf), leaf.sharding), initial
    )
