"""Writes documents into the kinds of files that `prepare` reads, for its benchmark."""

import bz2
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable
from xml.sax.saxutils import escape

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from bert_jax.corpus.encode import serialized_example

Texts = Callable[[], Iterable[str]]  # documents, as often as it is called; lines are paragraphs
ROWS = 1000  # of a table's batch
PAGES = 100  # of a stream, as in Wikipedia's dumps
LINKED = 9  # every such word is a link
HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n<siteinfo>'
    '<namespaces><namespace key="6">File</namespace><namespace key="14">Category</namespace></namespaces>'
    "</siteinfo>\n"
)


def write_text(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a text file; returns the source."""
    with open(folder / "a.txt", "w", encoding="utf-8") as file:
        file.writelines(f"{text}\n\n" for text in texts())
    return f"text:{folder}/a.txt"


def write_jsonl(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a file of JSON lines; returns the source."""
    with open(folder / "a.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts())
    return f"jsonl:{folder}/a.jsonl"


def write_parquet(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a Parquet file, compressed by Snappy as by default; returns the source."""
    import pyarrow.parquet as pq

    schema, batches = _batches(texts)
    with pq.ParquetWriter(folder / "a.parquet", schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return f"parquet:{folder}/a.parquet"


def write_arrow(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a stream of Arrow batches, as Hugging Face's datasets do; returns the source."""
    import pyarrow as pa

    schema, batches = _batches(texts)
    with pa.ipc.new_stream(folder / "a.arrow", schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return f"arrow:{folder}/a.arrow"


def write_tfds(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a dataset of TFDS in ArrayRecord; returns the source."""
    directory = folder / "corpus" / "1.0.0"
    directory.mkdir(parents=True)
    path = directory / "corpus-train.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    records = 0
    for text in texts():
        writer.write(serialized_example(text=text.encode()))
        records += 1
    writer.close()
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_infos=[tfds.core.SplitInfo(name="train", shard_lengths=[records], num_bytes=0)],
        check_data=False,
    )
    return f"tfds:{directory}"


def write_dump(texts: Texts, folder: pathlib.Path) -> str:
    """Writes a multistream dump of MediaWiki, half of it markup as Wikipedia's; returns the source."""
    pages = map(_page, itertools.count(), texts())
    with open(folder / "a-pages-articles-multistream.xml.bz2", "wb") as file:
        file.write(bz2.compress(HEAD.encode()))
        while run := "".join(itertools.islice(pages, PAGES)):
            file.write(bz2.compress(run.encode()))
        file.write(bz2.compress(b"</mediawiki>\n"))
    return f"mediawiki:{folder}/*.bz2"


def _batches(texts: Texts):
    """Returns the schema and the batches of a table of one column."""
    import pyarrow as pa

    def batches():
        documents = iter(texts())
        while rows := list(itertools.islice(documents, ROWS)):
            yield pa.record_batch({"text": rows}, schema)

    schema = pa.schema([("text", pa.string())])
    return schema, batches()


def _page(number: int, text: str) -> str:
    box = "".join(f"| name{field} = value {field} of {number}\n" for field in range(12))
    body = "\n\n".join(_marked(paragraph, number) for paragraph in text.split("\n"))
    wikitext = f"{{{{Infobox thing\n{box}}}}}\n{body}\n\n[[Category:Things]]\n"
    return (
        f"<page><title>Page {number}</title><ns>0</ns><id>{number}</id><revision><id>1</id>"
        f'<model>wikitext</model><text xml:space="preserve">{escape(wikitext)}</text></revision></page>\n'
    )


def _marked(paragraph: str, number: int) -> str:
    """Makes links of some words, one of them bold, and adds a reference after every sentence."""
    words = paragraph.split(" ")
    for place in range(LINKED, len(words), LINKED):
        word = words[place]
        words[place] = f"[[{word} (sense)|{word}]]" if word.isalpha() else word
    if words[0].isalpha():
        words[0] = f"'''{words[0]}'''"
    reference = (
        f"<ref>{{{{cite book |last=Writer |first=A. |title=A title of {number} |year=1999 "
        "|publisher=Press |isbn=0-000-00000-0 |pages=11–12}}</ref>"
    )
    return " ".join(words).replace(". ", f".{reference} ")


WRITERS: dict[str, Callable[[Texts, pathlib.Path], str]] = {
    "text": write_text,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "arrow": write_arrow,
    "tfds": write_tfds,
    "mediawiki": write_dump,
}
