"""Finds, loads and checks configs.

A config file is plain Python with `get_config() -> ConfigDict`. Each section has exactly the fields of the
dataclass that uses it, which defines their defaults, types and bounds.
"""

import dataclasses
import difflib
import pathlib
import re
import runpy
import traceback
from collections.abc import Iterable
from typing import Any, TypeVar

import ml_collections

from bert_jax.corpus.config import DataConfig
from bert_jax.errors import UserError
from bert_jax.training.config import REMOVED, ProbeConfig, RunConfig, TrainConfig, probe_key, sections
from bert_jax.training.phases import KEY, Phase, flat_overrides, make_phases, phase_keys


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """A whole config of pretraining, resolved and checked.

    `init_growth` is `tile` or `preserve` if the network is made from a smaller one in `init_from`, see
    `bert_jax.training.growing`. `phases` holds overrides for stretches of the run, see
    `bert_jax.training.phases`.
    """

    data: DataConfig = DataConfig()
    init_growth: str = "none"
    phases: tuple[dict[str, Any], ...] = ()

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "train", dataclasses.replace(self.train, num_steps=self._num_steps()))
        if self.data.max_seq_length > self.model.max_position_embeddings:
            raise UserError(
                f"data.max_seq_length={self.data.max_seq_length} is longer than "
                f"model.max_position_embeddings={self.model.max_position_embeddings}; "
                "lower one or raise the other."
            )
        if self.data.pairs and self.model.type_vocab_size < 2:
            raise UserError(
                f"model.type_vocab_size={self.model.type_vocab_size} has no segment for the second sentence; "
                "use 2 or data.second_objective=none."
            )
        if self.data.pairs and not self.model.pooler:
            raise UserError(
                f"model.pooler=False has nothing that judges pairs, and data.second_objective="
                f"{self.data.second_objective}; set data.second_objective=none."
            )
        if self.train.unigram_bias and not self.model.decoder_bias:
            raise UserError("train.unigram_bias=True needs model.decoder_bias=True; change one of them.")
        if self.init_growth not in GROWTHS:
            raise UserError(f"init_growth={self.init_growth!r} is unknown; use one of {', '.join(GROWTHS)}.")
        if self.init_growth != "none" and not self.init_from:
            raise UserError(
                f"init_growth={self.init_growth} has nothing to start from; set init_from to a checkpoint."
            )
        for name, instead in FINETUNING_ONLY.items():
            if getattr(self.train, name) != getattr(TrainConfig, name):
                raise UserError(
                    f"train.{name}={getattr(self.train, name)} is a setting of fine-tuning; use {instead}."
                )
        self.phase_list()  # checks them

    def _num_steps(self) -> int:
        """Returns the steps of the run: `train.num_steps`, or those of all phases if that is 0."""
        steps = [phase.get("num_steps") for phase in self.phases]
        total = sum(number for number in steps if type(number) is int)  # others are errors of `phase_list`
        if self.train.num_steps not in (0, total) and self.phases:
            raise UserError(
                f"train.num_steps={self.train.num_steps}, but the phases have "
                f"{' + '.join(map(str, steps))} = {total} steps; set train.num_steps=0 to take theirs, or "
                "give '--config.phases=()', with its quotes, for a run without phases."
            )
        if not self.phases and not self.train.num_steps:
            raise UserError("train.num_steps=0 must be at least 1.")
        return total or self.train.num_steps

    def phase_list(self) -> tuple[Phase, ...]:
        return make_phases(self, self.phases, sections(type(self))) or super().phase_list()

    @property
    def second_objective(self) -> str:
        """The second objective of the last phase that has one, which the head judges by; or `none`."""
        of_phases = [phase.config.data.second_objective for phase in reversed(self.phase_list())]
        return next((objective for objective in of_phases if objective != "none"), "none")

    def flat(self) -> dict[str, Any]:
        own = {
            f"phases[{index}].{key}": value
            for index, phase in enumerate(self.phases)
            for key, value in flat_overrides(phase).items()
        }
        return super().flat() | {"init_growth": self.init_growth} | own


