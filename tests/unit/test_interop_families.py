"""Modern encoders, out and in again as whole directories; what stands in the way is said."""

import dataclasses
import json
import logging
import os
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.errors import UserError
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.inference.pretrained import load
from bert_jax.interop import huggingface
from bert_jax.interop.convert import convert
from bert_jax.interop.export import export
from bert_jax.interop.families import family_of
from bert_jax.interop.huggingface import exports_as
from bert_jax.interop.model_card import _objectives, model_card
from bert_jax.training.config import TrainConfig
from bert_jax.training.opening import open_checkpoint
from tests.saved import LONGEST, save, save_finetuned, wordpiece
from tests.tiny import EURO, MODEL, MODERN, NEO

FACTS = {
    "classification": {"pairs": True, "labels": ["bad", "fine", "good"]},
    "regression": {"pairs": False, "mean": 0.0, "deviation": 1.0},
    "question_answering": {"version_2": True},
    "token_classification": {"labels": ["O", "B-PER", "I-PER"]},
}
NETWORKS = {
    "ModernBert": MODERN | {"classifier_pooling": "mean"},
    "EuroBert": EURO | {"classifier_pooling": "late"},
    "NeoBERT": NEO,
}
PRETRAINED = {"ModernBert": "ForMaskedLM", "EuroBert": "ForMaskedLM", "NeoBERT": "LMHead"}
HEADS = [
    ("ModernBert", "classification", "ForSequenceClassification"),
    ("ModernBert", "regression", "ForSequenceClassification"),
    ("ModernBert", "question_answering", "ForQuestionAnswering"),
    ("ModernBert", "token_classification", "ForTokenClassification"),
    ("EuroBert", "classification", "ForSequenceClassification"),
    ("EuroBert", "token_classification", "ForTokenClassification"),
]
FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")


def exported(folder, name="again"):
    (folder / name).mkdir()
    export(folder / ("run" if name == "out" else "in"), folder / name)
    return folder / name


@pytest.fixture(scope="module")
def _modern_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modern_bert")
    save(folder / "run", wordpiece(), MODERN)
    return exported(folder, "out")


@pytest.fixture
def modern_bert(tmp_path, _modern_bert):
    """A directory of ModernBERT that a test may change."""
    return shutil.copytree(_modern_bert, tmp_path / "out")


def out_and_in(folder):
    """Exports `run` in the folder, imports that, exports it again; the settings of the first."""
    out = exported(folder, "out")
    convert(out, folder / "in")
    again = exported(folder)
    assert all((again / name).read_bytes() == (out / name).read_bytes() for name in FILES)
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("family", NETWORKS)
def test_pretrained_out_and_in_again_is_the_same_to_the_bit(tmp_path, family):
    save(tmp_path / "run", wordpiece(), NETWORKS[family])
    settings = out_and_in(tmp_path)
    assert settings["architectures"] == [f"{family}{PRETRAINED[family]}"]
    before, after = load(tmp_path / "run"), load(tmp_path / "in")
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.config.data.second_objective == "none"
    assert dataclasses.asdict(after.config.model).items() >= {"pooler": False, "type_vocab_size": 0}.items()
    np.testing.assert_array_equal(after.features(["so it was"]), before.features(["so it was"]))


@pytest.mark.parametrize(("family", "task", "kind"), HEADS)
def test_fine_tuned_out_and_in_again_is_the_same_to_the_bit(tmp_path, family, task, kind):
    save_finetuned(tmp_path / "run", wordpiece(), task, FACTS[task], NETWORKS[family])
    settings = out_and_in(tmp_path)
    assert settings["architectures"] == [f"{family}{kind}"]
    assert settings["classifier_pooling"] == NETWORKS[family]["classifier_pooling"]
    before, after = load_finetuned(tmp_path / "run"), load_finetuned(tmp_path / "in")
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert (after.task.label_info, after.config.task.name) == (FACTS[task], task)
    assert after.config.model.classifier_pooling == before.config.model.classifier_pooling
    if task != "question_answering":  # whose rows are too short for questions as long as they may be
        example = after.task.example("so it was", "in god we trust" if FACTS[task].get("pairs") else None)
        assert after.predict([example]) == before.predict([example])


def test_ids_of_special_pieces_are_those_of_the_vocabulary(modern_bert):
    """Their classes have defaults of 50,281 and 128,000, which no smaller vocabulary has."""
    settings = json.loads((modern_bert / "config.json").read_text())
    ids = {name: settings[f"{name}_token_id"] for name in ("pad", "bos", "cls", "eos", "sep")}
    assert ids == {"pad": 0, "bos": 2, "cls": 2, "eos": 3, "sep": 3}
    assert json.loads((modern_bert / "tokenizer_config.json").read_text())["model_input_names"] == [
        "input_ids",
        "attention_mask",
    ]


