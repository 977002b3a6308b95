"""Reads datasets of the Hugging Face Hub by name, with the library `datasets`."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.finding import MissingInput
from bert_jax.corpus.sources.tables import binary, check_text_column, texts_of
from bert_jax.corpus.sources.texts import Texts
from bert_jax.errors import reason

BATCH_ROWS = 1024


class HuggingFaceSource:
    """A dataset NAME[:CONFIG[:SPLIT]], or a folder of its files; the column `data.text_field` is a document.

    SPLIT is a name or an instruction like train[:10%] (default: train). The library downloads the dataset
    into its cache, unless it is there.

    Raises:
        MissingInput: if the library is not installed or cannot load the dataset, e.g. without network.
        UserError: if the column does not exist.
    """

    def __init__(self, spec: str, rest: str, data: DataConfig):
        name, *options = rest.split(":", 2)
        config, split = [*options, "", ""][:2]
        try:
            library = importlib.import_module("datasets")  # an extra
        except ImportError:
            raise MissingInput(
                f"data.source={spec!r} needs the library datasets: pip install 'bert_jax[huggingface]'."
            ) from None
        try:
            table = library.load_dataset(os.path.expanduser(name), config or None, split=split or "train")
        except Exception as error:  # of many kinds: names, network, files
            raise MissingInput(
                f"data.source={spec!r} cannot be loaded ({reason(error).rstrip('.')}); use "
                "hf:NAME[:CONFIG[:SPLIT]], or arrow:FOLDER for what save_to_disk wrote."
            ) from error
        check_text_column(table.features.arrow_schema, data.text_field, f"data.source={spec!r}")
        self.spec, self._data, self._fingerprint = spec, data, table._fingerprint
        self._table = table.select_columns([data.text_field]).with_format("arrow")
        self.paths = [entry["filename"] for entry in table.cache_files]
        self.size = self._table.data.nbytes

    def fingerprint(self, digests: Digests) -> list[Any]:  # noqa: ARG002
        """Returns the library's own fingerprint: of name, configuration, revision or files, and split."""
        return ["hf", self._fingerprint, self._data.text_field, self._data.invalid_utf8]

    def parts(self) -> list["HuggingFaceSource"]:
        """Returns the source as one part."""
        return [self]

    def chunks(self) -> Iterator[Texts]:
        row, place = 0, f"data.source={self.spec!r}, row"
        for table in self._table.iter(BATCH_ROWS):
            for column in table.column(0).chunks:
                values = binary(column)
                yield from texts_of(values, place, row, column.nbytes, self._data.invalid_utf8).cut()
                row += len(column)
