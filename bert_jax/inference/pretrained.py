"""Uses a checkpoint: `bert_jax.load(path)` encodes texts, fills masks and computes features.

bert = bert_jax.load("runs/bert_tiny")
bert.fill_mask(["The [MASK] of the United States."])
bert.features(["A sentence.", "Another one."])

Of a fine-tuned checkpoint it loads the encoder; `load_finetuned` loads the head too.
"""

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config import Config, from_checkpoint
from bert_jax.corpus.tokenizer import MASK, Tokenizer
from bert_jax.data.batch import assemble
from bert_jax.data.shown import piece_text
from bert_jax.errors import UserError
from bert_jax.model.features import (
    POOLINGS,
    TOKENS,
    EncoderOnly,
    default_pooling,
    hidden_states,
    layer_number,
    pool,
)
from bert_jax.model.heads import BertForPreTraining
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.tasks.packed import Placement
from bert_jax.training.opening import OpenedCheckpoint, first_device_compute, open_checkpoint

Text = str | tuple[str, str]  # one text, or a first and a second one: [CLS] A [SEP] B [SEP]

SHORTEST = 16  # tokens of a row; a row is padded to a power of two, so that few shapes are compiled
MASKS = 64  # whose probabilities, over the whole vocabulary, are in memory at a time


class Guess(NamedTuple):
    """A piece that may replace a mask, as people read it: `##s` continues a word."""

    token: str
    probability: float


