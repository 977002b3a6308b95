"""Pretrain commands as processes of their own, on a made-up corpus; shared by the tests that run them."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np

# With a constant rate, runs of any length have the same update step, which is compiled once for all tests.
CONFIG = """
from bert_jax.config import default_config

def get_config():
    config = default_config()
    config.model.update(
        num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=32, vocab_size=200,
        max_position_embeddings=32, attention_dropout=0.1,
    )
    config.data.update(
        source={source!r}, held_out_fraction=0.1, global_batch_size=16, max_seq_length=32,
        max_sequences_per_row=2,
    )
    config.optimizer.update(learning_rate=1e-2, warmup_steps=4, schedule="constant")
    config.train.update(num_steps=12, log_every=3, eval_every=6, eval_batches=2, checkpoint_every=5)
    return config
"""
# As the tests, but for their eight devices: a launcher says how many.
ONE_DEVICE = {"XLA_FLAGS": re.sub(r"--xla_force_host\S+", "", os.environ.get("XLA_FLAGS", ""))}
TIMINGS = {"time", "tokens_per_second", "data_wait_fraction", "goodput", "lost_seconds", "restarts"}
DEADLINE = 300  # seconds for anything that is waited for


def make_corpus(folder: pathlib.Path) -> None:
    """A corpus of made-up words and a config for it, `tiny.py`."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("bdfgklmnprst")) + rng.choice(list("aeiou")) for _ in range(n % 4 + 1))
             for n in range(200)]  # fmt: skip

    def sentence():
        return " ".join(rng.choice(words, rng.integers(4, 12))).capitalize() + "."

    documents = [" ".join(sentence() for _ in range(rng.integers(2, 12))) for _ in range(300)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    (folder / "tiny.py").write_text(CONFIG.format(source=f"text:{folder}/corpus.txt"))


class Command:
    """One pretrain command; it can be given again and again."""

    def __init__(
        self, folder: pathlib.Path, name: str, *overrides: str,
        launcher: tuple[str, ...] = (), environment: dict[str, str] = ONE_DEVICE,
    ):  # fmt: skip
        self.workdir, self.log = folder / name, folder / f"{name}.log"
        self.environment = environment
        self.words = [
            *(sys.executable, *(launcher or ("-m", "bert_jax.pretrain")), f"--config={folder}/tiny.py"),
            *(f"--workdir={self.workdir}", f"--data_dir={folder}/data_dir"),
            *(f"--config.{override}" for override in overrides),
        ]

    def start(self) -> subprocess.Popen:
        with self.log.open("w") as log:
            environment = os.environ | {"PYTHONUNBUFFERED": "1"} | self.environment
            return subprocess.Popen(self.words, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def run(self) -> tuple[int, str]:
        """Exit code and output."""
        code = self.start().wait(DEADLINE)
        return code, self.log.read_text()

    def interrupt(self, number: int, when) -> tuple[int, str]:
        """Sends a signal as soon as `when()`."""
        process = self.start()
        deadline = time.monotonic() + DEADLINE
        while not when():
            assert process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(DEADLINE), self.log.read_text()

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in (self.workdir / "metrics.jsonl").read_text().splitlines()]

    def rows_without_timings(self) -> list[dict]:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in self.rows()]

    def last_step_logged(self) -> int:
        steps = re.findall(r"^(?:\[0\] )?step (\d+)/", self.log.read_text(), re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def checkpoints(self, finished: bool) -> list[str]:
        """Names of the folders of finished or of unfinished saves."""
        folders = (self.workdir / "checkpoints").glob("*")
        return [path.name for path in folders if (path / "checksums.json").exists() == finished]
