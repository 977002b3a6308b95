"""What programs write where a label is missing never becomes a class, nor a number."""

import json

import pytest

from bert_jax.errors import UserError
from bert_jax.tasks.classification import Classification, Regression
from bert_jax.tasks.config import TaskConfig, TaskData


def labels(tmp_path, kind, name, *lines, **data):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return [example.label for example in kind(TaskConfig(), TaskData(**data)).read(str(path), "data.train")]


def in_json(*values):
    return [f'{{"text": "so", "label": {value}}}' for value in values]


MISSING = [
    *(
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        '""',
        '" "',
        r'"\t\u00a0\u3000"',
        "[]",
        '["pos"]',
        "{}",
    ),
    *('{"label": "pos"}', '"pos", "label": "neg"'),
]


@pytest.mark.parametrize("value", MISSING)
def test_classes_in_json(tmp_path, value):
    lines = in_json('"pos"', '"neg"', value)
    with pytest.raises(
        UserError, match=r"a.jsonl, line 3 has no label in column data.label='label'(, but .+)?; write one"
    ):
        labels(tmp_path, Classification, "a.jsonl", *lines)


def test_a_row_without_the_column(tmp_path):
    with pytest.raises(
        UserError, match=r"a.jsonl, line 2 has no label in column data.label='label'; write one"
    ):
        labels(tmp_path, Classification, "a.jsonl", *in_json('"pos"'), '{"text": "so"}')


@pytest.mark.parametrize("cell", ["", " ", "\u3000", "\xa0 "])
@pytest.mark.parametrize("kind", [Classification, Regression])
@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_blank_cells_of_tables(tmp_path, name, separator, kind, cell):
    message = "which is not a number" if kind is Regression else "has no label in column data.label='label'"
    with pytest.raises(UserError, match=rf"{name}, line 3 .*{message}"):
        labels(tmp_path, kind, name, f"text{separator}label", f"so{separator}1", f"so{separator}{cell}")


def test_white_space_around_a_class_makes_no_other_class(tmp_path):
    cells = ["pos", " pos", "pos ", "\u00a0pos\t", "not pos"]
    lines = in_json(*map(json.dumps, cells))
    assert labels(tmp_path, Classification, "a.jsonl", *lines) == ["pos"] * 4 + ["not pos"]
    rows = ["text,label", *(f'so,"{cell}"' for cell in cells)]
    assert labels(tmp_path, Classification, "a.csv", *rows) == ["pos"] * 4 + ["not pos"]


def test_numbers_and_truth_values_are_classes(tmp_path):
    lines = in_json("1", "0", "-1", "1.5", "true", "false", '"1"', '"nan"', '"None"')
    expected = ["1", "0", "-1", "1.5", "True", "False", "1", "nan", "None"]
    assert labels(tmp_path, Classification, "a.jsonl", *lines) == expected


@pytest.mark.parametrize("cell", ["NA", "null", "nan", "NaN", "None", "N/A", "inf", "[]"])
def test_cells_of_tables_are_classes_whatever_they_say(tmp_path, cell):
    assert labels(tmp_path, Classification, "a.tsv", "text\tlabel", f"so\t{cell}") == [cell]
    assert labels(tmp_path, Classification, "a.csv", "text,label", f"so,{cell}") == [cell]


@pytest.mark.parametrize(
    "value", [*MISSING, "true", "false", '"high"', '"nan"', '"1_000"', "9" * 400, '"1,5"']
)
def test_numbers_in_json(tmp_path, value):
    lines = in_json("1", "-0.5", value)
    with pytest.raises(
        UserError, match=r"a.jsonl, line 3 has .+ in column data.label='label', which is not a number\.$"
    ) as error:
        labels(tmp_path, Regression, "a.jsonl", *lines)
    assert len(str(error.value)) < len(str(tmp_path)) + 200


def test_numbers_and_texts_of_numbers(tmp_path):
    lines = in_json("1", "-0.5", '" 2 "', '"1e3"')
    assert labels(tmp_path, Regression, "a.jsonl", *lines) == [1.0, -0.5, 2.0, 1000.0]


@pytest.mark.parametrize("kind", [Classification, Regression])
@pytest.mark.parametrize("key", ["text", "text_pair"])
@pytest.mark.parametrize("value", ["null", "NaN", "1", "true", '["so"]', "{}"])
def test_missing_texts(tmp_path, kind, key, value):
    texts = {"text": '"so"', "text_pair": '"it"', key: value}
    line = f'{{"text": {texts["text"]}, "text_pair": {texts["text_pair"]}, "label": 1}}'
    with pytest.raises(
        UserError, match=rf"data.{key}='{key}': .*a.jsonl, line 1 has .*, which is not a text\.$"
    ):
        labels(tmp_path, kind, "a.jsonl", line, text_pair="text_pair")
