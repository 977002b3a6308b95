import collections
import html
import importlib.util
import itertools
import pathlib
import re
import sys
import time

import mwparserfromhell
import pytest
from mwparserfromhell import nodes

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import mediawiki, open_sources, wikitext
from bert_jax.corpus.sources.wikitext import paragraphs

HIDDEN = frozenset({"file", "image", "media", "category", "datei"})
NO_TEXT = {*wikitext.HIDDEN_TAGS.split("|"), "table"}
MARKUP = re.compile(
    r"\[\[|\]\]|\{\{|\}\}|\{\||\|\}|''|==|<ref|</|<!--|-->|<br|<nowiki|&[a-z]+;|&#|__[A-Z]+__|\b(?:File|Image|Category):"
    r"|^[*#:;|!]|\( | ,|  |\xa0",
)


@pytest.mark.parametrize(("text", "expected"), [
    # Text that goes on, ends and is empty.
    ("One\ngoes on.\n\nTwo.\n\n\n", ["One goes on.", "Two."]),
    ("  \n\n----\n", []),
    ("A\xa0b&nbsp;c&#32;d&shy;e\u200b  f\t g", ["A b c de f g"]),
    ("AT&T, R&amp;D, &lt;b&gt; and &eacute;", ["AT&T, R&D, <b> and é"]),
    # Links.
    ("[[Paris]], [[Paris|the city]]s, [[Star Trek: Voyager]] and [[a#b|'''c''']]",
     ["Paris, the citys, Star Trek: Voyager and c"]),
    ("See [http://x.org the ''site''], [https://x.org] and [//x.org/a?b=c d [[e|f]] g].",
     ["See the site, and d f g."]),
    ("A [1] and arr[i].", ["A [1] and arr[i]."]),
    ("[[:Category:Art]] and [[wikt:foo|foo]] [[de:Kunst]]\n[[be-x-old:x]][[simple:Art]]",
     ["Category:Art and foo"]),
    ("[[File:a.jpg|thumb|A [[b|c]] of [http://d e] in ''f'' {{g}}]]Text[[Category:X|*]].", ["Text."]),
    ("[[Datei:a.jpg|mini]][[Bild:a b.PNG|100px|x]][[image: a.svg]]Text", ["Text"]),
    # Bold, italic and apostrophes.
    ("'''Bold''', ''italic'', '''''both''''' and 'quoted'.", ["Bold, italic, both and 'quoted'."]),
    ("L'auteur de l'''Odyssée'' et de l’''Iliade''.", ["L'auteur de l'Odyssée et de l’Iliade."]),
    ("The ''Iliad'''s end, the '''dogs'''' tails", ["The Iliad's end, the dogs' tails"]),
    # Templates.
    ("{{Infobox\n| a = {{b|[[c]]}}\n| d = {e}\n}}\n'''A''' is {{f|{{{g|}}}}}b.", ["A is b."]),
    ("{{lang|fr|mot}}, {{lang|grc|λ|italic=no}}, {{nowrap|a [[b|c]]}}, {{transl|ar|ALA|d}}",
     ["mot, λ, a c, d"]),
    ("{{convert|3|km|mi|abbr=on}}, {{Convert|3|to|5|km}}, {{cvt|1,000|sqft|0}}",
     ["3 km, 3 to 5 km, 1,000 sqft"]),
    ("A ({{IPA|x}}; {{lang-fr|y}}) b ({{IPA|x}}, 1900) c {{cn}}, d {{e}}.", ["A b (1900) c, d."]),
    ("Such as {{a}}, {{b}}, {{c}} and d", ["Such as, and d"]),
    # What comes before all other markup.
    ("A<ref>{{b|c}} [[d]]</ref> e<ref name=\"f/g\" /> h<ref name=i>\n\n* j</ref>.", ["A e h."]),
    ("A <!-- [[b\n{{c -->d<!-- e", ["A d"]),
    ("Let <math>a_{{b}} \\text{<c>}</math> be <chem>H2O</chem>.\n<gallery>\nFile:a.jpg|b\n</gallery>",
     ["Let be."]),
    ("A<syntaxhighlight lang=c>\nint a[[1]];\n</syntaxhighlight><SCORE>x</score><templatestyles src=\"a\"/>b",
     ["Ab"]),
    ("Use <nowiki>[[a]] ''b''</nowiki><nowiki /> and <code>c</code>.", ["Use [[a]] ''b'' and c."]),
    # Tags.
    ("H<sub>2</sub>O<br />and<br>x<span style=\"a\">y</span> 1 < 2 <b>z</b>", ["H2O and xy 1 < 2 z"]),
    ("A<blockquote>B</blockquote>C<div class=d>D</div>", ["A", "B", "C", "D"]),
    # Tables.
    ("A\n{| class=b\n|-\n! c !! d\n|\n{|\n| e\n|}\n| f\n|}\nG", ["A", "G"]),
    (":{|\n| a\n|}\nB\n{|\n| never closed\n== C ==\nD\n|-\n| rest", ["B", "C", "D"]),
    ("A\n{|\n= b\n{| c\n|}\n|} D {| e\nF\n== G ==\nH", ["A D e F", "G", "H"]),
    # Headings and lists.
    ("A\n== B ==\nC\n===D=== \n==== E ====\n* f\n** ''g''\n# h\n; i\n: j",
     ["A", "B", "C", "D", "E", "f", "g", "h", "i", "j"]),
    ("A\n== Notes ==\n{{Reflist}}\n=== Sources ===\n<references />\n== B ==\n=== C ===\nd",
     ["A", "B", "C", "d"]),
    ("A\n== See also ==\n* [[B]]\n* ''[[C|D]]''\n== Links ==\n* [http://e.f g] h\n* [[I]]\n", ["A"]),
    ("A\n== Cities ==\n* [[B]]\n* [[C]], the capital\n* \"[http://d e]\"",
     ["A", "Cities", "B", "C, the capital"]),
    ("a == b\n", ["a == b"]),
    ("-5 degrees\n* — \n* : x", ["-5 degrees", "x"]),
    # Of some languages, and odds and ends.
    ("__NOTOC__A__KEIN_INHALT__ -{zh-hans:简;zh-hant:簡}-体-{H|zh:x}- -{b}-", ["A__KEIN_INHALT__ 简体 b"]),
    ("A }} b [[c {{d\n|}\ne f</ref>", ["A b c d", "e f"]),
])  # fmt: skip
def test_markup_goes_and_text_stays(text, expected):
    assert paragraphs(text, HIDDEN) == expected


