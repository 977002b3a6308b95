"""What tests of pages need: to check that tags are closed, and to read what a person reads."""

import html
import html.parser
import re


class Balanced(html.parser.HTMLParser):
    """Fails where a page's tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, _):
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, _):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page):
    """What a person reads, without style and script."""
    page = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", page))
