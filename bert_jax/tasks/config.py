"""The config of fine-tuning, as its file has it and as a run is trained: sections `task`, `data`, `train`."""

import dataclasses
import math

import ml_collections

from bert_jax.config import RunConfig
from bert_jax.errors import UserError, check_known, check_least
from bert_jax.model.config import ModelConfig
from bert_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig

RUN_TIME = {"run_time": True}  # may change when a run resumes: it does not change what is learned
CLASSIFIERS = ("logistic_regression", "naive_bayes", "neural_network")  # of scikit-learn
TASKS = ("classification", "regression", "question_answering", "token_classification")


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is learned, and which checkpoint is the best.

    Raises:
        UserError: for a value that is not known or out of range.
    """

    name: str = "classification"  # classification | regression | question_answering | token_classification
    metric: str = ""  # of the held-out examples, that chooses the best checkpoint; "": the task's own
    patience: int = 0  # evaluations without a better one, then training ends; 0: never
    random_weights: bool = False  # take network and vocabulary of init_from, but not what it has learned
    # Classifiers on frozen features, to compare with: some of logistic_regression,naive_bayes,neural_network
    frozen: str = dataclasses.field(default="", metadata=RUN_TIME)
    pooling: str = dataclasses.field(default="mean", metadata=RUN_TIME)  # of frozen features: mean | cls
    layer: int = dataclasses.field(default=-1, metadata=RUN_TIME)  # of them: 0 the embeddings, -1 the last
    # Of question answering.
    max_question_tokens: int = 64  # longer questions are cut
    doc_stride: int = 128  # tokens from one window over a long paragraph to the next
    decoding: str = dataclasses.field(default="best_span", metadata=RUN_TIME)  # best_span | argmax
    max_answer_tokens: int = dataclasses.field(default=30, metadata=RUN_TIME)  # of best_span
    null_threshold: float = dataclasses.field(default=0.0, metadata=RUN_TIME)  # SQuAD 2.0: score of no answer

    def __post_init__(self):
        check_known("task", self, name=TASKS, decoding=("best_span", "argmax"), pooling=("mean", "cls"))
        for classifier in self.classifiers:
            if classifier not in CLASSIFIERS:
                raise UserError(
                    f"task.frozen={self.frozen!r}: {classifier!r} is unknown; use some of "
                    f"{', '.join(CLASSIFIERS)}, with commas between."
                )
        check_least("task", self, 0, "patience")
        check_least("task", self, 1, "max_question_tokens", "doc_stride", "max_answer_tokens")

    @property
    def classifiers(self) -> tuple[str, ...]:
        """What `frozen` names."""
        return tuple(name.strip() for name in self.frozen.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Where the examples are, and what a batch is.

    Raises:
        UserError: if a value is out of range.
    """

    # FILE.tsv | FILE.csv | FILE.jsonl | tfds:NAME[:SPLIT]; SQuAD's FILE.json; columns in FILE.conll or .txt
    train: str = ""
    eval: str = ""  # chooses the best checkpoint; "": a share of `train`, by a hash of the text
    test: str = ""  # read once, at the end, by the best checkpoint; "": none, or a share of `train`
    eval_fraction: float = 0.1
    test_fraction: float = 0.0
    num_folds: int = 1  # cross-validation: so many runs, each tested by another share of `train`
    fold: int = -1  # of them: this one alone; -1: all, one after the other
    # Columns, by name; by number from 0 where the file has no header.
    text: str = "text"
    text_pair: str = ""  # "": single texts
    label: str = "label"
    header: bool = True
    labels: str = ""  # all of them, as A,B,C: the order of the classes; "": those of `train`, sorted

    max_seq_length: int = 128  # T, tokens of a row; longer texts are cut
    global_batch_size: int = 32  # B, rows of a step over all devices
    max_sequences_per_row: int = 1  # S; more than one packs several sequences into a row

    input_workers: int = dataclasses.field(default=1, metadata=RUN_TIME)  # threads that build batches ahead
    prefetch_batches: int = dataclasses.field(default=4, metadata=RUN_TIME)

    def __post_init__(self):
        check_least("data", self, 8, "max_seq_length")
        check_least("data", self, -1, "fold")
        check_least("data", self, 1, "global_batch_size", "max_sequences_per_row", "num_folds",
                    "input_workers", "prefetch_batches")  # fmt: skip
        for name in ("eval_fraction", "test_fraction"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"data.{name}={getattr(self, name)} must be a share below 1.")
        if len(set(self.class_names)) < len(self.class_names):
            raise UserError(f"data.labels={self.labels!r} names a class twice.")
        if self.fold >= self.num_folds:
            raise UserError(f"data.fold={self.fold} is not below data.num_folds={self.num_folds}.")
        if self.num_folds > 1 and (self.test or self.test_fraction):
            raise UserError(
                f"data.num_folds={self.num_folds}: every fold is tested by a share of data.train; leave out "
                "data.test, and set data.test_fraction=0.0."
            )
        if not self.eval and not 0.0 < self.eval_fraction < 1.0 - self.test_share:
            test = "num_folds" if self.num_folds > 1 else "test_fraction"
            raise UserError(
                f"data.eval_fraction={self.eval_fraction} and data.{test}={getattr(self, test)} must leave "
                "something to train on and something to choose by; or give data.eval, a file."
            )

    @property
    def class_names(self) -> list[str]:
        """What `labels` names."""
        return [label.strip() for label in self.labels.split(",") if label.strip()]

    @property
    def test_share(self) -> float:
        """Of the examples in `train`, what is held out as a test."""
        return 1.0 / self.num_folds if self.num_folds > 1 else self.test_fraction


