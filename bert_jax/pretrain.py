"""Pretrain a BERT-like encoder: masked language model and next sentence prediction.

    python -m bert_jax.pretrain --config=bert_tiny
    python -m bert_jax.pretrain --config=bert_base --config.data.source='text:~/corpus/*.txt'

The same command again resumes. Everything of the run is kept in --workdir. Started as several processes, by a
TPU pod, GKE, Slurm or `launch/local.py`, they train one model together.
"""

import hashlib
import json
import logging

import jax
from absl import flags
from etils import epath

from bert_jax import command, prepare
from bert_jax.config import Config
from bert_jax.corpus.dataset import PreparedDataset
from bert_jax.corpus.sources.files import MissingInput
from bert_jax.errors import UserError
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training import hosts
from bert_jax.training.checkpoint import committed_steps
from bert_jax.training.loop import FINISHED, train
from bert_jax.training.mesh import check_batch, check_model, make_mesh
from bert_jax.training.opening import open_checkpoint
from bert_jax.training.workdir import check_workdir, keep_compiled, lock, versions


def main() -> int:
    hosts.connect()
    if jax.process_index():
        command.log.setLevel(logging.WARNING)  # one of them tells
    try:
        config, workdir, dataset = set_up()
    except UserError as error:
        hosts.agree({}, str(error))  # raises it on every process
        raise
    facts = {f"config.{key}": repr(value) for key, value in config.flat().items()}
    facts |= {
        name: hashlib.sha256(content).hexdigest() for name, content in dataset.tokenizer_files().items()
    }
    facts |= {"dataset_sha256": dataset.sha256, "digest of the code": hosts.code_digest()}
    hosts.agree(facts | versions())
    with hosts.together():
        code = train(config, Pretraining(config, dataset), workdir)
    if code == FINISHED and jax.process_index() == 0:
        print(closing(workdir))
    return code


def set_up() -> tuple[Config, epath.Path, PreparedDataset]:
    """What the command line asks for, checked, with its dataset, which one process alone makes if need be."""
    config = command.resolved_config()
    workdir = epath.Path(flags.FLAGS.workdir or f"runs/{command.config_file().stem}")
    check(config, workdir)
    if jax.process_index() == 0:
        lock(workdir)
    keep_compiled(workdir)
    try:
        return config, workdir, prepare.dataset_for(config, flags.FLAGS.data_dir)
    except MissingInput as missing:
        if "tfds:" not in config.data.source:
            raise
        # What such a config needs is told by its docstring: corpus, disk, time, how to use one's own text.
        raise UserError(f"{missing}\n\n{command.config_docstring()}") from None


def closing(workdir: epath.Path) -> str:
    """The scores of a finished run in a small table, and what to do next."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    scores: dict = next((row for row in reversed(rows) if "eval_loss" in row), {})
    unigram = scores.get("eval_unigram_loss")
    lines = ["", f"{'held-out text':<34}{'score':>8}"] if scores else []
    for name, title in (
        ("eval_mask_token_loss", "loss where [MASK] stands"),
        ("eval_shuffled_mask_token_loss", "… with the visible tokens shuffled"),
        ("eval_unigram_loss", "… by frequency alone"),
        ("eval_mlm_accuracy", "masked-LM accuracy"),
        ("eval_nsp_accuracy", "next-sentence accuracy"),
    ):
        if name in scores:
            gain = f"   {scores[name] - unigram:+.3f} nat" if name.endswith("mask_token_loss") else ""
            lines.append(f"{title:<34}{scores[name]:>8.4f}{gain}")
    return "\n".join(
        [
            *lines,
            "",
            f"next:  make predict CHECKPOINT={workdir} TEXT='The [MASK] of the United States.'",
            f"       look at {workdir}/report.html, or tensorboard --logdir {workdir}",
            f"       fine-tune:       make finetune INIT_FROM={workdir} ARGS=--config.data.train=FILE.tsv",
            "       a larger model:  make pretrain CONFIG=bert_mini",
            "       your own text:   make pretrain ARGS=\"--config.data.source='text:/path/to/*.txt'\"",
        ]
    )


def check(config: Config, workdir: epath.Path) -> None:
    """Raises UserError for what can be told before the text is prepared, which may take hours."""
    mesh = make_mesh(config.mesh)
    check_model(mesh.shape, config.model)
    check_batch(mesh, config.data.global_batch_size, config.train.gradient_accumulation_steps)
    folder = check_workdir(workdir, config)
    if config.init_from and not committed_steps(folder / "checkpoints"):
        open_checkpoint(config.init_from, "init_from").check_network(config.model)


if __name__ == "__main__":
    command.define_config_flags()
    hosts.define_flags()
    flags.DEFINE_string("workdir", None, "The run's folder (default: runs/CONFIG).")
    command.run(main)
