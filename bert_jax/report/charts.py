"""The charts of a report: which there are, and the lines, points and ticks of each."""

import itertools
import math
import operator
import re
from typing import Any, NamedTuple

Rows = list[dict[str, Any]]  # of metrics.jsonl

MAX_POINTS = 400  # of a line; more would not be visible
MAX_DOTS = 40  # of a line whose points are marked as well
REFERENCE = 3  # the colour of lines that others are compared with
REFERENCES = ("unigram_loss", "_majority")  # ends of their keys
PROBE = re.compile(r"probe_(\w+)_(accuracy|spearman)")


class Chart(NamedTuple):
    title: str
    # Name -> a key of metrics.jsonl, or a constant to compare with. The place decides the colour, so that
    # it means the same in all charts: training, held-out, held-out at [MASK], reference.
    lines: dict[str, str | float]
    percent: bool = False
    from_zero: bool = True
    fine_tuning: bool = False  # not a chart of pretraining


CHARTS = (
    Chart("Masked-LM loss, nats per token", {
        "training": "mlm_loss", "held-out": "eval_mlm_loss",
        "held-out, [MASK] only": "eval_mask_token_loss", "unigram, [MASK] only": "eval_unigram_loss",
    }, from_zero=False),
    Chart("Masked-LM accuracy", {"training": "mlm_accuracy", "held-out": "eval_mlm_accuracy"}, percent=True),
    Chart("Causal-LM loss, nats per token", {"training": "clm_loss"}, from_zero=False),
    Chart("Causal-LM accuracy", {"training": "clm_accuracy"}, percent=True),
    Chart("Next-sentence loss, nats per pair", {
        "training": "nsp_loss", "held-out": "eval_nsp_loss", "coin toss": math.log(2),
    }, from_zero=False),
    Chart("Next-sentence accuracy", {
        "training": "nsp_accuracy", "held-out": "eval_nsp_accuracy", "coin toss": 0.5,
    }, percent=True, from_zero=False),
    Chart("Probes", {}),  # `curves` adds their lines
    Chart("Loss", {"training": "loss", "held-out": "eval_loss"}, fine_tuning=True),
    Chart("Accuracy", {
        "training": "accuracy", "held-out": "eval_accuracy", "held-out, Matthews": "eval_matthews",
    }, percent=True, from_zero=False, fine_tuning=True),
    Chart("F1", {
        "exact match": "eval_exact_match", "held-out": "eval_f1", "mean over classes": "eval_macro_f1",
    }, percent=True, from_zero=False, fine_tuning=True),
    Chart("Precision and recall", {"precision": "eval_precision", "recall": "eval_recall"}, percent=True,
          from_zero=False, fine_tuning=True),
    Chart("Correlation", {"Pearson": "eval_pearson", "Spearman": "eval_spearman"}, from_zero=False,
          fine_tuning=True),
    Chart("Learning rate", {"learning rate": "learning_rate"}),
    Chart("Gradient norm, before clipping", {"gradient norm": "grad_norm"}),
    Chart("Throughput, real tokens per second", {"tokens/s": "tokens_per_second"}),
    Chart("Waste", {
        "padding, share of the tokens": "padding_fraction",
        "waiting for data, share of the time": "data_wait_fraction",
    }, percent=True),
)  # fmt: skip


def curves(
    rows: Rows, resumed: list[int], phases: list[tuple[int, str]], fine_tuning: bool
) -> dict[str, Any]:
    """Returns the charts that have data, over steps from 0 to the last row's.

    `phases` are pairs (first step, what it changes), for bands behind the curves.

    Ticks are pairs (value, label), points pairs (step, value); all numbers are finite.
    """
    last = max([1, *(row["step"] for row in rows)])
    probes = probe_metrics({key: value for row in rows for key, value in row.items()})
    lines: dict[str, str | float] = {title: key for key, title, _ in probes}
    lines |= {f"{title} of the largest class": majority for _, title, majority in probes if majority}
    charts = [
        _chart(chart if chart.lines else chart._replace(lines=lines), rows, last)
        for chart in CHARTS
        if fine_tuning or not chart.fine_tuning
    ]
    return {
        "last": last,
        "ticks": [(step, short(step)) for step in ticks(0, last) if step <= last],
        "resumed": resumed,
        "phases": [
            (first, end, changes)
            for (first, changes), (end, _) in itertools.pairwise([*phases, (last, "")])
            if first < end
        ],
        "charts": [chart for chart in charts if any(line["measured"] for line in chart["lines"])],
    }


def _chart(chart: Chart, rows: Rows, last: int) -> dict[str, Any]:
    lines: list[dict[str, Any]] = []
    for place, (name, what) in enumerate(chart.lines.items()):
        if found := points(what, rows, last):
            measured = isinstance(what, str)
            reference = not measured or str(what).endswith(REFERENCES)
            single, held_out = len(found) == 1, str(what).startswith(("eval_", "probe_"))
            lines.append({
                "name": name,
                "measured": measured,
                "style": f"s{REFERENCE} dashed" if reference else f"s{place % REFERENCE}",
                "dots": single or (held_out and len(found) <= MAX_DOTS),
                "latest": number(found[-1][1], chart.percent),
                "points": found,
            })  # fmt: skip
    values = [value for line in lines for _, value in line["points"]] + [0.0] * chart.from_zero
    scale = ticks(min(values), max(values)) if values else []
    return {
        "title": chart.title,
        "percent": chart.percent,
        "ticks": [(value, short(value, chart.percent)) for value in scale],
        "lines": lines,
    }


def probe_metrics(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Finds the metrics of probes in a row.

    Returns:
        For each its key, its title ("reviews, accuracy"), and the key of what to compare it with, or "".
    """
    found = []
    for key in row:
        if match := PROBE.fullmatch(key):
            majority = f"probe_{match[1]}_majority"
            found.append((key, f"{match[1]}, {match[2]}", majority if majority in row else ""))
    return found


def points(what: str | float, rows: Rows, last: int) -> list[tuple[int, float]]:
    """Returns the finite values of a line by step; if there are many, minima and maxima of intervals."""
    if not isinstance(what, str):
        return [(0, what), (last, what)]
    found = [(row["step"], row[what]) for row in rows if math.isfinite(row.get(what, math.nan))]
    if len(found) > MAX_POINTS:
        by_value, size = operator.itemgetter(1), math.ceil(len(found) / (MAX_POINTS // 2))
        stretches = [found[start : start + size] for start in range(0, len(found), size)]
        peaks = [{min(stretch, key=by_value), max(stretch, key=by_value)} for stretch in stretches]
        found = [point for pair in peaks for point in sorted(pair)]
    return [(step, float(f"{value:.5g}")) for step, value in found]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Returns round numbers, at most about `most` intervals, from at or below `low` to at or above `high`."""
    raw = (high - low) / most or abs(high) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power > 0.999 * raw)
    first = math.floor(low / step + 1e-6)
    return [number * step for number in range(first, max(first + 1, math.ceil(high / step - 1e-6)) + 1)]


def short(value: float, percent: bool = False) -> str:
    """Formats the label of a tick: "250k", "12.5%"."""
    if percent:
        return f"{100 * value:.3g}%"
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def number(value: float, percent: bool = False) -> str:
    """Formats a number for reading: "16.9%", "9,142", "6.320", "8e-05"."""
    if percent:
        return f"{value:.1%}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"
