"""`report.html`: a run on one page, made of nothing but the files in its workdir, and needing no other."""

import html
import json
import math
import pathlib
import string
import time
from typing import Any, NamedTuple

from etils import epath

from bert_jax.training.metrics import _read_rows

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
MOST_POINTS = 400  # of a line; more would not be seen
MOST_DOTS = 40  # of a line whose points are drawn as well
REFRESH = 60  # seconds after which an open page of a run that goes on is loaded again


TRAINING, HELD_OUT, AT_MASK, REFERENCE = range(4)  # colours: the same kind has the same in all charts


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    value: str | float  # a key of metrics.jsonl, or a constant to compare with
    colour: int


class Chart(NamedTuple):
    title: str
    lines: tuple[Line, ...]
    percent: bool = False
    from_zero: bool = True


COIN = Line("coin toss", 0.5, REFERENCE)
CHARTS = (
    Chart(
        "Masked-language-model loss, nats per token",
        (
            Line("training", "mlm_loss", TRAINING),
            Line("held-out", "eval_mlm_loss", HELD_OUT),
            Line("held-out, at [MASK] only", "eval_mask_token_loss", AT_MASK),
            Line("unigram, at [MASK] only", "eval_unigram_loss", REFERENCE),
        ),
        from_zero=False,
    ),
    Chart(
        "Masked-language-model accuracy",
        (Line("training", "mlm_accuracy", TRAINING), Line("held-out", "eval_mlm_accuracy", HELD_OUT)),
        percent=True,
    ),
    Chart(
        "Next-sentence loss, nats per pair",
        (
            Line("training", "nsp_loss", TRAINING),
            Line("held-out", "eval_nsp_loss", HELD_OUT),
            COIN._replace(value=math.log(2)),
        ),
        from_zero=False,
    ),
    Chart(
        "Next-sentence accuracy",
        (Line("training", "nsp_accuracy", TRAINING), Line("held-out", "eval_nsp_accuracy", HELD_OUT), COIN),
        percent=True,
        from_zero=False,
    ),
    Chart("Learning rate", (Line("learning rate", "learning_rate", TRAINING),)),
    Chart("Gradient norm, before clipping", (Line("gradient norm", "grad_norm", TRAINING),)),
    Chart("Throughput, real tokens per second", (Line("tokens/s", "tokens_per_second", TRAINING),)),
    Chart(
        "Waste",
        (
            Line("padding, share of the tokens", "padding_fraction", TRAINING),
            Line("waiting for data, share of the time", "data_wait_fraction", HELD_OUT),
        ),
        percent=True,
    ),
)


def write_report(workdir: epath.Path) -> None:
    """Writes `report.html` from `config.json`, `metrics.jsonl`, `starts.jsonl` and `examples.json`.

    Of these only the first must be there. An older report is replaced at once, never half.
    """
    run = json.loads((workdir / "config.json").read_text())
    rows = _read_rows(workdir / "metrics.jsonl")
    starts = _read_rows(workdir / "starts.jsonl")
    file = workdir / "examples.json"
    examples = json.loads(file.read_text()) if file.exists() else []
    temporary = workdir / "report.html.tmp"
    temporary.write_text(_page(workdir.name, run, rows, starts, examples))
    temporary.replace(workdir / "report.html")


def _page(title: str, run: dict[str, Any], rows: list[dict], starts: list[dict], examples: list[dict]) -> str:
    config, last = run["config"], _last_values(rows)
    step, total = int(last.get("step", 0)), config["train"]["num_steps"]
    resumed = sorted({start["step"] for start in starts if 0 < start["step"] < total})
    charts = [markup for chart in CHARTS if (markup := _chart(chart, rows, resumed))]
    finished = "params_digest" in last
    status = f"<b>{'Finished' if finished else 'Under way'}</b> · step {step:,} of {total:,}"
    if "time" in last:
        status += time.strftime(" · %d %b %Y, %H:%M UTC", time.gmtime(last["time"]))
    if resumed:
        status += f" · resumed at step {', '.join(f'{s:,}' for s in resumed)}"
    caption = "Colours mean the same in all charts." if charts else "Nothing has been measured yet."
    if resumed:
        caption += " Dotted vertical lines: the run was resumed."
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(_subtitle(config)),
        refresh="" if finished else f'<meta http-equiv="refresh" content="{REFRESH}">',
        status=status,
        progress=f"{100 * min(1.0, step / total):.1f}",
        tiles="\n".join(_tiles(last)),
        caption=caption,
        charts="\n".join(charts),
        examples=_examples(examples),
        configuration=_configuration(run, last.get("params_digest")),
    )


