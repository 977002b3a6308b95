"""Writes modern.npz: what Transformers computes for small ModernBertForMaskedLM and EuroBertForMaskedLM.

The tests read only the .npz. To make it again, in an environment of its own:

    pip install torch==2.14.0 transformers==5.24.0
    python tests/parity/make_modern.py

Everything is computed in float64 from random weights that are exact in float32, and stored as float32.
ModernBERT has five layers, of which the first and the fourth are global, and a window of 128 tokens, which a
row of 300 exceeds and one of 40 does not.

Keys, FAMILY being modernbert or eurobert (a Linear's weight is [out, in]; values at padding mean nothing):
    FAMILY/config                     JSON: config.json as this version writes it
    FAMILY/weights/NAME               every parameter
    FAMILY/T/input_ids, attention_mask, labels   int32 [B, T] for T of 40 and 300; -100: nothing is predicted
    FAMILY/T/hidden_states            float32 [L + 1, B, T, D]; for 300 the last alone, [1, B, T, D]
    FAMILY/T/logits                   float32 [M, V] at the labelled positions, in order
    FAMILY/T/loss                     float64
    FAMILY/T/gradients/NAME           of `loss`
"""

import json
import pathlib

import numpy as np
import torch
import transformers

SHAPE = {
    "num_hidden_layers": 5,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
FAMILIES = {
    "modernbert": (
        transformers.ModernBertForMaskedLM,
        transformers.ModernBertConfig(
            **SHAPE, cls_token_id=1, sep_token_id=2, global_rope_theta=160_000.0, local_rope_theta=10_000.0
        ),
    ),
    "eurobert": (
        transformers.EuroBertForMaskedLM,
        transformers.EuroBertConfig(
            **SHAPE,
            num_key_value_heads=2,
            mask_token_id=3,
            rope_parameters={"rope_theta": 250_000.0, "rope_type": "default"},
        ),
    ),
}
# Real tokens of each row. Padding more than 64 tokens away from them makes Transformers' eager attention NaN.
LENGTHS = {40: (40, 23, 31), 300: (300, 250)}


def make_model(kind, config, rng: np.random.Generator):
    model = kind(config).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = rng.standard_normal(parameter.shape)
            value = 1.0 + 0.2 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise
            parameter.copy_(torch.from_numpy(value.astype(np.float32).astype(np.float64)))
    return model


def make_batch(tokens: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    lengths = LENGTHS[tokens]
    shape = len(lengths), tokens
    batch = {"input_ids": np.zeros(shape, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    batch["labels"] = np.full(shape, -100, np.int32)
    for row, length in enumerate(lengths):
        ids = rng.integers(5, SHAPE["vocab_size"], length)
        ids[0], ids[-1] = 1, 2
        chosen = rng.choice(np.arange(1, length - 1), size=4 + row, replace=False)
        batch["labels"][row, chosen] = ids[chosen]
        ids[chosen] = 3
        batch["input_ids"][row, :length], batch["attention_mask"][row, :length] = ids, 1
    return batch


def float32(tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float32)


def reference(name: str) -> dict[str, np.ndarray]:
    kind, config = FAMILIES[name]
    rng = np.random.default_rng(0)
    model = make_model(kind, config, rng)
    weights = dict(model.named_parameters())
    arrays = {f"weights/{key}": float32(value) for key, value in weights.items()}
    arrays["config"] = np.array(json.dumps(config.to_dict(), default=str))
    for tokens in LENGTHS:
        batch = make_batch(tokens, rng)
        inputs = {key: torch.from_numpy(value).long() for key, value in batch.items()}
        model.zero_grad()
        labels = inputs.pop("labels")
        output = model(**inputs, output_hidden_states=True)
        chosen = labels >= 0
        loss = torch.nn.functional.cross_entropy(output.logits[chosen], labels[chosen])
        loss.backward()
        states = torch.stack(output.hidden_states)
        arrays |= {f"{tokens}/{key}": value for key, value in batch.items()}
        arrays |= {
            f"{tokens}/hidden_states": float32(states if tokens == 40 else states[-1:]),
            f"{tokens}/logits": float32(output.logits[chosen]),
            f"{tokens}/loss": np.array(loss.item()),
            **{f"{tokens}/gradients/{key}": float32(value.grad) for key, value in weights.items()},
        }
    return {f"{name}/{key}": value for key, value in arrays.items()}


if __name__ == "__main__":
    arrays = reference("modernbert") | reference("eurobert")
    np.savez_compressed(pathlib.Path(__file__).with_name("modern.npz"), **arrays)
    for key, value in arrays.items():
        if "/300/" not in key:
            print(f"{key:75} {value.dtype!s:8} {list(value.shape)}")
    print({key: value.item() for key, value in arrays.items() if key.endswith("loss")})
