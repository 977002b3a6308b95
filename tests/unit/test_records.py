import gzip
import json
import logging
import lzma

import numpy as np
import pytest
import tensorflow_datasets as tfds
import zstandard
from array_record.python import array_record_module

from bert_jax.errors import UserError
from bert_jax.tasks.records import Record, column, digest, read_bytes, read_records, read_text, text_column


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def values(source, **kwargs):
    return [record.values for record in read_records(source, "data.train", **kwargs)]


def test_tsv_keeps_quotes(tmp_path):
    source = write(tmp_path / "a.tsv", 'text\tlabel\n"Yes\t1\n\nsay ""no""\t0\r\n')
    assert read_records(source, "data.train") == [
        Record(f"{source}, line 2", {"text": '"Yes', "label": "1"}),
        Record(f"{source}, line 4", {"text": 'say ""no""', "label": "0"}),
    ]


def test_csv_with_quoted_commas_quotes_and_line_breaks(tmp_path):
    source = write(tmp_path / "a.csv", 'text,label\n"One, two\nthree ""four""",1\nfive,0\n')
    assert read_records(source, "data.train") == [
        Record(f"{source}, line 3", {"text": 'One, two\nthree "four"', "label": "1"}),
        Record(f"{source}, line 4", {"text": "five", "label": "0"}),
    ]


def test_jsonl_of_any_values(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"text": "a\u2028b", "label": 1}\n\n{"tokens": ["c"]}\r\n')
    assert read_records(source, "data.train") == [
        Record(f"{source}, line 1", {"text": "a\u2028b", "label": 1}),
        Record(f"{source}, line 3", {"tokens": ["c"]}),
    ]


@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_without_a_header_columns_are_numbers(tmp_path, suffix):
    cells = {".tsv": "a\tb\nc\td\n", ".csv": "a,b\nc,d\n"}[suffix]
    source = write(tmp_path / f"a{suffix}", cells)
    assert values(source, header=False) == [{"0": "a", "1": "b"}, {"0": "c", "1": "d"}]
    assert values(source) == [{"a": "c", "b": "d"}]


