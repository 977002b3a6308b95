from fractions import Fraction as F

import pytest

from bert_jax.config import Config
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.specs import check_same_sources, languages, names, parse, specs
from bert_jax.errors import UserError
from bert_jax.training.config import TrainConfig


@pytest.mark.parametrize(
    ("source", "sources", "weights"),
    [
        ("corpus:", ("corpus:",), (1,)),
        ("text:a.txt, jsonl:b.jsonl", ("text:a.txt, jsonl:b.jsonl",), (1,)),
        ("corpus:@5", ("corpus:",), (1,)),
        ("text:a.txt@0.7,jsonl:b@.3", ("text:a.txt", "jsonl:b"), (F(7, 10), F(3, 10))),
        ("text:a,b.txt@3 , corpus:@ 1", ("text:a,b.txt", "corpus:"), (F(3, 4), F(1, 4))),
        ("tfds:wiki/en:train[:10%]@2,text:a@0", ("tfds:wiki/en:train[:10%]", "text:a"), (1, 0)),
        ("text:gs://b/a@1,text:gs://b/c@2", ("text:gs://b/a", "text:gs://b/c"), (F(1, 3), F(2, 3))),
        ("text:a@0.1,text:b@0.2", ("text:a", "text:b"), (F(1, 3), F(2, 3))),
        ("text:a@b.txt,text:me@home", ("text:a@b.txt,text:me@home",), (1,)),
    ],
)
def test_sources_and_weights(source, sources, weights):
    assert parse(source) == (sources, weights)


def test_specs_have_no_weights():
    assert specs(" text:a.txt@0.7, corpus:@1") == ["text:a.txt", "corpus:"]
    assert specs("text:a,b.txt, corpus:") == ["text:a,b.txt", "corpus:"]


def test_a_path_that_exists_as_it_is_written_is_that_path(tmp_path):
    source = f"text:{tmp_path}/notes@2"
    assert parse(source).sources == (f"text:{tmp_path}/notes",)
    (tmp_path / "notes@2").touch()
    assert parse(source).sources == (source,)
    assert parse(f"{source}@1,corpus:@3") == ((source, "corpus:"), (F(1, 4), F(3, 4)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("text:a@-1,text:b@1", "data.source='text:a@-1': the weight -1 is no decimal number of at least 0; "
         "write it like text:a@0.7."),
        ("text:a@nan", "data.source='text:a@nan': the weight nan is no decimal number of at least 0; "
         "write it like text:a@0.7."),
        ("text:a@inf,text:b@1", "data.source='text:a@inf': the weight inf is no decimal number of at least "
         "0; write it like text:a@0.7."),
        ("text:a@1e3", "data.source='text:a@1e3': the weight 1e3 is no decimal number of at least 0; "
         "write it like text:a@0.7."),
        ("text:a@0,text:b@0.0", "data.source='text:a@0,text:b@0.0': all weights are 0; make at least one of "
         "them positive."),
        ("text:a@1,text:b.txt,text:c@1", "data.source: 'text:b.txt' has no weight, but another source has; "
         "end it with @ and a decimal number, e.g. text:b.txt@0.5, or give no weights."),
        ("text:a@1,text:b@half", "data.source: 'text:b@half' has no weight, but another source has; end it "
         "with @ and a decimal number, e.g. text:b@half@0.5, or give no weights."),
        ("text:a@1,corpus:@1,text:a@2", "data.source names 'text:a' twice; name it once, with the sum of its "
         "weights."),
        ("text:a@1@2", "data.source='text:a@1@2' has two weights; give it one."),
    ],
)  # fmt: skip
def test_weights_that_cannot_be(source, message):
    with pytest.raises(UserError) as error:
        parse(source)
    assert str(error.value) == message


def test_names_are_made_of_files_folders_and_datasets():
    assert names(("corpus:", "text:/data/Wiki.txt.gz", "text:/data/books/*.txt", "jsonl:wiki.jsonl")) == (
        "corpus", "wiki", "books", "wiki_2",
    )  # fmt: skip
    assert names(("tfds:wikipedia/20230601.en:train", "tfds:gs://b/news/en/1.0.0:train", "text:новости")) == (
        "wikipedia", "en", "text",
    )  # fmt: skip
    assert names(("text:mlm.txt", "text:part-*.txt", "text:a b/2023.txt", "text:**/*.txt")) == (
        "mlm_2", "part", "2023", "text",
    )  # fmt: skip


def test_a_phase_may_change_the_weights_only():
    check_same_sources("text:a@1,text:b@1", "text:a@0,text:b@7")
    check_same_sources("text:a,text:b", "text:a,text:b")
    for run, phase in (
        ("text:a@1,text:b@1", "text:b@1,text:a@1"),
        ("text:a@1,text:b@1", "text:a@1"),
        ("text:a,text:b", "text:a@1,text:b@1"),
    ):
        with pytest.raises(UserError, match="a phase may change the weights only: write the same SPECs"):
            check_same_sources(run, phase)


def test_a_phase_with_other_sources_is_named():
    phases = ({"num_steps": 3}, {"num_steps": 3, "data": {"source": "text:a@1"}})
    data, train = DataConfig(source="text:a@1,text:b@1"), TrainConfig(num_steps=0)
    with pytest.raises(UserError, match=r"^phases\[1\]: data.source='text:a@1' names other sources than the"):
        Config(data=data, train=train, phases=phases)


def test_a_language_for_all_sources_or_one_for_each():
    mixture = "text:a.txt@2,text:b.txt@1"
    assert languages(mixture, "de") == ("de", "de")
    assert languages(mixture, "de, pt-BR") == ("de", "pt-BR")
    assert languages("text:a.txt,text:b.txt", "th") == ("th",)
    for source, language, problem in (
        (mixture, "de,fr,th", r"names 3 languages, but data\.source is a mixture of 2: name one for each"),
        ("text:a.txt,text:b.txt", "de,fr", r"is one dataset, whose text has one: give each source a weight"),
        (mixture, "de,", r"data\.language='de,': '' is no code of a language"),
        ("corpus:", "german language", r"'german language' is no code"),
    ):
        with pytest.raises(UserError, match=problem):
            DataConfig(source=source, language=language)
