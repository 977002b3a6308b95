"""Writes pytorch_model.bin as PyTorch does, and pytorch_model_legacy.bin as it did before 1.6.

Both hold the same tensors, of several types, strides and storages.

Needs PyTorch:

    python tests/parity/make_pytorch.py
"""

import pathlib
from collections import OrderedDict

import torch

tensors = OrderedDict(
    matrix=torch.arange(6, dtype=torch.float32).reshape(2, 3),
    transposed=torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    parameter=torch.nn.Parameter(torch.tensor([0.5, -2.0], dtype=torch.float16)),
    bfloat16=torch.tensor([1.5, 3.0], dtype=torch.bfloat16),
    position_ids=torch.arange(4).expand(1, -1),
    empty=torch.zeros(0, 3),
    scalar=torch.tensor(7.0, dtype=torch.float64),
)
tensors["slice"] = tensors["tied"] = tensors["matrix"][1:, 1:]  # of a storage that is written once
tensors._metadata = OrderedDict(version=1)  # as a state_dict has it
folder = pathlib.Path(__file__).parent
torch.save(tensors, folder / "pytorch_model.bin")
torch.save(tensors, folder / "pytorch_model_legacy.bin", _use_new_zipfile_serialization=False)
