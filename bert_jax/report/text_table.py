"""Tables for a terminal."""

import itertools
from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], header: Sequence[str] = (), left: int = 1) -> str:
    r"""Aligns cells in columns that are as wide as their widest cell, two spaces apart.

    Args:
        rows: the cells of each row as text; a row may be shorter than others.
        header: the names of the columns, as a first row.
        left: how many columns, from the first, are left-aligned; the others (numbers) are right-aligned.

    Returns:
        One line a row, without trailing blanks: `text_table([["a", "1"], ["bc", "20"]])` is "a    1\nbc  20".
    """
    lines = [*([header] if header else []), *rows]
    widths = [max(map(len, column)) for column in itertools.zip_longest(*lines, fillvalue="")]

    def aligned(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join(map(aligned, lines))
