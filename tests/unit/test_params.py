import dataclasses

import pytest

from bert_jax.config import Config
from bert_jax.model.config import ModelConfig
from bert_jax.params import counts, lecture, sharding_table, table
from bert_jax.training.config import MeshConfig

BASE = """\
part                                                              parameters  MiB in training
token embeddings             30,522 × 768                         23,440,896            268.3
segment embeddings                                                     1,536              0.0
position embeddings          512 positions                           393,216              4.5
embeddings' LayerNorm                                                  1,536              0.0
attention, each layer        with its LayerNorm                    2,363,904             27.1
feed-forward, each layer     with its LayerNorm                    4,723,968             54.1
12 layers                                                         85,054,464            973.4
pooler                                                               590,592              6.8

encoder with pooler                                              109,482,240          1,252.9
masked-LM head               its matrix is the token embeddings      622,650              7.1
next-sentence head                                                     1,538              0.0

with both pretraining heads                                      110,106,428          1,260.1
in training: float32 parameters and Adam's two moments, 12 bytes each"""

LECTURE = """\
embeddings    (30,000 + 512 + 2) × 768 = 23.4 M
attention     4 × 768 × 768 = 2.4 M
feed-forward  2 × 768 × 3072 = 4.7 M
layer         7.1 M, about 7 M
total         23.4 M + 12 × 7 M = 107 M (with the layers unrounded 108.4 M)"""


def test_table_of_bert_base():
    assert table(ModelConfig()) == BASE


def test_memory_of_each_array_on_each_device():
    """12 bytes a parameter; the kernels of bert_base's layers are 12 × 768 × 768 and 12 × 768 × 3,072."""
    config = Config(mesh=MeshConfig(data=2, fsdp=4, tensor=2))
    lines = {line.split()[0]: line for line in sharding_table(config, 16).splitlines()}
    expected = {
        "layers/attention/query/kernel": ("12 × 768 × 768", "· fsdp tensor", 12 * 768 * 768 / 8),
        "layers/output/kernel": ("12 × 3,072 × 768", "· tensor fsdp", 12 * 3072 * 768 / 8),
        "embeddings/token/embedding": ("30,522 × 768", "· tensor+fsdp", 30522 * 768 / 8),
        "embeddings/position/embedding": ("512 × 768", " ", 512 * 768),
    }
    for name, (shape, axes, parameters) in expected.items():
        assert shape in lines[name]
        assert axes in lines[name]
        assert lines[name].endswith(f"{parameters * 12 / 2**20:.2f}")
    assert lines["all,"].startswith("all, on each of 16 devices ")
    assert "data 2 × fsdp 4 × tensor 2" in lines["all,"]
    whole = sharding_table(Config(), 1).splitlines()[-1]
    assert whole.endswith("1,260.07")  # as the other table says


def test_lecture_of_bert_base():
    assert lecture(ModelConfig()) == LECTURE
    other_vocabulary = dataclasses.replace(ModelConfig(), vocab_size=50_000)
    assert lecture(other_vocabulary) == LECTURE


@pytest.mark.parametrize("layers", [1, 5])
def test_counts_of_an_odd_shape(layers):
    model = ModelConfig(
        num_hidden_layers=layers, hidden_size=6, num_attention_heads=3, intermediate_size=10, vocab_size=11,
        max_position_embeddings=7, type_vocab_size=3,
    )  # fmt: skip
    assert counts(model) == {
        "token embeddings": 11 * 6,
        "segment embeddings": 3 * 6,
        "position embeddings": 7 * 6,
        "embeddings' LayerNorm": 2 * 6,
        "attention": layers * (4 * (6 * 6 + 6) + 2 * 6),
        "feed-forward": layers * (6 * 10 + 10 + 10 * 6 + 6 + 2 * 6),
        "pooler": 6 * 6 + 6,
        "masked-LM head": 6 * 6 + 6 + 2 * 6 + 11,
        "next-sentence head": 6 * 2 + 2,
    }
