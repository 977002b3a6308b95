"""The headline command on an empty machine: from a mirror of dumps to the first steps of training."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.mirror import SLICE, article, dump, publish, serving
from tests.runs import DEADLINE

ROOT = pathlib.Path(__file__).parents[2]
DATE, PART_PAGES = "20261101", 60
SHRUNK = (
    *("model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=2"),
    *("model.intermediate_size=32", "model.max_position_embeddings=64", "model.vocab_size=150"),
    *("data.tokenizer=unigram", "data.held_out_fraction=0.05", "data.max_seq_length=64"),
    *("data.global_batch_size=8", "phases[0].data.max_seq_length=32", "optimizer.warmup_steps=2"),
    *("phases[0].num_steps=4", "phases[1].num_steps=2", "train.log_every=1"),
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("make"), reason="needs make")]


def pages(seed):
    """Articles of made-up sentences, with the markup that articles have."""
    chance = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in ("n", "ra", "sto")]

    def sentence():
        some = chance.choices(words, k=chance.randrange(5, 15))
        some[1] = f"[[{some[1]}|'''{some[2]}''']]"
        return " ".join(some).capitalize() + ".<ref>{{cite|x}}</ref>"

    for number in range(PART_PAGES):
        text = "\n\n== Part ==\n".join(" ".join(sentence() for _ in range(20)) for _ in range(4))
        yield article(number, f"Page {seed} {number}", text)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    publish(folder, "enwiki", DATE, [dump(list(pages(seed)), per_stream=10) for seed in range(4)])
    return folder


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """What `make setup` leaves, without its minutes: this Python."""
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin" / "python").chmod(0o755)
    (folder / ".stamp").write_text("python3\n")
    return folder


class Machine:
    """An empty machine on which `make pretrain CONFIG=bert_large` is typed, shrunk."""

    def __init__(self, folder, venv, mirror):
        self.folder, self.log = folder, folder / "log"
        folder.mkdir()
        self._words = ["make", "-s", "pretrain", "CONFIG=bert_large", f"WORKDIR={folder}/run"]
        self._words += [f"DATA_DIR={folder}/data", f"VENV={venv}", "PYTHON=python3", "ACCELERATOR="]
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        self._environment |= {"BERT_JAX_WIKIPEDIA_MIRROR": mirror.address, "PYTHONUNBUFFERED": "1"}

    def start(self, *flags):
        words = " ".join([*flags, *(f"--config.{override}" for override in SHRUNK)])
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*self._words, f"ARGS={words}"], cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, *flags):
        return self.start(*flags).wait(DEADLINE), self.log.read_text()

    def kill(self, when, *flags):
        """Kills the command, with all of its processes, as soon as `when()`."""
        process, deadline = self.start(*flags), time.monotonic() + DEADLINE
        try:
            while not when():
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)

    @property
    def downloads(self):
        return self.folder / "data" / "downloads" / f"wikipedia-en-{DATE}"

    def result(self):
        """The digest of the dataset, and that of the parameters at the end of the run."""
        (manifest,) = (self.folder / "data").glob("wikipedia-*/manifest.json")
        last = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()[-1]
        return json.loads(manifest.read_text())["dataset_sha256"], json.loads(last)["params_digest"]


def test_one_command_from_nothing_to_the_first_steps_whatever_kills_it(served, venv, tmp_path):
    with serving(served) as mirror:
        undisturbed = Machine(tmp_path / "undisturbed", venv, mirror)
        code, output = undisturbed.run()
        assert code == 2
        assert f"enwiki of 2026-11-01 (4 files) must be downloaded from {mirror.address}: " in output
        assert "To start, add --download to the command (with make: ARGS=--download)." in output
        assert not (undisturbed.folder / "data").exists()
        code, output = undisturbed.run("--download")
        assert code == 0, output
        assert "step 6/6 loss" in output
        requests = len(mirror.requests)

    with serving(served, seconds=0.05) as slow:  # over a second for a part
        killed = Machine(tmp_path / "killed", venv, slow)
        for number in (1, 3):  # in the middle of the first parts, and of the last

            def downloading(number=number):
                with contextlib.suppress(FileNotFoundError):  # it has become whole just now
                    begun = [part for part in killed.downloads.glob("*.part") if part.stat().st_size > SLICE]
                    return begun and len([*killed.downloads.glob("*.bz2")]) >= number - 1

            killed.kill(downloading, "--download")
            assert [*killed.downloads.glob("*.part")]
            for part in served.glob("enwiki/*/*-p*.bz2"):  # what has the name of a part is the part
                kept = killed.downloads / part.name
                assert not kept.exists() or kept.read_bytes() == part.read_bytes()
        building = killed.folder / "data"
        killed.kill(lambda: [*building.glob(".*building*/documents-*")], "--download")
        assert not [*building.glob("wikipedia-*/manifest.json")]
        assert any(range_ for _, range_ in slow.requests)  # parts went on where they were
        answered = len(slow.requests)
        code, output = killed.run()  # all is here, so that it need not be said again
        assert code == 0, output
        assert len(slow.requests) == answered
    assert killed.result() == undisturbed.result()
    assert requests == 2 * 2 + 4  # the list of dates and that of files, twice; a request for each part
