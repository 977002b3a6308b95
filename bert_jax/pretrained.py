"""A checkpoint as something to use: `bert_jax.load(path)` encodes, fills masks and gives features.

bert = bert_jax.load("runs/bert_tiny")
bert.fill_mask(["The [MASK] of the United States."])
bert.features(["A sentence.", "Another one."])
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx

from bert_jax.config import Config, from_dict
from bert_jax.data.tokenizer import Tokenizer, load_tokenizer
from bert_jax.errors import UserError
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training.checkpoint import open_checkpoint, restore_params
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh
from bert_jax.training.step import abstract_model, with_shardings

MASK = "[MASK]"
ROWS = 32  # of a batch
SHORTEST = 16  # tokens of a row; rows are padded to a power of two, so that few shapes are compiled


class Guess(NamedTuple):
    """One candidate for a mask."""

    token: str
    probability: float


def load(checkpoint: epath.PathLike) -> "Pretrained":
    """Loads a checkpoint: a run's folder (its newest one) or `checkpoints/STEP`.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    folder, meta = open_checkpoint(checkpoint)
    config = from_dict(meta["config"])
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(config.model, rngs))
    mesh = make_mesh(MeshConfig(), jax.local_devices()[:1])
    params = restore_params(folder, meta, config.model, with_shardings(abstract, mesh))
    return Pretrained(config, load_tokenizer(folder / "tokenizer"), structure, params, meta)


