"""Writes modern_heads.npz: what Transformers' fine-tuned heads compute over the encoders of modern.npz.

The tests read only the .npz. To make it again, in the environment of make_modern.py:

    python tests/parity/make_modern_heads.py

Everything is computed in float64, of the batch of 40 tokens in modern.npz, and stored as float32.

Keys, for each FAMILY and TASK of ours that Transformers has:
    FAMILY/TASK/weights/NAME    of the head alone
    FAMILY/TASK/logits/POOLING  float32 [B, C] with `classifier_pooling` as config.json has it
    FAMILY/TASK/logits          float32 [B, T, C], of every token; at padding they mean nothing
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
LABELS = {"classification": 3, "regression": 1, "question_answering": 2, "token_classification": 5}
POOLINGS = {"modernbert": ("cls", "mean"), "eurobert": ("bos", "mean", "late")}
ARCHITECTURES = {
    ("modernbert", "classification"): transformers.ModernBertForSequenceClassification,
    ("modernbert", "regression"): transformers.ModernBertForSequenceClassification,
    ("modernbert", "question_answering"): transformers.ModernBertForQuestionAnswering,
    ("modernbert", "token_classification"): transformers.ModernBertForTokenClassification,
    ("eurobert", "classification"): transformers.EuroBertForSequenceClassification,
    ("eurobert", "regression"): transformers.EuroBertForSequenceClassification,
    ("eurobert", "token_classification"): transformers.EuroBertForTokenClassification,
}


def make_head(model, encoder: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gives a network the weights of an encoder and random ones for the rest, which it returns."""
    head = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("model."):
            noise = rng.standard_normal(parameter.shape)
            head[name] = (1.0 + 0.2 * noise if "norm" in name else 0.3 * noise).astype(np.float32)
    weights = {name: torch.from_numpy(array).double() for name, array in (encoder | head).items()}
    model.load_state_dict(weights)
    return head


def reference(family: str, task: str, modern: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    prefix, rng = f"{family}/weights/", np.random.default_rng(2)
    encoder = {
        name.removeprefix(prefix): array
        for name, array in modern.items()
        if name.startswith(f"{prefix}model.")
    }
    inputs = {
        name: torch.from_numpy(modern[f"{family}/40/{name}"]).long()
        for name in ("input_ids", "attention_mask")
    }
    kind, labels = ARCHITECTURES[family, task], [f"LABEL_{number}" for number in range(LABELS[task])]
    settings = json.loads(str(modern[f"{family}/config"])) | {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    config = kind.config_class(**settings, attn_implementation="eager")
    model = kind(config).eval().double()
    arrays = {f"weights/{name}": array for name, array in make_head(model, encoder, rng).items()}
    for pooling in POOLINGS[family] if "Sequence" in kind.__name__ else ("",):
        if pooling:  # EuroBERT keeps a copy of its own
            model.config.classifier_pooling = model.classifier_pooling = pooling
        with torch.no_grad():
            logits = torch.stack(model(**inputs).to_tuple(), -1).squeeze(-1)  # of answers: start, end
        arrays[f"logits/{pooling}".rstrip("/")] = logits.numpy().astype(np.float32)
    return {f"{family}/{task}/{name}": array for name, array in arrays.items()}


if __name__ == "__main__":
    with np.load(FOLDER / "modern.npz") as file:
        modern = dict(file)
    arrays: dict[str, np.ndarray] = {}
    for family, task in ARCHITECTURES:
        arrays |= reference(family, task, modern)
    np.savez_compressed(FOLDER / "modern_heads.npz", **arrays)
    for key, value in arrays.items():
        print(f"{key:60} {value.dtype!s:8} {list(value.shape)}")
