"""Text in seven languages: Latin, Cyrillic, Japanese, Chinese and Thai, from packages of Debian.

    mkdir packages && cd packages
    apt-get download debian-reference-{en,de,fr,ja,zh-cn} libreoffice-l10n-th \\
        aptitude-doc-ru debian-faq-ru developers-reference-ru maint-guide-ru
    for package in *.deb; do dpkg -x "$package" unpacked; done
    cd .. && python -m tests.languages packages/unpacked languages

It is the corpus of the vocabulary report in docs/languages.md. A file LANGUAGE.txt holds the manuals in a
language (a section is a document), in Thai messages of LibreOffice (ten of the longer ones are a document).
What of a missing package is left out.
"""

import argparse
import gettext
import html.parser
import itertools
import pathlib
import re
from collections.abc import Iterator

MANUALS = {
    "en": ["usr/share/debian-reference/*.en.html"],
    "de": ["usr/share/debian-reference/*.de.html"],
    "fr": ["usr/share/debian-reference/*.fr.html"],
    "ru": [
        "usr/share/doc/aptitude/html/ru/*.html",
        "usr/share/doc/debian/FAQ/ru/*.html",
        "usr/share/developers-reference/ru/*.html",
        "usr/share/doc/maint-guide-ru/html/*.html",
    ],
    "ja": ["usr/share/debian-reference/*.ja.html"],
    "zh": ["usr/share/debian-reference/*.zh-cn.html"],
}
MESSAGES = {"th": "usr/lib/libreoffice/program/resource/th/LC_MESSAGES/*.mo"}
PARAGRAPHS, HEADINGS, OTHER = (
    {"p", "dd", "li"},
    {"h1", "h2", "h3"},
    {"pre", "script", "style", "table", "nav"},
)
SHORTEST_MESSAGE = 20  # characters


class Sections(html.parser.HTMLParser):
    """Collects the paragraphs of each section of a page."""

    def __init__(self):
        super().__init__()
        self.sections: list[list[str]] = [[]]
        self._text, self._skipped = "", 0

    def handle_starttag(self, tag, attrs):  # noqa: ARG002
        self._skipped += tag in OTHER
        if tag in PARAGRAPHS | HEADINGS:
            self._end()
        if tag in HEADINGS:
            self.sections.append([])

    def handle_endtag(self, tag):
        self._skipped -= tag in OTHER
        if tag in PARAGRAPHS | HEADINGS:
            self._end()

    def handle_data(self, data):
        if not self._skipped:
            self._text += data

    def _end(self):
        if paragraph := " ".join(self._text.split()):
            self.sections[-1].append(paragraph)
        self._text = ""


def manuals(unpacked: pathlib.Path, language: str) -> Iterator[list[str]]:
    """Yields the sections of a language's manuals that have more than a heading."""
    for path in itertools.chain(*(sorted(unpacked.glob(pattern)) for pattern in MANUALS[language])):
        parser = Sections()
        parser.feed(path.read_text(encoding="utf-8"))
        yield from (section for section in parser.sections if len(section) > 1)


def messages(unpacked: pathlib.Path, language: str) -> Iterator[list[str]]:
    """Yields the longer messages of translations, ten at a time."""
    for path in sorted(unpacked.glob(MESSAGES[language])):
        with path.open("rb") as file:
            catalog = gettext.GNUTranslations(file)._catalog
        texts = (" ".join(re.sub(r"<[^>]*>|[~_]", "", text).split()) for text in catalog.values())
        kept = [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST_MESSAGE]
        yield from (kept[start : start + 10] for start in range(0, len(kept), 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("unpacked", type=pathlib.Path, help="the folder with the unpacked packages")
    parser.add_argument("output", type=pathlib.Path, help="the folder to write")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for language in (*MANUALS, *MESSAGES):
        read = manuals if language in MANUALS else messages
        documents = ["\n".join(document) for document in read(options.unpacked, language)]
        if documents:
            text = "\n\n".join(documents) + "\n"
            (options.output / f"{language}.txt").write_text(text, encoding="utf-8")
            print(f"{options.output}/{language}.txt: {len(documents)} documents, {len(text):,} characters")
        else:
            print(f"{options.unpacked}: nothing in {language}")


if __name__ == "__main__":
    main()
