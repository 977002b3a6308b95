"""Cuts a large split into parts, each planned as an epoch is, so that the memory of a plan is bounded.

A part is made of blocks of neighbouring documents from all over the split, others in every epoch. A split
that is not large is one part: the whole split, as it is.
"""

import dataclasses
import functools

import numpy as np

from bert_jax.corpus.index import Index
from bert_jax.data.hashing import key, permute
from bert_jax.errors import UserError

WHOLE_DOCUMENTS, WHOLE_TOKENS = 1 << 24, 1 << 33  # a split of at most so many is one part
PART_DOCUMENTS, PART_TOKENS = 1 << 22, 1 << 31  # about so many are in a part of a larger one
BLOCK_DOCUMENTS = 1 << 14  # read together from a disk


@dataclasses.dataclass(frozen=True)
class Part:
    """Some documents of a split."""

    index: Index
    first_documents: np.ndarray  # of each of its blocks, in the split: int64 [blocks]

    def in_split(self, documents: np.ndarray) -> np.ndarray:
        """Returns the numbers in the split of documents of the part, ints [n]."""
        if len(self.first_documents) == 1:  # which may be the whole split, of any size
            return documents + self.first_documents[0]
        block, place = np.divmod(documents, BLOCK_DOCUMENTS)
        return self.first_documents[block] + place


@functools.lru_cache(1024)
def num_parts(index: Index) -> int:
    """Returns how many parts an epoch of a split has."""
    if index.num_documents <= WHOLE_DOCUMENTS and index.num_tokens <= WHOLE_TOKENS:
        return 1
    parts = max(-(-index.num_documents // PART_DOCUMENTS), -(-index.num_tokens // PART_TOKENS))
    return min(parts, _num_blocks(index))


def part_of(index: Index, seed: int, number: int) -> Part:
    """Makes a part; `number` counts the parts of all epochs.

    Raises:
        UserError: if the index is damaged there.
    """
    parts, blocks = num_parts(index), _num_blocks(index)
    if parts == 1:
        return Part(index, np.zeros(1, np.int64))
    epoch, place = divmod(number, parts)
    mine = np.arange(place * blocks // parts, (place + 1) * blocks // parts)
    # In ascending order, so that the last block of the split, which may be shorter, is the last of its part.
    first = np.sort(permute(key(seed, epoch, "part"), mine, blocks)) * BLOCK_DOCUMENTS
    edges = [(start, min(start + BLOCK_DOCUMENTS, index.num_documents)) for start in first.tolist()]
    sentences, tokens = (
        np.concatenate([np.diff(starts[start : stop + 1]) for start, stop in edges])
        for starts in (index.sentence_starts, index.token_starts)
    )
    lengths = np.concatenate(
        [index.sentence_lengths[slice(*index.sentence_starts[[start, stop]])] for start, stop in edges]
    )
    part = Index(lengths, *(np.concatenate([[0], np.cumsum(counts)]) for counts in (sentences, tokens)))
    if not part.is_consistent():
        raise UserError("the dataset's index is damaged; delete the dataset and run prepare again.")
    return Part(part, first)


def _num_blocks(index: Index) -> int:
    return -(-index.num_documents // BLOCK_DOCUMENTS)
