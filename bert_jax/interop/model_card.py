"""The README.md of an exported directory."""

import json
import runpy
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

from bert_jax.config import Config, find_config
from bert_jax.corpus.card import CARDS
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.files import read_rows
from bert_jax.interop.families import family_of
from bert_jax.interop.family import Family
from bert_jax.interop.heads import HEADS, PRETRAINING, Head
from bert_jax.model.config import ModelConfig
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training.opening import OpenedCheckpoint
from bert_jax.version import __version__

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}


def model_card(
    opened: OpenedCheckpoint, config: Config | FinetuneConfig, task: str, label_info: Mapping[str, Any]
) -> str:
    """Describes where the weights come from, how good they are, how to make and to use them.

    It holds no text of the data.

    Args:
        opened: the checkpoint; its run's metrics are read from the folder that it lies in.
        config, label_info: of the checkpoint.
        task: as in `heads`.
    """
    head, meta, step = HEADS[task], opened.meta, opened.meta.get("step", 0)
    family = family_of(opened.model)
    lines = ["---", *([] if family.code else ["library_name: transformers"])]
    lines += [f"pipeline_tag: {head.pipeline}", f"tags: [{family.model_type}, jax]", "---", ""]
    lines += [f"# {opened.folder.parents[1].name}", ""]
    lines += [f"{family.name}, written by bert_jax {__version__} after step {step}.", ""]
    lines += ["## Network", "", _network(opened.model), _vocabulary(opened.tokenizer), ""]
    if task != PRETRAINING:
        lines += ["## Task", "", _about(task, label_info), ""]
    data = config.data.train if isinstance(config, FinetuneConfig) else config.data.source
    lines += ["## Data", "", f"`{data or 'imported'}`, sha256 `{meta.get('data_digest', 'not known')}`", ""]
    if (path := opened.folder / CARDS).exists():
        lines += ["Pretrained on:", ""] if isinstance(config, FinetuneConfig) else []
        lines += [*_prepared(json.loads(path.read_bytes()).values()), ""]
    if imported := meta.get("imported"):
        untrained = ", ".join(imported["initialised"]) or "none"
        lines += [f"Imported from {imported['from']}; parts without training: {untrained}.", ""]
    else:
        lines += [_objectives(config, step), ""] if isinstance(config, Config) else []
        lines += ["## Command", "", "```bash", _command(config), "```", ""]
    if metrics := _metrics(opened.folder, step):
        lines += ["## Metrics, held-out text", "", "| name | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4g} |" for name, value in metrics.items()] + [""]
    return "\n".join([*lines, "## Use", "", *_use(family, head), ""])


def _network(model: ModelConfig) -> str:
    local = f", all but every {model.group_size}. layer with a window of {model.local_attention} tokens"
    return (
        f"{model.num_hidden_layers} layers, hidden size {model.hidden_size}, {model.num_attention_heads} "
        f"attention heads{local if model.local_attention else ''}, feed-forward {model.intermediate_size} "
        f"({model.feed_forward}, {model.hidden_act}), {model.positions} positions up to "
        f"{model.max_position_embeddings}, {NORMS[model.norm]} {model.norm_position} each block."
    )


def _vocabulary(tokenizer: Tokenizer) -> str:
    kind = type(tokenizer).__name__.removesuffix("Tokenizer")
    if (content := tokenizer.files().get("tokenizer.json")) is not None:
        kind = json.loads(content)["model"]["type"]
    return f"{kind} vocabulary of {tokenizer.vocab_size:,} pieces."


def _prepared(cards: Iterable[dict[str, Any]]) -> list[str]:
    """Describes prepared datasets: counts by source, then what names each dataset, and what it left out."""
    names = ("documents", "sentences", "tokens")
    rows, notes = [], []
    for card in cards:
        for source in card["sources"]:
            spec = source["spec"].replace("|", "\\|")
            splits = source.get("splits", card["splits"] if len(card["sources"]) == 1 else {}).values()
            counts = [
                f"{sum(split[name] for split in splits):,}" if splits else "not counted" for name in names
            ]
            rows.append(f"| `{spec}` | {' | '.join(counts)} |")
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in card["left_out"].items())
        held_out = card["splits"]["heldout"]["documents"]
        notes += [
            "",
            f"Dataset `{card['dataset_sha256']}`, card `{card['card_sha256']}`: "
            f"{card['text_bytes'] / 1e6:,.1f} MB of text, {held_out:,} documents held out; left out: "
            f"{left_out or 'nothing'}.",
        ]
    return [f"| source | {' | '.join(names)} |", "|---|---|---|---|", *rows, *notes]


