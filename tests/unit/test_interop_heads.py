"""Heads of fine-tuning, out and in again. That the encoder survives is tested in test_huggingface.py."""

import dataclasses
import json
import shlex
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from bert_jax.errors import UserError
from bert_jax.files import new_folder
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.inference.pretrained import load
from bert_jax.interop import heads, huggingface, tensorflow
from bert_jax.interop.bert import BERT
from bert_jax.interop.convert import convert
from bert_jax.interop.export import export
from bert_jax.interop.model_card import model_card
from bert_jax.interop.tensors import Network, from_params
from bert_jax.training.opening import open_checkpoint
from tests.saved import LONGEST, save_finetuned, wordpiece

FACTS = {
    "classification": {"pairs": True, "labels": ["bad", "fine", "good"]},
    "regression": {"pairs": True, "mean": 2.5, "deviation": 1.75},
    "question_answering": {"version_2": True},
    "token_classification": {"labels": ["O", "B-PER", "I-PER"]},
}
SETTINGS = {
    "classification": {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "bad", "1": "fine", "2": "good"},
        "label2id": {"bad": 0, "fine": 1, "good": 2},
        "problem_type": "single_label_classification",
        "task_specific_params": {"classification": {"pairs": True}},
    },
    "regression": {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "problem_type": "regression",
        "task_specific_params": {"regression": {"pairs": True}},
    },
    "question_answering": {
        "architectures": ["BertForQuestionAnswering"],
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "task_specific_params": {"question_answering": {"version_2": True}},
    },
    "token_classification": {
        "architectures": ["BertForTokenClassification"],
        "id2label": {"0": "O", "1": "B-PER", "2": "I-PER"},
        "label2id": {"O": 0, "B-PER": 1, "I-PER": 2},
    },
}


def exported(folder, task, tokenizer=None):
    """The folder of a fine-tuned checkpoint, and its export."""
    save_finetuned(folder / "run", tokenizer or wordpiece(), task, FACTS[task])
    (folder / "out").mkdir()
    export(folder / "run", folder / "out")
    return folder / "run", folder / "out"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("classifier"), "classification")[1]


@pytest.fixture
def write(tmp_path, classifier):
    """Writes the exported classifier anew, with changes to its config.json and to its tensors."""

    def write(changes=None, tensors=None):
        shutil.copytree(classifier, folder := tmp_path / "theirs")
        settings = json.loads((folder / "config.json").read_text()) | (changes or {})
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(settings))
        kept = safetensors.numpy.load_file(folder / "model.safetensors") | (tensors or {})
        kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
        safetensors.numpy.save_file(kept, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("task", FACTS)
def test_exported_and_imported_is_the_same_to_the_bit(tmp_path, task):
    run, out = exported(tmp_path, task)
    assert json.loads((out / "config.json").read_text()).items() >= SETTINGS[task].items()
    convert(out, tmp_path / "in")
    before, after = load_finetuned(run), load_finetuned(tmp_path / "in")
    expected, facts, params = before.params, FACTS[task], after.params
    if task == "regression":  # in the units of the data there
        old = expected["classifier"]
        kernel = np.float32(np.float64(old["kernel"]) * 1.75)
        bias = np.float32(np.float64(old["bias"]) * 1.75 + 2.5)
        expected = expected | {"classifier": {"kernel": kernel, "bias": bias}}
        facts = facts | {"mean": 0.0, "deviation": 1.0}
    if task in ("question_answering", "token_classification"):  # no pooler there; ours is not used
        expected["encoder"].pop("pooler"), params["encoder"].pop("pooler")
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (after.task.label_info, after.config.task.name) == (facts, task)
    assert (after.config.model, after.config.data.max_seq_length) == (before.config.model, LONGEST)
    assert after.config.data.text_pair == ("text_pair" if facts.get("pairs") else "")
    assert after.tokenizer.files() == before.tokenizer.files()
    (tmp_path / "again").mkdir()
    export(tmp_path / "in", tmp_path / "again")
    assert all(
        (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
        for name in ("model.safetensors", "config.json", "tokenizer.json")
    )


@pytest.mark.parametrize("task", ["classification", "question_answering"])
def test_tensors_are_those_of_the_architecture(tmp_path, task):
    network = save_finetuned(tmp_path, wordpiece(), task, FACTS[task])
    loaded = load_finetuned(tmp_path)
    labels = heads.num_labels(task, FACTS[task])
    shape = Network(BERT, loaded.config.model, heads.HEADS[task], labels)
    tensors = from_params(loaded.params, shape)
    beside_layers = {name for name in tensors if ".layer." not in name and "embeddings" not in name}
    assert beside_layers == {
        "classification": {
            "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
        },
        "question_answering": {"qa_outputs.weight", "qa_outputs.bias"},
    }[task]  # fmt: skip
    name = "classifier" if task == "classification" else "qa_outputs"
    np.testing.assert_array_equal(tensors[f"{name}.weight"], network.classifier.kernel[...].T)


def test_a_regression_is_checked_in_the_units_of_the_data(monkeypatch, tmp_path):
    right = heads.fold_standardisation
    monkeypatch.setattr(
        heads, "fold_standardisation", lambda params, facts: right(params, facts | {"mean": 2.501})
    )
    save_finetuned(tmp_path / "run", wordpiece(), "regression", FACTS["regression"])

    def export_it():
        with new_folder(tmp_path / "out") as folder:
            export(tmp_path / "run", folder)

    with pytest.raises(UserError, match=r"logits that differ by 0\.001"):
        export_it()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


SEQUENCES, ONE = ["BertForSequenceClassification"], {"0": "LABEL_0"}


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({}, "none"),
        ({"architectures": []}, "none"),
        ({"architectures": "BertModel"}, "none"),
        ({"architectures": ["BertForMaskedLM"]}, "none"),
        ({"architectures": SEQUENCES}, "classification"),
        ({"architectures": SEQUENCES, "id2label": ONE}, "regression"),
        ({"architectures": SEQUENCES, "problem_type": "regression"}, "regression"),
        ({"architectures": SEQUENCES, "problem_type": "single_label_classification", "id2label": ONE},
         "classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question_answering"),
        ({"architectures": ["BertForTokenClassification"]}, "token_classification"),
    ],
)  # fmt: skip
def test_the_architecture_tells_the_task(settings, task):
    assert heads.detect_task(settings, BERT) == task


