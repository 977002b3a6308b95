"""How weights are updated, and for how long: `optimizer`, `train`, `mesh`, and what all configs share."""

import collections
import dataclasses
import pathlib
import re
from typing import Any, Self

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.settings import check, names, setting
from bert_jax.training.phases import MOST_STEPS, Phase

REMOVED = ("train.prng",)  # settings that older versions had and that decided nothing


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule. Defaults are BERT's (Devlin et al., 2019, appendix A.2).

    Raises:
        UserError: for an unknown optimizer or schedule, or a number out of range.
    """

    name: str = setting("adamw", known=("adamw", "lamb", "stable_adamw", "muon"))
    learning_rate: float = setting(1e-4, above=0, by_phase=True)  # the peak
    # After the warm-up. trapezoid: constant, then down over the last decay_steps
    schedule: str = setting(
        "linear", known=("linear", "cosine", "rsqrt", "constant", "trapezoid"), by_phase=True
    )
    warmup_steps: int = setting(10_000, least=0, most=MOST_STEPS, by_phase=True)
    decay_steps: int = setting(0, least=0, most=MOST_STEPS, by_phase=True)  # of trapezoid
    decay_shape: str = setting("linear", known=("linear", "one_minus_sqrt"), by_phase=True)  # of trapezoid
    final_learning_rate: float = setting(0.0, least=0, by_phase=True)  # of linear, cosine and trapezoid
    weight_decay: float = setting(0.01, least=0, by_phase=True)  # not on LayerNorm and biases
    # coupled: weights shrink by rate × weight_decay a step; decoupled: by (rate / peak) × weight_decay
    weight_decay_mode: str = setting("coupled", known=("coupled", "decoupled"))
    momentum: float = setting(0.95, least=0, below=1)  # of muon; the betas are of its AdamW part
    beta1: float = setting(0.9, least=0, below=1)
    beta2: float = setting(0.999, least=0, below=1)
    epsilon: float = setting(1e-6, above=0)
    clip_norm: float = setting(1.0, least=0)  # of the global gradient; 0 turns clipping off
    layer_decay: float = setting(1.0, above=0, most=1)  # a layer's rate over that of the layer above

    def __post_init__(self):
        check("optimizer", self)


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """A probe of pretraining: labelled texts that the features of the network are tried on.

    Config files write it as a dict in `train.probes`.
    """

    kind: str = setting("classification", known=("classification", "similarity"))
    file: str = ""  # FILE.tsv | FILE.csv | FILE.jsonl | tfds:NAME[:SPLIT]
    eval: str = ""  # of classification: held-out examples; "": a fifth of `file`, by a hash of the text
    # Columns.
    text: str = "text"
    text_pair: str = ""  # of similarity, and of pairs to classify
    label: str = "label"  # a class; of similarity a number, higher for pairs that are more alike
    pooling: str = setting("mean", known=("mean", "cls"))
    layer: int = -1  # 0 is the embeddings, -1 the last layer
    name: str = ""  # in the names of its metrics; "": that of the file


def probe_key(index: int, field: str) -> str:
    """Returns the config key of a probe's field, for errors."""
    return f"train.probes[{index}].{field}"


