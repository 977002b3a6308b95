"""Trains a network from the weights of a smaller one and from random weights: the table of docs/configs.md.

    python -m tests.growing [--config=bert_tiny] [--source=RUN] [--steps=150] [--folder=runs/growing]

First trains the config's network, of 2 layers × 128, for a while, unless --source names a run of it that
has ended. Then trains networks of 4 layers × 256 with the same batches. A run that was interrupted is
resumed, and one that has ended is only read again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from typing import Any

SMALL: dict[str, Any] = {"phases[0].num_steps": 150, "phases[1].num_steps": 450}
LARGE: dict[str, Any] = {
    "phases": "()",
    "data.global_batch_size": 16,
    "data.mask_rate": 0.3,
    "model.num_hidden_layers": 4,
    "model.hidden_size": 256,
    "model.num_attention_heads": 4,
    "optimizer.warmup_steps": 30,
    "train.log_every": 1,
    "train.eval_every": 25,
    "train.eval_batches": 8,
}
FEED_FORWARD = {"modern_tiny": 768, "bert_tiny": 1024}
LOSS, HELD_OUT = "mlm_loss", "eval_mask_token_loss"


def train(workdir: pathlib.Path, config: str, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """Trains a run to its end; returns the rows of its metrics."""
    words = [f"--config={config}", f"--workdir={workdir}", "--config.train.unigram_bias=true"]
    words += [f"--config.{key}={value}" for key, value in overrides.items()]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with workdir.with_suffix(".log").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "bert_jax.pretrain", *words], stdout=log, stderr=log, check=True
        )
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def table(runs: list[list[dict[str, Any]]], every: int) -> list[list[str]]:
    """Returns the loss of each run on its batch, and on held-out text, at step 1 and every some steps."""
    found: dict[int, list[str]] = {}
    for place, rows in enumerate(runs):
        for row in rows:
            if row["step"] == 1 or row["step"] % every == 0:
                cells = found.setdefault(row["step"], [""] * 2 * len(runs))
                for column, name in enumerate((LOSS, HELD_OUT)):
                    if name in row:
                        cells[2 * place + column] = f"{row[name]:.3f}"
    return [[str(step), *cells] for step, cells in sorted(found.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", choices=FEED_FORWARD, default="bert_tiny")
    parser.add_argument("--source", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/growing"))
    options = parser.parse_args()
    if (source := options.source) is None:
        train(source := options.folder / f"{options.config}-small", options.config, SMALL)
    large = LARGE | {"train.num_steps": options.steps, "train.checkpoint_every": options.steps}
    large["model.intermediate_size"] = FEED_FORWARD[options.config]
    starts: dict[str, dict[str, Any]] = {"random": {}} | {
        growth: {"init_from": source, "init_growth": growth} for growth in ("tile", "preserve")
    }
    runs = [
        train(options.folder / f"{options.config}-{name}", options.config, large | start)
        for name, start in starts.items()
    ]
    header = ["step", *(cell for name in starts for cell in (f"{name}: loss", "held-out"))]
    for cells in (header, ["---"] * len(header), *table(runs, LARGE["train.eval_every"])):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
