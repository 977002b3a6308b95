"""Classifiers on frozen features (Devlin et al., 2019, section 5.3): no gradient reaches the encoder.

What a text or a word is represented by comes from the checkpoint as it is; only a classifier of scikit-learn
is trained. Every setting, the number of epochs included, is chosen by the task's metric of the held-out
examples, as the best checkpoint of fine-tuning is; the test examples are predicted once, by what was chosen.
"""

import copy
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

from bert_jax.errors import UserError
from bert_jax.inference.pretrained import TOKENS, Headless, hidden_states, layer_number
from bert_jax.model.encoder import gather_positions
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.tasks.downstream import Downstream
from bert_jax.tasks.finetuning import Base, Laid, Splits
from bert_jax.training.checkpoint import restore_params
from bert_jax.training.config import MeshConfig
from bert_jax.training.mesh import make_mesh
from bert_jax.training.step import TrainState, abstract_model, init_params, with_shardings

LABELLED = ("classification", "token_classification")  # tasks
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression, the strongest penalty first
SMOOTHINGS = (1.0, 0.1, 0.01)  # added to the counts of words
HIDDEN, LARGEST_BATCH, MAX_EPOCHS = 256, 200, 200  # of the neural network
LEAST_STEPS = 20  # of its epoch, however few the examples
PATIENCE = 10  # settings, or epochs, without a better one
WORD = r"\w+|[^\w\s]"
ON_WORDS = "naive Bayes on words"
Scores = dict[str, dict[str, float]]  # split -> metric -> value
Inputs = dict[str, Any]  # split -> a matrix with a row for every text, or every word
Candidates = Iterator[tuple[str, Any]]  # a setting in words, and the classifier that was fitted with it
log = logging.getLogger("bert_jax")


def train(config: FinetuneConfig, task: Downstream, splits: Splits, base: Base) -> dict[str, Scores]:
    """Trains the classifiers that `task.frozen` names; of texts also naive Bayes on the words themselves.

    Args:
        config: names the classifiers, the layer and the pooling, and has the seed.
        task: has learned from the training examples.
        splits: its examples.
        base: the checkpoint with the encoder.

    Returns:
        Of every classifier, by its title, the metrics of "eval" and, if there are such examples, of "test".

    Raises:
        UserError: for a task without labels, a layer that does not exist, training examples of one label.
    """
    if config.task.name not in LABELLED:
        raise UserError(
            f"task.frozen={config.task.frozen!r}: these are classifiers, for {' and '.join(LABELLED)}, not "
            f"for {config.task.name}; leave it empty."
        )
    parts = {name: getattr(splits, name) for name in ("train", "eval", "test") if getattr(splits, name)}
    features, vectors, labels = frozen_features(config, task, base), {}, {}
    for name, examples in parts.items():
        laid = Laid(task, examples, base.tokenizer, config.data)
        vectors[name], labels[name] = features(laid), _labels(laid)
    if len(np.unique(labels["train"])) < 2:
        raise UserError(
            f"data.train={config.data.train}: every example to train on has the same label; no classifier "
            "can be learned from that."
        )
    scaler = StandardScaler().fit(vectors["train"])
    scaled = {name: scaler.transform(part) for name, part in vectors.items()}
    contest = Contest(config, task, parts, labels["train"])
    scores = {}
    for classifier in config.task.classifiers:
        title, candidates = CLASSIFIERS[classifier]
        scores[title] = contest.best(title, scaled, candidates)
    if config.task.name == "classification":
        scores[ON_WORDS] = contest.best(ON_WORDS, _word_counts(task, parts), _naive_bayes_on_words)
    return scores