def test_labels_without_names_are_counted(write):
    read = huggingface.read(write({"id2label": None}))
    assert read.label_info == {"pairs": True, "labels": ["LABEL_0", "LABEL_1", "LABEL_2"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "bad"}, "problem_type": "single_label_classification"}, "two classes or more"),
        ({"id2label": {"0": "bad", "2": "good"}}, "two classes or more, from '0' on"),
        ({"id2label": {"0": "bad", "1": "bad", "2": "good"}}, "with distinct names"),
        ({"id2label": {"0": "bad", "1": 1, "2": "good"}}, "must name"),
        ({"id2label": ["bad", "good"]}, "must name"),
        ({"problem_type": "multi_label_classification"}, "only one label a text .* --task=none"),
        ({"id2label": {"0": "bad", "1": "good"}},
         r"classifier\.bias is \[3\] and must be \[2\]; classifier\.weight is \[3, 16\] and must be \[2, "),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_imported(write, changes, message):
    with pytest.raises(UserError, match=message):
        huggingface.read(write(changes))


def test_all_of_a_head_that_does_not_fit_is_listed(write):
    of_another_task = {"qa_outputs.bias": np.zeros(2, np.float32)}
    wrong = {
        "classifier.bias": np.zeros(2, np.float32),
        "classifier.weight": None,
        "bert.pooler.dense.bias": None,
        "classifier.dense.weight": np.zeros((16, 16), np.float32),
    }
    with pytest.raises(UserError) as error:
        huggingface.read(write(tensors=wrong | of_another_task))
    assert str(error.value).split(": ", 2)[2] == (
        "classifier.bias is [2] and must be [3]; classifier.weight is missing; "
        "bert.pooler.dense.bias is missing; classifier.dense.weight is not known."
    )


def test_the_task_may_be_chosen(write):
    folder = write()
    read = huggingface.read(folder, task="none")
    assert (read.task, read.label_info, read.initialised) == ("none", {}, ["masked_lm", "next_sentence"])
    assert read.ignored == ["classifier.bias", "classifier.weight"]
    read = huggingface.read(folder, task="token_classification")
    assert read.label_info == {"labels": ["bad", "fine", "good"]}
    with pytest.raises(UserError, match=r"classifier\.bias is \[3\] and must be \[1\]"):
        huggingface.read(folder, task="regression")
    with pytest.raises(UserError, match=r"qa_outputs\.bias is missing"):
        huggingface.read(folder, task="question_answering")


def test_what_no_file_says_can_be_stated(write):
    folder = write({"task_specific_params": None})
    assert huggingface.read(folder).label_info["pairs"] is False
    assert huggingface.read(folder, overrides={"pairs": True}).label_info["pairs"] is True
    with pytest.raises(UserError, match="--version_2 is not a setting of --task=classification"):
        huggingface.read(folder, overrides={"version_2": True})