def _objectives(config: Config, step: int) -> str:
    """Names what the phases up to a step have minimised, in their order."""
    phases = [phase for phase in config.phase_list() if phase.first_step < max(step, 1)]
    found = dict.fromkeys(_objective(phase.config.data) for phase in phases)
    return f"Objective: {'; then '.join(found)}."


def _objective(data: DataConfig) -> str:
    if data.objective == "causal":
        return "the next token from those before it"
    second = "" if data.second_objective == "none" else f", with {data.second_objective.replace('_', ' ')}"
    rate = data.final_mask_rate or data.mask_rate
    return f"masked language model ({data.masking.replace('_', ' ')}, rate {rate:g}){second}"


def _use(family: Family, head: Head) -> list[str]:
    if family.code:
        return [
            f"Transformers has no {family.name}. Tensors and config.json have the names of its authors' "
            f"code, {family.code}, which is needed to open them elsewhere."
        ]
    return [
        *("```python", f"from transformers import {head.auto_class}, AutoTokenizer", ""),
        f'{head.auto_class}.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        "```",
    ]


def _about(task: str, label_info: Mapping[str, Any]) -> str:
    of = " of pairs" if label_info.get("pairs") else ""
    sentences = [f"{task.replace('_', ' ').capitalize()}{of}."]
    if labels := label_info.get("labels"):
        sentences.append(f"Labels: {', '.join(labels)}.")
    if base := label_info.get("base"):
        sentences.append(f"Fine-tuned from {base['checkpoint']}, params_digest `{base['params_digest']}`.")
    return " ".join(sentences)


def _command(config: Config | FinetuneConfig) -> str:
    """Makes a command that trains with this config: a shipped config and the values that differ from it."""
    values, note, module, name = config.flat(), "", "pretrain", "bert_base"
    if isinstance(config, FinetuneConfig):
        module, name = "finetune", "finetune/classification"
        values, note = _finetuning_values(config)
    shipped = flatten_dict(runpy.run_path(str(find_config(name)))["get_config"]().to_dict(), sep=".")
    if isinstance(config, Config):
        values |= {"phases": config.phases} | ({"train.num_steps": 0} if config.phases else {})
    changed = {key: value for key, value in values.items() if key in shipped and value != shipped[key]}
    # A shell reads " inside of ' as it is.
    given = {key: str(x).replace("'", '"') if key == "phases" else x for key, x in changed.items()}
    words = [shlex.quote(f"--config.{key}={value}") for key, value in given.items()]
    return note + " \\\n    ".join([f"python -m bert_jax.{module} --config={name}", *words])


def _finetuning_values(config: FinetuneConfig) -> tuple[dict[str, Any], str]:
    """Returns the values that a command can give, without those that follow from others, and a comment."""
    train, optimizer = config.train, config.optimizer
    left_out = ["train.num_steps", "optimizer.warmup_steps", "train.num_seeds"]  # the card is of one run
    note = f"# train.num_epochs came to {train.num_steps} steps\n"
    if not train.num_epochs:
        # Written before checkpoints held what follows; its 0 is no value that a command takes.
        left_out += ["train.num_epochs", "train.warmup_share", "train.evaluations_per_epoch"]
        note = (
            f"# train.num_epochs is not recorded; the run had {train.num_steps} steps, "
            f"{optimizer.warmup_steps} of them to warm up, and an evaluation every {train.eval_every}\n"
        )
    if train.evaluations_per_epoch or not train.num_epochs:
        left_out += ["train.eval_every", "train.checkpoint_every"]
    values = {key: value for key, value in config.flat().items() if key not in left_out}
    # As the network has it: checkpoints of older versions do not hold the keys of `task`.
    for key in ("hidden_dropout", "attention_dropout"):
        values[f"task.{key}"] = getattr(config.model, key)
    return values, note


def _metrics(checkpoint: epath.Path, step: int) -> dict[str, float]:
    """Reads the last held-out metrics of its run up to a step, and the scores of fine-tuning, if any."""
    found: dict[str, float] = {}
    for run in checkpoint.parents[:2]:
        for row in read_rows(run / "metrics.jsonl"):
            held_out = {name: x for name, x in row.items() if name.startswith("eval_")}
            found = held_out if held_out and row["step"] <= step else found
        if (path := run / "results.json").exists():
            results = json.loads(path.read_bytes())
            for split, scores in results["scores"].items() if results["step"] == step else ():
                found |= {f"{split}_{name}": value for name, value in scores.items()}
        if found:
            break
    return found
