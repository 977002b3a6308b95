"""The page of a dataset's card: numbers, histograms and sample documents, made from the card's JSON."""

from typing import Any

from bert_jax.report.charts import number, short, ticks
from bert_jax.report.pages import PAGES

NAMES = {"train": "train", "heldout": "held-out"}
HISTOGRAMS = {  # title, what has the length, what the length counts
    "tokens_per_document": ("Tokens per document", "documents", "tokens"),
    "tokens_per_sentence": ("Tokens per sentence", "sentences", "tokens"),
    "sentences_per_document": ("Sentences per document", "documents", "sentences"),
}
MOST_LABELS = 6  # below a histogram


def render(
    title: str, card: dict[str, Any], samples: list[dict[str, Any]], files: dict[str, dict[str, str]]
) -> str:
    """Renders the page.

    Args:
        title: name of the dataset.
        card: content of dataset_card.json.
        samples: number, source, tokens and text of some documents.
        files: digests by path, by source.
    """
    made = card["made"]
    return PAGES.get_template("dataset_card.html").render(
        title=title,
        card=card,
        tiles=_tiles(card),
        tables=[_splits(card), _sources(card)],
        histograms=[_histogram(name, card["splits"]) for name in HISTOGRAMS],
        lengths=_lengths(card["splits"]),
        left_out=_left_out(card["left_out"]),
        frequent=_frequent(card),
        samples=samples,
        folded={
            **{f"files of {spec}": digests for spec, digests in files.items()},
            "settings": made["settings"],
            "versions": made["versions"],
            "seconds": made["seconds"],
        },
    )


def size(count: int) -> str:
    """Formats a number of bytes: "12.3 MB"."""
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= power:
            return f"{count / power:.1f} {unit}"
    return f"{count} bytes"


