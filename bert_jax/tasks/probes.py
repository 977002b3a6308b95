"""Probes: what the features of a network are worth on labelled texts, while it is pretrained.

The vector of a text is pooled from the states of a layer. Either a classifier of scikit-learn is fitted to
the vectors, or the vectors of two texts are compared. Nothing in the network is trained.
"""

import collections
import dataclasses
import functools
import json
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy
from flax import nnx
from jax.sharding import PartitionSpec as P

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.features import TOKENS, hidden_states, layer_number, pool
from bert_jax.model.partition import DATA, FSDP
from bert_jax.tasks.classification import Classification, Example, class_label, number_label
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.finetuning import hash_share
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.records import column, digest, read_records, text_column
from bert_jax.training import hosts
from bert_jax.training.config import ProbeConfig, TrainConfig, probe_key
from bert_jax.training.mesh import process_rows, to_global
from bert_jax.training.program import Program

LEAST = 20  # examples of a file; fewer tell nothing
HELD_OUT = 0.2  # share of the examples of a classification
SHORT = 16  # tokens of a text of which a full row is packed
PENALTY = {"C": 0.1, "max_iter": 100}  # of the logistic regression, the same at every step
Key = Callable[[str], str]  # a field of a probe -> its config key, for errors
Batch = dict[str, jax.Array]
log = logging.getLogger("bert_jax")


class ProbeExamples(NamedTuple):
    """The examples of a probe, at most `train.probe_examples`, chosen by a hash of their text.

    Attributes:
        config: of the probe; `layer` counts from 0.
        train: examples that a classifier is fitted to; none for similarity, whose labels are numbers.
        held_out: examples that are scored.
        available: the number of examples to choose from.
        digest: of the content of the files.
    """

    config: ProbeConfig
    train: list[Example]
    held_out: list[Example]
    available: int
    digest: str


def read_probes(train: TrainConfig, model: ModelConfig) -> list[ProbeExamples]:
    """Reads and checks the examples of all probes of a config.

    Raises:
        UserError: for a file that cannot be used, or a layer that does not exist; names the probe.
    """
    return [
        _read(probe, functools.partial(probe_key, index), train.probe_examples, model)
        for index, probe in enumerate(train.probes)
    ]


def _read(probe: ProbeConfig, key: Key, count: int, model: ModelConfig) -> ProbeExamples:
    probe = dataclasses.replace(probe, layer=layer_number(probe.layer, model, key("layer")))
    if probe.kind == "classification" and probe.text_pair and model.type_vocab_size == 1:
        raise UserError(
            f"{key('text_pair')}={probe.text_pair!r}: model.type_vocab_size=1 has no segment for the second "
            "text; leave it empty."
        )
    files = {field: getattr(probe, field) for field in ("file", "eval") if getattr(probe, field)}
    sums = [digest(file, key(field)) for field, file in files.items()]
    found = {field: _examples(probe, file, key, field) for field, file in files.items()}
    choose = _similarity if probe.kind == "similarity" else _classification
    train, held_out = choose(probe, found, key, count)
    return ProbeExamples(probe, train, held_out, sum(map(len, found.values())), " ".join(sums))


def _examples(probe: ProbeConfig, file: str, key: Key, field: str) -> list[Example]:
    records = read_records(file, key(field))
    if len(records) < LEAST:
        raise UserError(f"{key(field)}={file} has {len(records)} examples; a probe needs {LEAST} or more.")
    texts = text_column(records, probe.text, key("text"))
    pairs = (
        text_column(records, probe.text_pair, key("text_pair")) if probe.text_pair else [None] * len(texts)
    )
    values = column(records, probe.label, key("label"))
    label = number_label if probe.kind == "similarity" else class_label
    name = f"{key('label')}={probe.label!r}"
    return [
        Example(text, pair, label(value, place, name), place)
        for text, pair, value, (place, _) in zip(texts, pairs, values, records, strict=True)
    ]


def _similarity(
    probe: ProbeConfig, found: dict[str, list[Example]], key: Key, count: int
) -> tuple[list[Example], list[Example]]:
    """Chooses at most `count` pairs; raises UserError if all have one score."""
    pairs = _chosen(found["file"], count)
    if len({pair.label for pair in pairs}) < 2:
        raise UserError(
            f"{key('label')}={probe.label!r}: every pair of {probe.file} has the score "
            f"{pairs[0].label:g}; nothing can be compared with that. Is it the right column?"
        )
    return [], pairs


def _classification(
    probe: ProbeConfig, found: dict[str, list[Example]], key: Key, count: int
) -> tuple[list[Example], list[Example]]:
    """Chooses at most `count` examples, a fifth of them held out; raises UserError if they are no task."""
    train, held_out = found["file"], found.get("eval", [])
    if not held_out:
        held_out = [example for example in train if hash_share(example.split_key) < HELD_OUT]
        train = [example for example in train if hash_share(example.split_key) >= HELD_OUT]
    scored = round(HELD_OUT * count)
    train, held_out = _chosen(train, count - scored), _chosen(held_out, scored)
    if not (train and held_out):
        raise UserError(
            f"{key('file')}={probe.file} leaves no example to {'hold out' if train else 'train on'}: "
            f"copies of a text go to one part. Give more different texts, or a file as {key('eval')}."
        )
    if len({example.label for example in train}) < 2:
        raise UserError(
            f"{key('label')}={probe.label!r}: every example of {probe.file} to train on has the label "
            f"{train[0].label!r}; a probe needs two classes. Is it the right column?"
        )
    return train, held_out


