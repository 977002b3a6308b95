from bert_jax.report.text_table import text_table


def test_names_are_left_aligned_and_numbers_right_aligned():
    table = text_table(
        [["encoder", "109,482,240", "99.4%"], ["heads", "624,188", "0.6%"]], ["part", "parameters", "share"]
    )
    assert table.splitlines() == [
        "part      parameters  share",
        "encoder  109,482,240  99.4%",
        "heads        624,188   0.6%",
    ]


def test_without_a_header_and_with_more_columns_on_the_left():
    assert text_table([["a", "b", "1"], ["long", "c", "20"]], left=2) == "a     b   1\nlong  c  20"
    assert text_table([["1", "2"], ["10", "20"]], left=0) == " 1   2\n10  20"


def test_short_rows_and_empty_cells_leave_no_trailing_blanks():
    table = text_table([["total"], ["a", "1", ""], ["b", "", "2"]])
    assert table.splitlines() == ["total", "a      1", "b         2"]
    assert text_table([["name", "text"], ["longer", ""]], left=2) == "name    text\nlonger"


def test_empty_tables():
    assert text_table([]) == ""
    assert text_table([], ["name", "value"]) == "name  value"