GROWTHS = ("none", "tile", "preserve")
PHASES = "phases"
PROBE_KEY = re.compile(r"train\.probes\[(\d+)\]\.(\w+)")
# Settings of `train` for fine-tuning, which counts examples -> what pretraining uses instead.
FINETUNING_ONLY = {
    "num_epochs": "train.num_steps",
    "warmup_share": "optimizer.warmup_steps",
    "evaluations_per_epoch": "train.eval_every and train.checkpoint_every",
    "num_seeds": "one run for each train.seed",
}


def default_config() -> ml_collections.ConfigDict:
    """Returns every field with its default; a config file changes this and returns it."""
    return ml_collections.ConfigDict(Config().to_dict())


Kind = TypeVar("Kind")


def from_dict(values: dict[str, Any], kind: type[Kind]) -> Kind:
    """Builds a checked config from nested plain values, e.g. of a `config.json` or a ConfigDict.

    It leaves out settings that older versions had and that decided nothing.

    Raises:
        UserError: for an unknown section or field (with the nearest known one), a value of the wrong type or
            out of range.
    """
    known, built = sections(kind), {}
    for name, value in values.items():
        check_key(name, kind)
        if name in known:
            _check_type(name, value, dict)
            types = {field.name: field.type for field in dataclasses.fields(known[name])}
            fields = {
                field: tuple(x) if isinstance(x, list) else x  # of JSON
                for field, x in value.items()
                if f"{name}.{field}" not in REMOVED
            }
            for field, entry in fields.items():
                check_key(f"{name}.{field}", kind)
                _check_type(f"{name}.{field}", entry, types[field])
            built[name] = known[name](**fields)
        elif name == PHASES:
            built[name] = _checked_phases(value)
        else:
            _check_type(name, value, str)
            built[name] = value
    return kind(**built)


def from_checkpoint(values: dict[str, Any], kind: type[Kind], origin: Any) -> Kind:
    """Builds the config that a checkpoint was saved with; fields missing there take their defaults.

    Raises:
        UserError: for keys of a newer version, and as `from_dict`; `origin` names the checkpoint.
    """
    unknown = [
        key
        for name, value in values.items()
        for key in ([f"{name}.{field}" for field in value] if isinstance(value, dict) else [name])
        if key not in known_keys(kind) and key not in REMOVED
    ]
    if unknown:
        raise UserError(
            f"{origin} was written by a newer version of bert_jax: it has {', '.join(unknown)}; upgrade "
            "bert_jax to use it."
        )
    try:
        return from_dict(values, kind)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None


def _checked_phases(phases: Any) -> tuple[dict[str, Any], ...]:
    """Returns phases as plain dicts; raises UserError if they are something else."""
    for index, phase in enumerate(phases if isinstance(phases, list | tuple) else [phases]):
        if not isinstance(phase, dict) or not isinstance(phases, list | tuple):
            raise UserError(
                f"config.phases[{index}]={phase!r} must be a dict like {{'num_steps': 1000, 'data': "
                "{'max_seq_length': 512}}, and phases a tuple of them."
            )
    return tuple(phases)


def add_overrides_of_phases(values: ml_collections.ConfigDict, keys: Iterable[str], kind: Any) -> None:
    """Gives phases the keys that overrides of the command line set, with the run's values, for their types.

    Args:
        values: a config, which is changed.
        keys: that are set, e.g. `phases[1].data.mask_rate`. The number after the last phase adds one.
    """
    phases = [dict(phase) for phase in _checked_phases(values.get(PHASES, ()))]
    for key in keys:
        if not (match := KEY.match(key)):
            continue
        check_key(key, kind)
        if (index := int(match[1])) > len(phases):
            raise UserError(
                f"config.{key}: there are {len(phases)} phases, counted from 0; the next is "
                f"phases[{len(phases)}]."
            )
        phases += [{}] * (index == len(phases))
        section, _, name = match[2].partition(".")
        if not name:
            phases[index].setdefault(section, 0)
        elif name not in (fields := phases[index].setdefault(section, {})):
            fields[name] = values[section][name]
    if phases:
        values[PHASES] = tuple(phases)


