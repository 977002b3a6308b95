import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec as P

from bert_jax.errors import UserError
from bert_jax.model import partition
from bert_jax.model.heads import BertForPreTraining, BertForSequences
from bert_jax.model.partition import RULES, Rule, path_name, rule_of
from bert_jax.training.step import abstract_model
from tests.tiny import MODEL

# With what BERT has not: gates, an untied matrix of the head, and what classifies without a pooler.
OTHER = dataclasses.replace(MODEL, feed_forward="gated", tie_word_embeddings=False, pooler=False)
NETWORKS = {
    "pretraining": lambda rngs: BertForPreTraining(MODEL, rngs),
    "classifier": lambda rngs: BertForSequences(MODEL, 3, rngs),
    "other_pretraining": lambda rngs: BertForPreTraining(OTHER, rngs),
    "other_classifier": lambda rngs: BertForSequences(OTHER, 3, rngs),
}


def parameters(build):
    _, params = abstract_model(build)
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_every_parameter_has_one_rule_and_every_rule_a_parameter():
    names = {name for build in NETWORKS.values() for name in parameters(build)}
    bert = 5 + 16 + 2 + 7 + 2  # embeddings, layers, pooler, pretraining heads, classifier
    assert len(names) == bert + 2 + 1 + 4  # gate, decoder, head of the classifier
    assert {rule_of(name) for name in names} == set(RULES)


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_matrices_and_embeddings_are_decayed_and_nothing_else(build):
    decayed = {name for name in parameters(build) if rule_of(name).decayed}
    assert decayed == {name for name in parameters(build) if name.endswith(("kernel", "embedding"))}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_axes_are_no_more_than_dimensions(build):
    for name, leaf in parameters(build).items():
        assert len(rule_of(name).axes) <= leaf.ndim, name


@pytest.mark.parametrize(
    ("name", "group", "axes"),
    [
        ("encoder/embeddings/norm/bias", "embeddings' LayerNorm", P()),
        ("encoder/layers/attention/output/kernel", "attention", P(None, "tensor", "fsdp")),
        ("encoder/layers/attention_norm/scale", "attention", P()),
        ("encoder/layers/output/kernel", "feed-forward", P(None, "tensor", "fsdp")),
        ("encoder/layers/output_norm/scale", "feed-forward", P()),
        ("masked_lm/norm/scale", "masked-LM head", P()),
        ("1/mu/encoder/layers/intermediate/kernel", "feed-forward", P(None, "fsdp", "tensor")),
    ],
)
def test_rules(name, group, axes):
    """Layers, LayerNorms and what the optimizer keeps are told apart by whole parts of the path."""
    assert (rule_of(name).group, rule_of(name).axes) == (group, axes)


def test_no_rule_and_two_rules_are_errors_that_name_the_parameter(monkeypatch):
    with pytest.raises(UserError, match=r"parameter encoder/adapter/kernel matches 0 rules; .*partition\.py"):
        rule_of("encoder/adapter/kernel")
    with pytest.raises(UserError, match="matches 0 rules"):
        rule_of("my_pooler/kernel")
    monkeypatch.setattr(partition, "RULES", (*RULES, Rule("kernel", P(), "more", True)))
    with pytest.raises(UserError, match="parameter encoder/pooler/kernel matches 2 rules"):
        rule_of("encoder/pooler/kernel")
