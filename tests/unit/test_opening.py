import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

import bert_jax
from bert_jax import config as config_lib
from bert_jax.errors import UserError
from bert_jax.inference.finetuned import load_finetuned
from bert_jax.model import attention
from bert_jax.model.encoder import Encoder
from bert_jax.tasks.finetuning import open_init_from
from bert_jax.training import opening
from bert_jax.training.checkpoint import CHECKSUMS, _sha256
from bert_jax.training.opening import first_device_mesh, fresh_network, open_checkpoint
from tests.saved import save, save_finetuned, wordpiece

FACTS = {"labels": ["a", "b"], "pairs": False}


class EncoderAlone(nnx.Module):
    def __init__(self, config, rngs):
        self.encoder = Encoder(config, rngs)


def changed(run, change):
    """Has `change` edit the config of a saved checkpoint, which stays sound."""
    folder = run / "checkpoints/0"
    sums = json.loads((folder / CHECKSUMS).read_text())
    meta = json.loads((folder / "meta/metadata").read_text())
    change(meta["config"])
    (folder / "meta/metadata").write_text(json.dumps(meta))
    sums["files"]["meta/metadata"] = _sha256(folder / "meta/metadata")
    (folder / CHECKSUMS).write_text(json.dumps(sums))


def test_a_part_of_the_network_on_the_first_device(tmp_path):
    saved = save(tmp_path / "run", wordpiece(), data=2, fsdp=2)
    opened = open_checkpoint(tmp_path / "run")
    structure, params = opened.network(lambda rngs: EncoderAlone(opened.model, rngs))
    assert list(params) == ["encoder"]
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], nnx.to_pure_dict(nnx.state(saved.encoder)))
    first = {first_device_mesh().devices.item()}
    assert all(leaf.devices() == first for leaf in jax.tree.leaves(params))
    assert isinstance(nnx.merge(structure, params), EncoderAlone)
    assert (opened.folder.name, opened.is_finetuned, opened.model.hidden_size) == ("0", False, 16)
    random = fresh_network(lambda rngs: EncoderAlone(opened.model, rngs), seed=0)[1]
    assert jax.tree.map(np.shape, random) == jax.tree.map(np.shape, params)


def test_pretraining_does_not_go_on_from_a_fine_tuned_checkpoint(tmp_path):
    save_finetuned(tmp_path / "tuned", wordpiece(), "classification", FACTS)
    opened = open_checkpoint(tmp_path / "tuned")
    with pytest.raises(UserError, match=r"tuned/checkpoints/0 is fine-tuned and has no heads of pretraining"):
        opened.check_network(opened.model)


def test_another_network_is_named(tmp_path):
    save(tmp_path / "run", wordpiece())
    opened = open_checkpoint(tmp_path / "run")
    opened.check_network(dataclasses.replace(opened.model, hidden_dropout=0.3, initializer_range=0.5))
    with pytest.raises(UserError, match=r"model\.num_hidden_layers is 2 there and 6 here"):
        opened.check_network(dataclasses.replace(opened.model, num_hidden_layers=6))


def test_a_larger_network_may_grow_from_a_smaller_one(tmp_path):
    save(tmp_path / "run", wordpiece())
    opened = open_checkpoint(tmp_path / "run")
    sizes = {"num_hidden_layers": 3, "hidden_size": 20, "num_attention_heads": 5, "intermediate_size": 40}
    large = dataclasses.replace(opened.model, **sizes, max_position_embeddings=64, hidden_dropout=0.3)
    opened.check_network(large, "tile")
    opened.check_network(opened.model, "tile")
    with pytest.raises(UserError, match="or grow this network from it with init_growth=preserve") as error:
        opened.check_network(large)
    assert "model.hidden_size is 16 there and 20 here" in str(error.value)
    for changes, message in (
        (
            {"num_hidden_layers": 1},
            "a network that is nowhere smaller; .*hidden_layers is 2 there and 1 here",
        ),
        ({"hidden_act": "silu"}, "networks that differ in size alone; .* model.hidden_act is 'gelu' there"),
        (
            {"vocab_size": 99},
            "networks that differ in size alone; .* model.vocab_size is 33 there and 99 here",
        ),
    ):
        other = dataclasses.replace(large, **changes)
        with pytest.raises(UserError, match=f"init_growth=tile needs {message}"):
            opened.check_network(other, "tile")
        with pytest.raises(UserError, match=r"Take its values or another checkpoint\.$"):
            opened.check_network(other)