def add_overrides_of_probes(values: ml_collections.ConfigDict, keys: Iterable[str]) -> None:
    """Gives `train.probes` the keys that overrides of the command line set, with their defaults.

    Args:
        values: a config, which is changed.
        keys: that are set, e.g. `train.probes[0].file`. The number after the last probe adds one.
    """
    for match in filter(None, map(PROBE_KEY.fullmatch, keys)):
        probes, index, name = list(values["train"].probes), int(match[1]), match[2]
        if index > len(probes):
            raise UserError(
                f"config.{match[0]}: there are {len(probes)} probes, counted from 0; the next is "
                f"train.probes[{len(probes)}]."
            )
        probes += [{}] * (index == len(probes))
        if isinstance(probes[index], dict):
            probes[index] = {name: getattr(ProbeConfig, name)} | probes[index]
        values["train"].probes = tuple(probes)


def _check_type(key: str, value: Any, kind: Any) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise UserError(
            f"config.{key}={value!r} is of type {type(value).__name__}; it must be {kind.__name__}."
        )


def check_key(key: str, kind: Any = Config) -> None:
    """Raises UserError, naming the nearest known keys, unless `key` (e.g. `train.num_steps`) exists."""
    if key in REMOVED:
        raise UserError(f"config.{key} has no effect any more; leave it out.")
    known = known_keys(kind)
    if match := PROBE_KEY.fullmatch(key):
        known = [probe_key(int(match[1]), field.name) for field in dataclasses.fields(ProbeConfig)]
    if PHASES in known and (match := KEY.match(key)):
        allowed = phase_keys(sections(kind))
        if match[2] in known and match[2] not in allowed:
            raise UserError(f"config.{key} cannot be set by a phase; these can: {', '.join(allowed)}.")
        known = [f"{PHASES}[{match[1]}].{name}" for name in allowed]
    if key not in known:
        leaf = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(key, known, n=3) + [k for k in known if k.endswith("." + leaf)]
        hint = f"; did you mean {', '.join(dict.fromkeys(near))}?" if near else ""
        raise UserError(f"config.{key} does not exist{hint}")


def known_keys(kind: Any) -> list[str]:
    """Lists every key of a kind of config: its sections, and their fields as `train.num_steps`."""
    fields = [
        f"{section}.{field.name}"
        for section, values in sections(kind).items()
        for field in dataclasses.fields(values)
    ]
    return [field.name for field in dataclasses.fields(kind)] + fields


def config_files() -> dict[str, pathlib.Path]:
    """Finds the shipped configs by name, in a clone and after `pip install`."""
    package = pathlib.Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            paths = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
            return {str(path.relative_to(folder).with_suffix("")): path for path in paths}
    return {}


def find_config(name: str) -> pathlib.Path:
    """Finds the file of a config, given as a shipped name or as a path.

    Raises:
        UserError: if there is no such config; names similar shipped ones.
    """
    if name.endswith(".py"):
        if not pathlib.Path(name).is_file():
            raise UserError(
                f"--config={name}: there is no such file; shipped configs: {', '.join(config_files())}."
            )
        return pathlib.Path(name)
    files = config_files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"shipped: {', '.join(files)}."
        raise UserError(
            f"--config={name}: there is no config of this name; {hint} A path to a .py file works too."
        )
    return files[name]


def split_argument(typed: str) -> list[str]:
    """Splits NAME[:ARGUMENT] or PATH.py[:ARGUMENT]; a path may have colons of its own."""
    if pathlib.Path(typed).is_file():
        return [typed]
    path = re.fullmatch(r"(.*\.py)(?::(.*))?", typed, re.DOTALL)
    return [part for part in path.groups() if part is not None] if path else typed.split(":", 1)


def load_config(typed: str) -> tuple[pathlib.Path, ml_collections.ConfigDict]:
    """Runs the config file of a name or path, once; returns its path and what its `get_config` returns.

    Args:
        typed: NAME or PATH.py, with the argument for `get_config` that may follow after a colon.

    Raises:
        UserError: if the file fails (names the line), or has no `get_config()` that returns a ConfigDict.
    """
    name, *arguments = split_argument(typed)
    path = find_config(name)
    try:
        names = runpy.run_path(str(path))
        config = names["get_config"](*arguments) if "get_config" in names else None
    except UserError:
        raise
    except Exception as error:  # whatever a user's Python may raise
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        where = f"--config={path}, line {lines[-1]}" if lines else f"--config={path}"
        raise UserError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}.") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={path} must define get_config() that returns a ConfigDict: change the values of "
            "bert_jax.config.default_config() and return it."
        )
    return path, config
