"""Measures what a worker does with a dump: `python -m tests.dump_speed [FILE.xml.bz2]`, on one core.

Without a file it takes the excerpt of English Wikipedia in the package `gensim==4.4.0`
(`pip install --no-deps gensim==4.4.0`).
"""

import bz2
import collections
import importlib.util
import pathlib
import statistics
import sys
import time

from bert_jax.corpus.sources.mediawiki import Pages, _hidden

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
    hidden, seconds, size = _hidden(path, xml), collections.defaultdict(list), 0
    for _ in range(RUNS):
        start = time.process_time()
        bz2.decompress(data)
        seconds["bzip2"].append(time.process_time() - start)
        start = time.process_time()
        documents = list(Pages(path, xml, False, 0, 0, hidden, "error").documents())
        seconds["XML and markup"].append(time.process_time() - start)
        size = sum(len(paragraph.encode()) for document in documents for paragraph in document)
    seconds["both"] = [sum(pair) for pair in zip(*seconds.values(), strict=True)]
    sizes = {size: "text", len(xml): "XML"}
    print(f"{len(xml) / 1e6:.1f} MB of XML, {size / 1e6:.1f} MB of cleaned text; medians of {RUNS} runs")
    for step, found in seconds.items():
        median = statistics.median(found)
        rates = [f"{length / 1e6 / median:5.1f} MB/s of {what}" for length, what in sizes.items()]
        print(f"{step:15} {median:.3f} s, {', '.join(rates)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(excerpt()))
