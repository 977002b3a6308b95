"""Measures what a worker does with a dump: `python -m tests.dump_speed [FILE.xml.bz2]`, on one core.

Without a file it takes the excerpt of English Wikipedia in the package `gensim==4.4.0`
(`pip install --no-deps gensim==4.4.0`).
"""

import bz2
import collections
import importlib.util
import itertools
import pathlib
import statistics
import sys
import time

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import DocumentEncoder
from bert_jax.corpus.sources.mediawiki import Pages, _hidden
from bert_jax.corpus.tokenizer_files import read_tokenizer

RUNS = 7


def excerpt() -> pathlib.Path:
    """Finds the excerpt; the package itself is not imported."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        sys.exit("error: give a dump, or pip install --no-deps gensim==4.4.0")
    return next((pathlib.Path(spec.origin).parent / "test" / "test_data").glob("enwiki-*-shortened.bz2"))


def main(path: str) -> None:
    data = pathlib.Path(path).read_bytes()
    xml = bz2.decompress(data)
    hidden = _hidden(path, xml)
    tokenizer = read_tokenizer(DataConfig(tokenizer="wordpiece:bert_uncased"), 30522)
    encode, size = DocumentEncoder(tokenizer, "en", held_out_fraction=0.0), 0
    seconds = collections.defaultdict(list)
    for _ in range(RUNS):
        pages = Pages(path, xml, False, 0, 0, hidden, "error")
        times = [time.process_time()]
        bz2.decompress(data)
        times.append(time.process_time())
        documents = list(pages.documents())
        times.append(time.process_time())
        encode(pages)  # which are parsed
        times.append(time.process_time())
        bzip2, markup, tokens = (end - start for start, end in itertools.pairwise(times))
        found = {"bzip2": bzip2, "XML and markup": markup, "both": bzip2 + markup}
        for step, spent in (found | {"sentences, WordPiece": tokens, "all": bzip2 + markup + tokens}).items():
            seconds[step].append(spent)
        size = sum(len(paragraph.encode()) for document in documents for paragraph in document)
    sizes = {len(data): "dump", len(xml): "XML", size: "text"}
    print(", ".join(f"{length / 1e6:.2f} MB of {what}" for length, what in sizes.items()))
    print(f"medians of {RUNS} runs, MB/s of one core")
    for step, spent in seconds.items():
        median = statistics.median(spent)
        rates = [f"{length / 1e6 / median:5.1f} of {what}" for length, what in sizes.items()]
        print(f"{step:20} {median:.3f} s, {', '.join(rates)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(excerpt()))