def _probe(index: int, values: Any) -> ProbeConfig:
    """Makes a probe of its dict in a config, with its name; raises UserError for what is wrong with it."""
    if isinstance(values, ProbeConfig):
        return values
    if not isinstance(values, dict):
        raise UserError(
            f"train.probes[{index}]={values!r} must be a dict like {{'file': 'FILE.tsv'}}, and train.probes "
            "a tuple of them."
        )
    defaults = dataclasses.asdict(ProbeConfig())
    for name, value in values.items():
        if name not in defaults:
            raise UserError(
                f"{probe_key(index, name)} does not exist; the keys of a probe are {', '.join(defaults)}."
            )
        if type(value) is not (kind := type(defaults[name])):
            raise UserError(
                f"{probe_key(index, name)}={value!r} is of type {type(value).__name__}; it must be "
                f"{kind.__name__}."
            )
    probe = ProbeConfig(**values)
    check(f"train.probes[{index}]", probe)
    if not probe.file:
        raise UserError(f"{probe_key(index, 'file')} is missing: a file of labelled texts, or tfds:NAME.")
    if probe.kind == "similarity" and not probe.text_pair:
        raise UserError(
            f"{probe_key(index, 'text_pair')} is missing: the column with the second text of each pair."
        )
    if probe.kind == "similarity" and probe.eval:
        raise UserError(
            f"{probe_key(index, 'eval')}={probe.eval}: a probe of similarity trains nothing and reads `file` "
            "alone; leave it empty."
        )
    stem = pathlib.PurePath(probe.file.removeprefix("tfds:")).name.split(".")[0]
    name = probe.name or re.sub(r"\W+", "_", stem)
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"{probe_key(index, 'name')}={name!r} must be letters, digits and underscores.")
    return dataclasses.replace(probe, name=name)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: its length, its seed, and what it does on the way.

    Raises:
        UserError: if a number is out of range.
    """

    num_steps: int = setting(1_000_000, least=0, most=MOST_STEPS)  # 0: that of all phases
    # Of fine-tuning, where the examples are counted first: they decide num_steps, warmup_steps (of the
    # optimizer), eval_every and checkpoint_every. 0 leaves those as they are.
    num_epochs: float = setting(0.0, least=0, run_time=True)  # num_steps is part of the identity instead
    warmup_share: float = setting(0.0, least=0, below=1, run_time=True)  # of all steps; likewise warmup_steps
    evaluations_per_epoch: int = setting(0, least=0)  # each with a checkpoint; decides when patience ends
    num_seeds: int = setting(1, least=1, run_time=True)  # runs with seed, seed + 1, …: their mean and spread
    seed: int = setting(0, least=0, below=2**32)
    unigram_bias: bool = False  # start the masked-LM bias at log frequencies: short runs need not learn them
    # auto: bfloat16 on TPU and GPU, and on CPUs that have instructions for it with JAX 0.12; else float32
    activation_dtype: str = setting("auto", known=("auto", "float32", "bfloat16"))
    max_bad_steps: int = setting(3, least=1)  # in a row with a loss or gradient that is not finite: roll back
    spike_z_score: float = setting(20.0, least=0)  # roll back at so many robust deviations; 0: never
    skip_margin: int = setting(0, least=0)  # steps before the bad ones that are left out with them
    max_rollbacks: int = setting(5, least=0, run_time=True)  # then training stops
    gradient_accumulation_steps: int = setting(1, least=1, run_time=True)
    log_every: int = setting(100, least=1, run_time=True)
    eval_every: int = setting(10_000, least=1, run_time=True)
    eval_batches: int = setting(32, least=1, run_time=True)
    # Of pretraining; each a `ProbeConfig`, in config files a dict: {"file": "reviews.tsv"}
    probes: tuple = setting((), run_time=True)
    probe_every: int = setting(0, least=0, run_time=True)  # 0: at every evaluation
    probe_examples: int = setting(2000, least=20, run_time=True)  # at most so many of each probe
    # Metric that selects the best checkpoint, e.g. eval_mask_token_loss; "": the newest is the best
    selection: str = setting("", run_time=True)
    checkpoint_every: int = setting(10_000, least=1, run_time=True)
    profile_steps: str = setting("", run_time=True)  # e.g. 10:15 writes a trace of steps 10 to 14 for XProf
    keep_last: int = setting(3, least=1, run_time=True)  # checkpoints
    keep_every: int = setting(0, least=0, run_time=True)  # also keep those of every n-th step; 0: none
    # auto: without all scores in memory, where `bert_jax.model.kernels` can
    attention: str = setting("auto", known=("auto", "plain"), run_time=True)
    # unrolled: longer to compile. auto: on GPU, where a loop over layers copies all that they keep
    layers: str = setting("auto", known=("auto", "scanned", "unrolled"), run_time=True)
    # dots keeps the outputs of products, full recomputes everything
    remat: str = setting("none", known=("none", "dots", "full"), run_time=True)

    def __post_init__(self):
        check("train", self)
        probes = tuple(_probe(index, values) for index, values in enumerate(self.probes))
        object.__setattr__(self, "probes", probes)
        for name, count in collections.Counter(probe.name for probe in probes).items():
            if count > 1:
                raise UserError(
                    f"train.probes: {count} probes have the name {name!r}; give each a `name` of its own."
                )
        if self.profile_steps and not re.fullmatch(r"\d+:\d+", self.profile_steps):
            raise UserError(f"train.profile_steps={self.profile_steps!r} is not FIRST:LAST, e.g. 10:15.")
        if self.profile_steps and int.__ge__(*map(int, self.profile_steps.split(":"))):
            raise UserError(f"train.profile_steps={self.profile_steps!r} ends before it begins; e.g. 10:15.")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 for "the rest"."""

    data: int = setting(-1, run_time=True)
    fsdp: int = setting(1, run_time=True)
    tensor: int = setting(1, run_time=True)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What the loop can train: sections with the network, the optimizer and so on, and `data` of some kind.

    `init_from` names a checkpoint (a run's folder or one of its steps) whose weights a new run starts from.
    """

    model: ModelConfig = ModelConfig()
    data: Any = None  # has at least `global_batch_size` and `max_seq_length`
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    init_from: str = ""

    def __post_init__(self):
        if self.data.global_batch_size % self.train.gradient_accumulation_steps:
            raise UserError(
                f"data.global_batch_size={self.data.global_batch_size} is not divisible by "
                f"train.gradient_accumulation_steps={self.train.gradient_accumulation_steps}; "
                "change one of them."
            )

    def phase_list(self) -> tuple[Phase, ...]:
        """Returns the phases of the run in order; without `phases` in the config the run is one."""
        return (Phase(self, 0, self.train.num_steps),)

    def parts(self) -> dict[str, Self]:
        """Returns all configs that batches are made with, by the beginning of an error about them.

        That of the run, with which it evaluates, is "", and that of a phase `phases[0]: `.
        """
        of_phases = {f"phases[{phase.index}]: ": phase.config for phase in self.phase_list()}
        return {"": self} | {name: config for name, config in of_phases.items() if config is not self}

    def after(self, step: int) -> Self:
        """Returns the config of the weights after `step` steps, with the rotary bases of their phase."""
        phases = self.phase_list()
        trained = next((phase for phase in reversed(phases) if phase.first_step < step), phases[0])
        bases = {name: getattr(trained.config.model, name) for name in ("rope_theta", "local_rope_theta")}
        return dataclasses.replace(self, model=dataclasses.replace(self.model, **bases))

    @property
    def longest_row(self) -> int:
        """Tokens of the longest rows that are trained or evaluated."""
        phases = self.phase_list()
        return max(config.data.max_seq_length for config in (self, *(phase.config for phase in phases)))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def identity(self) -> dict[str, Any]:
        """Returns the part of `flat` that decides what is learned.

        Everything else (mesh, logging, remat, workers) may change when a run resumes.
        """
        run_time = {
            f"{section}.{name}"
            for section, kind in sections(type(self)).items()
            for name in names(kind, "run_time")
        }
        return {key: value for key, value in self.flat().items() if key not in run_time}

    def flat(self) -> dict[str, Any]:
        """Returns every value, as {section.field: value}."""
        flat: dict[str, Any] = {"init_from": self.init_from}
        for section in sections(type(self)):
            values = dataclasses.asdict(getattr(self, section))
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        return flat


def sections(kind: Any) -> dict[str, Any]:
    """Finds the sections of a kind of config: the fields whose classes are dataclasses."""
    fields = dataclasses.fields(kind)
    return {field.name: field.type for field in fields if dataclasses.is_dataclass(field.type)}
