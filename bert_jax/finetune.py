"""Fine-tune a pretrained encoder: classification, regression, question answering, token classification.

    python -m bert_jax.finetune --config=finetune/classification --config.init_from=runs/bert_tiny \\
        --config.data.train=questions.tsv

The loop, the step and the checkpoints are those of pretraining: the same command again resumes. The best
checkpoint by the task's metric is kept, and scored once on the test examples, where there are any.
"""

from absl import flags

from bert_jax import command
from bert_jax.tasks.config import FinetuneConfig

if __name__ == "__main__":
    command.define_config_flags(FinetuneConfig)
    flags.DEFINE_string("workdir", None, "Where everything of the run is kept (default: runs/<config>).")
    flags.DEFINE_bool("test", True, "--notest leaves the test examples unread: while choosing what to try.")
    command.define_process_flags()
    command.run(command.main_of("bert_jax.finetune"))

import dataclasses
import json
import logging
import shlex
import statistics
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from bert_jax.files import write, write_rows
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.interop.huggingface import exports_as
from bert_jax.report.text_table import text_table
from bert_jax.tasks.downstream import Scores
from bert_jax.tasks.finetuning import Experiment, Finetuning, Splits, check_base, open_init_from, provenance
from bert_jax.tasks.registry import task_class
from bert_jax.training.checkpoint import committed_steps
from bert_jax.training.loop import FINISHED, train
from bert_jax.training.mesh import check_batch, check_model, make_mesh
from bert_jax.training.schedules import check_schedules
from bert_jax.training.workdir import check_workdir, lock, use_compilation_cache, write_report, write_results

FINE_TUNED = "fine-tuned"
SPLITS = {"eval": "examples to choose by", "test": "test examples"}
log = logging.getLogger("bert_jax")


def main() -> int:
    return command.train(set_up)


def set_up() -> command.Training:
    """Checks the command line, reads the examples of all folds and opens the folders of all runs."""
    config: FinetuneConfig = command.resolved_config()
    config.check_file()
    task_class(config.task.name)  # an unknown one is an error before a checkpoint is opened
    workdir = epath.Path(flags.FLAGS.workdir or f"runs/{command.config_name()}")
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
    init_from = open_init_from(config.init_from)
    check_model(mesh.shape, init_from.model)
    log.info(exports_as(init_from.model, config.task.name))
    runs = {folder: Experiment.read(fold, init_from) for folder, fold in folds(config, workdir)}
    for folder, experiment in runs.items():
        splits = experiment.splits if flags.FLAGS.test else experiment.splits._replace(test=[])
        counts = ", ".join(f"{len(part):,} to {what}" for part, what in zip(
            splits[:3], ("train on", "choose by", "test once"), strict=True) if part)  # fmt: skip
        log.info("examples for %s: %s; sha256 %s", folder, counts, splits.digest[:16])
        runs[folder] = experiment._replace(splits=splits)
        for seed in seeds(config):  # before anything is computed
            own, run = run_folder(config, folder, seed), experiment.run(seed)
            resumes = committed_steps(own / "checkpoints")
            if not resumes:
                check_schedules(run)
            check_workdir(own, run)
            if resumes:
                check_base(own, init_from)
    for folder in runs if jax.process_index() == 0 else ():
        folder.mkdir(parents=True, exist_ok=True)
        lock(folder)
    use_compilation_cache(workdir)
    must_match = {"base": json.dumps(provenance(init_from)), "data": next(iter(runs.values())).splits.digest}
    scores_folder = workdir if len(runs) > 1 else next(iter(runs))
    return command.Training(config, must_match, lambda: train_all(config, runs, scores_folder))


