"""Measures how long `pretrain` takes to start: to its --help, and to the end of a new run's first step."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from bert_jax.benchmarks.measure import config_file, median_and_spread
from bert_jax.config import Config
from bert_jax.corpus import mixture
from bert_jax.report.text_table import text_table

FIRST_STEP = "step 1/"  # begins the line of the log when the first step has ended


def measure(config: Config, data_dir: str, repeats: int) -> None:
    """Measures --help, and the first steps of runs for which nothing has been compiled (cold) or all (warm).

    The dataset is prepared. A run is killed after its first step.
    """
    mixture.prepare(config.data, config.model.vocab_size, data_dir)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=1))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = [f"--config={config_file(config, folder)}", f"--data_dir={data_dir}"]
        for repeat in range(repeats):
            compiled = pathlib.Path(folder, f"compiled_{repeat}")
            for row in ("--help", "first step, cold", "first step, warm"):
                arguments = [*run, f"--workdir={folder}/{repeat} {row}"]
                words, line = (["--help"], "Flags:") if row == "--help" else (arguments, FIRST_STEP)
                seconds.setdefault(row, []).append(_seconds_to(line, words, compiled))
    rows = [[row, *median_and_spread(values)] for row, values in seconds.items()]
    print(text_table(rows, ["pretrain", "seconds", "spread"]))


def _seconds_to(line: str, arguments: list[str], compiled: pathlib.Path) -> float:
    """Runs `pretrain` until it prints a line that begins so; returns the wall seconds until then."""
    command_line = [sys.executable, "-m", "bert_jax.pretrain", *arguments]
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.perf_counter()
    lines = []
    with subprocess.Popen(
        command_line,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # on a terminal it would be a bar instead of lines
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        for printed in process.stdout:
            if printed.startswith(line):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
            lines.append(printed)
    sys.exit(f"{' '.join(command_line)} ended before it printed {line!r}:\n{''.join(lines)}")
