"""Paragraphs to sentences."""

import sentencex


def split_sentences(paragraphs: list[str], language: str) -> list[str]:
    """Splits paragraphs into sentences, stripped and not empty.

    A sentence never crosses a paragraph. `sentencex` knows abbreviations of many languages and falls back to
    a related language, in the end English, for those that it does not know.

    Args:
        paragraphs: of one document.
        language: code as in Wikipedia's addresses, e.g. "en".

    >>> split_sentences(["Mr. Smith left. It was 5 p.m. in the U.S. then.", "So what?"], "en")
    ['Mr. Smith left.', 'It was 5 p.m. in the U.S. then.', 'So what?']
    """
    return [
        sentence
        for paragraph in paragraphs
        for part in sentencex.segment(language, paragraph)
        if (sentence := part.strip())
    ]