def _last_values(rows: list[dict]) -> dict[str, Any]:
    """The last value of everything that was ever measured."""
    return {key: value for row in rows for key, value in row.items()}


def _subtitle(config: dict[str, Any]) -> str:
    model, data = config["model"], config["data"]
    return (
        f"{model['num_hidden_layers']} layers of width {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads, vocabulary {model['vocab_size']:,} · {data['source']} · "
        f"{data['global_batch_size']} rows of {data['max_seq_length']} tokens a step"
    )


def _tiles(last: dict[str, Any]) -> list[str]:
    """The headline numbers, as far as they are known."""

    def tile(name: str, key: str, note: str, percent: bool = False) -> str:
        value = _number(last[key], percent) if key in last else "–"
        return f'<div class="tile"><small>{name}</small><b>{value}</b><small>{note}</small></div>'

    def also(name: str, key: str) -> str:
        return f"{name} {_number(last[key], percent=True)}" if key in last else ""

    gain, note = {}, "nats better than unigram"
    if "eval_mask_token_loss" in last:
        gain["gain"] = last["eval_unigram_loss"] - last["eval_mask_token_loss"]
    if "eval_shuffled_mask_token_loss" in last:
        lost = last["eval_shuffled_mask_token_loss"] - last["eval_mask_token_loss"]
        note += f"; {_number(lost)} are lost when the words are shuffled"
    last = {**last, **gain}
    return [
        tile("Held-out loss at [MASK]", "eval_mask_token_loss", "nats per token"),
        tile("Unigram loss", "eval_unigram_loss", "nats: knows frequencies, sees no context"),
        tile("Gain", "gain", note),
        tile("MLM accuracy", "eval_mlm_accuracy", f"held-out; {also('training', 'mlm_accuracy')}", True),
        tile("NSP accuracy", "eval_nsp_accuracy", f"held-out; {also('training', 'nsp_accuracy')}", True),
        tile("Tokens per second", "tokens_per_second", "without padding"),
    ]


def _chart(chart: Chart, rows: list[dict], resumed: list[int]) -> str:
    """A figure: an SVG that stretches to any width, under labels that do not stretch. '' without data."""
    last = max([1, *(row["step"] for row in rows)])
    lines = [(line, points) for line in chart.lines if (points := _points(line, rows, last))]
    measured = [(line, points) for line, points in lines if isinstance(line.value, str)]
    if not measured:
        return ""
    values = [value for _, points in lines for _, value in points]
    ticks = _ticks(min(values + [0.0] * chart.from_zero), max(values))

    def x(step: float) -> str:
        return f"{100 * step / last:.2f}"

    def y(value: float) -> str:
        return f"{100 * (ticks[-1] - value) / (ticks[-1] - ticks[0]):.2f}"

    drawn = [f'<path class="grid" d="{"".join(f"M0 {y(tick)}H100" for tick in ticks)}"/>']
    drawn += [f'<path class="resumed" d="M{x(step)} 0V100"/>' for step in resumed]
    for line, points in lines:
        places = [f"{x(step)} {y(value)}" for step, value in points]
        drawn.append(f'<path class="{_style(line)}" d="M{"L".join(places)}"/>')
        if line.colour in (HELD_OUT, AT_MASK) and len(points) <= MOST_DOTS:
            dots = "".join(f"M{place}h0" for place in places)  # a line without length is a round dot
            drawn.append(f'<path class="{_style(line)} dots" d="{dots}"/>')
    legend = [
        f'<span><i class="{_style(line)}"></i>{line.name} <b>{_number(points[-1][1], chart.percent)}</b></span>'
        for line, points in lines
    ]
    labels = [f'<span class="y" style="top:{y(t)}%">{_short(t, chart.percent)}</span>' for t in ticks]
    labels += [
        f'<span class="x" style="left:{x(step)}%">{_short(step)}</span>'
        for step in _ticks(0, last)
        if step <= last
    ]
    data = {
        "last": last,
        "percent": chart.percent,
        "lines": [{"name": line.name, "points": points} for line, points in measured],
    }
    return (
        f'<figure><figcaption>{chart.title}</figcaption><div class="legend">{"".join(legend)}</div>'
        f'<div class="plot" data-lines="{html.escape(json.dumps(data))}"><svg viewBox="0 0 100 100" '
        f'preserveAspectRatio="none" role="img" aria-label="{chart.title}">{"".join(drawn)}</svg>'
        f"{''.join(labels)}</div></figure>"
    )


def _style(line: Line) -> str:
    return f"s{line.colour} dashed" if line.colour == REFERENCE else f"s{line.colour}"