def test_the_vocabulary_must_be_that_of_the_network(tmp_path):
    save(tmp_path / "run", wordpiece())
    changed(tmp_path / "run", lambda config: config["model"].update(vocab_size=7))
    with pytest.raises(UserError, match=r"init_from: the vocabulary of .* its network model.vocab_size=7"):
        open_checkpoint(tmp_path / "run", "init_from")


def test_fields_that_a_checkpoint_does_not_know_take_their_defaults(tmp_path):
    """As a version before the field wrote it."""

    def without_fields(config):
        del config["model"]["position_initializer"], config["model"]["layer_norm_eps"]
        del config["train"]["attention"]

    save(tmp_path / "run", wordpiece())
    save_finetuned(tmp_path / "tuned", wordpiece(), "classification", FACTS)
    for run in ("run", "tuned"):
        changed(tmp_path / run, without_fields)
        assert bert_jax.load(tmp_path / run).config.model.position_initializer == "normal"
    opened = open_checkpoint(tmp_path / "run")
    opened.check_network(opened.model)
    assert load_finetuned(tmp_path / "tuned").config.train.attention == "auto"
    assert open_init_from(str(tmp_path / "run")).model == opened.model


@pytest.mark.parametrize("key", ["model.rotary", "data.mixture", "probes"])
def test_a_checkpoint_of_a_newer_version_is_one_line(tmp_path, key):
    def with_field(config):
        section, _, field = key.partition(".")
        config.setdefault(section, {})[field or "every"] = 1

    save(tmp_path / "run", wordpiece())
    save_finetuned(tmp_path / "tuned", wordpiece(), "classification", FACTS)
    for run in ("run", "tuned"):
        changed(tmp_path / run, with_field)
    line = rf"checkpoints/0 was written by a newer version of bert_jax: it has {key}.*; upgrade bert_jax to"
    uses = [lambda: bert_jax.load(tmp_path / "run"), lambda: load_finetuned(tmp_path / "tuned")]
    if key.startswith("model."):
        uses += [lambda: open_checkpoint(tmp_path / "run"), lambda: open_init_from(str(tmp_path / "run"))]
    for use in uses:
        with pytest.raises(UserError, match=line):
            use()


def test_a_value_that_a_version_does_not_know_names_the_checkpoint():
    values = {"data": {"masking": "spans"}}
    with pytest.raises(UserError, match=r"runs/a/checkpoints/5: data\.masking='spans' is unknown"):
        config_lib.from_checkpoint(values, config_lib.Config, "runs/a/checkpoints/5")


def test_inference_takes_the_kernel_of_the_device_that_it_runs_on(tmp_path, monkeypatch):
    taken = []

    def fused(_, query, _key, value, *__):
        taken.append(query.shape)
        return value

    save(tmp_path / "pretrained", wordpiece())
    save_finetuned(tmp_path / "finetuned", wordpiece(), "classification", FACTS)
    monkeypatch.setattr(opening, "kernel_of", lambda platform: {"cpu": "mosaic"}[platform])
    monkeypatch.setattr(attention, "fits", lambda kind, _: kind == "mosaic")
    monkeypatch.setattr(attention, "fused", fused)
    bert_jax.load(tmp_path / "pretrained").features(["the state"])
    assert len(taken) == 1  # in the scan over layers
    best = load_finetuned(tmp_path / "finetuned")
    best.predict([best.task.example("the state")])
    assert len(taken) == 2
