"""BERT as Transformers has it (Devlin et al., 2019)."""

import pathlib

from bert_jax.errors import UserError
from bert_jax.interop.family import (
    ANSWERS,
    SEQUENCES,
    SIZES,
    THEIRS,
    TOKENS,
    Family,
    Place,
    Settings,
    activation,
    numbers,
)
from bert_jax.model.config import ModelConfig

BERT_NAMES = {name: name for name in (*SIZES, "intermediate_size", "max_position_embeddings",
                                      "type_vocab_size", "layer_norm_eps")} | {
    "hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"
}  # fmt: skip


def bert_places(_: ModelConfig) -> dict[str, Place]:
    """Returns the places of BertForPreTraining."""
    layer = "bert.encoder.layer.{}"
    return {
        "encoder/embeddings/token": Place("bert.embeddings.word_embeddings"),
        "encoder/embeddings/position": Place("bert.embeddings.position_embeddings"),
        "encoder/embeddings/segment": Place("bert.embeddings.token_type_embeddings"),
        "encoder/embeddings/norm": Place("bert.embeddings.LayerNorm"),
        "encoder/layers/attention/query": Place(f"{layer}.attention.self.query"),
        "encoder/layers/attention/key": Place(f"{layer}.attention.self.key"),
        "encoder/layers/attention/value": Place(f"{layer}.attention.self.value"),
        "encoder/layers/attention/output": Place(f"{layer}.attention.output.dense"),
        "encoder/layers/attention_norm": Place(f"{layer}.attention.output.LayerNorm"),
        "encoder/layers/intermediate": Place(f"{layer}.intermediate.dense"),
        "encoder/layers/output": Place(f"{layer}.output.dense"),
        "encoder/layers/output_norm": Place(f"{layer}.output.LayerNorm"),
        "encoder/pooler": Place("bert.pooler.dense"),
        "masked_lm": Place("cls.predictions"),
        "masked_lm/transform": Place("cls.predictions.transform.dense"),
        "masked_lm/norm": Place("cls.predictions.transform.LayerNorm"),
        "next_sentence": Place("cls.seq_relationship"),
    }


def read_bert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of BERT; where a file has no value, that of BERT-base holds for both."""
    for key, ours in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (value := settings.get(key, ours)) != ours:
            raise UserError(f"{path}: {key}={value!r}; only {ours!r} can be imported.")
    hidden_act = activation(settings, "hidden_act", "gelu", path)
    return numbers(settings, BERT_NAMES, path) | {"hidden_act": hidden_act}


def write_bert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in BERT_NAMES.items()} | {
        "hidden_act": THEIRS[model.hidden_act],
        "position_embedding_type": "absolute",
    }


TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
BERT = Family(
    "BERT",
    "bert",
    "Bert",
    bert_places,
    TIED,
    base="bert.",
    bare=("embeddings.", "encoder.", "pooler."),
    heads=("cls.", "classifier.", "qa_outputs."),
    read=read_bert,
    write=write_bert,
    kinds=(SEQUENCES, TOKENS, ANSWERS),
    masked_lm="ForPreTraining",
)
