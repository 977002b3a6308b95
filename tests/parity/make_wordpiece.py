"""Writes wordpiece.json: what Hugging Face's BertTokenizerFast makes of difficult texts.

The tests read only the JSON. To make it again, in an environment of its own:

    pip install transformers==5.23.0
    python tests/parity/make_wordpiece.py

Keys: `uncased` and `cased` (do_lower_case), each a list of {text, ids}, with the shipped uncased vocabulary.
"""

import json
import pathlib

from transformers import BertTokenizerFast

HERE = pathlib.Path(__file__).parent
VOCABULARY = HERE.parents[1] / "bert_jax" / "corpus" / "vocabularies" / "bert_uncased.txt"
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Unaffable electroencephalographically mistokenised",
    "HéLLo, naïve Café; Ångström's Zoë résumé — Đặng Thị",
    "cafe\u0301 e\u0301clair A\u030angstro\u0308m \u0301 leading accent",
    "Straße ẞ İstanbul ıĞ ΣΊΣΥΦΟΣ Ωμέγα ﬁne ﬂow",
    "我爱北京天安门。machine学习と機械学習 한국어 문장",
    "\U00020000\U0002a6df 𠀀 ㈱ ｱｲｳ Ｆｕｌｌ　ｗｉｄｔｈ",
    "control\u0000 \u0007bell\u200bzero\u200dwidth\u00adsoft\ufeffbom \ufffdreplaced",
    "tab\there\nnew\r\nline\u00a0nbsp\u2003em\u2028sep\u3000ideographic \u0085next",
    "😀 emoji 👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪 ☃️ ☃",
    "don't can't o'clock rock'n'roll it’s “quoted” ‘single’ «guillemets»",
    "a-b_c/d\\e@f#g$h%i^j&k*l(m)n+o=p|q~r`s<t>u{v}w[x]y",
    "3.14159 1,000,000 1st 2nd ½ ² Ⅷ ① 12:30pm $5.99 €7 №9",
    "https://example.org/a?b=c&d=e#f user@example.org C++ .NET",
    "x" * 100 + " " + "x" * 101,
    "supercalifragilisticexpialidocious " * 3,
    "اَلْعَرَبِيَّةُ עִבְרִית हिन्दी ไทย தமிழ் қазақ",
    "  leading   and    many  spaces  ",
    "##ing ## # ##",
    "[unused1] [mask] (MASK) [ CLS ]",
    "",
    " ",
    "\u0301",
]

result = {}
for name, lowercase in (("uncased", True), ("cased", False)):
    tokenizer = BertTokenizerFast(vocab=str(VOCABULARY), do_lower_case=lowercase)
    assert tokenizer.vocab_size == 30522
    result[name] = [
        {"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in TEXTS
    ]
(HERE / "wordpiece.json").write_text(json.dumps(result, indent=0) + "\n")
