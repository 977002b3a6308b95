"""Classifiers on frozen features (Devlin et al., 2019, section 5.3): the encoder is not trained.

The checkpoint gives a vector for each text or word, and scikit-learn trains classifiers on these vectors.
Every setting, the number of epochs included, is chosen by the task's metric on the held-out examples, like
the best checkpoint of fine-tuning; the chosen classifier then predicts the test examples once.
"""

import copy
import dataclasses
import functools
import itertools
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state

from bert_jax.errors import UserError
from bert_jax.model.features import EncoderOnly, hidden_states, layer_number, pool
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.tasks.downstream import Downstream, Scores
from bert_jax.tasks.finetuning import Splits
from bert_jax.tasks.packed import PackedExamples
from bert_jax.tasks.registry import TASK_CLASSES
from bert_jax.training.opening import OpenedCheckpoint, first_device_compute, fresh_network

INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the logistic regression, the strongest penalty first
SMOOTHINGS = (1.0, 0.1, 0.01)  # added to the counts of words
HIDDEN, LARGEST_BATCH, MAX_EPOCHS = 256, 200, 200  # of the neural network
LEAST_STEPS = 20  # of its epoch, however few the examples
PATIENCE = 10  # epochs without a better score
WORD = r"\w+|[^\w\s]"
ON_WORDS = "naive Bayes on words"
Inputs = dict[str, np.ndarray]  # split -> vectors [n, D] or texts [n], for each text or each word
Grid = Mapping[str, Sequence[float]]  # parameter -> values to try; empty: the epochs of a network
Fitted = tuple[str, Any]  # the chosen setting in words, and the classifier fitted with it
log = logging.getLogger("bert_jax")


def train(
    config: FinetuneConfig, task: Downstream, splits: Splits, init_from: OpenedCheckpoint
) -> dict[str, Scores]:
    """Trains the classifiers that `task.frozen` names; for texts also naive Bayes on their words.

    Args:
        config: names the classifiers, the layer and the pooling, and has the seed.
        task: after `fit`.
        splits: its examples.
        init_from: the checkpoint with the encoder.

    Returns:
        For each classifier, by title, the metrics on "eval" and, if there are test examples, on "test".

    Raises:
        UserError: for a task without classes, an unknown layer, or training examples of one label only.
    """
    if not task.frozen:
        possible = " and ".join(kind.name for kind in TASK_CLASSES if kind.frozen)
        raise UserError(
            f"task.frozen={config.task.frozen!r}: frozen features are for {possible}, not for {task.name}; "
            "leave it empty."
        )
    parts = {name: getattr(splits, name) for name in ("train", "eval", "test") if getattr(splits, name)}
    features = frozen_features(config, task, init_from)
    vectors: Inputs = {}
    labels: dict[str, np.ndarray] = {}
    for name, examples in parts.items():
        packed = PackedExamples(task, examples, init_from.tokenizer, config.data)
        vectors[name], labels[name] = features(packed), _labels(packed)
    if len(np.unique(labels["train"])) < 2:
        raise UserError(
            f"data.train={config.data.train}: every training example has the same label; give examples of "
            "two labels or more."
        )
    # Not "loss": classifiers have none.
    metric = config.task.metric if config.task.metric in task.metrics else task.metrics[0]
    selection = ModelSelection(task, metric, parts, labels)
    known = classifiers(config.train.seed)
    scores = {}
    for title, pipeline, grid in (known[name] for name in config.task.classifiers):
        scores[title] = selection.run(title, pipeline, grid, vectors)
    if not task.per_token:
        scores[ON_WORDS] = naive_bayes_on_words(selection)
    return scores


def classifiers(seed: int) -> dict[str, tuple[str, Pipeline, Grid]]:
    """Returns by name in the config: title, pipeline, and the grid of its last stage."""
    scaled = functools.partial(make_pipeline, StandardScaler())
    regression = LogisticRegression(max_iter=1000, random_state=seed)
    # A number as the seed would give every epoch the order of the first.
    network = MLPClassifier((HIDDEN,), random_state=check_random_state(seed))
    smoothing = [GaussianNB().var_smoothing]
    return {
        "logistic_regression": ("logistic regression, frozen", scaled(regression), {"C": INVERSE_PENALTIES}),
        "naive_bayes": ("naive Bayes, frozen", scaled(GaussianNB()), {"var_smoothing": smoothing}),
        "neural_network": ("neural network, frozen", scaled(network), {}),  # its epochs are chosen
    }


def naive_bayes_on_words(selection: "ModelSelection") -> Scores:
    """Runs naive Bayes on the counts of words; raises UserError if no training text has a word."""
    counter = CountVectorizer(token_pattern=WORD)
    texts = {
        name: np.array([example.split_key for example in examples], object)
        for name, examples in selection.parts.items()
    }
    if not any(map(counter.build_analyzer(), texts["train"])):
        raise UserError("data.text: no training text has a word; name the column with the texts.")
    pipeline = make_pipeline(counter, MultinomialNB())
    return selection.run(ON_WORDS, pipeline, {"alpha": SMOOTHINGS}, texts)