def _points(line: Line, rows: list[dict], last: int) -> list[tuple[int, float]]:
    """(step, value); of very many the least and the greatest of each stretch, so that peaks stay."""
    if not isinstance(line.value, str):
        return [(0, line.value), (last, line.value)]
    points = [(row["step"], row[line.value]) for row in rows if math.isfinite(row.get(line.value, math.nan))]
    if len(points) > MOST_POINTS:
        size = math.ceil(len(points) / (MOST_POINTS // 2))
        stretches = [points[start : start + size] for start in range(0, len(points), size)]
        points = [
            point
            for stretch in stretches
            for point in sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
        ]
    return [(step, float(f"{value:.5g}")) for step, value in points]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers, at most about `most` steps apart, from at or below `low` to at or above `high`."""
    raw = (high - low) / most or abs(high) / most or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power > 0.999 * raw)
    first = math.floor(low / step + 1e-6)
    return [number * step for number in range(first, max(first + 1, math.ceil(high / step - 1e-6)) + 1)]


def _short(value: float, percent: bool = False) -> str:
    """A tick's label."""
    if percent:
        return f"{100 * value:.3g}%"
    for size, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _number(value: float, percent: bool = False) -> str:
    """A number to read: 4 digits."""
    if percent:
        return f"{value:.1%}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _examples(examples: list[dict]) -> str:
    if not examples:
        return ""
    predicted = [
        token
        for example in examples
        for sentence in example["sentences"]
        for token in sentence
        if "truth" in token
    ]
    right = sum(token["guess"] == token["truth"] for token in predicted)
    return (
        "<section><h2>What the model says of held-out text</h2>"
        f'<p class="soft">{right} of {len(predicted)} hidden tokens guessed right. This section quotes the '
        "corpus.</p>"
        '<p class="key"><span class="t right">word<small> 80%</small></span> right, with the model\'s '
        'probability; the fuller the colour, the surer &ensp; <span class="t wrong"><s>guess</s><small> 20%'
        "</small> word</span> wrong, and what was there &ensp; underlined: shown as [MASK]; dotted: a random "
        "token shown in its place; dashed: shown as it is</p>"
        f'<div class="examples">{"".join(map(_example, examples))}</div></section>'
    )


def _example(example: dict[str, Any]) -> str:
    paragraphs = [
        f'<p><span class="name">{name}</span>{"".join(map(_token, sentence)).strip()}</p>'
        for name, sentence in zip("AB", example["sentences"], strict=False)
    ]
    if (follows := example.get("next_sentence")) is not None:
        right = (follows["probability"] > 0.5) == follows["truth"]
        said = "B follows A" if follows["probability"] > 0.5 else "B is from elsewhere"
        surest = max(follows["probability"], 1 - follows["probability"])
        paragraphs.append(
            f'<p><span class="name">A→B</span><span class="t {"right" if right else "wrong"}" '
            f'style="--p:{surest:.2f}">{said}<small> {surest:.0%}</small></span></p>'
        )
    return f'<div class="example">{"".join(paragraphs)}</div>'


def _token(token: dict[str, Any]) -> str:
    """A token in the running text; a leading space starts a word."""
    if "truth" not in token:
        return html.escape(token["text"])
    truth, guess, right = token["truth"], token["guess"], token["guess"] == token["truth"]
    shown = html.escape(guess.strip())
    if guess[:1].isspace() != truth[:1].isspace():  # as the vocabularies of BERT and SentencePiece write it
        shown = f"▁{shown}" if guess[:1].isspace() else f"##{shown}"
    probability = f"<small> {token['probability']:.0%}</small>"
    inside = f"{shown}{probability}" if right else f"<s>{shown}</s>{probability} {html.escape(truth.strip())}"
    space = " " if truth[:1].isspace() else ""
    seen = html.escape(f"shown: {token['text'].strip()}")
    return (
        f'{space}<span class="t {"right" if right else "wrong"} {html.escape(token["fate"])}" '
        f'style="--p:{token["probability"]:.2f}" title="{seen}">{inside}</span>'
    )


def _configuration(run: dict[str, Any], params_digest: str | None) -> str:
    config = run["config"]
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    rest = {name: value for name, value in config.items() if name not in sections}
    sections["of this run"] = rest | {
        "data digest": run["identity"]["data_digest"],
        "params digest": params_digest or "(when finished)",
    }
    sections["versions"] = run["versions"]
    return "".join(_section(name, values) for name, values in sections.items())


def _section(name: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td><code>{html.escape(str(value))}</code></td></tr>"
        for key, value in values.items()
    )
    summary = f"<summary>{html.escape(name)}<small>{len(values)}</small></summary>"
    return f"<details>{summary}<table>{rows}</table></details>"
