"""A tokenizer and a split that live in memory, with the interfaces of the real ones."""

import types

import numpy as np

from bert_jax.corpus.index import Index, storable
from bert_jax.corpus.mixture import PreparedSources


class FakeTokenizer:
    """Ids 0 to 4 are specials; piece N of the rest is `wN`, or `##N` where it goes on with a word."""

    pad_id, unk_id, cls_id, sep_id, mask_id = special_ids = (0, 1, 2, 3, 4)

    def __init__(self, vocab_size=1000, word_starts=None):
        self.vocab_size = vocab_size
        self.word_starts = np.ones(vocab_size, bool) if word_starts is None else word_starts
        self.maskable = np.arange(vocab_size) >= 5

    def piece(self, token):
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        if token < len(names):
            return names[token]
        return f"w{token}" if self.word_starts[token] else f"##{token}"

    def bare_piece(self, token):
        return self.piece(token).removeprefix("##")


class MemoryStore:
    """A split whose documents are given by the lengths of their sentences, or made up from a seed.

    Token number n of the split, counted from 0, is n + 5, modulo the rest of the vocabulary.
    """

    def __init__(self, documents, vocab_size=1000):
        lengths = [storable(np.array(document, np.int64)) for document in documents]
        self.index = Index.from_lengths(
            np.concatenate([np.zeros(0, np.int64), *lengths]), np.array([len(n) for n in lengths], np.int64)
        )
        self._text = (5 + np.arange(self.index.num_tokens) % (vocab_size - 5)).astype(np.uint16)
        self.unigram_counts = np.bincount(self._text, minlength=vocab_size)

    def read(self, documents):
        starts = self.index.token_starts
        return [self._text[starts[d] : starts[d + 1]] for d in documents]


def prepared(sources, tokenizer, files=None):
    """Prepared sources in memory, from {source: {split: store}}."""
    datasets = {
        name: types.SimpleNamespace(
            split=splits.get, tokenizer=tokenizer, sha256=f"digest of {name}",
            tokenizer_files=lambda: files or {}, manifest={}, directory=name,
        )
        for name, splits in sources.items()
    }  # fmt: skip
    return PreparedSources(datasets)


def random_documents(count, seed=0, sentences=25, tokens=20):
    """Lengths of the sentences of documents of `sentences` on average, each of 1 to 2 * tokens tokens."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(1, 2 * tokens, n).tolist()
        for n in np.maximum(1, rng.exponential(sentences, count)).astype(int)
    ]
