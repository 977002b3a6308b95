"""Writes google/: a BERT of a few numbers, with the files and the names that Google's checkpoints have.

Every variable counts up from its place in the list of all. Needs TensorFlow:

    python tests/parity/make_tensorflow.py
"""

import json
import pathlib

import numpy as np
import tensorflow.compat.v1 as tf

CONFIG = {
    "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 8, "max_position_embeddings": 8, "type_vocab_size": 2, "hidden_act": "gelu",
    "initializer_range": 0.02, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
NORM = {"LayerNorm/beta": [4], "LayerNorm/gamma": [4]}
LAYER = {
    **{f"attention/self/{name}/kernel": [4, 4] for name in ("query", "key", "value")},
    **{f"attention/self/{name}/bias": [4] for name in ("query", "key", "value")},
    "attention/output/dense/kernel": [4, 4],
    "attention/output/dense/bias": [4],
    **{f"{part}/{name}": shape for part in ("attention/output", "output") for name, shape in NORM.items()},
    "intermediate/dense/kernel": [4, 8],
    "intermediate/dense/bias": [8],
    "output/dense/kernel": [8, 4],
    "output/dense/bias": [4],
}
SHAPES = {
    "bert/embeddings/word_embeddings": [8, 4],
    "bert/embeddings/position_embeddings": [8, 4],
    "bert/embeddings/token_type_embeddings": [2, 4],
    **{f"bert/embeddings/{name}": shape for name, shape in NORM.items()},
    **{f"bert/encoder/layer_{i}/{name}": shape for i in range(2) for name, shape in LAYER.items()},
    "bert/pooler/dense/kernel": [4, 4],
    "bert/pooler/dense/bias": [4],
    "cls/predictions/transform/dense/kernel": [4, 4],
    "cls/predictions/transform/dense/bias": [4],
    **{f"cls/predictions/transform/{name}": shape for name, shape in NORM.items()},
    "cls/predictions/output_bias": [8],
    "cls/seq_relationship/output_weights": [2, 4],
    "cls/seq_relationship/output_bias": [2],
    "bert/pooler/dense/bias/adam_m": [4],  # of the optimizer: left out by the reader
}

folder = pathlib.Path(__file__).with_name("google")
folder.mkdir(exist_ok=True)
(folder / "bert_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
(folder / "vocab.txt").write_text(
    "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "a", "##b"]) + "\n"
)
tf.disable_eager_execution()
for number, (name, shape) in enumerate(SHAPES.items()):
    values = number + np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 100
    tf.get_variable(name, initializer=values)
tf.train.create_global_step()
with tf.Session() as session:
    session.run(tf.global_variables_initializer())
    tf.train.Saver().save(session, str(folder / "bert_model.ckpt"), write_meta_graph=False, write_state=False)
