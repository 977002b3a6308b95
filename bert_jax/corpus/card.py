"""The card of a prepared dataset: what it holds, as JSON and as a page beside its manifest.

dataset_card.json holds no text of the documents, so that checkpoints can carry it; dataset_card.html quotes
a few documents. Both are made of what the dataset holds, in bounded memory, and are not read to train.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from bert_jax.corpus.dataset import DocumentStore, PreparedDataset
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.files import write
from bert_jax.report import dataset_card

FORMAT = 1
CARD, PAGE = "dataset_card.json", "dataset_card.html"
CARDS = "dataset_cards.json"  # in a checkpoint: the cards of its datasets by the names of their sources
# Where the text lay and how the dataset was made: not part of the card's digest, nor is `spec` of a source.
MADE = "made"
LONGEST = 1 << 20  # longer documents are counted as this long, except in mean and maximum
# The first length of each bin of a histogram; every second one is a power of two.
BINS = np.unique(np.rint(2.0 ** (np.arange(41) / 2)).astype(np.int64))
PERCENTILES = (10, 50, 90, 99)
BLOCK = 1 << 18  # lengths that are counted at a time
FREQUENT_PIECES = 60
SHOWN_FILES = 200  # of a source, on the page
SAMPLES, SAMPLE_TOKENS, SAMPLE_CHARACTERS = 6, 300, 800


def card_of(dataset: PreparedDataset) -> dict[str, Any] | None:
    """Reads the card of a dataset; returns None if it has none, or a damaged one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        card = json.loads((dataset.directory / CARD).read_bytes())
        if card["dataset_sha256"] == dataset.sha256 and card["card_sha256"] == digest(card):
            return card
    return None


def complete(dataset: PreparedDataset) -> None:
    """Writes the card of a dataset that has none, if its folder can be written."""
    folder = os.fspath(dataset.directory)
    if card_of(dataset) or not ("://" in folder or os.access(folder, os.W_OK)):
        return
    card = collect(dataset)
    page = dataset_card.render(dataset.directory.name, card, samples(dataset, card), _files(dataset.manifest))
    with contextlib.suppress(OSError):
        write(dataset.directory / PAGE, page.encode(errors="replace"))  # a file may have any name
        write(dataset.directory / CARD, json.dumps(card, indent=1) + "\n")


def digest(card: dict[str, Any]) -> str:
    """Returns a digest of what a card says of the documents, wherever and however they were prepared."""
    content = {name: value for name, value in card.items() if name not in {"card_sha256", MADE}}
    content["sources"] = [
        {name: value for name, value in source.items() if name != "spec"} for source in card["sources"]
    ]
    return _sha256(content)


def collect(dataset: PreparedDataset) -> dict[str, Any]:
    """Returns the content of dataset_card.json, from the manifest and by counting the index."""
    manifest, tokenizer, train = dataset.manifest, dataset.tokenizer, dataset.split("train")
    files = {name: hashlib.sha256(file).hexdigest() for name, file in tokenizer.files().items()}
    card = {
        "format": FORMAT,
        "dataset_sha256": dataset.sha256,
        "text_bytes": manifest["text_bytes"],
        "left_out": manifest.get("left_out", {}),
        "splits": {
            name: _split(entry, dataset.split(name), tokenizer) for name, entry in manifest["splits"].items()
        },
        "sources": _sources(manifest),
        "tokenizer": {
            "kind": type(tokenizer).__name__.removesuffix("Tokenizer"),
            "vocab_size": tokenizer.vocab_size,
            "sha256": _sha256(files),
        },
        "frequent_pieces": _frequent_pieces(train.unigram_counts, tokenizer),
        "samples": _chosen(dataset.sha256, train.index.num_documents),
        MADE: {
            "command": _command(manifest.get("settings", {}), os.fspath(dataset.directory.parent)),
            **{name: manifest.get(name, {}) for name in ("settings", "seconds", "versions")},
        },
    }
    return {"card_sha256": digest(card)} | card


