"""Measures the `prepare` command."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import psutil

from bert_jax import command
from bert_jax.benchmarks.measure import PeakMemory, median_and_spread, resident
from bert_jax.config import Config
from bert_jax.corpus import dataset as dataset_lib
from bert_jax.corpus.sources import read_text
from bert_jax.report.text_table import text_table


def measure(config: Config, repeats: int) -> None:
    """Measures speed and memory of the `prepare` command on the embedded corpus and on ten copies of it.

    The rate is that of the nine additional copies: it leaves out start-up and tokenizer training, which do
    not grow with the corpus.
    """
    text = "\n\n".join("\n".join(document) for document in read_text("corpus:"))
    megabytes = len(text.encode()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, 10):
            # Copies of a document differ in a word: equal ones would be held out or dropped together.
            copy = [text.replace("\n\n", f"\n\ncopy {number} ") for number in range(copies)]
            pathlib.Path(folder, f"{copies}.txt").write_text("\n\n".join(copy), encoding="utf-8")
        trained = dataset_lib.prepare(config.data, config.model.vocab_size, folder)
        model = trained.directory / "tokenizer" / "sentencepiece.model"
        rows = []
        sizes = {f"sentencepiece:{model}": config.model.vocab_size, "wordpiece:bert_uncased": 30522}
        for name, vocab_size in sizes.items():
            rates, peaks = [], {}
            for repeat in range(repeats):
                seconds = {}
                for copies in (1, 10):
                    arguments = [
                        f"--config.data.source=text:{folder}/{copies}.txt",
                        f"--config.data.tokenizer={name}",
                        f"--config.model.vocab_size={vocab_size}",
                        f"--data_dir={folder}/{vocab_size}-{copies}-{repeat}",
                    ]
                    seconds[copies], peaks[copies] = _run("bert_jax.prepare", arguments)
                rates.append(9 * megabytes / (seconds[10] - seconds[1]) / (os.cpu_count() or 1))
            memory = (f"{peaks[copies]:.0f}" for copies in (1, 10))
            rows.append([name.split(":")[0], *median_and_spread(rates), *memory])
    print(text_table(rows, ["tokenizer", "MB/s and core", "spread", "peak MiB, 1×", "10×"]))


def _run(module: str, arguments: list[str]) -> tuple[float, float]:
    """Runs a bert_jax command; returns its wall seconds and the peak MiB of all its processes together."""
    start = time.perf_counter()
    command_line = [sys.executable, "-m", module, f"--config={command.config_argument()}", *arguments]
    process = subprocess.Popen(command_line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with PeakMemory(functools.partial(resident, psutil.Process(process.pid))) as peak:
        _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command_line)} failed:\n{errors.decode()}")
    return time.perf_counter() - start, peak.bytes / 2**20