@dataclasses.dataclass(frozen=True)
class FinetuneTrain:
    """For how long and how: what a run's `TrainConfig` is made from once the examples are counted.

    Raises:
        UserError: if a number is out of range.
    """

    num_epochs: float = 3.0  # how often every example is seen; 0: only task.frozen is trained
    warmup_share: float = 0.1  # of all steps
    evaluations_per_epoch: int = 1  # each with a checkpoint, of which the best and the newest stay
    seed: int = 0
    num_seeds: int = 1  # runs with seed, seed + 1, …, and their mean and spread
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.0
    log_every: int = dataclasses.field(default=10, metadata=RUN_TIME)
    gradient_accumulation_steps: int = dataclasses.field(default=1, metadata=RUN_TIME)
    prng: str = "threefry"
    activation_dtype: str = "auto"
    remat: str = dataclasses.field(default="none", metadata=RUN_TIME)

    def __post_init__(self):
        if not 0.0 <= self.num_epochs < math.inf:
            raise UserError(f"train.num_epochs={self.num_epochs} must not be negative.")
        if not 0.0 <= self.warmup_share < 1.0:
            raise UserError(f"train.warmup_share={self.warmup_share} must be a share below 1.")
        check_least("train", self, 1, "evaluations_per_epoch", "num_seeds")

    def resolved(self, rows_per_epoch: int, global_batch_size: int, seed: int) -> tuple[TrainConfig, int]:
        """The `TrainConfig` of the run with this seed, and its warm-up steps."""
        steps = max(1, round(self.num_epochs * rows_per_epoch / global_batch_size))
        between = max(1, round(rows_per_epoch / global_batch_size / self.evaluations_per_epoch))
        train = TrainConfig(
            num_steps=steps,
            seed=seed,
            prng=self.prng,
            activation_dtype=self.activation_dtype,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            log_every=self.log_every,
            eval_every=min(between, steps),
            checkpoint_every=min(between, steps),
            keep_last=1,
            remat=self.remat,
            spike_z_score=0.0,  # losses of a few examples, most of them learned, do jump
        )
        return train, round(self.warmup_share * steps)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What a config file of fine-tuning holds. `init_from` names the checkpoint that it starts from."""

    task: TaskConfig = TaskConfig()
    data: TaskData = TaskData()
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-5, warmup_steps=0)
    train: FinetuneTrain = FinetuneTrain()
    mesh: MeshConfig = MeshConfig()
    init_from: str = ""

    def __post_init__(self):
        if self.optimizer.warmup_steps:
            raise UserError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps}: fine-tuning warms up over a share of "
                "its steps; leave this at 0 and set train.warmup_share."
            )
        if not self.train.num_epochs and not self.task.frozen:
            raise UserError("train.num_epochs=0 and task.frozen='' leave nothing to do; set one of them.")

    def resolved(self, model: ModelConfig, rows_per_epoch: int, seed: int) -> "TaskRun":
        """The run with this seed, from a checkpoint of this network, over so many rows an epoch."""
        train, warmup_steps = self.train.resolved(rows_per_epoch, self.data.global_batch_size, seed)
        return TaskRun(
            model=dataclasses.replace(
                model,
                hidden_dropout=self.train.hidden_dropout,
                attention_dropout=self.train.attention_dropout,
            ),
            task=self.task,
            data=self.data,
            optimizer=dataclasses.replace(self.optimizer, warmup_steps=warmup_steps),
            train=train,
            mesh=self.mesh,
            init_from=self.init_from,
        )


@dataclasses.dataclass(frozen=True)
class TaskRun(RunConfig):
    """A fine-tuning run with one seed, as it is trained and as its checkpoints hold it."""

    task: TaskConfig = TaskConfig()
    data: TaskData = TaskData()

    def __post_init__(self):
        if self.data.max_seq_length > self.model.max_position_embeddings:
            raise UserError(
                f"data.max_seq_length={self.data.max_seq_length} is longer than the "
                f"{self.model.max_position_embeddings} positions of {self.init_from}; shorten it."
            )
        self._check_accumulation()


def default_config() -> ml_collections.ConfigDict:
    """Every field with its default: what a config file of fine-tuning starts from."""
    return ml_collections.ConfigDict(dataclasses.asdict(FinetuneConfig()))
