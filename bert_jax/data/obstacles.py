"""Finds what keeps a prepared text from teaching what the config asks, before a run spends days on it."""

import collections
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.dataset import PreparedDataset
from bert_jax.corpus.index import Index
from bert_jax.corpus.mixture import PreparedSources
from bert_jax.corpus.specs import NAMED, parse
from bert_jax.data.batches import Batches
from bert_jax.data.epoch_plan import EpochPlan, count_rows
from bert_jax.errors import UserError, few

NO_NOT_NEXT, FEW_NOT_NEXT = 0.01, 0.25  # shares below which there is nothing, or little, to learn
MANY_UNSPACED = 0.01  # share of the tokens
MOST_UNKNOWN = 0.5  # share of [UNK] among the tokens
PLANNED_TOKENS = 1 << 22  # of a split whose epochs are planned in a few milliseconds
PLANNED_PAIRS, PLANNED_EPOCHS = 1 << 12, 16
SAMPLED_TOKENS = 1 << 16  # of a larger split


class Obstacle(NamedTuple):
    """What is wrong with the text and the remedy, in a line; `hopeless` if an objective cannot be learned."""

    message: str
    hopeless: bool = False


def obstacles(prepared: PreparedSources, parts: Mapping[str, Any]) -> Iterator[Obstacle]:
    """Yields what is wrong with the text of a run, part by part and source by source; nothing twice.

    It takes well under a second for a part of any size.

    Args:
        parts: of the run, see `bert_jax.training.config.RunConfig.parts`.
    """
    yield from _repeated(prepared)
    found = set()
    for part, config in parts.items():
        data = config.data
        shares = parse(data.source).weights
        for (name, dataset), share in zip(prepared.datasets.items(), shares, strict=True):
            where = f"source {name}: " if len(shares) > 1 else ""
            rows = math.ceil(data.global_batch_size * share)
            for obstacle in _obstacles(dataset, data, config.train.seed, rows):
                if (message := where + obstacle.message) not in found:
                    found.add(message)
                    yield obstacle._replace(message=part + message)


def _repeated(prepared: PreparedSources) -> Iterator[Obstacle]:
    """Yields whether text is trained on several times: that of files named by several SPECs, or copies."""
    folders = collections.defaultdict(list)
    for name, dataset in prepared.datasets.items():
        folders[os.fspath(dataset.directory)].append(name)
    for copies in folders.values():
        if len(copies) > 1:
            yield Obstacle(
                f"sources {few(copies, ' and ')} have the same text, which is trained on as often; leave one."
            )
    datasets = [prepared.datasets[first] for first, *_ in folders.values()]
    counts = collections.Counter(path for dataset in datasets for path in _paths(dataset))
    if repeated := [path for path, count in counts.items() if count > 1]:
        yield Obstacle(
            f"data.source names files more than once, so that their text is trained on as often; name "
            f"each once: {few(repeated)}."
        )


def _paths(dataset: PreparedDataset) -> Iterable[str]:
    """Returns the files of a dataset, as often as it has their text."""
    paths = [
        path if "://" in path else os.path.abspath(path)
        for source in dataset.manifest.get("sources", ())
        if source["spec"].partition(":")[0] not in NAMED  # these have parts of files, too
        for path in source["paths"]
    ]
    drops = dataset.manifest.get("settings", {}).get("drop_duplicates", "none")
    return paths if drops == "none" else set(paths)


def _obstacles(dataset: PreparedDataset, data: DataConfig, seed: int, rows: int) -> Iterator[Obstacle]:
    """Yields what is wrong with a source that has so many rows in a batch."""
    for split in ("train", "heldout"):
        store = dataset.split(split)
        if not data.pairs or not store.index.num_tokens:
            continue
        try:
            Batches(store, data, dataset.tokenizer, seed)
        except UserError as error:
            yield Obstacle(str(error) if split == "train" else f"held-out text: {error}", hopeless=True)
            continue
        if data.second_objective == "next_sentence":
            share = not_next_share(store.index, data, seed)
            yield from _obstacles_of_next_sentence(split, store.index, share, data)
    train = dataset.split("train")
    tokens = train.index.num_tokens
    unknown = int(train.unigram_counts[dataset.tokenizer.unk_id]) / tokens
    if unknown > MOST_UNKNOWN:
        yield Obstacle(
            f"{unknown:.0%} of the tokens to train on are [UNK]: data.tokenizer={data.tokenizer!r} does not "
            "know the words of this text; use another, or train one with data.tokenizer=unigram."
        )
    if data.objective == "masked" and data.masking != "token":
        unspaced = int(train.unigram_counts @ dataset.tokenizer.unspaced) / tokens
        if unspaced > MANY_UNSPACED:
            yield Obstacle(
                f"{unspaced:.0%} of the tokens to train on are of scripts without spaces between words: "
                f"data.masking={data.masking} takes each of them for a word."
            )
    if tokens < rows * data.max_seq_length and (all_rows := count_rows(train.index, data, seed, 0)) < rows:
        yield Obstacle(
            f"the text to train on fills {all_rows:,} rows, so that a batch of {rows:,} "
            f"repeats it {rows / all_rows:.1f} times; add text or lower data.global_batch_size."
        )


def _obstacles_of_next_sentence(
    split: str, index: Index, share: float, data: DataConfig
) -> Iterator[Obstacle]:
    count = "1 document" if index.num_documents == 1 else f"{index.num_documents:,} documents"
    if split == "train" and share < FEW_NOT_NEXT:
        yield Obstacle(
            f"the text to train on is {count}: {share:.1%} of its sentence pairs are NotNext (usually half), "
            f"so next sentence prediction has {'nothing' if share < NO_NOT_NEXT else 'little'} to learn. In "
            "text files a blank line ends a document and the end of a line does not: put blank lines between "
            "documents, add documents, or set data.second_objective=none.",
            hopeless=share < NO_NOT_NEXT,
        )
    elif split == "heldout" and share < NO_NOT_NEXT:
        yield Obstacle(
            f"the held-out text is {count} without NotNext pairs, so that its next-sentence accuracy says "
            f"nothing; raise data.held_out_fraction={data.held_out_fraction} or add documents."
        )


def not_next_share(index: Index, data: DataConfig, seed: int) -> float:
    """Returns the share of NotNext among the pairs of a split.

    A small split is counted in the first epochs, as they are trained on. In a large one a pair of sequences
    swaps its Bs half of the time, and that makes them NotNext unless both are of the same document.
    """
    if index.num_tokens > PLANNED_TOKENS:
        tokens = np.linspace(0, index.num_tokens, SAMPLED_TOKENS, endpoint=False).astype(np.int64)
        documents = np.searchsorted(index.token_starts, tokens, "right")
        shares = np.unique(documents, return_counts=True)[1] / SAMPLED_TOKENS
        return float(1 - shares @ shares) / 2
    pairs = not_next = 0
    for epoch in range(PLANNED_EPOCHS):
        plan = EpochPlan(index, data, seed, epoch)
        sequences = plan.rows(np.arange(plan.num_rows))
        pairs += int(np.count_nonzero(sequences.length_b))
        not_next += int(np.count_nonzero(sequences.not_next))
        if pairs >= PLANNED_PAIRS:
            break
    return not_next / max(pairs, 1)
