"""Splits paragraphs into sentences, by the rules of their language."""

import itertools
import re
from collections.abc import Iterator

import sentencex

# Languages with rules and abbreviations of their own in `sentencex`, and those for which it takes theirs. For
# all others it takes the English ones; all know the sentence marks of every script (。！？ । ؟ ። …).
KNOWN = "am ar bg bn ca da de el en es fi fr gu hi hy it ja kk kn ml mr my nl pa pl pt ru sk ta te uk"
RELATED = {
    "ar": "aeb aeb-arab arq ary arz",
    "bn": "bpy",
    "ca": "oc",
    "da": "jut kl",
    "de": "bar de-at de-ch de-formal dsb frr gsw hrx hsb ksh lb nds pdc pdt pfl sli stq vmf",
    "el": "pnt",
    "es": "an arn ast ay cbk-zam es-formal ext gn guc lad nah qu qug",
    "fi": "fit krl olo smn vot",
    "fr": "atj avk bm frc frp gcr ht kab kbp ln mg pcd ses sg shy shy-latn ty wa wo",
    "hi": "anp awa mai sa",
    "hy": "hyw",
    "it": "co egl eml fur lij lld lmo nap pms rgn roa-tara scn sdc vec",
    "kn": "tcy",
    "my": "kjp mnw",
    "nl": "li nds-nl nl-informal srn vls",
    "pl": "csb szl",
    "pt": "gl mwl pt-br tet",
    "ru": "ab alt av ba bxr ce cv inh koi krc kum kv lbe lez mdf mhr mrj myv os sah sty tt tt-cyrl tyv udm "
    "xal",
    "sk": "cs",
    "uk": "rue",
}
RULES = {code: code for code in KNOWN.split()} | {
    code: language for language, codes in RELATED.items() for code in codes.split()
}
# Where sentences end in scripts that `sentencex` has no mark of, and how to say it.
ENDS = {
    "th": (re.compile(r"(?<=[\u0e00-\u0e7f])\s+(?=[\u0e00-\u0e7f])"), "at spaces between Thai letters"),
    "lo": (re.compile(r"(?<=[\u0e80-\u0eff])\s+(?=[\u0e80-\u0eff])"), "at spaces between Lao letters"),
    "km": (re.compile(r"(?<=[\u17d4\u17d5])"), "behind ។ and ៕"),
    "bo": (re.compile(r"(?<=\u0f0d)\s+"), "at spaces behind །"),
}
# Of a paragraph with these marks `sentencex` takes time that grows with the square of its length.
SLOW_MARKS = re.compile("[。！？]")
LONG = 10_000  # characters
WIDE_SPACE = re.compile(r"[^\S ]")


def split_sentences(paragraphs: list[str], language: str) -> list[str]:
    """Splits the paragraphs of a document into sentences, stripped and not empty.

    A sentence never crosses a paragraph. `language` is a code as in Wikipedia's addresses, also with a region
    (de-CH); see `rules_of`.

    >>> split_sentences(["Mr. Smith left. It was 5 p.m. in the U.S. then.", "So what?"], "en")
    ['Mr. Smith left.', 'It was 5 p.m. in the U.S. then.', 'So what?']
    >>> split_sentences(["他走了。你呢？"], "zh")
    ['他走了。', '你呢？']
    """
    code = normalized(language)
    ends, _ = ENDS.get(code.split("-")[0], (None, ""))
    parts = (part for paragraph in paragraphs for part in _segments(code, paragraph))
    if ends:
        parts = (piece for part in parts for piece in ends.split(part))
    return [sentence for part in parts if (sentence := part.strip())]


def _segments(code: str, paragraph: str) -> Iterator[str]:
    """Splits a paragraph into sentences with the spaces behind them."""
    if SLOW_MARKS.search(paragraph):
        while len(paragraph) > LONG:
            *whole, _ = _segment(code, paragraph[:LONG])
            if not whole:
                break
            yield from whole
            paragraph = paragraph[sum(map(len, whole)) :]
    yield from _segment(code, paragraph)


def _segment(code: str, text: str) -> list[str]:
    try:
        return sentencex.segment(code, text)
    except BaseException as error:  # a panic of Rust is no Exception
        if type(error).__name__ != "PanicException":
            raise
    # sentencex 1.0 panics at a capital letter with a space that is not ASCII and a full stop behind it.
    parts = sentencex.segment(code, WIDE_SPACE.sub(" ", text))
    ends = [0, *itertools.accumulate(map(len, parts))]
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def normalized(language: str) -> str:
    """Returns the code that `sentencex` knows: `de` for `de-CH`, `pt-br` for `pt_BR`."""
    code = language.lower().replace("_", "-")
    return code if code in RULES else code.split("-")[0]


def newer_rules(language: str) -> str:
    """Describes the rules where versions before 1.1 had others, for the key of a dataset; else ""."""
    code = normalized(language)
    ends = ENDS[code][1] if code in ENDS else ""
    return f"{code} {ends}".strip() if ends or code != language else ""


def rules_of(language: str) -> str:
    """Describes for people by which rules the sentences of a language are found.

    >>> rules_of("gsw")
    'gsw: rules of de (sentencex has none of gsw)'
    >>> rules_of("th")
    'th: rules of en (sentencex has none of th), and at spaces between Thai letters'
    """
    code = normalized(language)
    rules = RULES.get(code, "en")
    none = "" if rules == code else f" (sentencex has none of {code})"
    ends = f", and {ENDS[code][1]}" if code in ENDS else ""
    return f"{language}: rules of {rules}{none}{ends}"
