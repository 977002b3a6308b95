"""Writes huggingface.npz: what Hugging Face's BertForPreTraining computes for a small model and batch.

The tests read only the .npz. To make it again, in an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0
    python tests/parity/make_huggingface.py

Everything is computed in float64 from weights that are exact in float32, and stored as float32: the reference
has no rounding noise of its own. Biases and LayerNorm scales are random, so that nothing hides behind 0 or 1.

Keys (a Linear's weight is [out, in], as in torch; hidden states at padding mean nothing):
    config                    JSON: the arguments of BertConfig
    weights/NAME              every parameter by its Hugging Face name; the MLM decoder is the word embedding
    gradients/NAME            of `loss` by the same names
    input_ids, token_type_ids, attention_mask   int32 [B, T]
    labels                    int32 [B, T], -100 where nothing is predicted
    next_sentence_label       int32 [B], 0 IsNext
    hidden_states             float32 [L + 1, B, T, D]: the embeddings, then every layer
    pooler_output             float32 [B, D]
    prediction_logits         float32 [B, T, V]
    seq_relationship_logits   float32 [B, 2]
    mlm_loss, nsp_loss, loss  float64: mean over labels, mean over sequences, their sum
    counts/SHAPE              int64 [2]: parameters of encoder with pooler, and with both heads; SHAPE is
                              base, large (vocabulary 30,522) or odd (3 layers, 96 hidden, vocabulary 1,000)
"""

import json
import pathlib

import numpy as np
import torch
import transformers

CONFIG = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SHAPES = {
    "base": {},
    "large": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "odd": {
        "num_hidden_layers": 3,
        "hidden_size": 96,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "vocab_size": 1000,
    },
}
ROWS, TOKENS = 4, 24
LENGTHS = (24, 17, 9, 21)  # real tokens of each row


def make_model(rng: np.random.Generator) -> transformers.BertForPreTraining:
    """A float64 model whose weights are float32 values, all of them random."""
    config = transformers.BertConfig(**CONFIG, attn_implementation="eager")
    model = transformers.BertForPreTraining(config).eval().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = rng.standard_normal(parameter.shape)
            if name.endswith("LayerNorm.weight"):
                value = 1.0 + 0.2 * noise
            elif name.endswith("bias"):
                value = 0.2 * noise
            else:
                value = 0.15 * noise
            parameter.copy_(torch.from_numpy(value.astype(np.float32).astype(np.float64)))
    return model


def make_batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows `[CLS] A [SEP] B [SEP]` of different lengths; id 0 is padding, 1 and 2 are [CLS] and [SEP]."""
    batch = {
        name: np.zeros((ROWS, TOKENS), np.int32) for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    batch["labels"] = np.full((ROWS, TOKENS), -100, np.int32)
    for row, length in enumerate(LENGTHS):
        first_sep = length // 2
        ids = rng.integers(5, CONFIG["vocab_size"], length)
        ids[0], ids[first_sep], ids[-1] = 1, 2, 2
        batch["input_ids"][row, :length] = ids
        batch["token_type_ids"][row, first_sep + 1 : length] = 1
        batch["attention_mask"][row, :length] = 1
        maskable = np.flatnonzero(ids > 2)
        chosen = rng.choice(maskable, size=row + 1, replace=False)  # a different number in every row
        batch["labels"][row, chosen] = ids[chosen]
        batch["input_ids"][row, chosen] = 3
    batch["next_sentence_label"] = np.array([0, 1, 1, 0], np.int32)
    return batch


def reference() -> dict[str, np.ndarray]:
    """All arrays of the file but the counts."""
    rng = np.random.default_rng(0)
    model, batch = make_model(rng), make_batch(rng)
    inputs = {name: torch.from_numpy(value).long() for name, value in batch.items()}
    output = model(**inputs, output_hidden_states=True)
    pooled = model.bert(inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"]).pooler_output
    cross_entropy = torch.nn.functional.cross_entropy
    mlm_loss = cross_entropy(output.prediction_logits.flatten(0, 1), inputs["labels"].flatten())
    nsp_loss = cross_entropy(output.seq_relationship_logits, inputs["next_sentence_label"])
    torch.testing.assert_close(output.loss, mlm_loss + nsp_loss)
    output.loss.backward()

    def float32(tensor):
        return tensor.detach().numpy().astype(np.float32)

    weights = dict(model.named_parameters())
    return {
        "config": np.array(json.dumps(CONFIG)),
        **{f"weights/{name}": float32(value) for name, value in weights.items()},
        **{f"gradients/{name}": float32(value.grad) for name, value in weights.items()},
        **batch,
        "hidden_states": float32(torch.stack(output.hidden_states)),
        "pooler_output": float32(pooled),
        "prediction_logits": float32(output.prediction_logits),
        "seq_relationship_logits": float32(output.seq_relationship_logits),
        "mlm_loss": np.array(mlm_loss.item()),
        "nsp_loss": np.array(nsp_loss.item()),
        "loss": np.array(output.loss.item()),
    }


def counts() -> dict[str, np.ndarray]:
    """Parameters of the published shapes, counted without allocating them."""
    result = {}
    for name, shape in SHAPES.items():
        with torch.device("meta"):
            model = transformers.BertForPreTraining(transformers.BertConfig(**shape))
        encoder, both_heads = (sum(p.numel() for p in part.parameters()) for part in (model.bert, model))
        result[f"counts/{name}"] = np.array([encoder, both_heads])
    return result


if __name__ == "__main__":
    arrays = reference() | counts()
    np.savez_compressed(pathlib.Path(__file__).with_name("huggingface.npz"), **arrays)
    for key, value in arrays.items():
        print(f"{key:75} {value.dtype!s:8} {list(value.shape)}")
    print({key: arrays[key].tolist() for key in arrays if key.startswith(("counts", "mlm", "nsp"))})