@pytest.mark.parametrize(
    ("start", "part", "end"),
    [
        *(
            ("a", part, "}}" * 20_000 + "]]" * 20_000)
            for part in (
                "<ref>",
                "<nowiki>",
                "{{",
                "[[a|",
                "<!--",
                "'''",
                "\n{|",
                "{{lang|a",
                "[http://",
                "(",
            )
        ),
        ("\n== a", "\t", "b"),
        ("\n", "=", "x"),
        ("[http://a", " ", ""),
        ("<br", " ", ""),
        ("", "<br ", ""),
        ("", "<nowiki>", "</nowiki>"),
        ("{{convert|3|", " ", ""),
    ],
)
def test_a_page_of_unfinished_markup_takes_no_hours(start, part, end):
    began = time.process_time()
    paragraphs(start + part * (100_000 // len(part)) + end, HIDDEN)
    assert time.process_time() - began < 20


def words(text):
    return collections.Counter(re.findall(r"\w+", html.unescape(text)))


def parsed(text):
    """The text that mwparserfromhell finds outside of templates, tables, files and so on."""
    text = "".join(wikitext.WORD_TEMPLATE.split(text))
    text = wikitext.QUANTITY_TEMPLATE.sub(wikitext._quantity, text)
    return re.sub(r"'{5}|'{2,3}", "", _text(mwparserfromhell.parse(text, skip_style_tags=True)))


def _text(code):
    return "".join(map(_text_of, code.nodes))


def _text_of(node):
    match node:
        case nodes.Template() | nodes.Comment() | nodes.Argument():
            return ""
        case nodes.Heading():
            return f"\n{_text(node.title)}\n"
        case nodes.ExternalLink():
            title = node.title or "" if node.brackets else node.url
            return _text(title) if title else ""
        case nodes.Wikilink():
            title = str(node.title)
            if title.partition(":")[0].strip().lower() in HIDDEN or (
                wikitext.INTERLANGUAGE.match(title) and not node.text
            ):
                return ""
            return _text(node.text) if node.text else title
        case nodes.Tag():
            name = str(node.tag).strip().lower()
            if name in NO_TEXT:
                return ""
            space = " " if name == "br" or wikitext.BLOCK_TAG.match(f"<{name}>") else ""
            return space + (_text(node.contents) if node.contents else "") + space
        case nodes.HTMLEntity():
            return node.normalize()
    return str(node)


def test_all_spaces_are_known():
    found = {character for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()}
    assert set(wikitext.SPACES) == found - {" ", "\n"}


def test_every_line_that_is_mended_is_found():
    for length in range(5):
        for line in map("".join, itertools.product(" ,;:.()aé", repeat=length)):
            text = f"é (\n{line}\n, x"
            mended = wikitext._mended(line)
            assert mended == line or 1 in wikitext._untidy(text), line


@pytest.fixture(scope="module")
def excerpt():
    """Texts of the articles of a real dump, which the package gensim==4.4.0 carries."""
    found = importlib.util.find_spec("gensim")
    if not found:
        pytest.skip("gensim, whose tests carry an excerpt of Wikipedia, is not installed")
    folders = [pathlib.Path(place) / "test/test_data" for place in found.submodule_search_locations]
    (path,) = (path for folder in folders for path in folder.glob("enwiki-latest-pages-articles1*"))
    (source,) = open_sources(DataConfig(source=f"mediawiki:{path}"))
    return list(source.chunks())


def test_a_real_dump_has_no_markup_left(excerpt):
    documents = [document for chunk in excerpt for document in chunk.documents()]
    left_out = sum((chunk.left_out for chunk in excerpt), collections.Counter())
    assert len(documents) == 106
    assert left_out == {"redirects": 99, "pages of other namespaces": 1}
    lines = [paragraph for document in documents for paragraph in document]
    assert [line for line in lines if MARKUP.search(line)] == []


def test_the_words_of_a_real_dump_are_those_that_a_parser_finds(excerpt, monkeypatch):
    monkeypatch.setattr(wikitext, "_without_link_lists", lambda text: text)
    total = only_parser = only_here = 0
    for chunk in excerpt:
        for text in re.findall(r"<text[^>]*>(.*?)</text>", chunk.data.decode(), re.DOTALL):
            text = html.unescape(text)
            if not mediawiki.REDIRECT.match(text):
                expected, found = words(parsed(text)), words("\n".join(paragraphs(text, HIDDEN)))
                total += expected.total()
                only_parser += (expected - found).total()
                only_here += (found - expected).total()
    assert total > 450_000
    assert only_parser < 300  # headings without text, such as "References"
    assert only_here < 10  # the Iliad's, which the parser reads as Iliads
