"""Reads `data.source`, a list SPEC[@WEIGHT],…: which text there is, and the share of each source."""

import os
import pathlib
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from bert_jax.errors import UserError

KINDS = ("corpus", "text", "jsonl", "mediawiki", "wikipedia", "parquet", "arrow", "hf", "tfds")
NAMED = ("hf", "tfds")  # kinds whose SPEC is a name with parts after colons, and no path
DECIMAL = re.compile(r"\d{1,18}(\.\d{0,18})?|\.\d{1,18}", re.ASCII)
LANGUAGE = re.compile(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]{2,8})*", re.ASCII)
# Names that no source gets, since metrics of all held-out text are called eval_mlm_loss and so on.
RESERVED = ("shuffled", "mlm", "nsp", "mask_token", "unigram")


class Mixture(NamedTuple):
    """The datasets of a `data.source`.

    Without weights all SPECs are one dataset; with weights each SPEC is one.
    """

    sources: tuple[str, ...]  # the `data.source` of each dataset
    weights: tuple[Fraction, ...]  # the share of each in the rows; their sum is 1


def parse(source: str) -> Mixture:
    """Reads a `data.source`. Weights are taken exactly as they are typed.

    >>> parse("text:a.txt@0.7,text:b.txt@0.1").weights
    (Fraction(7, 8), Fraction(1, 8))

    Raises:
        UserError: for weights that are no decimal numbers, that some SPECs lack or that are all 0, and for a
            SPEC that is named twice.
    """
    found = _split(source)
    weights = [weight for _, weight in found if weight is not None]
    if not weights:
        return Mixture((source,), (Fraction(1),))
    for number, (spec, weight) in enumerate(found):
        if weight is None:
            raise UserError(
                f"data.source: {spec!r} has no weight, but another source has; end it with @ and a decimal "
                f"number, e.g. {spec}@0.5, or give no weights."
            )
        if spec in (before for before, _ in found[:number]):
            raise UserError(f"data.source names {spec!r} twice; name it once, with the sum of its weights.")
    total = sum(weights)
    if not total:
        raise UserError(f"data.source={source!r}: all weights are 0; make at least one of them positive.")
    return Mixture(tuple(spec for spec, _ in found), tuple(weight / total for weight in weights))


def specs(source: str) -> list[str]:
    """Lists the SPECs of a `data.source` without weights; a comma ends one only if a kind follows it."""
    return [spec for spec, _ in _split(source)]


def languages(source: str, language: str) -> tuple[str, ...]:
    """Reads a `data.language`, one for all datasets of a `data.source` or one for each, with commas between.

    >>> languages("text:a.txt@2,text:b.txt@1", "de,th")
    ('de', 'th')

    Raises:
        UserError: if there are neither one nor as many as datasets, or one is no code.
    """
    found = tuple(code.strip() for code in language.split(","))
    if wrong := [code for code in found if not LANGUAGE.fullmatch(code)]:
        raise UserError(
            f"data.language={language!r}: {wrong[0]!r} is no code of a language; use codes as in Wikipedia's "
            "addresses, e.g. en, pt-br or zh."
        )
    count = len(parse(source).sources)
    if len(found) not in (1, count):
        problem = f"data.language={language!r} names {len(found)} languages, but data.source is"
        if count == 1:
            raise UserError(
                f"{problem} one dataset, whose text has one: give each source a weight, SPEC@1,SPEC@1,…, so "
                "that each is a dataset of its own."
            )
        raise UserError(f"{problem} a mixture of {count}: name one for each, in their order, or one for all.")
    return found if len(found) == count else found * count


def check_same_sources(run: str, phase: str) -> None:
    """Raises UserError unless the `data.source` of a phase changes nothing but the weights of the run's."""
    if run != phase and parse(run).sources != parse(phase).sources:
        raise UserError(
            f"data.source={phase!r} names other sources than the run, whose data.source is {run!r}; a phase "
            "may change the weights only: write the same SPECs in the same order, in both with weights."
        )


def names(sources: Sequence[str]) -> tuple[str, ...]:
    """Names sources for metrics, in a-z, 0-9 and _: by file, folder or dataset, else by kind.

    >>> names(("corpus:", "text:/data/Wiki.txt.gz", "text:/data/books/*.txt", "wikipedia:en:20261101"))
    ('corpus', 'wiki', 'books', 'wikipedia_en')
    """
    taken: list[str] = [*RESERVED]
    for source in sources:
        name, number = _name(source), 1
        base = name
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.append(name)
    return tuple(taken[len(RESERVED) :])


def _name(source: str) -> str:
    kind, _, path = source.partition(":")
    if kind == "wikipedia":
        return re.sub(r"[^a-z0-9]+", "_", f"{kind}_{path.partition(':')[0]}")
    parts = re.split(r":(?!//)", path)[0].split("/") if kind in NAMED else path.split("/")
    for part in reversed(parts):
        stem = pathlib.PurePath(part).name.split(".")[0].lower()
        name = re.sub(r"[^a-z0-9]+", "_", stem).strip("_")
        if name and not (kind in NAMED and name[0].isdigit()):  # a version or a date
            return name
    return kind


def _split(source: str) -> list[tuple[str, Fraction | None]]:
    parts = re.split(rf",\s*(?=(?:{'|'.join(KINDS)}):)", source.strip())
    return [_split_weight(part.strip()) for part in parts]


def _split_weight(part: str) -> tuple[str, Fraction | None]:
    """Splits SPEC@WEIGHT; what follows @ is part of the path if it is no number, or the path exists."""
    spec, typed = (word.strip() for word in part.rpartition("@")[::2])
    if not _looks_like_weight(part):
        return part, None
    if not DECIMAL.fullmatch(typed):
        raise UserError(
            f"data.source={part!r}: the weight {typed} is no decimal number of at least 0; write it like "
            f"{spec}@0.7."
        )
    if _looks_like_weight(spec):
        raise UserError(f"data.source={part!r} has two weights; give it one.")
    return spec, Fraction(typed)


def _looks_like_weight(part: str) -> bool:
    spec, at, typed = part.rpartition("@")
    try:
        float(typed)
    except ValueError:
        return False
    path = part.partition(":")[2]
    return bool(at and spec) and ("://" in path or not os.path.lexists(os.path.expanduser(path)))
