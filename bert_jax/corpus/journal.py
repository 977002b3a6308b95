"""What a build of a dataset has done so far, so that the next process goes on where this one was killed.

Everything that is recorded was on the disk before; the documents of finished shards are not read again.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from typing import Any, Self

from etils import epath

from bert_jax.corpus.shards import SHARD_NAME, SPLITS, UNFINISHED, Shard, beside, checksum
from bert_jax.files import LOCK, write

JOURNAL = f"{UNFINISHED}/journal.json"
TOKENIZER = "tokenizer"  # folder
WORTH_KEEPING_SECONDS = 60  # of training a tokenizer
log = logging.getLogger("bert_jax")


@dataclasses.dataclass
class Journal:
    """A build's state after its last finished shard."""

    made_by: dict[str, str]  # versions: others may encode otherwise
    tokenizer: dict[str, str] = dataclasses.field(default_factory=dict)  # SHA-256 of its files by name
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"tokenizer": 0.0, "documents": 0.0}
    )
    chunks: int = 0  # whose documents are in the shards
    read_bytes: int = 0  # of these chunks
    by_source: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # as in the manifest
    shards: dict[str, list[Shard]] = dataclasses.field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )

    @classmethod
    def open(cls, folder: epath.Path, made_by: dict[str, str]) -> Self:
        """Reads the journal of a folder, and removes from the folder what is not recorded.

        If a file is not as it is recorded, or other versions have written it, everything begins anew.
        """
        found = cls.read(folder / JOURNAL)
        unlike = found and found._unlike(folder, made_by)
        if unlike:
            log.warning("%s begins anew: %s", folder, unlike)
        journal = found if found and not unlike else cls(made_by)
        kept = {LOCK, UNFINISHED, TOKENIZER, *(path.name for path in journal._paths(folder))}
        for path in folder.iterdir():
            if path.name not in kept or (journal is not found and path.name != LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / UNFINISHED).mkdir(exist_ok=True)
        return journal

    @classmethod
    def read(cls, path: epath.Path) -> Self | None:
        """Reads the file of a journal; returns None if it is none."""
        try:
            journal = cls(**json.loads(path.read_bytes()))
            journal.shards = {
                name: [Shard(*one) for one in shards] for name, shards in journal.shards.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return journal

    def write(self, path: epath.Path) -> None:
        """Replaces the file of a journal."""
        write(path, json.dumps(dataclasses.asdict(self)))

    def shard_path(self, folder: epath.Path, split: str, shard: int | None = None) -> epath.Path:
        """Returns the path of a shard; by default that of the next one."""
        return folder / SHARD_NAME.format(
            split=split, shard=len(self.shards[split]) if shard is None else shard
        )

    def paths(self, folder: epath.Path, split: str) -> list[epath.Path]:
        """Returns the paths of a split's finished shards."""
        return [self.shard_path(folder, split, shard) for shard in range(len(self.shards[split]))]

    def _paths(self, folder: epath.Path) -> list[epath.Path]:
        return [path for split in self.shards for path in self.paths(folder, split)]

    def _unlike(self, folder: epath.Path, made_by: dict[str, str]) -> str:
        """Says what is not as it was recorded; "" if all is."""
        if self.made_by != made_by:
            return "other versions of the libraries wrote it"
        if digests_of(folder / TOKENIZER) != self.tokenizer:
            return f"{TOKENIZER}/ is not as it was written"
        for split, shards in self.shards.items():
            for path, shard in zip(self.paths(folder, split), shards, strict=True):
                files = {path: shard.checksum, beside(path): shard.checksum_beside}
                for file, recorded in files.items():
                    if not file.exists() or checksum(file) != recorded:
                        return f"{file.relative_to(folder)} is not as it was written"
        return ""


def worth_keeping(folder: epath.Path) -> bool:
    """Tells whether a folder holds work that takes long to do again."""
    journal = Journal.read(folder / JOURNAL)
    return journal is not None and (
        any(journal.shards.values()) or journal.seconds["tokenizer"] > WORTH_KEEPING_SECONDS
    )


def digests_of(folder: epath.Path) -> dict[str, str]:
    """Returns the SHA-256 of the files of a folder by name; none if there is no folder."""
    files = sorted(folder.iterdir(), key=lambda path: path.name) if folder.is_dir() else []
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