def _chosen(examples: list[Example], count: int) -> list[Example]:
    """Returns at most `count` examples, those with the smallest hashes: not the first of a sorted file."""
    return sorted(examples, key=lambda example: hash_share(example.split_key))[:count]


class Probe:
    """Scores the features of a network; implements the loop's protocol `Evaluator`.

    Args:
        examples: what `read_probes` returned.
        tokenizer: of the network.
        every: steps between runs.
        max_seq_length: tokens of a row; longer texts are truncated.

    Attributes:
        metric: the one of its metrics that tells how good the features are; higher is better.
    """

    def __init__(self, examples: ProbeExamples, tokenizer: Tokenizer, every: int, max_seq_length: int):
        self.name, self.every = f"probe_{examples.config.name}", every
        self._examples, self._is_similarity = examples, examples.config.kind == "similarity"
        self.metric = "spearman" if self._is_similarity else "accuracy"
        texts = [*examples.train, *examples.held_out]
        if self._is_similarity:  # each text by itself
            texts = [pair._replace(pair=None) for pair in texts] + [
                pair._replace(text=pair.pair or "", pair=None) for pair in texts
            ]
        data = TaskData(max_seq_length=max_seq_length, max_sequences_per_row=max(1, max_seq_length // SHORT))
        task = Classification(TaskConfig(), data, {"labels": []})
        self._packed = PackedExamples(task, texts, tokenizer, data)

    def run(self, program: Program, params: Any) -> dict[str, float]:
        """Returns the metrics; none after an error, which is a warning: it does not end the run."""
        start, problem, scores = time.perf_counter(), "", {}
        try:
            vectors = self.features(program, params).astype(np.float64)
            if not np.isfinite(vectors).all():
                raise ValueError("the features are not finite")
            scores = self._spearman(vectors) if self._is_similarity else self._accuracy(vectors)
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        # The processes go on alike: a metric may decide which checkpoint is the best.
        everyone = hosts.gather(json.dumps([problem, scores]))
        problem, scores = next((result for result in everyone if result[0]), everyone[0])
        title, seconds = self.name.replace("_", " ", 1), time.perf_counter() - start
        if problem:
            log.warning("%s failed, and training goes on without its metrics: %s", title, problem)
            return {}
        log.info("%s: %s, %.1f s", title, self._described(scores), seconds)
        return scores

    def features(self, program: Program, params: Any) -> np.ndarray:
        """Computes the vectors of all texts on the mesh of a run: float32 [n, D], on every process."""
        mesh, rows, config = program.mesh, self._packed.rows, self._examples.config
        devices = mesh.shape[DATA] * mesh.shape[FSDP]  # each holds the same number of rows
        per_device = max(1, TOKENS // self._packed.data.max_seq_length)
        size = devices * min(per_device, -(-rows.num_rows // devices))
        network = functools.partial(_vectors, program.structure, config.layer, config.pooling, params)
        outputs = (
            jax.device_get(network(to_global(mesh, batch)))
            for batch in self._packed.batches(size, process_rows(mesh, size))
        )
        return np.stack(rows.by_sequence(outputs, size, per_token=False)["vectors"])

    def _accuracy(self, vectors: np.ndarray) -> dict[str, float]:
        """Returns `accuracy` on the held-out examples, and `majority`, the share of their largest class."""
        # Here, since importing them takes a second.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        train, held_out = (
            np.array([example.label for example in part])
            for part in (self._examples.train, self._examples.held_out)
        )
        classifier = make_pipeline(StandardScaler(), LogisticRegression(**PENALTY))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # time is bounded
            classifier.fit(vectors[: len(train)], train)
        right = classifier.predict(vectors[len(train) :]) == held_out
        ((_, largest),) = collections.Counter(held_out.tolist()).most_common(1)
        return {"accuracy": float(right.mean()), "majority": largest / len(held_out)}

    def _spearman(self, vectors: np.ndarray) -> dict[str, float]:
        """Returns `spearman`, of the scores and the cosine of the two vectors; 0 if all cosines are equal."""
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(float).tiny)
        cosines = np.sum(np.multiply(*np.split(vectors, 2)), axis=1)
        scores = [example.label for example in self._examples.held_out]
        return {
            "spearman": float(scipy.stats.spearmanr(cosines, scores).statistic) if np.ptp(cosines) else 0.0
        }

    def _described(self, scores: dict[str, float]) -> str:
        train, held_out = f"{len(self._examples.train):,}", f"{len(self._examples.held_out):,}"
        available = f"{self._examples.available:,}"
        if self._is_similarity:
            return f"spearman {scores['spearman']:.3f}, {held_out} of {available} pairs"
        found = f"accuracy {scores['accuracy']:.3f} (majority {scores['majority']:.2f})"
        return f"{found}, {train} + {held_out} of {available} examples"


@functools.partial(jax.jit, static_argnums=(0, 1, 2), out_shardings=P())  # the vectors on every process
def _vectors(structure: nnx.GraphDef, layer: int, pooling: str, params: Any, batch: Batch) -> Batch:
    states = hidden_states(nnx.merge(structure, params).encoder, batch, layer)
    return {"vectors": pool(states, batch["sequence_ids"], batch["cls_positions"], pooling)}
