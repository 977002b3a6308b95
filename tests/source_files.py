"""Files of text for a source, and what reading them gives; shared by the tests of sources."""

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import open_sources
from bert_jax.errors import UserError

STORY = "Once.\n\nUpon a time.\n"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(source, **settings):
    (opened,) = open_sources(DataConfig(source=source, **settings))
    return [document for chunk in opened.chunks() for document in chunk.documents()]


def message(source, error=UserError, **settings):
    """The error of reading a source, which is one line."""
    with pytest.raises(error) as raised:
        read(source, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)
