from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus.sentences import split_sentences


def test_abbreviations_and_quotes():
    text = 'Mr. Smith of the U.S. Navy left at 5 p.m. sharp. "Why?" asked Dr. Jones. Nobody knew.'
    assert split_sentences([text], "en") == [
        "Mr. Smith of the U.S. Navy left at 5 p.m. sharp.",
        '"Why?" asked Dr. Jones.',
        "Nobody knew.",
    ]


def test_a_sentence_ends_with_its_paragraph():
    assert split_sentences(["No full stop", "Another. Line"], "en") == ["No full stop", "Another.", "Line"]


def test_other_scripts():
    assert split_sentences(["今天很好。你呢？"], "zh") == ["今天很好。", "你呢？"]
    assert split_sentences(["यह पहला है। यह दूसरा है।"], "hi") == ["यह पहला है।", "यह दूसरा है।"]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=4))
def test_no_character_but_white_space_is_lost(paragraphs):
    sentences = split_sentences(paragraphs, "en")
    assert "".join("".join(sentences).split()) == "".join("".join(paragraphs).split())
    assert all(sentence == sentence.strip() != "" for sentence in sentences)
