"""Columns of words and tags: what is read as which word, and which lines are errors."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_jax.errors import UserError
from bert_jax.tasks.columns import has_columns, has_words_alone, read_columns
from bert_jax.tasks.config import TaskConfig, TaskData
from bert_jax.tasks.token_classification import TokenClassification


def read(content, labelled=True):
    return [(found.words, found.last) for found in read_columns(content.split("\n"), "x.conll", labelled)]


@pytest.mark.parametrize(
    ("content", "sentences"),
    [
        # Documents end sentences, with a blank line before them or not, and however many columns they have.
        ("Oslo I-LOC\n-DOCSTART- -X- O\nOslo I-LOC", [(["Oslo"], ["I-LOC"]), (["Oslo"], ["I-LOC"])]),
        ("Oslo\tO\n-DOCSTART-\nOslo\tO\n-DOCSTART-\tO\n", [(["Oslo"], ["O"]), (["Oslo"], ["O"])]),
        ("-DOCSTART- -X- -X- O\n\n-DOCSTART-X O\n-DOCSTART- O\n", [(["-DOCSTART-X"], ["O"])]),
        # Comments whose last word looks like a tag, before the first word of any sentence.
        ("# sent_id = S-1\n# text = vitamin O\nAnna\tB-PER\nate\tO", [(["Anna", "ate"], ["B-PER", "O"])]),
        ("# newdoc id = B-2024\n\n#\n# U-7\na\tO\n\n# id U-7\nb\tO", [(["a"], ["O"]), (["b"], ["O"])]),
        ("# he is O\nAnna B-X\n-DOCSTART- O\n# it is O\nate O", [(["Anna"], ["B-X"]), (["ate"], ["O"])]),
        ("# x\nAnna B-PER", [(["Anna"], ["B-PER"])]),
        # A number sign that is a word: it has as many columns.
        ("#\tO\n#1\tO\nAnna\tO", [(["#", "#1", "Anna"], ["O"] * 3)]),
        ("# O\n# O", [(["#", "#"], ["O", "O"])]),
        ("Anna O\n# O\n#a B-X\n\n# O", [(["Anna", "#", "#a"], ["O", "O", "B-X"]), (["#"], ["O"])]),
        # Tabs keep spaces inside a word, and cells may be padded; a run of spaces is one separator.
        ("New York\tB-LOC\n 's \t O \n", [(["New York", "'s"], ["B-LOC", "O"])]),
        ("New   NNP  B-LOC\n York NNP I-LOC ", [(["New", "York"], ["B-LOC", "I-LOC"])]),
        ("New York B-LOC\nis VBZ O", [(["New", "is"], ["B-LOC", "O"])]),  # as many by chance: nothing tells
        # Between sentences is white space alone, of any kind; other characters are part of words.
        ("a\tO\n\t\t\nb\tO\n \t \n\u3000\nc\tO", [(["a"], ["O"]), (["b"], ["O"]), (["c"], ["O"])]),
        ("a\u2028b\tO\n\xa0\tO\nc\x0bd\x85\tO", [(["a\u2028b", "\xa0", "c\x0bd\x85"], ["O"] * 3)]),
        # Cells between the first and the last may be blank.
        ("a\t\tO\nb\tNN\tB-X", [(["a", "b"], ["O", "B-X"])]),
        ("", []),
        ("-DOCSTART- O\n\n-DOCSTART-", []),
    ],
)  # fmt: skip
def test_words_and_last_cells(content, sentences):
    assert read(content) == sentences
    assert read(content, labelled=False) == sentences


def test_words_alone():
    assert read("# no tag\n#\n#are\nWe\n\n#\nGod\n", labelled=False) == [
        (["#", "#are", "We"], ["#", "#are", "We"]),
        (["#", "God"], ["#", "God"]),
    ]  # one column, as a line "#" has


def test_the_numbers_of_lines():
    (one, two) = read_columns(["# a", "We O", "are O", "", "-DOCSTART-", "# b c", "God O"], "x", True)
    assert (one.lines, two.lines) == ([2, 3], [7])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\tNNP\tB-NP\tB-ORG\nrejects\tVBZ\tB-VP\t", r"line 2 has no tag in its last column, 'rejects\\t"),
        ("EU\tB-ORG\nrejects\t ", "line 2 has no tag in its last column"),
        ("EU\tB-ORG\t\nrejects\tO\t", "line 1 has no tag in its last column"),
        ("EU\tNNP\tB-ORG\n\tNN\tO", r"line 2 has no word in its first column, '\\tNN\\tO'; add it"),
        ("EU\tO\n \tO", "line 2 has no word in its first column"),
        ("Oslo B-LOC\nNew York B-LOC", r"line 2 has 3 columns, 'New York B-LOC', but line 1 has 2; .*tabs"),
        ("EU\tNN\tO\nrejects\tO", r"line 2 has 2 columns, .* but line 1 has 3; .* separated by tabs\.$"),
        ("EU\tO\nrejects O", "line 2 has one column, 'rejects O'; it must have a word and, in the"),
        ("EU O\nrejects\tO", r"line 2 has one column, 'rejects\\tO'"),
        ("# a\n\nEU NNP O\nrejects O", "line 4 has 2 columns, 'rejects O', but line 3 has 3"),
        ("EU\tO\n# a comment\nrejects\tO", "line 2 has one column, '# a comment'"),
        ("EU NN O\n# a\nrejects NN O", "line 2 has 2 columns, '# a', but line 1 has 3"),
        ("#begin document (x)\nEU\tO", "line 1 has one column, '#begin document"),
        ("EU\n\nrejects", "line 1 has one column, 'EU'"),
        ("EU\tO\n" + "x" * 99, f"line 2 has one column, '{'x' * 60}';"),
    ],
)  # fmt: skip
def test_lines_that_do_not_fit(content, message):
    with pytest.raises(UserError, match=f"^x.conll, {message}"):
        read(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\tNN\nEU\tNN", "line 1 has no word in its first column"),
        ("EU\nthe union\n", "line 2 has 2 columns, 'the union', but line 1 has 1"),
        ("EU\n# a comment\n", "line 2 has 3 columns"),
    ],
)
def test_lines_that_do_not_fit_without_labels(content, message):
    with pytest.raises(UserError, match=f"^x.conll, {message}"):
        read(content, labelled=False)
    assert read("EU\t\nrejects\tO", labelled=False) == [(["EU", "rejects"], ["", "O"])]


WORD = st.text("ab#-O'.\xa0\u2028é", min_size=1, max_size=4).filter(lambda word: word.strip())
TAG = st.sampled_from(["O", "B-PER", "I-PER", "S-a-b", "U-7"])
SENTENCES = st.lists(st.lists(st.tuples(WORD, TAG), min_size=1, max_size=4), min_size=1, max_size=4)
BETWEEN = st.sampled_from(["", " \t", "-DOCSTART-", "-DOCSTART- -X- O", "\n# text = a vitamin = O\n#"])


def lines_of(sentences, separator, between, middle):
    """Lines of a file, and the indices of those that are words."""
    lines, words = [], []
    for number, sentence in enumerate(sentences):
        if number:
            lines += between[number % len(between)].split("\n")
        for word, tag in sentence:
            words.append(len(lines))
            lines.append(separator.join([word, *middle, tag]))
    return lines, words


SEPARATOR, MIDDLE = st.sampled_from(["\t", " ", "   "]), st.sampled_from([[], ["NN", "x"]])
FILE = st.tuples(SENTENCES, SEPARATOR, st.lists(BETWEEN, min_size=1), MIDDLE)


@given(FILE)
def test_any_file_gives_its_words_and_tags(file):
    lines, _ = lines_of(*file)
    expected = [tuple(map(list, zip(*sentence, strict=True))) for sentence in file[0]]
    assert [(found.words, found.last) for found in read_columns(lines, "x", True)] == expected


BREAKS = {  # of the cells of a line
    "no word": lambda cells: ["", *cells[1:]],
    "no tag": lambda cells: [*cells[:-1], ""],
    "one column more": lambda cells: [*cells, "O"],
    "one column less": lambda cells: cells[:-1],
}


@given(FILE, st.data(), st.sampled_from(sorted(BREAKS)))
def test_any_broken_line_is_named(file, data, kind):
    sentences, separator, *rest = file
    lines, words = lines_of([[("first", "O")], *sentences], separator, *rest)
    broken = data.draw(st.sampled_from(words[1:]))
    lines[broken] = separator.join(BREAKS[kind](lines[broken].split(separator)))
    if lines[broken].strip() and not re.match("#( |$)", lines[broken]):  # a comment
        with pytest.raises(UserError, match=f"^x, line {broken + 1} has "):
            list(read_columns(lines, "x", True))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("anna NN B-PER\nsaw VB O\n\n. . O", True),
        ("# id 1\nanna\tO\n-DOCSTART- O\nsaw\tO", True),
        ("anna O\n" * 19 + "saw\n", True),  # so that reading it is an error, not 20 sentences
        ("anna\tO\n" * 19 + "\tO\n", True),
        ("anna NN\nsaw VB", False),
        ("anna\nsaw", False),
        ("It is her blood group: O\n", False),
        ("Her blood group is O\nHis is O\n", False),
        ("Her blood group is O\nShe has it .\n", False),
        ("", False),
        ("\n\n", False),
    ],
)
def test_which_text_files_have_columns(content, expected):
    assert has_columns(content.split("\n")) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("anna\nsaw\n\nshe\nate", True),
        ("anna\n\nsaw\n", True),
        ("anna\nsaw\n\n", False),
        ("\nanna\nsaw", False),
        ("anna saw\n\nshe", False),
        ("", False),
    ],
)
def test_which_text_files_are_a_column_of_words(content, expected):
    assert has_words_alone(content.split("\n")) == expected


def test_lines_of_text_or_columns(caplog):
    """What predict reads from FILE.txt and from standard input."""
    task = TokenClassification(TaskConfig(), TaskData(), {"labels": ["O", "B-X"]})
    assert task.from_lines(["We are", "", " \t", "so"], "x") == [
        (["We", "are"], None, ""), None, None, (["so"], None, ""),
    ]  # fmt: skip
    assert caplog.messages == []
    with caplog.at_level(logging.INFO, "bert_jax"):
        columns = task.from_lines(["We NN O", "are VB O", "", "God NNP B-PER"], "--input=x.txt")
    assert columns == [
        (["We", "are"], None, "--input=x.txt, line 1"), (["God"], None, "--input=x.txt, line 4"),
    ]  # fmt: skip
    assert caplog.messages == ["--input=x.txt: read as columns of words and tags"]
    for lines, message in (
        (["We O", "are O"] * 10 + ["a b O"], "^x, line 21 has 3 columns, 'a b O', but line 1 has 2"),
        (
            ["We", "are", "", "free"],
            "^x has one word a line and blank lines between; give it the suffix .conll",
        ),
        (["We are", "so\tit"], "^x, line 2: this checkpoint was fine-tuned on single sentences, not pairs"),
    ):
        with pytest.raises(UserError, match=message):
            task.from_lines(lines, "x")
