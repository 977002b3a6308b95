"""Hugging Face's names and layout of BertForPreTraining's parameters -> ours."""

import numpy as np

PLAIN = {
    "encoder/embeddings/token/embedding": "bert.embeddings.word_embeddings.weight",
    "encoder/embeddings/position/embedding": "bert.embeddings.position_embeddings.weight",
    "encoder/embeddings/segment/embedding": "bert.embeddings.token_type_embeddings.weight",
    "encoder/embeddings/norm": "bert.embeddings.LayerNorm",
    "encoder/pooler": "bert.pooler.dense",
    "masked_lm/transform": "cls.predictions.transform.dense",
    "masked_lm/norm": "cls.predictions.transform.LayerNorm",
    "masked_lm/bias": "cls.predictions.bias",
    "next_sentence": "cls.seq_relationship",
}
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def to_params(arrays: dict[str, np.ndarray], layers: int, leading: int = 0) -> dict:
    """Nested parameters of ours from arrays by Hugging Face's names.

    `leading` axes of the arrays (e.g. steps) stay in front; a torch Linear's weight is [out, in].
    """
    flat = {}

    def put(ours: str, theirs: str, fetch) -> None:
        if ours.endswith(("embedding", "masked_lm/bias")):
            flat[ours] = fetch(theirs)
        elif "norm" in ours:
            flat[f"{ours}/scale"], flat[f"{ours}/bias"] = fetch(f"{theirs}.weight"), fetch(f"{theirs}.bias")
        else:
            flat[f"{ours}/kernel"] = np.swapaxes(fetch(f"{theirs}.weight"), -1, -2)
            flat[f"{ours}/bias"] = fetch(f"{theirs}.bias")

    def stacked(leaf: str) -> np.ndarray:
        return np.stack([arrays[f"bert.encoder.layer.{i}.{leaf}"] for i in range(layers)], axis=leading)

    for ours, theirs in PLAIN.items():
        put(ours, theirs, arrays.__getitem__)
    for ours, theirs in LAYER.items():
        put(f"encoder/layers/{ours}", theirs, stacked)
    params: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return params