@pytest.mark.parametrize(("family", "task", "kind"), HEADS[:1] + HEADS[3:5])
def test_transformers_computes_the_same(tmp_path, family, task, kind):
    """`export` compares the logits where Transformers is installed."""
    transformers = pytest.importorskip("transformers", reason="Transformers is not installed")
    save_finetuned(tmp_path / "run", wordpiece(), task, FACTS[task], NETWORKS[family])
    out = exported(tmp_path, "out")
    network = getattr(transformers, f"AutoModel{kind}").from_pretrained(out)
    assert type(network).__name__ == f"{family}{kind}"


def test_code_in_a_directory_is_not_executed_and_its_name_is_dropped(tmp_path, modern_bert):
    settings = json.loads((modern_bert / "config.json").read_text())
    code = {"auto_map": {"AutoModelForMaskedLM": "modeling.Network", "AutoConfig": "modeling.Config"}}
    (modern_bert / "config.json").write_text(json.dumps(settings | code))
    for name in ("modeling", "configuration_modernbert", "__init__"):
        (modern_bert / f"{name}.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit(1)\n"
        )
    convert(modern_bert, tmp_path / "in")
    assert not (tmp_path / "executed").exists()
    again = exported(tmp_path)
    assert json.loads((again / "config.json").read_text()) == settings
    assert not [name for name in os.listdir(again) if name.endswith(".py")]


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        (
            {"model_type": "modernbert-decoder", "architectures": ["ModernBertDecoderForCausalLM"]},
            {},
            r"model_type='modernbert-decoder' \(ModernBertDecoderForCausalLM\); only bert, modernbert, ",
        ),
        (
            {"local_rope_theta": 1.0},
            {},
            "local_rope_theta=1.0 contradicts rope_parameters, which have 10000.0",
        ),
        ({"classifier_pooling": "max"}, {}, "classifier_pooling='max'; only cls, mean can be imported"),
        (
            {"classifier_activation": "silu"},
            {},
            "hidden_activation='gelu', classifier_activation='silu'; a network with one value",
        ),
        ({"layer_types": 5}, {}, "layer_types=5 is no pattern of one full_attention"),
        ({"global_attn_every_n_layers": 0}, {}, "global_attn_every_n_layers=0 must be at least 1"),
        ({"global_attn_every_n_layers": "3"}, {}, "global_attn_every_n_layers='3' is not a number"),
        (
            {"rope_parameters": {"full_attention": 1.0}},
            {},
            "rope_parameters=1.0 is no JSON object for full_attention",
        ),
        (
            {"rope_parameters": None, "global_rope_theta": "10"},
            {},
            "global_rope_theta='10' is not a number",
        ),
        (
            {},
            {"model.layers.0.attn_norm.weight": np.ones(16, np.float32)},
            "not those of config.json's ModernBERT: model.layers.0.attn_norm.weight is not known",
        ),
        ({}, {"model.layers.4.attn_norm.weight": None}, "model.layers.4.attn_norm.weight is missing"),
        (
            {},
            {"decoder.weight": np.ones((1, 16), np.float32)},
            "decoder.weight is not tied to model.embeddings.tok_embeddings.weight",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_imported_is_one_line(modern_bert, changes, tensors, message):
    settings = json.loads((modern_bert / "config.json").read_text()) | changes
    (modern_bert / "config.json").write_text(json.dumps(settings))
    kept = safetensors.numpy.load_file(modern_bert / "model.safetensors") | tensors
    kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
    safetensors.numpy.save_file(kept, modern_bert / "model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        huggingface.read(modern_bert)
    assert "\n" not in str(error.value)


def test_an_architecture_that_is_not_known_is_named(tmp_path, modern_bert, caplog):
    settings = json.loads((modern_bert / "config.json").read_text())
    (modern_bert / "config.json").write_text(
        json.dumps(settings | {"architectures": ["ModernBertForMultipleChoice"]})
    )
    with caplog.at_level(logging.INFO, "bert_jax"):
        convert(modern_bert, tmp_path / "in")
    assert "network: ModernBERT" in caplog.text
    assert "architecture: ModernBertForMultipleChoice is not known, only" in caplog.text
    assert "known: ModernBert, ModernBertModel, ModernBertForMaskedLM, ModernBertForSequence" in caplog.text


def test_heads_that_a_family_has_not(tmp_path):
    save_finetuned(tmp_path / "run", wordpiece(), "question_answering", {"version_2": True}, EURO)
    message = (
        "EuroBertForQuestionAnswering cannot be imported or exported; of EuroBERT these can: "
        "EuroBertForMaskedLM, EuroBertForSequenceClassification, EuroBertForTokenClassification."
    )
    with pytest.raises(UserError, match=message):
        exported(tmp_path, "out")
    assert exports_as(dataclasses.replace(MODEL, **EURO), "question_answering") == message
    save(tmp_path / "neo/run", wordpiece(), NEO)
    out = exported(tmp_path / "neo", "out")
    settings = json.loads((out / "config.json").read_text())
    settings["architectures"] = ["NeoBERTForSequenceClassification"]
    (out / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UserError, match=r"ForSequenceClassification cannot .* --task=none imports the encoder"
    ):
        huggingface.read(out)
    assert huggingface.read(out, task="none").initialised == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "exports as BertForPreTraining"),
        (MODERN, "exports as ModernBertForMaskedLM"),
        (EURO, "exports as EuroBertForMaskedLM"),
        (NEO, "exports as NeoBERTLMHead, for https://huggingface.co/chandar-lab/NeoBERT"),
        (MODERN | {"num_hidden_layers": 2}, "exports as ModernBertForMaskedLM"),
        (MODERN | {"num_hidden_layers": 1}, "exports as ModernBertForMaskedLM"),
        (
            MODERN | {"local_attention": 0, "global_attn_every_n_layers": 1, "num_hidden_layers": 1},
            "exports as ModernBertForMaskedLM",
        ),
        (
            MODERN | {"norm_position": "after"},
            "cannot be exported: model.norm_position='after'; the nearest family, ModernBERT, has 'before'.",
        ),
        (
            MODERN | {"classifier_pooling": "late", "type_vocab_size": 2},
            "cannot be exported: model.type_vocab_size=2, model.classifier_pooling='late'; the nearest "
            "family, ModernBERT, has 0, 'mean'.",
        ),
        (
            MODERN | {"num_key_value_heads": 2},
            "cannot be exported: model.num_key_value_heads=2; the nearest family, ModernBERT, has 4.",
        ),
        (
            {"hidden_size": 12},  # heads of 3 features, which rotary positions cannot have
            "exports as BertForPreTraining",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_network_exports_as(changes, line):
    assert exports_as(dataclasses.replace(MODEL, **changes)) == line


@pytest.mark.parametrize(
    ("family", "name", "network"),
    [
        (
            "ModernBert",
            "ModernBERT",
            "5 layers, hidden size 16, 4 attention heads, all but every 3. layer with a window of 8 tokens, "
            "feed-forward 32 (gated, gelu), rotary positions up to 32, LayerNorm before each block.",
        ),
        (
            "NeoBERT",
            "NeoBERT",
            "2 layers, hidden size 16, 4 attention heads, feed-forward 32 (gated, silu), rotary positions up "
            "to 32, RMSNorm before each block.",
        ),
    ],
)  # fmt: skip
def test_the_model_card_names_the_family_and_how_it_was_trained(tmp_path, family, name, network):
    save(tmp_path, wordpiece(), NETWORKS[family])
    opened = open_checkpoint(tmp_path)
    config = load(tmp_path).config
    data = dataclasses.replace(config.data, mask_rate=0.3, masking="whole_word")
    card = model_card(opened, dataclasses.replace(config, data=data), "none", {}).splitlines()
    assert f"tags: [{name.lower()}, jax]" in card
    assert any(line.startswith(f"{name}, written by bert_jax ") for line in card)
    assert network in card
    assert f"WordPiece vocabulary of {wordpiece().vocab_size} pieces." in card
    assert "Objective: masked language model (whole word, rate 0.3)." in card
    in_transformers = family_of(opened.model).code == ""
    assert ("library_name: transformers" in card) == in_transformers
    assert ("from transformers import AutoModelForMaskedLM, AutoTokenizer" in card) == in_transformers
    assert any(line.startswith("Transformers has no NeoBERT.") for line in card) != in_transformers


def test_the_log_of_an_export_says_what_it_needs(tmp_path, caplog):
    save(tmp_path / "run", wordpiece(), NEO)
    with caplog.at_level(logging.INFO, "bert_jax"):
        exported(tmp_path, "out")
    assert "exports as NeoBERTLMHead, for https://huggingface.co/chandar-lab/NeoBERT" in caplog.text
    assert "checked with convert (Transformers has no NeoBERT)" in caplog.text


def test_the_longest_text_is_that_of_the_run(tmp_path, modern_bert):
    convert(modern_bert, tmp_path / "in")
    assert load(tmp_path / "in").max_length == LONGEST


@pytest.mark.parametrize(
    ("step", "objective"),
    [
        (0, "the next token from those before it."),
        (10, "the next token from those before it."),
        (11, "the next token from those before it; then masked language model (span, rate 0.3)."),
        (
            40,
            "the next token from those before it; then masked language model (span, rate 0.3); then masked "
            "language model (token, rate 0.15), with sentence order.",
        ),
    ],
)
def test_the_model_card_names_the_objectives_of_the_phases_that_have_trained(step, objective):
    phases = (
        {"num_steps": 10, "data": {"objective": "causal"}},
        {"num_steps": 10, "data": {"masking": "span", "mask_rate": 0.3}},
        {"num_steps": 10, "data": {"masking": "span", "mask_rate": 0.3, "global_batch_size": 8}},
        {"num_steps": 10, "data": {"second_objective": "sentence_order"}},
    )
    config = Config(data=DataConfig(second_objective="none"), train=TrainConfig(num_steps=0), phases=phases)
    assert _objectives(config, step) == f"Objective: {objective}"