def test_one_row_without_a_header(tmp_path):
    assert values(write(tmp_path / "a.tsv", "a\tb"), header=False) == [{"0": "a", "1": "b"}]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert values(write(tmp_path / "a.tsv", "\ufefftext\na\n")) == [{"text": "a"}]
    assert values(write(tmp_path / "a.jsonl", '\ufeff{"text": "a"}')) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".XZ", lzma.compress), (".zst", zstandard.compress)]
)
def test_compressed(tmp_path, suffix, compress):
    source = write(tmp_path / f"a.tsv{suffix}", compress("text\nä\n".encode()))
    assert values(source) == [{"text": "ä"}]
    assert read_text(source, "data.train") == ("text\nä\n", ".tsv")
    assert read_bytes(source, "data.train") == ("text\nä\n".encode(), ".tsv")
    whole = compress(bytes(n * n % 251 for n in range(10_000)))
    for broken in (whole[: len(whole) // 2], b"\0no such format", b"\x1f\x8b\x08\x00" + b"\xff" * 40):
        with pytest.raises(UserError, match=rf"data.train=.*a.tsv{suffix} cannot be read"):
            read_records(write(tmp_path / f"a.tsv{suffix}", broken), "data.train")
    with pytest.raises(UserError, match=rf"a.tsv{suffix} is not compressed but text; rename it"):
        read_records(write(tmp_path / f"a.tsv{suffix}", b"text\na\n"), "data.train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("A.TSV", "text\na\n"),
        ("a.Csv", "text\na\n"),
        ("A.JSONL", '{"text": "a"}'),
        ("A.TSV.GZ", gzip.compress(b"text\na\n", mtime=0)),
    ],
)
def test_suffixes_in_upper_case(tmp_path, name, content):
    assert values(write(tmp_path / name, content)) == [{"text": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "number"),
    [
        ("a.tsv", "text\n\na\n\n\nb\n\n", 3),
        ("a.csv", "text\r\na\r\n\r\nb\r\n\r\n", 1),
        ("a.jsonl", '{"text": "a"}\n \n{"text": "b"}\n\n', 1),
        ("a.csv", 'text\n"a"\nb\n\n', 0),
    ],
)
def test_blank_lines_between_rows_are_counted_in_the_log(tmp_path, caplog, name, content, number):
    source = write(tmp_path / name, content)
    with caplog.at_level(logging.WARNING, "bert_jax"):
        assert values(source) == [{"text": "a"}, {"text": "b"}]
    assert [record.getMessage() for record in caplog.records] == (
        [f"{source}: {number} blank lines between its rows are left out"] if number else []
    )


def test_a_key_that_is_there_twice_has_no_value(tmp_path):
    """Python's parser would take the last; only a column in use is an error."""
    source = write(tmp_path / "a.jsonl", '{"text": "a", "label": "x", "label": "y", "label": "z"}\n')
    (record,) = read_records(source, "data.train")
    assert record.values == {"text": "a", "label": (("x", "y"), "z")}
    assert text_column([record], "text", "data.text") == ["a"]
    for lists in (False, True):
        with pytest.raises(
            UserError, match=r"data.text='label': .*, line 1 has \(\('x', 'y'\), 'z'\), which is no"
        ):
            text_column([record], "label", "data.text", lists)


# What programs write for a missing cell, and other values that are no texts.
NO_TEXTS = [
    "null",
    "NaN",
    "Infinity",
    "-Infinity",
    "3",
    "1.5",
    "true",
    '["a"]',
    '{"a": "b"}',
    '"a", "text": "b"',
]


@pytest.mark.parametrize("value", NO_TEXTS)
def test_values_of_json_that_are_no_texts(tmp_path, value):
    source = write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{{"text": {value}}}\n')
    with pytest.raises(UserError, match=r"data.text='text': .*a.jsonl, line 2 has .*, which is not a text"):
        text_column(read_records(source, "data.train"), "text", "data.text")
    in_list = write(
        tmp_path / "b.jsonl", f'{{"text": ["a"]}}\n{{"text": ["a", {value.partition(",")[0]}, null]}}\n'
    )
    with pytest.raises(
        UserError, match=r"data.text='text': .*b.jsonl, line 2 has .*, which is no list of texts"
    ):
        text_column(read_records(in_list, "data.train"), "text", "data.text", lists=True)


@pytest.mark.parametrize("cell", ["NA", "null", "nan", "NaN", "None", "N/A", "#N/A", "true", "1", "-"])
@pytest.mark.parametrize("suffix", [".tsv", ".csv"])
def test_cells_of_tables_are_texts_whatever_they_say(tmp_path, suffix, cell):
    separator = {".tsv": "\t", ".csv": ","}[suffix]
    source = write(tmp_path / f"a{suffix}", f"text{separator}label\n{cell}{separator}{cell}\n")
    assert values(source) == [{"text": cell, "label": cell}]


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.tsv", "text\na\n")
    assert values("~/a.tsv") == [{"text": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "a\tb\n1\t2\n3\n", r"a.tsv, line 3 has 1 columns and the first has 2"),
        ("a.csv", 'a,b\n"1\n2",3\n1,2,3\n', r"a.csv, line 4 has 3 columns and the first has 2"),
        ("a.tsv", "a\tb\ta\n1\t2\t3\n", r"a.tsv, line 1: two columns have one name in a, b, a"),
        ("a.csv", 'a\n"1\n', r"a.csv, line 2: unexpected end of data"),
        ("a.csv", 'a\n"1"2\n', r"""a.csv, line 2: ',' expected after '"'"""),
        ("a.tsv", "", r"data.train=.*a.tsv is empty"),
        ("a.tsv", "\n \n", r"data.train=.*a.tsv has white space only"),
        ("a.csv", "\ufeff\n", r"data.train=.*a.csv has white space only"),
        ("a.tsv", "text\tlabel\n", r"data.train=.*a.tsv has no rows after its header"),
        ("a.tsv", b"text\ngr\xfcn\n", r"data.train=.*a.tsv is not a UTF-8 text file .*byte 0xfc"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '{"a": "\\ud83d"}\n', r"a.jsonl, line 1 is not JSON .*surrogates not allowed"),
        ("a.jsonl", '{"a": 1}\n[2]\n', r"a.jsonl, line 2 is not a JSON object"),
        (
            "a.txt",
            "a\n",
            r"data.train=.*a.txt: this task reads .tsv, .csv, .jsonl \(also .gz, .xz, .zst, .bz2\) and tfds:",
        ),
        (
            "a.TXT",
            "a\n",
            r"a.TXT: this task reads .tsv.* and tfds:NAME; predict also reads .txt, one text a line",
        ),
        ("a.JSONL", "[" * 100_000, r"a.JSONL, line 1 is not JSON"),
        ("a.csv", b"text\n\0\n", r"data.train=.*a.csv is no text file: byte 5 is NUL"),
        ("a.gz", gzip.compress(b"a\n", mtime=0), r"data.train=.*a.gz: this task reads .tsv"),
    ],
)
def test_errors(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message):
        read_records(write(tmp_path / name, content), "data.train")


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"data.test=.*no.tsv cannot be read: .*No such file.*\. Check"):
        read_records(f"{tmp_path}/no.tsv", "data.test")
    with pytest.raises(UserError, match=r"data.test=.* cannot be read: .*directory"):
        digest(str(tmp_path), "data.test")


def test_columns():
    records = [Record("one", {"text": "a", "label": 1}), Record("two", {"text": "b", "label": None})]
    assert column(records, "label", "data.label") == [1, None]
    assert text_column(records, "text", "data.text") == ["a", "b"]
    with pytest.raises(UserError, match=r"data.text='body': one has no such column; it has 'text', 'label'"):
        column(records, "body", "data.text")
    with pytest.raises(UserError, match=r"data.text='label': one has 1, which is not a text"):
        text_column(records, "label", "data.text")
    with pytest.raises(UserError, match=r"data.label='label': two has no such column; it has 'text'"):
        column([records[0], Record("two", {"text": "b"})], "label", "data.label")