def _tiles(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Returns headline numbers: name, value, note."""
    train, held_out = card["splits"]["train"], card["splits"]["heldout"]
    tokens = train["tokens"] + held_out["tokens"]
    unknown = train["unknown"] + held_out["unknown"]
    tiles = [
        (what.capitalize(), _count(train[what] + held_out[what]), f"{_count(held_out[what])} held out")
        for what in ("documents", "sentences", "tokens")
    ]
    return [
        *tiles,
        ("Text", size(card["text_bytes"]), f"{card['text_bytes'] / max(1, tokens):.2f} bytes per token"),
        ("Unknown", _share(unknown, tokens), f"[UNK], {_count(unknown)} of {_count(tokens)} tokens"),
        ("Unigram entropy", f"{train['entropy_bits']:.2f}", "bits per token, train"),
        (
            "Vocabulary used",
            _share(train["pieces_used"], train["pieces"]),
            f"{train['pieces_used']:,} of {train['pieces']:,} pieces, train",
        ),
        ("Left out", _count(sum(card["left_out"].values())), "see below" if card["left_out"] else "nothing"),
    ]


def _splits(card: dict[str, Any]) -> dict[str, Any]:
    columns = ["documents", "sentences", "tokens", "stored", "unknown", "entropy, bits", "vocabulary used"]
    rows = [
        [
            NAMES[name],
            *(f"{split[what]:,}" for what in ("documents", "sentences", "tokens")),
            size(split["bytes"]),
            _share(split["unknown"], split["tokens"]),
            f"{split['entropy_bits']:.3f}",
            _share(split["pieces_used"], split["pieces"]),
        ]
        for name, split in card["splits"].items()
    ]
    return {"title": "Splits", "columns": ["", *columns], "rows": rows, "shaded": False}


def _sources(card: dict[str, Any]) -> dict[str, Any]:
    """Returns the table of the sources; datasets of older versions have no counts by source."""
    columns = ["files", "text", "documents", "held out", "sentences", "tokens", "unknown", "left out"]
    rows = []
    for source in card["sources"]:
        row = [source["spec"], f"{source['files']:,}"]
        if "splits" in source:
            train, held_out = source["splits"]["train"], source["splits"]["heldout"]
            both = {what: train[what] + held_out[what] for what in train}
            row += [size(source["text_bytes"]), f"{both['documents']:,}", f"{held_out['documents']:,}"]
            row += [f"{both['sentences']:,}", f"{both['tokens']:,}", _share(both["unknown"], both["tokens"])]
            row += [f"{sum(source['left_out'].values()):,}"]
        rows.append(row + ["–"] * (len(columns) + 1 - len(row)) + [source["fingerprint"][:12]])
    return {"title": "Sources", "columns": ["", *columns, "fingerprint"], "rows": rows, "shaded": False}


def _histogram(name: str, splits: dict[str, Any]) -> dict[str, Any]:
    """Returns what the template draws: bars of `train`, a line of `heldout`, in percent of width and height.

    Bins have equal widths, so that the lengths are on a logarithmic scale.
    """
    title, what, unit = HISTOGRAMS[name]
    parts = {split: dict(entry["lengths"][name].get("histogram", ())) for split, entry in splits.items()}
    first = sorted({length for bins in parts.values() for length in bins})
    shares = {
        split: [bins.get(length, 0) / sum(bins.values()) for length in first]
        for split, bins in parts.items()
        if bins
    }
    scale = ticks(0.0, max((share for part in shares.values() for share in part), default=1.0))
    width = 100 / max(1, len(first))

    def height(share: float) -> float:
        return round(100 * share / scale[-1], 2)

    return {
        "title": title,
        "ticks": [(height(share), short(share, percent=True)) for share in scale],
        "labels": _labels(first, width),
        "bars": [
            {
                "x": round(place * width, 2),
                "width": round(width, 2),
                "height": height(share),
                "text": f"{_range(first, place)} {unit}: {number(share, percent=True)} of the {what} "
                f"({parts['train'].get(first[place], 0):,})",
            }
            for place, share in enumerate(shares.get("train", ()))
        ],
        "line": [
            (round((place + 0.5) * width, 2), height(share))
            for place, share in enumerate(shares.get("heldout", ()))
        ],
        "medians": {
            NAMES[split]: f"{entry['lengths'][name]['p50']:,}"
            for split, entry in splits.items()
            if parts[split]
        },
    }


def _range(first: list[int], place: int) -> str:
    """Names the lengths of a bin: "4–5"; those of the last one of all are at least its first."""
    if place + 1 == len(first):
        return f"from {first[place]:,}"
    last = first[place + 1] - 1
    return f"{last:,}" if last == first[place] else f"{first[place]:,}–{last:,}"


def _labels(first: list[int], width: float) -> list[tuple[float, str]]:
    """Returns place and text of the labels of a histogram: some of the powers of two, or of all bins."""
    powers = [(place, length) for place, length in enumerate(first) if length.bit_count() == 1]
    labels = powers if len(powers) > 1 else [*enumerate(first)]
    every = max(1, -(-len(labels) // MOST_LABELS))
    return [(round(place * width, 2), f"{length:,}") for place, length in labels[::every]]


def _lengths(splits: dict[str, Any]) -> dict[str, Any]:
    columns = {"mean": "mean", "p10": "10%", "p50": "median", "p90": "90%", "p99": "99%", "max": "longest"}
    rows = [
        [f"{title}, {NAMES[split]}", *(f"{lengths[column]:,}" for column in columns)]
        for name, (title, _, _) in HISTOGRAMS.items()
        for split, entry in splits.items()
        if (lengths := entry["lengths"][name])
    ]
    return {"title": "Percentiles", "columns": ["", *columns.values()], "rows": rows, "shaded": False}


def _left_out(counts: dict[str, int]) -> dict[str, Any]:
    rows = [[reason, f"{count:,}"] for reason, count in counts.items()]
    return {"title": "By reason", "columns": ["", "number"], "rows": rows, "shaded": False}


def _frequent(card: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Returns piece, share of the tokens, and the share relative to that of the most frequent piece."""
    tokens, pieces = card["splits"]["train"]["tokens"], card["frequent_pieces"]
    return [(piece, _share(count, tokens), round(count / pieces[0][1], 2)) for piece, count in pieces]


def _share(part: int, whole: int) -> str:
    """Formats a share: "12.3%", "0.0021%"; "0%" is exact."""
    share = 100 * part / max(1, whole)
    return f"{share:.1f}%" if share >= 0.1 else f"{share:.2g}%"


def _count(value: int) -> str:
    return short(value) if value >= 10**6 else f"{value:,}"