def load(checkpoint: epath.PathLike, dtype: str = "float32") -> "Pretrained":
    """Loads a checkpoint on one device, whatever it was trained on.

    Args:
        checkpoint: of pretraining or fine-tuning; a run's folder (its newest, or best, checkpoint) or
            `checkpoints/STEP`.
        dtype: of the activations, float32 or bfloat16; results are float32.

    Raises:
        UserError: if there is no checkpoint, it is damaged, or `dtype` is another.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r} is unknown; use float32 or bfloat16.")
    return Pretrained(open_checkpoint(checkpoint), dtype)


class Pretrained:
    """A pretrained encoder with its tokenizer and heads; a fine-tuned one has no heads here.

    Texts are batched by length. The result for a text does not depend on the texts beside it: the length of
    its row depends on it alone, and the number of rows on that length. `[MASK]` in a text becomes the special
    piece.

    Args:
        opened: the checkpoint.
        dtype: of the activations.

    Attributes:
        config: what it was trained with.
        tokenizer: text to ids and back.
        params: nested dict of arrays.
        meta: of the checkpoint (step, versions, digest of the data).
        max_length: tokens of a row, specials included, that it was trained with.

    Raises:
        UserError: if the checkpoint is damaged.
    """

    def __init__(self, opened: OpenedCheckpoint, dtype: str = "float32"):
        self.tokenizer, self.meta = opened.tokenizer, opened.meta
        kind: type[Config | FinetuneConfig] = FinetuneConfig if opened.is_finetuned else Config
        self.config = config = from_checkpoint(opened.meta["config"], kind, opened.folder)
        self.max_length = config.longest_row
        network = EncoderOnly if opened.is_finetuned else BertForPreTraining
        compute = first_device_compute(dtype)
        structure, self.params = opened.network(lambda rngs: network(config.model, rngs, compute))

        def states(params, batch, layer):
            return hidden_states(nnx.merge(structure, params).encoder, batch, layer)

        def features(params, batch, layer, pooling):
            hidden = states(params, batch, layer)
            return pool(hidden, batch["sequence_ids"], batch["cls_positions"], pooling)[:, 0]

        def guesses(params, hidden, rows, positions, top_k):
            model = nnx.merge(structure, params)
            logits = model.masked_lm(hidden[rows, positions], model.encoder.embeddings.token.embedding[...])
            return jax.lax.top_k(jax.nn.softmax(logits), top_k)

        def follows(params, batch):
            model = nnx.merge(structure, params)
            pooled = model.encoder.pool(model.encoder(batch), batch["cls_positions"])
            return jax.nn.softmax(model.next_sentence(pooled).astype(jnp.float32))[
                :, 0, 0
            ]  # label 0: B follows A

        self._states = jax.jit(states, static_argnums=2)
        self._features = jax.jit(features, static_argnums=(2, 3))
        self._guesses = jax.jit(guesses, static_argnums=4)
        self._follows = jax.jit(follows)

    @property
    def judges_order(self) -> bool:
        """Whether the last second objective was `sentence_order`, and not `next_sentence`."""
        return isinstance(self.config, Config) and self.config.second_objective == "sentence_order"

    def fill_mask(self, texts: Sequence[Text], top_k: int = 5) -> list[list[list[Guess]]]:
        """Finds the `top_k` most probable pieces for every `[MASK]` of every text, each mask by itself.

        Returns:
            For each text its masks in order, for each mask its guesses, the most probable first.

        Raises:
            UserError: for a text without `[MASK]` or with more tokens than the network was trained for, for
                a `top_k` that the vocabulary does not hold, and for a fine-tuned checkpoint.
        """
        self._check_heads("fill_mask")
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise UserError(f"top_k={top_k} must be between 1 and {self.tokenizer.vocab_size}, all pieces.")
        rows = self._rows(texts)
        for text, row in zip(texts, rows, strict=True):
            if self.tokenizer.mask_id not in row.a + row.b:
                raise UserError(f"{_shortened(text)} has no {MASK}: put it where a word is to be guessed.")
        results: list[list[list[Guess]]] = [[] for _ in texts]
        for numbers, batch in self._batches(rows):
            hidden = self._states(self.params, batch, self.config.model.num_hidden_layers)
            masks = np.argwhere(batch["input_ids"] == self.tokenizer.mask_id)
            for start in range(0, len(masks), MASKS):
                some = masks[start : start + MASKS]
                places = np.pad(some, ((0, MASKS - len(some)), (0, 0))).T
                best = jax.device_get(self._guesses(self.params, hidden, *places, top_k))
                for (row, _), probabilities, tokens in zip(some, *best, strict=False):
                    pairs = zip(tokens.tolist(), probabilities.tolist(), strict=True)
                    results[numbers[row]].append(
                        [Guess(piece_text(self.tokenizer, token), p) for token, p in pairs]
                    )
        return results

    def next_sentence(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Computes the probability that the second text of each pair follows the first: float32 [pairs].

        A second text without tokens counts as none, as in training. A network that `judges_order` has learned
        to tell a second text that follows from one that precedes, not from one that is from elsewhere.

        Raises:
            UserError: for a text that is not a pair or has too many tokens, for a network that was trained
                without pairs, and for a fine-tuned checkpoint.
        """
        self._check_heads("next_sentence")
        for pair in pairs:
            if isinstance(pair, str):
                raise UserError(f"{_shortened(pair)} is not a pair; give a list of (first, second).")
        result = np.zeros(len(pairs), np.float32)
        for numbers, batch in self._batches(self._rows(pairs)):
            result[numbers] = np.asarray(self._follows(self.params, batch))[: len(numbers)]
        return result

    def encode(self, texts: Sequence[Text], layer: int = -1) -> list[np.ndarray]:
        """Computes the hidden states of all tokens, `[CLS]` and `[SEP]` included: float32 [tokens, D] a text.

        `layer` is 0 for the embeddings, 1 … L for a layer's output, -1 for the last.

        Raises:
            UserError: for a layer that does not exist or a text of too many tokens.
        """
        number, rows = layer_number(layer, self.config.model), self._rows(texts)
        result: list[np.ndarray] = [np.empty(0)] * len(texts)
        for numbers, batch in self._batches(rows):
            hidden = np.asarray(self._states(self.params, batch, number), np.float32)
            for text, states in zip(numbers, hidden, strict=False):
                result[text] = states[: rows[text].length].copy()
        return result

    @property
    def pooling(self) -> str:
        """How `features` pools if it is not told, see `default_pooling`."""
        return default_pooling(self.config.model)

    def features(self, texts: Sequence[Text], pooling: str = "", layer: int = -1) -> np.ndarray:
        """Computes one vector for each text: float32 [texts, D].

        Args:
            texts, layer: as in `encode`.
            pooling: `mean` over all tokens, `[CLS]` and `[SEP]` included, or `cls` for the state of `[CLS]`;
                "" is the network's own `pooling`.

        Raises:
            UserError: for another pooling, and as `encode`.
        """
        pooling = pooling or self.pooling
        if pooling not in POOLINGS:
            raise UserError(f"pooling={pooling!r} is unknown; use {' or '.join(POOLINGS)}.")
        number = layer_number(layer, self.config.model)
        result = np.zeros((len(texts), self.config.model.hidden_size), np.float32)
        for numbers, batch in self._batches(self._rows(texts)):
            vectors = self._features(self.params, batch, number, pooling)
            result[numbers] = np.asarray(vectors)[: len(numbers)]
        return result

    def _check_heads(self, use: str) -> None:
        if isinstance(self.config, FinetuneConfig):
            raise UserError(
                f"{use} needs the heads of pretraining, and this checkpoint was fine-tuned for "
                f"{self.config.task.name}; load the one it started from, {self.config.init_from}."
            )

    def _why_no_pairs(self) -> str:
        """Returns the setting by which the network was trained without pairs, or an empty string."""
        if isinstance(self.config, FinetuneConfig):
            return "model.type_vocab_size=1" if self.config.model.type_vocab_size == 1 else ""
        return "data.second_objective=none" if self.config.second_objective == "none" else ""

    def _rows(self, texts: Sequence[Text]) -> list["Row"]:
        """Encodes all texts in one go."""
        if isinstance(texts, str):
            raise UserError(f"texts={texts[:40]!r} is a single text; give a list of texts.")
        parts = [(text,) if isinstance(text, str) else text for text in texts]
        ids = iter(self.tokenizer.encode_with_masks([part for pair in parts for part in pair]))
        rows = []
        for text, pair in zip(texts, parts, strict=True):
            if len(pair) > 1 and (problem := self._why_no_pairs()):
                raise UserError(
                    f"{_shortened(text)}: this network does not support pairs; it was trained with {problem}."
                )
            row = Row(next(ids), next(ids) if len(pair) > 1 else [])
            if row.length > self.max_length:
                raise UserError(
                    f"{_shortened(text)} has {row.length} tokens and the network was trained with rows of "
                    f"data.max_seq_length={self.max_length}; shorten or split it."
                )
            rows.append(row)
        return rows

    def _batches(self, rows: list["Row"]) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Batches rows of similar length; yields the numbers of the texts in the rows, and the batch."""
        by_length = collections.defaultdict(list)
        for number, row in enumerate(rows):
            power_of_two = 1 << (row.length - 1).bit_length()
            by_length[min(self.max_length, max(SHORTEST, power_of_two))].append(number)
        for length, numbers in by_length.items():
            size = max(1, TOKENS // length)
            for start in range(0, len(numbers), size):
                some = numbers[start : start + size]
                yield some, batch_of([rows[n] for n in some], (size, length), self.tokenizer)


class Row(NamedTuple):
    """A text, or a pair, that is to be a row [CLS] A [SEP] or, if B has tokens, [CLS] A [SEP] B [SEP]."""

    a: list[int]
    b: list[int]

    @property
    def length(self) -> int:
        """Tokens, specials included."""
        return 2 + len(self.a) + (len(self.b) + 1 if self.b else 0)


def batch_of(rows: Sequence[Row], shape: tuple[int, int], tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Builds what the encoder and the pooler read (see `assemble`), one sequence a row; `shape` is (B, T)."""
    length_a, length_b = np.array([[len(row.a), len(row.b)] for row in rows]).T
    numbers = np.arange(len(rows))
    placed = Placement(numbers, np.zeros_like(numbers), numbers, length_a, length_b)
    tokens = np.fromiter(itertools.chain(*itertools.chain(*rows)), np.int32)
    return assemble(placed, tokens, (*shape, 1), tokenizer)


def _shortened(text: Text) -> str:
    text = text if isinstance(text, str) else " | ".join(text)
    return f"text {text!r}" if len(text) <= 60 else f"text {text[:60]!r}…"