def frozen_features(config: FinetuneConfig, task: Downstream, base: Base) -> Callable[[Laid], np.ndarray]:
    """A function from examples to their features, float32 [n, D].

    Of a text they are what `Pretrained.features` gives, the mean over its tokens, specials included, or the
    state of [CLS]; of a word they are the state of its first token. Long texts are cut, and sequences share
    rows, as in fine-tuning.

    Raises:
        UserError: for a `task.layer` that does not exist.
    """
    layer = layer_number(config.task.layer, base.model, "task.layer")
    structure, params = _encoder(config, base)
    size = max(1, TOKENS // config.data.max_seq_length)

    @jax.jit
    def forward(params, batch):
        states = hidden_states(nnx.merge(structure, params).encoder, batch, layer)
        if task.per_token:
            return states
        return pool(states, batch["sequence_ids"], batch["cls_positions"], config.task.pooling)

    def features(laid: Laid) -> np.ndarray:
        found: dict[str, dict[int, np.ndarray]] = {}
        for number, batch in enumerate(laid.batches(size, np.arange(size))):
            outputs = {"features": jax.device_get(forward(params, batch))}
            laid.rows.collect(outputs, number * size + np.arange(size), task.per_token, found)
        by_sequence = [found["features"][number] for number in range(len(found["features"]))]
        if not task.per_token:
            return np.stack(by_sequence)
        # Without [CLS] and [SEP] the states of all sequences lie as the tokens do.
        tokens = np.concatenate([states[1:-1] for states in by_sequence])
        return tokens[laid.encoded.token_targets["labels"] >= 0]  # where a word begins

    return features


def _encoder(config: FinetuneConfig, base: Base) -> tuple[nnx.GraphDef, Any]:
    """Structure and parameters of the encoder that fine-tuning starts from, on one device."""

    def build(rngs: nnx.Rngs) -> Headless:
        return Headless(base.model, rngs)

    structure, abstract = abstract_model(build)
    abstract = with_shardings(abstract, make_mesh(MeshConfig(), jax.local_devices()[:1]))
    if config.task.random_weights:
        return structure, init_params(build, TrainState(jnp.int32(0), abstract, ()), config.train.seed)
    return structure, restore_params(base.folder, base.meta, base.model, abstract)


def _labels(laid: Laid) -> np.ndarray:
    """int32 [n], the label of every text, or of every word."""
    targets = (laid.encoded.token_targets if laid.task.per_token else laid.encoded.sequence_targets)["labels"]
    return targets[targets >= 0]  # -1: not the first token of a word


def pool(states: jax.Array, sequence_ids: jax.Array, cls_positions: jax.Array, pooling: str) -> jax.Array:
    """One vector for each sequence of packed rows.

    Args:
        states: float [B, T, D].
        sequence_ids: int [B, T], s + 1 for the tokens of slot s; 0: padding.
        cls_positions: int [B, S].
        pooling: mean | cls.

    Returns:
        float [B, S, D]; of an empty slot it means nothing.
    """
    if pooling == "cls":
        return gather_positions(states, cls_positions)
    slots = jnp.arange(1, cls_positions.shape[1] + 1)
    inside = (sequence_ids[..., None] == slots).astype(states.dtype)  # [B, T, S]
    # The default precision of a TPU would round the states to bfloat16.
    totals = jnp.einsum("bts,btd->bsd", inside, states, precision=jax.lax.Precision.HIGHEST)
    return totals / jnp.maximum(inside.sum(axis=1), 1.0)[..., None]


class Contest:
    """Fits classifiers with several settings, and of each keeps what is best on the held-out examples.

    Args:
        config: the metric that decides, and the seed.
        task: scores.
        parts: examples by split.
        labels: int [n], of every text, or every word, to train on.
    """

    def __init__(
        self, config: FinetuneConfig, task: Downstream, parts: dict[str, list[Any]], labels: np.ndarray
    ):
        self._task, self._parts, self._labels, self._seed = task, parts, labels, config.train.seed
        # Not "loss": that is of fine-tuning alone.
        self._metric = config.task.metric if config.task.metric in task.metrics else task.metrics[0]

    def best(
        self, title: str, inputs: Inputs, candidates: Callable[[Any, np.ndarray, int], Candidates]
    ) -> Scores:
        """Metrics by split of the best candidate, of equals the first; says so in one line."""
        start, best, waited = time.monotonic(), -math.inf, 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for setting, classifier in candidates(inputs["train"], self._labels, self._seed):
                scores = self._score(classifier, inputs, "eval")
                if scores[self._metric] > best:
                    best, waited = scores[self._metric], 0
                    kept, setting_kept, scores_kept = copy.deepcopy(classifier), setting, scores
                elif (waited := waited + 1) == PATIENCE:
                    break
            found = {"eval": scores_kept}
            if "test" in self._parts:
                found["test"] = self._score(kept, inputs, "test")
        for line in dict.fromkeys(str(warning.message).split("\n")[0] for warning in caught):
            log.info("%s: %s", title, line)
        seconds = time.monotonic() - start
        log.info("%s: eval %s %.4f with %s, %.1f s", title, self._metric, best, setting_kept, seconds)
        return found

    def _score(self, classifier: Any, inputs: Inputs, split: str) -> dict[str, float]:
        names, examples = self._task.facts["labels"], self._parts[split]
        guesses = iter([names[number] for number in classifier.predict(inputs[split])])
        predictions = [
            {"prediction": list(itertools.islice(guesses, len(example.words)))}
            if self._task.per_token
            else {"prediction": next(guesses)}
            for example in examples
        ]
        return self._task.score(predictions, examples)


def _word_counts(task: Downstream, parts: dict[str, list[Any]]) -> Inputs:
    """Sparse matrices [n, words]: how often each word of the training texts is in a text, or in a pair."""
    texts = {name: [task.text(example) for example in examples] for name, examples in parts.items()}
    counter = CountVectorizer(token_pattern=WORD)
    if not any(map(counter.build_analyzer(), texts["train"])):
        raise UserError("data.text: no text to train on has a word. Is it the right column?")
    counter.fit(texts["train"])
    return {name: counter.transform(part) for name, part in texts.items()}


def _logistic_regression(inputs: Any, labels: np.ndarray, seed: int) -> Candidates:
    for penalty in INVERSE_PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=1000, random_state=seed)
        yield f"C={penalty:g}", model.fit(inputs, labels)


def _naive_bayes(inputs: Any, labels: np.ndarray, _seed: int) -> Candidates:
    model = GaussianNB()
    yield f"var_smoothing={model.var_smoothing:g}", model.fit(inputs, labels)


def _naive_bayes_on_words(inputs: Any, labels: np.ndarray, _seed: int) -> Candidates:
    for smoothing in SMOOTHINGS:
        yield f"alpha={smoothing:g}", MultinomialNB(alpha=smoothing).fit(inputs, labels)


def _neural_network(inputs: Any, labels: np.ndarray, seed: int) -> Candidates:
    """The same network after every epoch: scikit-learn's own early stopping fails where a label is rare."""
    network = MLPClassifier(
        (HIDDEN,),
        batch_size=max(1, min(LARGEST_BATCH, len(labels) // LEAST_STEPS)),
        random_state=check_random_state(seed),  # a number would give every epoch the order of the first
    )
    known = np.unique(labels)
    for epoch in range(1, MAX_EPOCHS + 1):
        yield f"epochs={epoch}", network.partial_fit(inputs, labels, classes=known)


CLASSIFIERS = {
    "logistic_regression": ("logistic regression, frozen", _logistic_regression),
    "naive_bayes": ("naive Bayes, frozen", _naive_bayes),
    "neural_network": ("neural network, frozen", _neural_network),
}
