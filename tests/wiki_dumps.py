"""A dump of a small wiki, in the schema of MediaWiki's export, as one stream or many."""

import bz2
from xml.sax.saxutils import escape

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="de">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <namespaces>
      <namespace key="-2" case="first-letter">Medium</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Datei</namespace>
      <namespace key="14" case="first-letter">Kategorie</namespace>
    </namespaces>
  </siteinfo>
"""
FOOT = "</mediawiki>\n"


def page(title, text, namespace=0, redirect="", model="wikitext"):
    target = f'<redirect title="{redirect}" />' if redirect else ""
    return (
        f"  <page>\n    <title>{escape(title)}</title>\n    <ns>{namespace}</ns>\n    <id>1</id>\n"
        f"    {target}\n"
        f"    <revision>\n      <id>2</id>\n      <model>{model}</model>\n"
        f'      <text bytes="9" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


PAGES = [
    page(
        "Ada",
        "'''Ada''' schrieb [[Programm]]e.<ref>S. 1</ref>\n\n[[Datei:Ada.jpg|mini|Bild]]\n[[Kategorie:Frau]]",
    ),
    page("Lovelace", "#WEITERLEITUNG [[Ada]]", redirect="Ada"),
    page("Diskussion:Ada", "Eine Frage.", namespace=1),
    page("Vorlage:X", "{{{1}}}", namespace=10),
    page("Leer", "{{Baustelle}}\n[[Kategorie:Leer]]"),
    page("Bub", "AT&T &amp; R&amp;D &ndash; 1 < 2.\n\n== Werk ==\n* eins\n* zwei"),
    page("Stil.css", "body {}", model="css"),
]
DOCUMENTS = [["Ada schrieb Programme."], ["AT&T & R&D – 1 < 2.", "Werk", "eins", "zwei"]]
LEFT_OUT = {
    "redirects": 1,
    "pages of other namespaces": 2,
    "pages without text": 1,
    "pages that are not wikitext": 1,
}


def single(pages=PAGES):
    """The bytes of a dump as XML."""
    return (HEAD + "".join(pages) + FOOT).encode()


def multistream(pages=PAGES, per_stream=2):
    """The bytes of a dump in many bzip2 streams: the head, pages, and the foot."""
    runs = ["".join(pages[start : start + per_stream]) for start in range(0, len(pages), per_stream)]
    return b"".join(bz2.compress(part.encode()) for part in [HEAD, *runs, FOOT])
