"""Pretrain a BERT-like encoder: masked language model and next sentence prediction.

    python -m bert_jax.pretrain --config=bert_tiny
    python -m bert_jax.pretrain --config=bert_base --config.data.source='text:~/corpus/*.txt'

The same command again resumes. Everything of the run is kept in --workdir. Started as several processes, by a
TPU pod, GKE, Slurm or `launch/local.py`, they train one model together.
"""

from absl import flags

from bert_jax import command

if __name__ == "__main__":
    command.define_config_flags(data_dir=True)
    command.define_download_flag()
    command.define_process_flags()
    flags.DEFINE_string("workdir", None, "The run's folder (default: runs/CONFIG).")
    command.run(command.main_of("bert_jax.pretrain"))

import logging
import re
import shlex

import jax
from etils import epath

from bert_jax.config import Config
from bert_jax.corpus.mixture import PreparedSources, dataset_for
from bert_jax.data.obstacles import obstacles
from bert_jax.errors import UserError
from bert_jax.files import read_rows
from bert_jax.interop.huggingface import exports_as
from bert_jax.report.charts import probe_metrics
from bert_jax.report.text_table import text_table
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.tasks.probes import Probe, read_probes
from bert_jax.training import loop
from bert_jax.training.checkpoint import committed_steps
from bert_jax.training.mesh import check_batch, check_model, make_mesh
from bert_jax.training.opening import open_checkpoint
from bert_jax.training.schedules import check_schedules
from bert_jax.training.workdir import check_workdir, lock, use_compilation_cache

log = logging.getLogger("bert_jax")
SCORES = {
    "eval_mask_token_loss": "loss where [MASK] stands",
    "eval_shuffled_mask_token_loss": "… with the visible tokens shuffled",
    "eval_unigram_loss": "… by frequency alone",
    "eval_mlm_accuracy": "masked-LM accuracy",
    "eval_nsp_accuracy": "accuracy on sentence pairs",
}
SOURCE_SCORE = re.compile("eval_(.+)_mask_token_loss")  # of a mixture, with the name of the source


def main() -> int:
    return command.train(set_up)


def set_up() -> command.Training:
    """Checks the command line and opens the dataset; a single process downloads and prepares it."""
    config = command.resolved_config()
    workdir = epath.Path(flags.FLAGS.workdir or f"runs/{command.config_name()}")
    resumes, init_from = check(config, workdir)
    probes = read_probes(config.train, config.model)
    log.info(exports_as(config.phase_list()[-1].config.model))
    if jax.process_index() == 0:
        lock(workdir)
    use_compilation_cache(workdir)
    dataset = dataset_for(
        config.data,
        config.model.vocab_size,
        flags.FLAGS.data_dir,
        processes=jax.process_count(),
        config=command.config_argument(),
        agreed=flags.FLAGS.download,
    )
    if jax.process_index() == 0:  # its error is raised on every process
        check_text(config, dataset, resumes)
    must_match = {name: command.digest(content) for name, content in dataset.tokenizer_files().items()}
    must_match["dataset_sha256"] = dataset.sha256
    must_match |= {f"content of probe {examples.config.name}": examples.digest for examples in probes}

    def work() -> int:
        every, length = config.train.probe_every or config.train.eval_every, config.data.max_seq_length
        evaluators = [Probe(examples, dataset.tokenizer, every, length) for examples in probes]
        task = Pretraining(config, dataset, evaluators)
        if init_from is not None:  # before the folder is that of a run
            task.check_tokenizer(init_from)
        code = loop.train(config, task, workdir)
        if code == loop.FINISHED and jax.process_index() == 0:
            print(summary(workdir, config.data.pairs))
        return code

    return command.Training(config, must_match, work)


def check(config: Config, workdir: epath.Path) -> tuple[bool, epath.Path | None]:
    """Returns whether the run resumes, and the checkpoint that a new run starts from.

    Raises:
        UserError: for errors that are visible before the text is prepared, which may take hours.
    """
    mesh = make_mesh(config.mesh)
    check_model(mesh.shape, config.model)
    for name, part in config.parts().items():
        try:
            check_batch(mesh, part.data.global_batch_size, part.train.gradient_accumulation_steps)
        except UserError as error:
            raise UserError(f"{name}{error}") from None
    folder = check_workdir(workdir, config)
    resumes = bool(committed_steps(folder / "checkpoints"))
    if not resumes:  # a run of an older version goes on as it began
        check_schedules(config)
    if config.init_from and not resumes:
        first = config.phase_list()[0].config.model
        opened = open_checkpoint(config.init_from, "init_from")
        opened.check_network(first, config.init_growth)
        return resumes, opened.folder
    return resumes, None


def check_text(config: Config, dataset: PreparedSources, resumes: bool) -> None:
    """Warns of what is wrong with the text; raises UserError where a new run has nothing to learn."""
    for obstacle in obstacles(dataset, config.parts()):
        if obstacle.hopeless and not resumes:
            raise UserError(obstacle.message)
        log.warning(obstacle.message)


def summary(workdir: epath.Path, pairs: bool = True) -> str:
    """Formats the scores of a finished run, whose held-out text has `pairs` or none, and what to run next."""
    rows = read_rows(workdir / "metrics.jsonl")
    evaluated = (row for row in reversed(rows) if any(name.startswith(("eval_", "probe_")) for name in row))
    scores: dict = next(evaluated, {})
    unigram = scores.get("eval_unigram_loss")
    table = []
    for name, title in SCORES.items():
        if name in scores and (pairs or "nsp" not in name):  # zeros
            gain = f"{scores[name] - unigram:+.3f} nat" if name.endswith("mask_token_loss") else ""
            table.append([title, f"{scores[name]:.4f}", gain])
    for name in scores:
        if (of := SOURCE_SCORE.fullmatch(name)) and name not in SCORES:
            gain = scores[name] - scores[f"eval_{of[1]}_unigram_loss"]
            table.append([f"loss where [MASK] stands, {of[1]}", f"{scores[name]:.4f}", f"{gain:+.3f} nat"])
    for key, title, majority in probe_metrics(scores):
        gain = f"{scores[key] - scores[majority]:+.3f}" if majority in scores else ""
        table.append([f"probe {title}", f"{scores[key]:.4f}", gain])
    run = shlex.quote(str(workdir))
    lines = ["", text_table(table, ["held-out text", "score", "against frequency"])] if table else []
    return "\n".join(
        [
            *lines,
            "",
            f"next:  make predict CHECKPOINT={run} TEXT='The [MASK] of the United States.'",
            f"       look at {run}/report.html, or tensorboard --logdir {run}",
            f"       fine-tune:       make finetune INIT_FROM={run} ARGS=--config.data.train=FILE.tsv",
            "       a larger model:  make pretrain CONFIG=bert_mini",
            "       your own text:   make pretrain ARGS=\"--config.data.source='text:/path/to/*.txt'\"",
        ]
    )
