"""The config of fine-tuning: its sections `task` and `data`, and the config of one run."""

import dataclasses
import math
from typing import Self

import ml_collections

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.settings import check, setting
from bert_jax.training.config import OptimizerConfig, RunConfig, TrainConfig

# Settings of `train` that fine-tuning derives or does not use, and what to do instead.
NOT_FOR_FINETUNING = {
    "num_steps": "set train.num_epochs",
    "eval_batches": "leave it out: every evaluation reads all held-out examples",
    "unigram_bias": "leave it out: it is for the heads of pretraining",
    "probes": "leave it out: probes are for pretraining",
    "probe_every": "leave it out: probes are for pretraining",
    "probe_examples": "leave it out: probes are for pretraining",
    "selection": "set task.metric",
}
EVERY = "set train.evaluations_per_epoch, to 0 if eval_every and checkpoint_every are to decide"
CLASSIFIERS = ("logistic_regression", "naive_bayes", "neural_network")  # of scikit-learn


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The task, and how the best checkpoint is selected.

    Raises:
        UserError: if a value is unknown or out of range.
    """

    name: str = "classification"  # one of `bert_jax.tasks.registry.TASK_CLASSES`
    metric: str = ""  # of the held-out examples; selects the best checkpoint; "": the main metric of the task
    patience: int = setting(0, least=0)  # evaluations without improvement before training ends; 0: never
    random_weights: bool = False  # use network and vocabulary of init_from, not its weights
    # Dropout in fine-tuning; `for_run` copies it to `model`, where it is part of the identity.
    hidden_dropout: float = setting(0.1, least=0, below=1, run_time=True)
    attention_dropout: float = setting(0.0, least=0, below=1, run_time=True)
    # Classifiers on frozen features, for comparison: logistic_regression, naive_bayes, neural_network
    frozen: str = setting("", run_time=True)
    pooling: str = setting("mean", known=("mean", "cls"), run_time=True)  # of frozen features
    layer: int = setting(-1, run_time=True)  # of frozen features: 0 is the embeddings, -1 the last layer
    # For question answering.
    max_question_tokens: int = setting(64, least=1)  # longer questions are truncated
    doc_stride: int = setting(128, least=1)  # tokens between the starts of windows over a long paragraph
    decoding: str = setting("best_span", known=("best_span", "argmax"), run_time=True)
    max_answer_tokens: int = setting(30, least=1, run_time=True)  # of best_span
    null_threshold: float = setting(0.0, run_time=True)  # SQuAD 2.0: score of no answer

    def __post_init__(self):
        check("task", self)
        for classifier in self.classifiers:
            if classifier not in CLASSIFIERS:
                raise UserError(
                    f"task.frozen={self.frozen!r}: {classifier!r} is unknown; use some of "
                    f"{', '.join(CLASSIFIERS)}, with commas between."
                )

    @property
    def classifiers(self) -> tuple[str, ...]:
        """The names in `frozen`."""
        return tuple(name.strip() for name in self.frozen.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Files of examples, their columns and splits, and the size of a batch.

    Raises:
        UserError: if a value is out of range.
    """

    # FILE.tsv | FILE.csv | FILE.jsonl | tfds:NAME[:SPLIT]; SQuAD's FILE.json; columns in FILE.conll or .txt
    train: str = ""
    eval: str = ""  # selects the best checkpoint; "": a share of `train`, by a hash of the text
    test: str = ""  # scored once, by the best checkpoint; "": none, or a share of `train`
    eval_fraction: float = setting(0.1, least=0, below=1)  # of `train`, without a file as `eval`
    test_fraction: float = setting(0.0, least=0, below=1)  # of `train`, without a file as `test`
    num_folds: int = setting(1, least=1)  # cross-validation: number of runs, each with its own test share
    fold: int = setting(-1, least=-1)  # run this fold alone; -1: all, in order
    # Columns, by name; by number from 0 if the file has no header.
    text: str = "text"
    text_pair: str = ""  # "": single texts
    label: str = "label"
    header: bool = True
    labels: str = ""  # all classes in order, as A,B,C; "": those of `train`, sorted

    max_seq_length: int = setting(128, least=8)  # T, tokens of a row; longer texts are truncated
    global_batch_size: int = setting(32, least=1)  # B, rows of a step over all devices
    max_sequences_per_row: int = setting(1, least=1)  # S; more than one packs several sequences into a row

    input_workers: int = setting(1, least=1, run_time=True)  # threads that prepare batches
    prefetch_batches: int = setting(4, least=1, run_time=True)

    def __post_init__(self):
        check("data", self)
        if len(set(self.class_names)) < len(self.class_names):
            raise UserError(f"data.labels={self.labels!r} names a class twice.")
        if self.fold >= self.num_folds:
            raise UserError(f"data.fold={self.fold} is not below data.num_folds={self.num_folds}.")
        if self.num_folds > 1 and (self.test or self.test_fraction):
            raise UserError(
                f"data.num_folds={self.num_folds}: every fold has its own test share of data.train; remove "
                "data.test and set data.test_fraction=0.0."
            )
        if not self.eval and not 0.0 < self.eval_fraction < 1.0 - self.test_share:
            test = "num_folds" if self.num_folds > 1 else "test_fraction"
            if self.eval_fraction <= 0:
                raise UserError(
                    f"data.eval_fraction={self.eval_fraction} must be above 0; or give a file as data.eval."
                )
            raise UserError(
                f"data.eval_fraction={self.eval_fraction} and data.{test}={getattr(self, test)} must leave "
                "something to train on and to evaluate; lower them, or give a file as data.eval."
            )

    @property
    def class_names(self) -> list[str]:
        """The names in `labels`."""
        return [label.strip() for label in self.labels.split(",") if label.strip()]

    @property
    def test_share(self) -> float:
        """Share of the examples in `train` that is held out for the test."""
        return 1.0 / self.num_folds if self.num_folds > 1 else self.test_fraction


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """A config of fine-tuning, before and after `for_run`, which fills in what one run needs.

    The checkpoint `init_from` decides `model`; a config file does not set it.
    """

    task: TaskConfig = TaskConfig()
    data: TaskData = TaskData()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, warmup_steps=0)
    train: TrainConfig = TrainConfig(
        num_epochs=3.0,
        warmup_share=0.1,
        evaluations_per_epoch=1,
        log_every=10,
        keep_last=1,
        spike_z_score=0.0,  # losses of few examples, mostly learned, vary strongly
    )

    def check_file(self) -> None:
        """Raises UserError for values that a run has, but a config file must not set."""
        if self.optimizer.warmup_steps:
            raise UserError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: fine-tuning warms up over a share of "
                "its steps; set it to 0 and set train.warmup_share."
            )
        train = self.train
        every = () if not train.evaluations_per_epoch else ("eval_every", "checkpoint_every")
        for name in (*NOT_FOR_FINETUNING, *every):
            if getattr(train, name) != getattr(TrainConfig, name):
                instead = NOT_FOR_FINETUNING.get(name, EVERY)
                raise UserError(
                    f"train.{name}={getattr(train, name)} has no effect in fine-tuning; {instead}."
                )
        if not train.num_epochs and not self.task.frozen:
            raise UserError("train.num_epochs=0 and task.frozen='' leave nothing to do; set one of them.")

    def for_run(self, model: ModelConfig, rows_per_epoch: int, seed: int) -> Self:
        """Returns the config of the run with one seed: converts epochs to steps and sets `model`.

        Args:
            model: of the checkpoint that it starts from.
            rows_per_epoch: rows of `data.max_seq_length` tokens that contain every example once.
            seed: of the run.

        Raises:
            UserError: if rows are longer than the network's positions, or it cannot tell two texts apart.
        """
        pairs = self.data.text_pair or self.task.name == "question_answering"
        if pairs and model.type_vocab_size == 1:
            what = f"data.text_pair={self.data.text_pair}" if self.data.text_pair else "question answering"
            raise UserError(
                f"{what} needs two segments, and {self.init_from} has model.type_vocab_size=1; start from "
                "another checkpoint."
            )
        if self.data.max_seq_length > model.max_position_embeddings:
            raise UserError(
                f"data.max_seq_length={self.data.max_seq_length} is longer than the "
                f"{model.max_position_embeddings} positions of {self.init_from}; shorten it."
            )
        train = self.train
        if train.num_epochs:
            steps = max(1, round(train.num_epochs * rows_per_epoch / self.data.global_batch_size))
            train = dataclasses.replace(train, num_steps=steps)
        if train.evaluations_per_epoch:
            every = _even_period(train.num_steps, train.num_epochs * train.evaluations_per_epoch)
            train = dataclasses.replace(train, eval_every=every, checkpoint_every=every)
        warmup_steps = round(train.warmup_share * train.num_steps)
        dropout = {name: getattr(self.task, name) for name in ("hidden_dropout", "attention_dropout")}
        return dataclasses.replace(
            self,
            model=dataclasses.replace(model, **dropout),
            optimizer=dataclasses.replace(self.optimizer, warmup_steps=warmup_steps),
            train=dataclasses.replace(train, seed=seed),
        )


def _even_period(num_steps: int, count: float) -> int:
    """Returns the period nearest to num_steps / count whose last one is not less than half as long.

    The last step is evaluated in any case: no evaluation should come right before it.
    """
    ideal = num_steps / max(1.0, count)
    periods = range(1, 2 * math.ceil(ideal) + 1)
    return min(
        (n for n in periods if num_steps % n == 0 or 2 * (num_steps % n) >= n), key=lambda n: abs(n - ideal)
    )


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default; a config file of fine-tuning changes this and returns it."""
    values = FinetuneConfig().to_dict()
    del values["model"]  # that of init_from
    return ml_collections.ConfigDict(values)
