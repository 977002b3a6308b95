"""Kills `prepare` with SIGKILL at chosen moments, and lets the next run go on.

    python -m tests.kills TEXT FOLDER

Prints a row for each moment: its name, which dataset was found after the kill, how many chunks the next run
encoded, its digest, and what is left of folders that were being built. The first row is an undisturbed run.
"""

import functools
import itertools
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

from bert_jax import files
from bert_jax.corpus import dataset, journal, shards, writer
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sources import files as source_files

V = 400
# moment -> the function, which of its calls, and whether it is killed after the call instead of before it
MOMENTS = {
    "the tokenizer is trained": (SentencePieceTokenizer, "train", 1, True),
    "the tokenizer is written, not recorded": (SentencePieceTokenizer, "save", 1, True),
    "the tokenizer is recorded": (journal.Journal, "write", 1, True),
    "in the first shard": (shards.ShardWriter, "add", 2, True),
    "a shard is there, not what stands beside it": (shards, "checksum", 1, False),
    "a shard of one split is whole, that of the other not": (shards.ShardWriter, "finish", 3, True),
    "the journal is half written": (files, "_put", 7, True),
    "between two shards": (journal.Journal, "write", 3, True),
    "in the last shard": (shards.ShardWriter, "add", -1, True),
    "all shards are whole": (writer.DocumentsWriter, "finish_shards", -1, True),
    "one index is written": (writer, "join", 1, True),
    "all is written but the manifest": (writer, "finish", 1, True),
    "the manifest is written": (dataset, "_build", 1, True),
    "before it is renamed": (os, "replace", -1, False),
    "it is renamed": (os, "replace", -1, True),
}


def prepare(text: str, folder: pathlib.Path) -> str:
    return dataset.prepare(data_of(text), V, folder, workers=2).sha256


def find(text: str, folder: pathlib.Path) -> str:
    found = dataset.find(data_of(text), V, folder)
    return found.sha256 if found else "nothing"


def data_of(text: str) -> DataConfig:
    return DataConfig(source=f"text:{text}", tokenizer="bpe", held_out_fraction=0.25)


def in_a_child(run: Callable[[], Any]) -> Any:
    """Runs a function in a child process; returns its value, None if the child was killed."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.write(writing, json.dumps(run()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        value = pipe.read()
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else json.loads(value)


def with_calls(home: Any, name: str, before: Callable[[int], Any], after: Callable[[int], Any]) -> None:
    """Has a function tell the number of each of its calls, from 1, before and after it."""
    right, calls = getattr(home, name), itertools.count(1)

    @functools.wraps(right)
    def wrapper(*args, **kwargs):
        call = next(calls)
        before(call)
        result = right(*args, **kwargs)
        after(call)
        return result

    setattr(home, name, wrapper)


def count_calls(home: Any, name: str, run: Callable[[], str]) -> tuple[str, int]:
    """Runs, and counts the calls of a function."""
    calls = []
    with_calls(home, name, calls.append, id)
    return run(), len(calls)


def kill_at(home: Any, name: str, call: int, after: bool, run: Callable[[], str]) -> str:
    """Runs until a call of a function, and kills this process."""

    def kill(number: int) -> None:
        if number == call:
            os.kill(os.getpid(), signal.SIGKILL)

    with_calls(home, name, id if after else kill, kill)
    return run()


def row(moment: str, text: str, folder: pathlib.Path) -> dict[str, Any]:
    run = functools.partial(prepare, text, folder)
    if moment != "undisturbed":
        home, name, call, after = MOMENTS[moment]
        if call < 0:
            elsewhere = functools.partial(prepare, text, folder / "counted")
            call += 1 + in_a_child(functools.partial(count_calls, home, name, elsewhere))[1]
        assert in_a_child(functools.partial(kill_at, home, name, call, after, run)) is None, moment
    found = find(text, folder)
    digest, encoded = in_a_child(functools.partial(count_calls, writer.DocumentsWriter, "add", run))
    left = [path.name for path in folder.iterdir() if "building" in path.name]
    return {"moment": moment, "found": found, "encoded": encoded, "digest": digest, "left": left}


def main(text: str, folder: str) -> None:
    source_files.CHUNK_BYTES, writer.SHARD_BYTES = 500, 3000
    for number, moment in enumerate(["undisturbed", *MOMENTS]):
        print(json.dumps(row(moment, text, pathlib.Path(folder, str(number)))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
