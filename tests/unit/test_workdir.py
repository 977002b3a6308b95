import dataclasses
import json

import jax
import pytest

from bert_jax.config import Config, from_dict
from bert_jax.errors import UserError
from bert_jax.files import read_rows
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training import workdir as records
from bert_jax.training.config import TrainConfig
from bert_jax.training.workdir import open_workdir, record_start, write_report

CONFIG = from_dict({"train": {"num_steps": 7}, "optimizer": {"learning_rate": 1e-3}}, Config)


def test_new_run(tmp_path):
    workdir = open_workdir(tmp_path / "runs/a", CONFIG, "d1")
    content = json.loads((workdir / "config.json").read_text())
    assert from_dict(content["config"], Config) == CONFIG
    assert content["identity"]["train.num_steps"] == 7
    assert content["identity"]["data_digest"] == "d1"
    assert {"bert_jax", "jax", "flax", "optax", "numpy"} <= content["versions"].keys()
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_same_run_with_other_run_time_keys(tmp_path):
    open_workdir(tmp_path, CONFIG, "d1")
    before = (tmp_path / "config.json").read_bytes()
    changed = {"train": {"num_steps": 7, "remat": "full", "keep_last": 9}, "mesh": {"tensor": 2}}
    open_workdir(tmp_path, from_dict({**changed, "optimizer": {"learning_rate": 1e-3}}, Config), "d1")
    assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("values", "digest", "difference"),
    [
        ({"train": {"num_steps": 8}}, "d1", "train.num_steps is 7 there and 8 here"),
        ({"train": {"num_steps": 7, "seed": 3}}, "d1", "train.seed is 0 there and 3 here"),
        ({"train": {"num_steps": 7}, "init_from": "x"}, "d1", "init_from is '' there and 'x' here"),
        (
            {"train": {"num_steps": 7}},
            "d2",
            "data_digest (the content of the data) is 'd1' there and 'd2' here",
        ),
    ],
    ids=str,
)
def test_another_run_is_refused_with_what_differs(tmp_path, values, digest, difference):
    open_workdir(tmp_path, CONFIG, "d1")
    with pytest.raises(UserError) as error:
        open_workdir(tmp_path, from_dict({**values, "optimizer": {"learning_rate": 1e-3}}, Config), digest)
    assert f"--workdir={tmp_path} holds another run: {difference}" in str(error.value)


def test_a_run_of_the_other_kind_is_named(tmp_path):
    open_workdir(tmp_path, CONFIG, "d1")
    with pytest.raises(UserError, match="holds a run of pretraining, and this is fine-tuning; give another"):
        open_workdir(tmp_path, FinetuneConfig(), "d1")


def test_checkpoints_of_a_run_that_is_not_known_are_not_gone_on_with(tmp_path):
    open_workdir(tmp_path, CONFIG, "d1")
    saved = tmp_path / "checkpoints" / "5" / "checksums.json"
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(
        UserError, match=r"has checkpoints and no config\.json, which says of what run; put it"
    ):
        open_workdir(tmp_path, CONFIG, "d1")


def test_all_phases_but_the_first_may_be_removed_before_they_begin(tmp_path):
    values = {"optimizer": {"schedule": "constant"}, "train": {"num_steps": 0}}
    two, one = (from_dict(values | {"phases": [{"num_steps": 10}] * count}, Config) for count in (2, 1))
    open_workdir(tmp_path, two, "d1")
    saved = tmp_path / "checkpoints" / "5" / "checksums.json"
    saved.parent.mkdir(parents=True)
    saved.write_text("{}")
    open_workdir(tmp_path, one, "d1")
    assert json.loads((tmp_path / "config.json").read_text())["identity"]["train.num_steps"] == 10
    with pytest.raises(UserError, match=r"phases\[0\]\.num_steps is 10 there and 9 here"):
        open_workdir(tmp_path, from_dict(values | {"phases": [{"num_steps": 9}]}, Config), "d1")


def test_run_of_a_version_that_did_not_have_a_key(tmp_path):
    """It did what the default of today does; another value than that is another run."""
    open_workdir(tmp_path, CONFIG, "d1")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["identity"]["train.unigram_bias"], content["identity"]["data.masking"]
    file.write_text(json.dumps(content))
    open_workdir(tmp_path, CONFIG, "d1")
    values = {
        "train": {"num_steps": 7},
        "optimizer": {"learning_rate": 1e-3},
        "data": {"masking": "whole_word"},
    }
    with pytest.raises(UserError, match=r"data\.masking is 'token' there and 'whole_word' here"):
        open_workdir(tmp_path, from_dict(values, Config), "d1")


def test_run_of_a_version_with_a_setting_that_decided_nothing(tmp_path):
    open_workdir(tmp_path, CONFIG, "d1")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["identity"]["train.prng"] = content["config"]["train"]["prng"] = "rbg"
    file.write_text(json.dumps(content))
    open_workdir(tmp_path, CONFIG, "d1")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"identity": 3}'])
def test_some_other_config_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is not a run's config\.json"):
        open_workdir(tmp_path, CONFIG, "d1")
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize("below", [False, True], ids=["is a file", "in a file"])
def test_unwritable_workdir_is_named(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("not a folder")
    workdir = file / "run" if below else file
    with pytest.raises(UserError, match=f"--workdir={workdir} cannot be written"):
        open_workdir(workdir, CONFIG, "d1")


def test_config_json_that_cannot_be_written_is_an_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.files, "write", full)
    with pytest.raises(UserError, match=f"--workdir={tmp_path} cannot be written: No space left"):
        open_workdir(tmp_path, CONFIG, "d1")


def test_starts_are_appended(tmp_path):
    workdir = open_workdir(tmp_path, CONFIG, "d1")
    record_start(workdir, 0, "1 × cpu")
    returned = record_start(workdir, 5, "2 × cpu")
    assert [(row["step"], row["devices"]) for row in returned] == [(0, "1 × cpu"), (5, "2 × cpu")]
    assert read_rows(workdir / "starts.jsonl") == returned


def test_only_the_first_process_writes_records(tmp_path, monkeypatch):
    workdir = open_workdir(tmp_path, CONFIG, "d1")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert [row["step"] for row in record_start(workdir, 5, "1 × cpu")] == [5]
    records.write_examples(workdir, [])
    records.write_results(workdir, {})
    write_report(workdir)
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    workdir = open_workdir(tmp_path, CONFIG, "d1")
    (workdir / "report.html").mkdir()
    write_report(workdir)
    assert f"{workdir / 'report.html'} could not be written: Is a directory" in caplog.text


def test_a_run_that_did_not_record_a_key_resumes_with_any_value_of_it(tmp_path):
    """Older versions had train.evaluations_per_epoch, but wrote only the steps that it came to."""
    config = dataclasses.replace(FinetuneConfig(), train=TrainConfig(num_steps=7, evaluations_per_epoch=2))
    open_workdir(tmp_path, config, "d1")
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    del content["identity"]["train.evaluations_per_epoch"]
    file.write_text(json.dumps(content))
    open_workdir(tmp_path, config, "d1")
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=8))
    with pytest.raises(UserError, match=r"train\.num_steps is 7 there and 8 here"):
        open_workdir(tmp_path, other, "d1")
