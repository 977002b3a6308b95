"""Writes heads.npz: what Hugging Face's heads of fine-tuning compute over the encoder of huggingface.npz.

The tests read only the .npz. To make it again, in the environment of make_huggingface.py:

    python tests/parity/make_heads.py

Everything is computed in float64, of the batch in huggingface.npz, and stored as float32.

Keys, for each TASK of ours:
    TASK/classifier.weight, TASK/classifier.bias (of question answering qa_outputs)   float32 [C, D], [C]
    TASK/logits     float32 [B, C], or of every token [B, T, C]; at padding they mean nothing
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).parent
ARCHITECTURES = {
    "classification": (transformers.BertForSequenceClassification, 3),
    "regression": (transformers.BertForSequenceClassification, 1),
    "question_answering": (transformers.BertForQuestionAnswering, 2),
    "token_classification": (transformers.BertForTokenClassification, 5),
}

with np.load(FOLDER / "huggingface.npz") as file:
    reference = dict(file)
encoder = {
    name.removeprefix("weights/"): torch.from_numpy(weights).double()
    for name, weights in reference.items()
    if name.startswith("weights/bert.")
}
inputs = {
    name: torch.from_numpy(reference[name]).long()
    for name in ("input_ids", "token_type_ids", "attention_mask")
}
rng, arrays = np.random.default_rng(1), {}
for task, (architecture, num_labels) in ARCHITECTURES.items():
    settings = json.loads(str(reference["config"])) | {"num_labels": num_labels}
    config = transformers.BertConfig(**settings, attn_implementation="eager")
    model = architecture(config).eval().double()
    head = {
        name: (0.3 * rng.standard_normal(parameter.shape)).astype(np.float32)
        for name, parameter in model.named_parameters()
        if not name.startswith("bert.")
    }
    known = model.state_dict().keys()
    weights = {name: tensor for name, tensor in encoder.items() if name in known}
    model.load_state_dict(weights | {name: torch.from_numpy(x).double() for name, x in head.items()})
    with torch.no_grad():
        logits = torch.stack(model(**inputs).to_tuple(), -1).squeeze(-1)  # of answers: start, end
    arrays |= {f"{task}/{name}": x for name, x in head.items()}
    arrays[f"{task}/logits"] = logits.numpy().astype(np.float32)
np.savez_compressed(FOLDER / "heads.npz", **arrays)
for key, value in arrays.items():
    print(f"{key:45} {value.dtype!s:8} {list(value.shape)}")
