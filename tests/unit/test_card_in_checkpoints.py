import json
import re

import pytest

from bert_jax.config import Config, from_dict
from bert_jax.corpus.card import card_of
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.mixture import prepare
from bert_jax.interop.export import export
from bert_jax.tasks.pretraining import Pretraining
from bert_jax.training.opening import open_checkpoint
from tests.saved import save, wordpiece


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The datasets of a mixture of a file with a broken line and one with | in its name."""
    folder, tokenizer = tmp_path_factory.mktemp("text"), wordpiece()
    tokenizer.save(folder)
    people = [f"The {a} {b} is strong. We are {b} people." for a in ("great", "free") for b in "abcdefghij"]
    (folder / "people.txt").write_bytes(b"b\xffad\n" + "\n\n".join(people).encode())
    (folder / "god|trust.txt").write_text("In god we trust. So it was.\n\nAnd so it is.")
    source = f"text:{folder}/people.txt@0.5,text:{folder}/god|trust.txt@0.5"
    settings = {
        "invalid_utf8": "skip",
        "held_out_fraction": 0.2,
        "max_seq_length": 32,
        "global_batch_size": 4,
    }
    data = DataConfig(source=source, tokenizer=f"wordpiece:{folder}/vocab.txt", **settings)
    return data, prepare(data, tokenizer.vocab_size, folder / "data")


def task_of(prepared, **settings):
    data, dataset = prepared
    model = {"vocab_size": dataset.tokenizer.vocab_size}
    config = from_dict({"data": vars(data), "model": model} | settings, Config)
    return Pretraining(config, dataset)


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    """A run with a checkpoint that carries what one of this mixture does."""
    run = tmp_path_factory.mktemp("run")
    files = {name: x for name, x in task_of(prepared).files.items() if not name.startswith("tokenizer/")}
    assert [*files] == ["dataset_cards.json"]
    save(run, wordpiece(), files=files)
    return run


def test_a_checkpoint_carries_the_cards_without_text(prepared, run):
    content = (run / "checkpoints/0/dataset_cards.json").read_bytes()
    cards = json.loads(content)
    assert cards == {name: card_of(dataset) for name, dataset in prepared[1].datasets.items()}
    assert [*cards] == ["people", "god_trust"]
    assert {card["dataset_sha256"] for card in cards.values()} == {
        dataset.sha256 for dataset in prepared[1].datasets.values()
    }
    assert b"is strong" not in content
    open_checkpoint(run)  # which checks every file


def test_an_exported_model_names_its_data(prepared, run, tmp_path):
    export(run, tmp_path)
    section = (tmp_path / "README.md").read_text().split("## Data\n")[1].split("\n## ")[0].splitlines()
    first, second = map(card_of, prepared[1].datasets.values())
    specs = [card["sources"][0]["spec"].replace("|", "\\|") for card in (first, second)]
    held_out = first["splits"]["heldout"]["documents"]
    assert section[3:5] == ["| source | documents | sentences | tokens |", "|---|---|---|---|"]
    assert section[5] == f"| `{specs[0]}` | 20 | 40 | 220 |"
    assert section[6] == f"| `{specs[1]}` | 2 | 3 | 14 |"
    assert section[7:9] == [
        "",
        f"Dataset `{first['dataset_sha256']}`, card `{first['card_sha256']}`: 0.0 MB of text, "
        f"{held_out} documents held out; left out: 1 lines or records that are not UTF-8 "
        "(data.invalid_utf8=skip).",
    ]
    assert re.search(f"card `{second['card_sha256']}`: .*; left out: nothing\\.", section[10])


def test_the_model_card_of_an_older_checkpoint_names_no_card(tmp_path):
    save(tmp_path / "run", wordpiece())
    (tmp_path / "out").mkdir()
    export(tmp_path / "run", tmp_path / "out")
    data = (tmp_path / "out/README.md").read_text().split("## Data\n")[1].split("\n## ")[0]
    assert "card" not in data
    assert "`corpus:`, sha256 `not known`" in data


def test_weights_of_other_text_with_this_tokenizer_are_no_others(prepared, tmp_path):
    save(tmp_path, wordpiece(), files={"dataset_cards.json": b"{}"})
    task = task_of(prepared, init_from=str(tmp_path))
    task.check_tokenizer(tmp_path / "checkpoints/0")