def samples(dataset: PreparedDataset, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns number, source, tokens and text of the card's sample documents; long texts are cut."""
    store, sources = dataset.split("train"), card["sources"]
    counted = all("splits" in source for source in sources)
    ends = np.cumsum([source["splits"]["train"]["documents"] if counted else 0 for source in sources])
    found = []
    for number, ids in zip(card["samples"], store.read(np.array(card["samples"], np.int64)), strict=True):
        text = dataset.tokenizer.decode(ids[:SAMPLE_TOKENS].tolist())
        cut = len(ids) > SAMPLE_TOKENS or len(text) > SAMPLE_CHARACTERS
        found.append({
            "number": number,
            "source": sources[np.searchsorted(ends, number, "right")]["spec"] if counted else "",
            "tokens": len(ids),
            "text": text[:SAMPLE_CHARACTERS] + (" …" if cut else ""),
        })  # fmt: skip
    return found


def _split(entry: dict[str, Any], store: DocumentStore, tokenizer: Tokenizer) -> dict[str, Any]:
    index = store.index
    return {
        **{what: entry[what] for what in ("documents", "sentences", "tokens", "bytes")},
        **vocabulary_use(store.unigram_counts, tokenizer),
        "lengths": {
            "tokens_per_document": describe(_differences(index.token_starts)),
            "tokens_per_sentence": describe(_blocks(index.sentence_lengths)),
            "sentences_per_document": describe(_differences(index.sentence_starts)),
        },
    }


def vocabulary_use(counts: np.ndarray, tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes the use of a vocabulary, of which int64 [V] counts the tokens.

    Returns:
        unknown: how many tokens are [UNK]; entropy_bits: of the unigram distribution, bits per token;
        pieces_used: how many pieces occur, without special ones; pieces: how many could.
    """
    shares = counts[counts > 0] / max(1, counts.sum())
    maskable = tokenizer.maskable
    return {
        "unknown": int(counts[tokenizer.unk_id]),
        "entropy_bits": round(float(-(shares * np.log2(shares)).sum()), 6) + 0.0,  # no -0.0
        "pieces_used": int((counts[maskable] > 0).sum()),
        "pieces": int(maskable.sum()),
    }


def describe(blocks: Iterable[np.ndarray]) -> dict[str, Any]:
    """Describes lengths, ints of at least 1 that are given in blocks; returns {} if there are none.

    Returns:
        mean, percentiles (p50: half of the lengths are at most as long), max, and the histogram: pairs of the
        first length of a bin and how many lengths are in it, from the first bin that has some to the last.
    """
    counts, total, longest = np.zeros(LONGEST + 1, np.int64), 0, 0
    for block in blocks:
        found = np.bincount(np.minimum(block, LONGEST, dtype=np.int64))
        counts[: len(found)] += found
        total, longest = total + int(block.sum(dtype=np.int64)), max(longest, int(block.max()))
    ends = np.cumsum(counts)
    if not (number := int(ends[-1])):
        return {}
    in_bins = np.add.reduceat(counts, BINS)
    filled = np.flatnonzero(in_bins)
    shown = range(filled[0], filled[-1] + 1)
    return {
        "mean": round(total / number, 2),
        **{f"p{share}": int(np.searchsorted(ends, -(-number * share // 100))) for share in PERCENTILES},
        "max": longest,
        "histogram": [[int(BINS[place]), int(in_bins[place])] for place in shown],
    }


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[first : first + BLOCK] for first in range(0, len(values), BLOCK))


def _differences(starts: np.ndarray) -> Iterator[np.ndarray]:
    return (np.diff(starts[first : first + BLOCK + 1]) for first in range(0, len(starts) - 1, BLOCK))


def _sources(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns spec, number of files, digest and counts of each source; older datasets have no counts."""
    counts = manifest.get("by_source", [{}] * len(manifest["sources"]))
    return [
        {
            "spec": source["spec"],
            "files": len(source["paths"]),
            "fingerprint": _sha256(source["fingerprint"]),
            **count,
        }
        for source, count in zip(manifest["sources"], counts, strict=True)
    ]


def _files(manifest: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the digest of each file by its path, by source; "" where a source is known by other facts."""
    found = {}
    for source in manifest["sources"]:
        paths, digests = source["paths"], [*_digests(source["fingerprint"])]
        known = digests if len(digests) == len(paths) else [""] * len(paths)
        found[source["spec"]] = dict(itertools.islice(zip(paths, known, strict=True), SHOWN_FILES))
    return found


def _digests(fingerprint: Any) -> Iterator[str]:
    """Yields the SHA-256 of files that a fingerprint holds, in their order."""
    if isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{64}", fingerprint):
        yield fingerprint
    elif isinstance(fingerprint, list):
        for part in fingerprint:
            yield from _digests(part)


def _frequent_pieces(counts: np.ndarray, tokenizer: Tokenizer) -> list[list[Any]]:
    """Returns the most frequent pieces and how often each occurs."""
    order = np.argsort(-counts, kind="stable")[:FREQUENT_PIECES]
    return [[tokenizer.piece(token), int(counts[token])] for token in order.tolist() if counts[token]]


def _chosen(seed: str, documents: int) -> list[int]:
    """Chooses documents by a hash of `seed`: their numbers, in order."""
    chosen: set[int] = set()
    attempts = itertools.count()
    while len(chosen) < min(SAMPLES, documents):
        value = hashlib.blake2b(f"{seed} {next(attempts)}".encode(), digest_size=8).digest()
        chosen.add(int.from_bytes(value, "little") % documents)
    return sorted(chosen)


def _command(settings: dict[str, Any], data_dir: str) -> str:
    """Makes the command that prepares a dataset of these settings, whatever the config it is given."""
    words = [
        f"--config.{'model' if name == 'vocab_size' else 'data'}.{name}={value}".replace(
            ":DATA_DIR/", f":{data_dir}/"
        )
        for name, value in settings.items()
    ]
    command = ["python -m bert_jax.prepare --config=bert_tiny", shlex.quote(f"--data_dir={data_dir}")]
    return " \\\n    ".join(command + [shlex.quote(word) for word in words])


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
