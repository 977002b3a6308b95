"""What people see of a mixture: table of the report, summary of a run, batch, log line, warnings."""

import json
import logging

import numpy as np

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.data.obstacles import obstacles
from bert_jax.data.shown import shares_of_sources
from bert_jax.pretrain import summary
from bert_jax.report import report
from bert_jax.training.metrics import Console, MetricsFile, Recorder
from tests.fakes import FakeTokenizer, MemoryStore, prepared, random_documents

SHARES = {"share_wiki": 0.75, "share_mail": 0.25, "token_share_wiki": 0.8, "token_share_mail": 0.2,
          "epochs_wiki": 0.5, "epochs_mail": 12.25}  # fmt: skip
EVAL = {"eval_loss": 5.0, "eval_mask_token_loss": 4.0, "eval_unigram_loss": 6.5,
        "eval_wiki_mask_token_loss": 4.5, "eval_wiki_unigram_loss": 6.0}  # fmt: skip


def test_the_report_has_a_table_of_the_sources():
    (table,) = report._sources({"step": 5} | SHARES | EVAL)
    assert table["columns"] == [
        "", "rows of this phase", "tokens of this phase", "epochs", "held-out loss at [MASK]", "unigram",
    ]  # fmt: skip
    assert table["rows"] == [
        ["wiki", "75.0%", "80.0%", "0.500", "4.500", "6.000"],
        ["mail", "25.0%", "20.0%", "12.250", "–", "–"],
    ]
    assert report._sources({"step": 5, "loss": 1.0}) == []


def test_the_summary_of_a_run_has_the_loss_of_each_source(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 5} | EVAL) + "\n")
    lines = [line.split("  ") for line in summary(tmp_path).splitlines()]
    found = {line[0]: [word.strip() for word in line[1:] if word] for line in lines}
    assert found["loss where [MASK] stands"] == ["4.0000", "-2.500 nat"]
    assert found["loss where [MASK] stands, wiki"] == ["4.5000", "-1.500 nat"]


def test_shares_of_a_batch():
    batch = {"sequence_ids": np.array([[1, 1, 2, 0], [1, 0, 0, 0], [1, 1, 1, 1]])}
    assert shares_of_sources(batch, [0, 1, 0], ["wiki", "mail", "news"]) == (
        "rows by source: wiki 2 (66.7%; 87.5% of the tokens), mail 1 (33.3%; 12.5% of the tokens), "
        "news 0 (0.0%; 0.0% of the tokens)"
    )


def test_rows_and_the_log_have_shares_and_epochs(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    recorder = Recorder(
        MetricsFile(tmp_path, 0), Console(0, 4), 2, lambda _: 0.1, [{"time": 0.0}],
        exposure=lambda step: SHARES | {"epochs_wiki": step / 4},
    )  # fmt: skip
    step = {"loss": 1.0, "grad_norm": 1.0, "tokens": 9, "attended": 9, "predictions": 1, "stop_requested": 0}
    for number in (1, 2):
        recorder.add(number, {name: np.float32(value) for name, value in step.items()})
    recorder.flush()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert SHARES.items() <= row.items()
    assert caplog.messages[0].startswith(
        "step 2/4 loss 1 share_wiki 0.75 share_mail 0.25 epochs_wiki 0.5 epochs_mail 12.25 learning_rate 0.1 "
    )


def test_obstacles_name_their_source():
    """Of the 16 rows of a batch 4 are from mail, whose text fills one."""
    stores = {
        "wiki": {"train": MemoryStore(random_documents(40)), "heldout": MemoryStore([])},
        "mail": {"train": MemoryStore([[10, 10, 10]]), "heldout": MemoryStore([])},
    }
    data = DataConfig(
        source="text:wiki@3,text:mail@1", max_seq_length=64, global_batch_size=16, short_sequence_rate=0.0,
        second_objective="none",
    )  # fmt: skip
    parts = Config(data=data).parts()
    found = [tuple(obstacle) for obstacle in obstacles(prepared(stores, FakeTokenizer()), parts)]
    assert found == [
        ("source mail: the text to train on fills 1 rows, so that a batch of 4 repeats it 4.0 times; "
         "add text or lower data.global_batch_size.", False),
    ]  # fmt: skip
    parts = Config(data=DataConfig(max_seq_length=64, global_batch_size=16)).parts()
    assert list(obstacles(prepared({"wiki": stores["wiki"]}, FakeTokenizer()), parts)) == []