class Pretrained:
    """A pretrained encoder with its tokenizer and heads. Texts are batched by length and run jitted.

    Attributes:
        config: what it was trained with.
        tokenizer: text to ids and back.
        params: nested dict of arrays.
        meta: what the checkpoint says of itself (step, versions, digest of the data).
        max_length: tokens of a row, specials included, that it was trained with.
    """

    def __init__(
        self, config: Config, tokenizer: Tokenizer, structure: Any, params: Any, meta: dict[str, Any]
    ):
        self.config, self.tokenizer, self.params, self.meta = config, tokenizer, params, meta
        self.max_length = config.data.max_seq_length
        self._encode = jax.jit(
            lambda p, batch: nnx.merge(structure, p).encoder(batch, all_hidden_states=True)
        )
        self._predict = jax.jit(lambda p, batch: nnx.merge(structure, p)(batch))

    def fill_mask(self, texts: Sequence[str], top_k: int = 5) -> list[list[list[Guess]]]:
        """The `top_k` most probable tokens for every `[MASK]` of every text.

        Returns:
            For each text, for each of its masks in order, guesses from the most probable on.

        Raises:
            UserError: for a text without `[MASK]` or with more tokens than the network was trained for.
        """
        for text in texts:
            if MASK not in text:
                raise UserError(f"--text={text!r} has no {MASK}; put {MASK} where a word is to be guessed.")
        results: list[list[list[Guess]]] = [[] for _ in texts]
        for numbers, batch in self._batches([(text, None) for text in texts]):
            logits, _ = self._predict(self.params, batch)
            probabilities = np.asarray(jax.nn.softmax(logits))
            for row, number in enumerate(numbers):
                for slot in np.flatnonzero(batch["masked_lm_weights"][row]):
                    best = np.argsort(-probabilities[row, slot])[:top_k]
                    results[number].append(
                        [
                            Guess(self.tokenizer.decode([i]), float(probabilities[row, slot, i]))
                            for i in best.tolist()
                        ]
                    )
        return results

    def next_sentence(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The probability that the second text of each pair follows the first: float32 [pairs]."""
        result = np.zeros(len(pairs), np.float32)
        for numbers, batch in self._batches(pairs):
            _, logits = self._predict(self.params, batch)
            result[numbers] = np.asarray(jax.nn.softmax(logits))[: len(numbers), 0, 0]  # label 0 is IsNext
        return result

    def encode(self, texts: Sequence[str], layer: int = -1) -> list[np.ndarray]:
        """The hidden states of every token, `[CLS]` and `[SEP]` included: float32 [tokens, D] for each text.

        Args:
            texts: what to encode.
            layer: 0 for the embeddings, 1 … L for a layer's output, -1 for the last.
        """
        result: list[np.ndarray] = [np.zeros((0, 0))] * len(texts)
        for numbers, batch in self._batches([(text, None) for text in texts]):
            states = np.asarray(self._encode(self.params, batch)[layer], np.float32)
            for row, number in enumerate(numbers):
                result[number] = states[row, : batch["sequence_ids"][row].sum()]
        return result

    def features(self, texts: Sequence[str], pooling: str = "mean", layer: int = -1) -> np.ndarray:
        """One vector for each text: float32 [texts, D].

        Args:
            texts: what to encode.
            pooling: `mean` over all tokens, or `cls` for the state of `[CLS]`.
            layer: as in `encode`.

        Raises:
            UserError: for another pooling.
        """
        if pooling not in ("mean", "cls"):
            raise UserError(f"--pooling={pooling!r} is unknown; use mean or cls.")
        states = self.encode(texts, layer)
        return np.stack([state.mean(axis=0) if pooling == "mean" else state[0] for state in states])

    def _batches(
        self, pairs: Sequence[tuple[str, str | None]]
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """Batches of rows of like length, with the numbers of the texts in their rows."""
        rows = [self._row(*pair) for pair in pairs]
        order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
        for start in range(0, len(order), ROWS):
            numbers = order[start : start + ROWS]
            longest = max(len(rows[number][0]) for number in numbers)
            length = min(self.max_length, max(SHORTEST, 1 << (longest - 1).bit_length()))
            yield numbers, self._batch([rows[number] for number in numbers], length)

    def _row(self, text: str, second: str | None) -> tuple[list[int], int]:
        """Ids of [CLS] A [SEP] (B [SEP]), and the number of tokens of the first part."""
        first = [self.tokenizer.cls_id, *self._ids(text), self.tokenizer.sep_id]
        ids = first + ([*self._ids(second), self.tokenizer.sep_id] if second is not None else [])
        if len(ids) > self.max_length:
            raise UserError(
                f"a text of {len(ids)} tokens ({text[:40]!r}…) is longer than the {self.max_length} that "
                "the network was trained with (data.max_seq_length); shorten or split it."
            )
        return ids, len(first)

    def _ids(self, text: str) -> list[int]:
        parts = self.tokenizer.encode(text.split(MASK))
        return [
            i
            for number, part in enumerate(parts)
            for i in ([self.tokenizer.mask_id] if number else []) + part
        ]

    def _batch(self, rows: list[tuple[list[int], int]], length: int) -> dict[str, np.ndarray]:
        shape = (ROWS, length)
        batch = {name: np.zeros(shape, np.int32) for name in ("token_type_ids", "sequence_ids")}
        batch["input_ids"] = np.full(shape, self.tokenizer.pad_id, np.int32)
        batch["position_ids"] = np.tile(np.arange(length, dtype=np.int32), (ROWS, 1))
        for row, (ids, first) in enumerate(rows):
            batch["input_ids"][row, : len(ids)] = ids
            batch["sequence_ids"][row, : len(ids)] = 1
            batch["token_type_ids"][row, first : len(ids)] = 1
        masked = batch["input_ids"] == self.tokenizer.mask_id
        slots = 1 << max(0, int(masked.sum(axis=1).max()) - 1).bit_length()
        batch["masked_lm_positions"] = np.argsort(~masked, axis=1, kind="stable")[:, :slots].astype(np.int32)
        batch["masked_lm_weights"] = np.take_along_axis(masked, batch["masked_lm_positions"], 1).astype(
            np.float32
        )
        batch["cls_positions"] = np.zeros((ROWS, 1), np.int32)
        return batch