def train_all(config: FinetuneConfig, runs: dict[epath.Path, Experiment], scores_folder: epath.Path) -> int:
    """Trains classifiers on frozen features and the network, for all folds and seeds; prints the scores."""
    scores: dict[str, list[Scores]] = {}
    for folder, experiment in runs.items():
        if config.task.classifiers:
            from bert_jax.tasks import frozen  # here, since importing scikit-learn takes a second

            _, init_from, task, splits, *_ = experiment
            for name, found in frozen.train(config, task, splits, init_from).items():
                scores.setdefault(name, []).append(found)
        if config.train.num_epochs:
            code, run_scores = fine_tune(experiment, folder)
            scores.setdefault(FINE_TUNED, []).extend(run_scores)
            if code != FINISHED:
                return code
    if jax.process_index() == 0:
        write(scores_folder / "scores.json", json.dumps(scores, indent=1) + "\n")
        print(table(scores), next_steps(config, next(iter(runs))), sep="\n")
    return FINISHED


def folds(config: FinetuneConfig, workdir: epath.Path) -> Iterator[tuple[epath.Path, FinetuneConfig]]:
    """Yields the folder and the config of every fold to run; without folds, those given."""
    if config.data.num_folds == 1:
        yield workdir, config
        return
    for fold in range(config.data.num_folds) if config.data.fold < 0 else [config.data.fold]:
        data = dataclasses.replace(config.data, fold=fold)
        yield workdir / f"fold_{fold}", dataclasses.replace(config, data=data)


def seeds(config: FinetuneConfig) -> range:
    return range(config.train.seed, config.train.seed + config.train.num_seeds)


def run_folder(config: FinetuneConfig, folder: epath.Path, seed: int) -> epath.Path:
    """Returns the folder of the run with a seed: its own if there are several seeds."""
    return folder / f"seed_{seed}" if config.train.num_seeds > 1 else folder


def fine_tune(experiment: Experiment, folder: epath.Path) -> tuple[int, list[Scores]]:
    """Trains or resumes with every seed; returns an exit code and the scores, also if it is interrupted."""
    found: list[Scores] = []
    for seed in seeds(experiment.config):
        own = run_folder(experiment.config, folder, seed)
        code = train(experiment.run(seed), Finetuning(experiment, seed), own)
        if code != FINISHED:
            return code, found
        found.append(evaluate_best(own, experiment.splits))
    return FINISHED, found


def evaluate_best(workdir: epath.Path, splits: Splits) -> Scores:
    """Scores the best checkpoint; writes its predictions and the tables of the report.

    Every process does this, on a device of its own: Orbax restores on all processes or on none.
    """
    best, writes = load_finetuned(workdir), jax.process_index() == 0
    scores: Scores = {}
    tables: list[dict[str, Any]] = []
    for split, examples in (("eval", splits.eval), ("test", splits.test)):
        if examples:
            predictions = best.predict(examples)
            scores[split] = best.task.score(predictions, examples)
            tables = best.task.tables(predictions, examples)  # of the last, which is the least used
            if writes:
                rows = [best.task.row(*pair) for pair in zip(examples, predictions, strict=True)]
                write_rows(workdir / f"predictions_{split}.jsonl", rows)
    if writes:
        step = best.meta["step"]
        write_results(workdir, {"step": step, "scores": scores, "tables": tables, "of": list(scores)[-1]})
        write_report(workdir)
    return scores


def table(scores: dict[str, list[Scores]]) -> str:
    """Formats the metrics of every model; for several runs, mean and standard deviation."""
    parts = []
    for split, values in next(iter(scores.values()))[0].items():
        rows = []
        for model, runs in scores.items():
            title = model if len(runs) == 1 else f"{model}, {len(runs)} runs"
            rows.append([title, *(_cell([run[split][name] for run in runs]) for name in values)])
        parts.append("\n" + text_table(rows, [SPLITS[split], *values]))
    return "\n".join(parts)


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def next_steps(config: FinetuneConfig, workdir: epath.Path) -> str:
    """Returns commands to run next."""
    if not config.train.num_epochs:
        return ""
    run = shlex.quote(str(run_folder(config, workdir, config.train.seed)))
    mode = task_class(config.task.name).verb
    return (
        f"\nnext:  make predict MODE={mode} CHECKPOINT={run} INPUT=FILE\n"
        f"       look at {run}/report.html and {run}/predictions_eval.jsonl\n"
        f"       make export INPUT={run} OUTPUT=exported"
    )
