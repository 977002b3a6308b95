"""Trains a network of Transformers in PyTorch, as many steps as it is asked for; started by `peer.py`.

    python -P peer_worker.py FOLDER float32|bfloat16 eager|compiled

Runs in any Python with torch and transformers: it imports nothing of bert_jax, so that JAX and PyTorch do not
share a process. FOLDER holds config.json, batch.npz (the network's arguments), training.json (of
`peer.write_folder`) and perhaps model.safetensors. Each line of input is a number of steps, and its answer is
a line of JSON, as `Training.run` returns it.
"""

import json
import os
import pathlib
import resource
import sys
import time
from typing import Any

import numpy as np
import torch
import transformers

# Where attention drops what it adds, in BERT and in ModernBERT.
DROPOUTS = {
    ".attention.output": "dropout",
    ".attn": "out_drop",
}


class Training:
    """A network with its optimizer on one batch.

    Args:
        folder: see above.
        precision: of activations; bfloat16 by autocast.
        compiled: whether `torch.compile` makes the network's code.
    """

    def __init__(self, folder: pathlib.Path, precision: str, compiled: bool):
        self._settings = json.loads((folder / "training.json").read_text())
        self._device, self.shrinks = torch.device(self._settings["device"]), self._settings["shrinks"]
        if self._device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as JAX's default is
        torch.manual_seed(0)
        network = load_network(folder, self._settings["attention_output_dropout"]).to(self._device).train()
        self._parameters = list(network.parameters())
        self._optimizer = make_optimizer(self._parameters, self._settings)
        self._network = torch.compile(network) if compiled else network
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bfloat16")
        with np.load(folder / "batch.npz") as arrays:
            self._batch = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    def run(self, steps: int) -> dict[str, Any]:
        """Takes some steps.

        Returns:
            The mean `seconds` of a step, the `loss` of the last one before its update, the `rows` of the
            batch, and the `peak_bytes` of the device, or of the process on a CPU.
        """
        start = time.perf_counter()
        for _ in range(steps):
            loss = self._step()
        last = loss.item()  # waits for the device
        seconds = (time.perf_counter() - start) / steps
        rows = len(self._batch["input_ids"])
        return {"seconds": seconds, "loss": last, "rows": rows, "peak_bytes": self._peak_bytes()}

    def shrink(self) -> None:
        """Halves the batch until a step fits into memory, and takes that step."""
        while True:
            try:
                self._step()
                return
            except torch.OutOfMemoryError:
                if (rows := len(self._batch["input_ids"]) // 2) < 1:
                    raise
            self._optimizer.zero_grad()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._batch = {name: array[:rows] for name, array in self._batch.items()}

    def _step(self) -> torch.Tensor:
        with self._autocast:
            loss = loss_of(self._network(**self._batch), self._batch["labels"])
        loss.backward()
        if clip_norm := self._settings["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(self._parameters, clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def _peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def load_network(folder: pathlib.Path, attention_output_dropout: float) -> torch.nn.Module:
    """Loads the architecture that config.json names, with random weights where there is no file of them."""
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    kind = getattr(transformers, config.architectures[0])
    if (folder / "model.safetensors").exists():
        network = kind.from_pretrained(folder, config=config, dtype=torch.float32)
    else:
        network = kind(config)
    # Their ModernBERT has one rate for this place and for attention's probabilities.
    for name, module in network.named_modules():
        for end, dropout in DROPOUTS.items():
            if name.endswith(end):
                setattr(module, dropout, torch.nn.Dropout(attention_output_dropout))
    return network


def make_optimizer(parameters: list[torch.nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Makes fused AdamW, whose decay leaves out biases and norms: what has one axis."""
    groups = [
        {"params": [x for x in parameters if x.ndim > 1], "weight_decay": settings["weight_decay"]},
        {"params": [x for x in parameters if x.ndim < 2], "weight_decay": 0.0},
    ]
    rates = {name: settings[name] for name in ("lr", "betas", "eps")}
    return torch.optim.AdamW(groups, **rates, fused=True)


def loss_of(output: Any, labels: torch.Tensor) -> torch.Tensor:
    """Returns the network's own loss; BERT has none without labels of sentence pairs."""
    if output.loss is not None:
        return output.loss
    logits = output.prediction_logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def main(folder: str, precision: str, mode: str) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print, too
    training = Training(pathlib.Path(folder), precision, mode == "compiled")
    if training.shrinks:
        training.shrink()
    for line in sys.stdin:
        print(json.dumps(training.run(int(line))), file=answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