@pytest.mark.parametrize(
    ("theirs", "name"),
    [("output_weights", "classifier.weight"), ("cls/squad/output_weights", "qa_outputs.weight")],
)
def test_googles_names_of_the_heads(theirs, name):
    """Of run_classifier.py and run_squad.py, which keep the weight as [C, D]."""
    renamed, value = tensorflow._renamed(theirs, np.arange(6).reshape(2, 3))
    assert (renamed, value.tolist()) == (name, [[0, 1, 2], [3, 4, 5]])


def test_the_encoder_alone_becomes_a_checkpoint_of_pretraining(tmp_path, classifier):
    convert(classifier, tmp_path, task="none")
    expected = huggingface.read(classifier).params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path).params["encoder"], expected)


def test_the_model_card_of_a_fine_tuned_checkpoint(tmp_path):
    base = {"checkpoint": "bert_tiny/9000", "params_digest": "0123456789abcdef", "data_digest": None}
    facts = FACTS["classification"] | {"base": base}
    save_finetuned(tmp_path, wordpiece(), "classification", facts, train="mine.tsv", label="mood swing")
    rows = [{"step": 0, "eval_accuracy": 0.5, "eval_loss": 0.7}, {"step": 1, "eval_accuracy": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    results = {"step": 0, "scores": {"test": {"accuracy": 0.25}}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    bert, opened = load_finetuned(tmp_path), open_checkpoint(tmp_path)
    opened = dataclasses.replace(opened, meta=opened.meta | {"data_digest": "5eed"})
    card = model_card(opened, bert.config, "classification", bert.task.label_info)
    for line in (
        "pipeline_tag: text-classification",
        "Classification of pairs. Labels: bad, fine, good. "
        "Fine-tuned from bert_tiny/9000, params_digest `0123456789abcdef`.",
        "`mine.tsv`, sha256 `5eed`",
        "| eval_accuracy | 0.5 |",
        "| test_accuracy | 0.25 |",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
    ):
        assert line in card.splitlines()
    command = shlex.split(card.split("```bash\n")[1].split("```")[0].replace("\\\n", " "), comments=True)
    assert command[:4] == ["python", "-m", "bert_jax.finetune", "--config=finetune/classification"]
    assert {"--config.data.train=mine.tsv", "--config.data.label=mood swing"} < set(command)


def command_of(card):
    """Its note, and the settings of its command."""
    note, *lines = card.split("```bash\n")[1].split("```")[0].splitlines()
    words = shlex.split(" ".join(lines).replace("\\", ""))
    return note, dict(word.removeprefix("--config.").split("=", 1) for word in words if "config." in word)


def test_the_card_has_the_settings_that_were_given_and_not_what_follows_from_them(tmp_path):
    save_finetuned(tmp_path, wordpiece(), "classification", FACTS["classification"])
    opened, bert = open_checkpoint(tmp_path), load_finetuned(tmp_path)
    given = dataclasses.replace(
        bert.config,
        task=dataclasses.replace(bert.config.task, hidden_dropout=0.25),
        train=dataclasses.replace(bert.config.train, num_epochs=2.0, num_seeds=5),
    )
    run = given.for_run(opened.model, rows_per_epoch=320, seed=3)
    facts = bert.task.label_info
    note, settings = command_of(model_card(opened, run, "classification", facts))
    assert note == "# train.num_epochs came to 20 steps"
    assert settings == {
        "data.max_seq_length": str(LONGEST), "data.max_sequences_per_row": "1",
        "data.global_batch_size": "32", "task.hidden_dropout": "0.25", "train.num_epochs": "2.0",
        "train.seed": "3",
    }  # fmt: skip
    # Checkpoints of older versions have steps only, and dropout in the network only.
    run = dataclasses.replace(run, task=bert.config.task)
    train = dataclasses.replace(run.train, num_epochs=0.0, warmup_share=0.0, evaluations_per_epoch=0)
    old = dataclasses.replace(run, train=train)
    note, settings = command_of(model_card(opened, old, "classification", facts))
    assert note == (
        "# train.num_epochs is not recorded; the run had 20 steps, 2 of them to warm up, and an evaluation "
        "every 10"
    )
    assert "train.num_epochs" not in settings
    assert settings["task.hidden_dropout"] == "0.25"
    assert not {"train.num_steps", "train.eval_every", "train.checkpoint_every", "train.warmup_share"} & set(
        settings
    )