def frozen_features(
    config: FinetuneConfig, task: Downstream, init_from: OpenedCheckpoint
) -> Callable[[PackedExamples], np.ndarray]:
    """Returns a function from examples to their features, float32 [n, D].

    The features of a text are those of `Pretrained.features`: the mean over its tokens, specials included, or
    the state of [CLS]. The feature of a word is the state of its first token. Texts are truncated and packed
    as in fine-tuning.

    Raises:
        UserError: for a `task.layer` that does not exist.
    """
    layer = layer_number(config.task.layer, init_from.model, "task.layer")
    build = functools.partial(EncoderOnly, init_from.model, compute=first_device_compute())
    if config.task.random_weights:
        structure, params = fresh_network(build, config.train.seed)
    else:
        structure, params = init_from.network(build)

    @jax.jit
    def forward(params, batch):
        states = hidden_states(nnx.merge(structure, params).encoder, batch, layer)
        if not task.per_token:
            states = pool(states, batch["sequence_ids"], batch["cls_positions"], config.task.pooling)
        return {"features": states}

    def features(packed: PackedExamples) -> np.ndarray:
        by_sequence = packed.run(functools.partial(forward, params))["features"]
        if not task.per_token:
            return np.stack(by_sequence)
        # Without [CLS] and [SEP] the states of all sequences are in the order of the tokens.
        tokens = np.concatenate([states[1:-1] for states in by_sequence])
        return tokens[packed.encoded.token_targets["labels"] >= 0]  # the first token of each word

    return features


def _labels(packed: PackedExamples) -> np.ndarray:
    """Returns the label of every text, or of every word: int32 [n]."""
    encoded = packed.encoded
    targets = encoded.token_targets if packed.task.per_token else encoded.sequence_targets
    return targets["labels"][targets["labels"] >= 0]  # -1: not the first token of a word


@dataclasses.dataclass(frozen=True)
class ModelSelection:
    """Fits classifiers on the training examples and keeps the setting that scores best on "eval".

    Args:
        task: scores.
        metric: the one of its metrics that decides; the first of equals wins.
        parts: examples by split.
        labels: by split int [n], for every text or every word.
    """

    task: Downstream
    metric: str
    parts: dict[str, list[Any]]
    labels: dict[str, np.ndarray]

    def run(self, title: str, pipeline: Pipeline, grid: Grid, inputs: Inputs) -> Scores:
        """Fits a classifier with the best setting, logs the setting, and returns the metrics by split."""
        start = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            search = functools.partial(self.grid_search, grid=grid) if grid else self.early_stopping
            setting, fitted = search(pipeline, inputs)
            scores = {name: self.score(fitted, name, inputs[name]) for name in self.parts if name != "train"}
        for line in dict.fromkeys(str(warning.message).split("\n")[0] for warning in caught):
            log.info("%s: %s", title, line)
        best, seconds = scores["eval"][self.metric], time.monotonic() - start
        log.info("%s: eval %s %.4f with %s, %.1f s", title, self.metric, best, setting, seconds)
        return scores

    def grid_search(self, pipeline: Pipeline, inputs: Inputs, grid: Grid) -> Fitted:
        """Chooses among the settings of a pipeline's last stage, e.g. {"C": [0.1, 1.0]}."""
        stage, _ = pipeline.steps[-1]
        vectors, labels = ([part[name] for name in ("train", "eval")] for part in (inputs, self.labels))
        search = GridSearchCV(
            pipeline,
            {f"{stage}__{name}": values for name, values in grid.items()},
            scoring=lambda fitted, held_out, _: self.score(fitted, "eval", held_out)[self.metric],
            cv=PredefinedSplit(np.repeat([-1, 0], [len(part) for part in labels])),  # -1: only trained on
            refit=False,  # it would train on "eval" too
            error_score="raise",
        )
        search.fit(np.concatenate(vectors), np.concatenate(labels))
        setting = ", ".join(f"{name.split('__')[1]}={value:g}" for name, value in search.best_params_.items())
        return setting, clone(pipeline).set_params(**search.best_params_).fit(vectors[0], labels[0])

    def early_stopping(self, pipeline: Pipeline, inputs: Inputs) -> Fitted:
        """Chooses the epoch of a scaled network, and stops after `PATIENCE` epochs without a better one.

        scikit-learn's own early stopping fails for a label with one example.
        """
        (_, scaler), (_, network) = pipeline.steps
        labels = self.labels["train"]
        network.set_params(batch_size=max(1, min(LARGEST_BATCH, len(labels) // LEAST_STEPS)))
        vectors, held_out = scaler.fit_transform(inputs["train"]), scaler.transform(inputs["eval"])
        best, best_epoch, kept = -math.inf, 0, None
        for epoch in range(1, MAX_EPOCHS + 1):
            network.partial_fit(vectors, labels, classes=np.unique(labels))
            score = self.score(network, "eval", held_out)[self.metric]
            if score > best:
                best, best_epoch, kept = score, epoch, copy.deepcopy(network)
            elif epoch - best_epoch == PATIENCE:
                break
        return f"epochs={best_epoch}", make_pipeline(scaler, kept)

    def score(self, classifier: Any, split: str, inputs: Any) -> dict[str, float]:
        """Computes the task's metrics of what a classifier predicts for a split."""
        examples = self.parts[split]
        guesses = (self.task.labels[number] for number in classifier.predict(inputs))
        predictions = [
            {"prediction": list(itertools.islice(guesses, len(example.words)))}
            if self.task.per_token
            else {"prediction": next(guesses)}
            for example in examples
        ]
        return self.task.score(predictions, examples)
