import pytest

from bert_jax.benchmarks import prepare
from bert_jax.benchmarks.measure import config_file
from bert_jax.config import Config, config_files, from_dict, load_config

CONFIGS = [name for name in config_files() if not name.startswith("finetune/")]
CHANGED = {
    "data": {
        "source": "text:en.txt@2,jsonl:de.jsonl@1", "language": "en,de", "text_field": "body",
        "tokenizer": "bpe", "byte_fallback": True,
    },
    "train": {"num_steps": 0, "probes": ({"file": "labels.tsv"},)},
    "phases": ({"num_steps": 3, "data": {"source": "text:en.txt@1,jsonl:de.jsonl@1"}}, {"num_steps": 2}),
}  # fmt: skip


def written(config, folder):
    """The config that a command reads from the file."""
    return from_dict(load_config(config_file(config, folder))[1].to_dict(), Config)


@pytest.mark.parametrize("name", [*CONFIGS, None])
def test_any_config_can_be_measured_with_the_embedded_corpus(tmp_path, name):
    config = from_dict(load_config(name)[1].to_dict() if name else CHANGED, Config)
    assert written(config, tmp_path) == config
    changed = prepare._changed(config, "text:a.txt", "wordpiece:bert_uncased")
    assert written(changed, tmp_path) == changed
    data = changed.data
    assert (data.source, data.language, data.text_field, changed.phases) == ("text:a.txt", "en", "text", ())
    assert (changed.model.vocab_size, data.lowercase) == (30522, config.data.lowercase)
    assert prepare._changed(config, "corpus:", "unigram").model.vocab_size == config.model.vocab_size
