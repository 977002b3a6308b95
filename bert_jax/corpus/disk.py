"""Estimates how much disk a dataset takes, before it is built."""

import itertools
import logging
import math
import os
import shutil
from collections.abc import Sequence

import numpy as np
from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import id_dtype
from bert_jax.corpus.hygiene import rules_of
from bert_jax.corpus.sources import Source, chunks_of
from bert_jax.errors import UserError

SAMPLE_CHUNKS = 4  # from the start of each source
# Bytes beside the token ids: of a document (its record's fields and frame, index, digest), and of each byte
# of text (6 bytes a sentence of 110: in the record, in the index, and until the end beside the shard).
DOCUMENT_BYTES, SENTENCE_BYTES = 170, 6 / 110
IDEOGRAPHS = 0x2E80  # first code point of Chinese, Japanese and Korean scripts: 1.5 characters a token
UNCERTAINTY = 0.7  # of the estimate are needed at least
log = logging.getLogger("bert_jax")


def check_space(folder: epath.Path, sources: Sequence[Source], data: DataConfig, vocab_size: int) -> None:
    """Logs how much disk a dataset takes about, and how much is free.

    Args:
        folder: in which it is built, on a local disk; what is there already is not needed again.
        sources: its text.
        data: whose rules of hygiene leave out text, nobody knows how much: then a lack is a warning.
        vocab_size: V, of the tokenizer.

    Raises:
        UserError: if there is much less than needed.
    """
    there = sum(
        os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(folder) for name in names
    )
    needed = max(0, sum(dataset_bytes(source, vocab_size) for source in sources) - there)
    free = shutil.disk_usage(folder).free
    where = f"{needed / 1e6:,.0f} MB of disk in {folder.parent}, where {free / 1e6:,.0f} MB are free"
    log.info("prepare: takes about %s", where)
    if UNCERTAINTY * needed <= free:
        return
    if rules_of(data):
        log.warning("prepare: the disk is large enough only if cleaning leaves out much of the text")
    else:
        raise UserError(
            f"the dataset takes about {where}; free some space, or give another --data_dir (for a bucket, "
            "another TMPDIR)."
        )


def dataset_bytes(source: Source, vocab_size: int) -> float:
    """Estimates the bytes of the documents of a source in a dataset, from the start of the source."""
    read_bytes, stored = 1, 0.0
    for chunk in itertools.islice(chunks_of([source]), SAMPLE_CHUNKS):
        documents = ["\n".join(paragraphs) for paragraphs in chunk.documents()]
        read_bytes += chunk.read_bytes
        stored += DOCUMENT_BYTES * len(documents) + stored_bytes("".join(documents), vocab_size)
    return stored * source.size / read_bytes


def stored_bytes(text: str, vocab_size: int) -> float:
    """Estimates the bytes of a text's token ids and sentence lengths.

    In scripts of letters a token has 2.5 characters with a vocabulary of 400, 4.3 with one of 30,522.
    """
    ideographs = int((np.frombuffer(text.encode("utf-32-le"), "<u4") >= IDEOGRAPHS).sum())
    tokens = (len(text) - ideographs) / (0.29 * math.log2(vocab_size)) + ideographs / 1.5
    return tokens * id_dtype(vocab_size).itemsize + SENTENCE_BYTES * len(text)
