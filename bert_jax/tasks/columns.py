"""Reads columns, as CoNLL's: a word a line with its tag in the last, blank lines between sentences."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

from bert_jax.errors import UserError

TAG = re.compile(r"O|[BIESLU]-\S(.*\S)?")
DOCUMENT = re.compile(r" *-DOCSTART-([ \t]|$)")
COMMENT = re.compile("#( |$)")
MOST = 0.9  # of the lines; a text has few that end in a tag, and a broken file of columns few that do not


class Layout(NamedTuple):
    """What the first line of words fixes for its file; `has_tags`: whether its last column is a tag."""

    tabs: bool  # or else spaces, between the columns
    num_columns: int
    line: int
    has_tags: bool

    @classmethod
    def of(cls, lines: list[str]) -> "Layout":
        """Finds the layout of a file, or of one line."""
        words = [n for n, line in enumerate(lines) if line.strip() and not DOCUMENT.match(line)]
        first = next((n for n in words if not lines[n].startswith("#")), words[0] if words else 0)
        cells = _cells(lines[first], tabs := "\t" in lines[first])
        return cls(tabs, len(cells), first + 1, len(cells) > 1 and bool(TAG.fullmatch(cells[-1])))


class Words(NamedTuple):
    """The words of a sentence, the cells of their last column, and the numbers of their lines."""

    words: list[str]
    last: list[str]
    lines: list[int]


def read_columns(lines: list[str], source: str, labelled: bool) -> Iterator[Words]:
    """Yields the sentences of lines whose first column is a word and whose last is its tag.

    Tabs separate columns if the first line of words has one, else spaces; all words have as many columns as
    that line. Blank lines and lines of -DOCSTART- end a sentence. A line "# …" before the first word of a
    sentence is a comment if it has another number of columns, or no tag where words have tags.

    Args:
        lines: of the file; `source` is its name.
        labelled: whether every word must have a tag.

    Raises:
        UserError: for a line with another number of columns, without a word or without a tag, naming it.
    """
    layout, words = Layout.of(lines), Words([], [], [])
    for number, line in enumerate(lines, 1):
        if not line.strip() or DOCUMENT.match(line):
            if words.words:
                yield words
            words = Words([], [], [])
        elif words.words or not _is_comment(line, layout):
            cells = _checked(line, layout, f"{source}, line {number}", labelled)
            words.words.append(cells[0])
            words.last.append(cells[-1])
            words.lines.append(number)
    if words.words:
        yield words


def _cells(line: str, tabs: bool) -> list[str]:
    if tabs:
        return [cell.strip(" ") for cell in line.split("\t")]
    return re.split(" +", line.strip(" "))


def _is_comment(line: str, layout: Layout) -> bool:
    if not COMMENT.match(line):
        return False
    cells = _cells(line, layout.tabs)
    return len(cells) != layout.num_columns or (layout.has_tags and not TAG.fullmatch(cells[-1]))


def _checked(line: str, layout: Layout, place: str, labelled: bool) -> list[str]:
    """Splits a line of a word; raises UserError if it does not fit the layout."""
    cells = _cells(line, layout.tabs)
    if labelled and len(cells) < 2:
        raise UserError(
            f"{place} has one column, {line[:60]!r}; it must have a word and, in the last, its tag."
        )
    if len(cells) != layout.num_columns:
        separator = "tabs" if layout.tabs else "spaces, or by tabs if words hold spaces"
        raise UserError(
            f"{place} has {len(cells)} columns, {line[:60]!r}, but line {layout.line} has "
            f"{layout.num_columns}; all words need as many, separated by {separator}."
        )
    if not cells[0]:
        raise UserError(f"{place} has no word in its first column, {line[:60]!r}; add it.")
    if labelled and not cells[-1]:
        raise UserError(f"{place} has no tag in its last column, {line[:60]!r}; add it, e.g. O.")
    return cells


def has_columns(lines: list[str]) -> bool:
    """Returns whether lines are words with tags rather than texts: most have as many columns and a tag."""
    layouts = [
        Layout.of([line]) for line in lines if line.strip() and not line.startswith(("#", "-DOCSTART-"))
    ]
    counts = collections.Counter(layout.num_columns for layout in layouts if layout.has_tags)
    return len(layouts) > 1 and max(counts.values(), default=0) >= MOST * len(layouts)


def has_words_alone(lines: list[str]) -> bool:
    """Returns whether every line is one word, with blank lines between."""
    counts = [len(line.split()) for line in "\n".join(lines).strip().split("\n")]
    return set(counts) == {0, 1}