FEATURES = {
    "sentence": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["bad", "good"]),
    "score": np.float32,
    "tokens": tfds.features.Sequence(tfds.features.Text()),
    "ner": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-PER", "I-PER"])),
    "answers": tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32,
                                       "kind": tfds.features.ClassLabel(names=["short", "long"])}),
    "meta": {"kind": tfds.features.ClassLabel(names=["x", "y"]), "id": np.int64},
}  # fmt: skip
RECORDS = {
    "train": [
        {"sentence": "Gött wins", "label": "good", "score": 0.5, "tokens": ["Gött", "wins"],
         "ner": ["B-PER", "O"], "meta": {"kind": "y", "id": 7},
         "answers": {"text": ["Gött", "wins"], "answer_start": [0, 5], "kind": ["short", "long"]}},
        {"sentence": "", "label": -1, "score": -1.0, "tokens": ["a"],
         "ner": ["I-PER"], "meta": {"kind": "x", "id": 8},
         "answers": {"text": [], "answer_start": [], "kind": []}},
    ],
    "test": [
        {"sentence": "It", "label": "bad", "score": 2.0, "tokens": [],
         "ner": [], "meta": {"kind": "x", "id": 9},
         "answers": {"text": ["It"], "answer_start": [0], "kind": ["long"]}},
    ],
    "test_of_bytes": [
        {"sentence": b"gr\xfcn", "label": "bad", "score": 2.0, "tokens": [b"\xff"],
         "ner": ["O"], "meta": {"kind": "x", "id": 9},
         "answers": {"text": [], "answer_start": [], "kind": []}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def opinions(tmp_path_factory):
    """opinions 1.0.0 with classes, sequences of classes, and answers as SQuAD nests them."""
    directory = tmp_path_factory.mktemp("tfds") / "opinions" / "1.0.0"
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(FEATURES)
    for split, records in RECORDS.items():
        path = directory / f"opinions-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(features.serialize_example(features.encode_example(record)))
        writer.close()
    splits = [
        tfds.core.SplitInfo(name=split, shard_lengths=[len(records)], num_bytes=0)
        for split, records in RECORDS.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=splits, check_data=False
    )
    return directory


def test_tfds_in_plain_types_with_the_names_of_classes(opinions):
    source = f"tfds:{opinions}"
    unknown = RECORDS["train"][1] | {"label": None}  # which TFDS writes as -1
    records = read_records(source, "data.train")
    assert records == [
        Record(f"{source}, record 0", RECORDS["train"][0]),
        Record(f"{source}, record 1", unknown),
    ]
    json.dumps(records)  # nothing of NumPy is left


def test_tfds_bytes_that_are_no_text(opinions):
    records = read_records(f"tfds:{opinions}:test_of_bytes", "data.test")
    for name, lists, kind in (("sentence", False, "not a text"), ("tokens", True, "no list of texts")):
        with pytest.raises(UserError, match=rf"data.text='{name}': .*, record 0 has .*, which is {kind}"):
            text_column(records, name, "data.text", lists)
    assert text_column(records, "label", "data.label") == ["bad"]


def test_tfds_splits(opinions):
    assert [record["sentence"] for record in values(f"tfds:{opinions}:test")] == ["It"]
    assert [record["meta"]["id"] for record in values(f"tfds:{opinions}:train[1:]")] == [8]


@pytest.mark.parametrize("rest", [":dev", ":dev[:10%]", ":train:text"])
def test_tfds_errors(opinions, rest):
    with pytest.raises(UserError, match=r"data.eval=tfds:.*: use tfds:NAME\[:SPLIT\] with a split of t"):
        read_records(f"tfds:{opinions}{rest}", "data.eval")


def test_a_tfds_dataset_that_is_not_here():
    with pytest.raises(
        UserError, match=r"data.eval='tfds:no_such_dataset': this dataset is not prepared"
    ) as error:
        read_records("tfds:no_such_dataset", "data.eval")
    assert type(error.value) is UserError  # there is nothing to fall back on


def test_the_digest_is_that_of_the_content(tmp_path, opinions):
    one = digest(write(tmp_path / "a.tsv", "text\na\n"), "data.train")
    assert len(one) == 64
    assert digest(write(tmp_path / "b.tsv", "text\na\n"), "data.train") == one
    assert digest(write(tmp_path / "c.tsv.gz", gzip.compress(b"text\na\n")), "data.train") == one
    assert digest(write(tmp_path / "a.tsv", "text\nb\n"), "data.train") != one
    by_split = [
        digest(f"tfds:{opinions}{split}", "data.train") for split in ("", ":train", ":train[1:]", ":test")
    ]
    assert by_split[0] == by_split[1]
    assert len({one, *by_split}) == 4
