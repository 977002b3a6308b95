import json
import pathlib

import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.tokenizer_files import read_tokenizer

REFERENCE = json.loads(pathlib.Path(__file__).with_name("wordpiece.json").read_text())


@pytest.mark.parametrize("case", ["uncased", "cased"])
def test_ids_equal_hugging_face(case):
    tokenizer = read_tokenizer(
        DataConfig(tokenizer="wordpiece:bert_uncased", lowercase=case == "uncased"), 30522
    )
    texts = [example["text"] for example in REFERENCE[case]]
    expected = [example["ids"] for example in REFERENCE[case]]
    assert len(texts) == 23
    assert tokenizer.encode(texts) == expected
    assert [tokenizer.encode([text])[0] for text in texts] == expected
