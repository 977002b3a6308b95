"""Splits paragraphs into sentences."""

import sentencex


def split_sentences(paragraphs: list[str], language: str) -> list[str]:
    """Splits the paragraphs of a document into sentences, stripped and not empty.

    A sentence never crosses a paragraph. `language` is a code as in Wikipedia's addresses. `sentencex` has
    abbreviations of many languages; for others it uses a related language, or English.

    >>> split_sentences(["Mr. Smith left. It was 5 p.m. in the U.S. then.", "So what?"], "en")
    ['Mr. Smith left.', 'It was 5 p.m. in the U.S. then.', 'So what?']
    """
    return [
        sentence
        for paragraph in paragraphs
        for part in sentencex.segment(language, paragraph)
        if (sentence := part.strip())
    ]
