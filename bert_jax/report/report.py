"""`report.html`: a run on one page, made of nothing but the files in its workdir, and needing no other."""

import html
import json
import logging
import math
import operator
import pathlib
import re
import string
import time
from typing import Any, NamedTuple

import jax
from etils import epath

from bert_jax.files import read_rows

log = logging.getLogger("bert_jax")

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
MOST_POINTS = 400  # of a line; more would not be seen
PART = re.compile(r"(fold|seed)_\d+")  # the folder of one of several runs
MOST_DOTS = 40  # of a line whose points are drawn as well
REFRESH = 60  # seconds after which an open page of a run that goes on is loaded again
REFERENCE = 3  # the colour of what is only compared with


class Chart(NamedTuple):
    title: str
    # Name -> a key of metrics.jsonl, or a constant to compare with. The place decides the colour, so that the
    # same kind has the same in all charts: training, held-out, at [MASK], reference.
    lines: dict[str, str | float]
    percent: bool = False
    from_zero: bool = True
    task: bool = False  # only of fine-tuning


CHARTS = (
    Chart("Masked-LM loss, nats per token", {
        "training": "mlm_loss", "held-out": "eval_mlm_loss",
        "held-out, [MASK] only": "eval_mask_token_loss", "unigram, [MASK] only": "eval_unigram_loss",
    }, from_zero=False),
    Chart("Masked-LM accuracy", {"training": "mlm_accuracy", "held-out": "eval_mlm_accuracy"}, percent=True),
    Chart("Next-sentence loss, nats per pair", {
        "training": "nsp_loss", "held-out": "eval_nsp_loss", "coin toss": math.log(2),
    }, from_zero=False),
    Chart("Next-sentence accuracy", {
        "training": "nsp_accuracy", "held-out": "eval_nsp_accuracy", "coin toss": 0.5,
    }, percent=True, from_zero=False),
    Chart("Loss", {"training": "loss", "held-out": "eval_loss"}, task=True),
    Chart("Accuracy", {
        "training": "accuracy", "held-out": "eval_accuracy", "held-out, Matthews": "eval_matthews",
    }, percent=True, from_zero=False, task=True),
    Chart("F1", {
        "exact match": "eval_exact_match", "held-out": "eval_f1", "mean over classes": "eval_macro_f1",
    }, percent=True, from_zero=False, task=True),
    Chart("Precision and recall", {"precision": "eval_precision", "recall": "eval_recall"}, percent=True,
          from_zero=False, task=True),
    Chart("Correlation", {"Pearson": "eval_pearson", "Spearman": "eval_spearman"}, from_zero=False,
          task=True),
    Chart("Learning rate", {"learning rate": "learning_rate"}),
    Chart("Gradient norm, before clipping", {"gradient norm": "grad_norm"}),
    Chart("Throughput, real tokens per second", {"tokens/s": "tokens_per_second"}),
    Chart("Waste", {
        "padding, share of the tokens": "padding_fraction",
        "waiting for data, share of the time": "data_wait_fraction",
    }, percent=True),
)  # fmt: skip


def record_start(workdir: epath.Path, step: int, devices: str) -> list[dict[str, Any]]:
    """Notes in `starts.jsonl` that the run starts or goes on at `step`, and on what; returns all its rows."""
    file = workdir / "starts.jsonl"
    starts = [*read_rows(file), {"step": step, "devices": devices, "time": round(time.time(), 3)}]
    _write(file, "".join(json.dumps(start) + "\n" for start in starts))
    return starts


def write_examples(workdir: epath.Path, examples: list[dict[str, Any]]) -> None:
    """Keeps what `Task.examples` returned in `examples.json`, for this and later reports."""
    _write(workdir / "examples.json", json.dumps(examples))


def write_results(workdir: epath.Path, results: dict[str, Any]) -> None:
    """Keeps how the best checkpoint did in `results.json`, for this and later reports.

    `results` has `step`, `scores` ({split: {metric: value}}) and, of the split that `of` names, the `tables`
    that the task made.
    """
    _write(workdir / "results.json", json.dumps(results, indent=1, ensure_ascii=False))


def write_report(workdir: epath.Path) -> None:
    """Writes `report.html` from what else is in the folder.

    Of these files only `config.json` must be there. Only the first process writes.
    """
    if jax.process_index():
        return
    run = json.loads((workdir / "config.json").read_text())
    rows = read_rows(workdir / "metrics.jsonl")
    starts = read_rows(workdir / "starts.jsonl")
    examples, results = (
        json.loads(file.read_text()) if (file := workdir / f"{name}.json").exists() else None
        for name in ("examples", "results")
    )
    sections = _examples(examples or []) + (_results(results) if results else "")
    _write(workdir / "report.html", _page(_title(workdir), run, rows, starts, sections))


def _write(file: epath.Path, text: str) -> None:
    """Replaces a file at once, never half, from the first process; a run does not end for want of it."""
    if jax.process_index():
        return
    temporary = file.with_name(file.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        log.warning("%s could not be written: %s", file, error.strerror)


def _title(workdir: epath.Path) -> str:
    """The name of a run's folder; of one of several folds or seeds those above it too."""
    return _title(workdir.parent) + f"/{workdir.name}" if PART.fullmatch(workdir.name) else workdir.name


def _page(title: str, run: dict[str, Any], rows: list[dict], starts: list[dict], sections: str) -> str:
    config = run["config"]
    if config["data"].get("second_objective") == "none":  # its metrics are zeros
        rows = [{key: value for key, value in row.items() if "nsp" not in key} for row in rows]
    last = {key: value for row in rows for key, value in row.items()}  # of everything ever measured
    step, total = int(last.get("step", 0)), config["train"]["num_steps"]
    resumed = sorted({start["step"] for start in starts if 0 < start["step"] < total})
    task = "task" in config
    charts = [
        markup for chart in CHARTS
        if (task or not chart.task) and (markup := _chart(chart, rows, resumed))
    ]  # fmt: skip
    finished = "params_digest" in last
    status = f"<b>{'Finished' if finished else 'Under way'}</b> · step {step:,} of {total:,}"
    if "time" in last:
        status += time.strftime(" · %d %b %Y, %H:%M UTC", time.gmtime(last["time"]))
    if starts:
        status += f" · on {html.escape(starts[-1]['devices'])}"
    if resumed:
        status += f" · resumed at step {', '.join(f'{s:,}' for s in resumed)}"
    if "goodput" in last:
        status += f" · goodput {last['goodput']:.0%} ({last['lost_seconds']:,.0f} s not spent on steps)"
    for row in rows:
        if "skipped_from" in row:
            reason = html.escape(row["skipped_because"])
            status += f"<br/>Steps {row['skipped_from']:,} to {row['step'] - 1:,} were left out: {reason}"
    caption = "Dotted vertical lines: the run was resumed." if resumed else ""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        subtitle=html.escape(_subtitle(config)),
        refresh="" if finished else f'<meta http-equiv="refresh" content="{REFRESH}">',
        status=status,
        progress=f"{100 * min(1.0, step / total):.1f}",
        tiles=_tiles(last),
        caption=caption if charts else "Nothing has been measured yet.",
        charts="\n".join(charts),
        sections=sections,
        configuration=_configuration(run, last.get("params_digest")),
    )


def _subtitle(config: dict[str, Any]) -> str:
    model, data = config["model"], config["data"]
    what = data.get("source") or f"{config['task']['name'].replace('_', ' ')} from {config['init_from']}"
    return (
        f"{model['num_hidden_layers']} layers of width {model['hidden_size']}, "
        f"{model['num_attention_heads']} heads, vocabulary {model['vocab_size']:,} · {what} · "
        f"{data['global_batch_size']} rows of {data['max_seq_length']} tokens a step"
    )


def _tiles(last: dict[str, Any]) -> str:
    """The headline numbers, as far as they are known."""
    gain = "nats better than unigram"
    if "eval_mask_token_loss" in last:
        last = last | {"gain": last["eval_unigram_loss"] - last["eval_mask_token_loss"]}
    if "eval_shuffled_mask_token_loss" in last:
        lost = last["eval_shuffled_mask_token_loss"] - last["eval_mask_token_loss"]
        gain += f"; {_number(lost)} are lost when the words are shuffled"
    tiles = []
    for name, key, note in (
        ("Held-out loss at [MASK]", "eval_mask_token_loss", "nats per token"),
        ("Unigram loss", "eval_unigram_loss", "nats: knows frequencies, sees no context"),
        ("Gain", "gain", gain),
        ("MLM accuracy", "eval_mlm_accuracy", "held-out"),
        ("NSP accuracy", "eval_nsp_accuracy", "held-out"),
        ("Accuracy", "eval_accuracy", "held-out"),
        ("F1", "eval_f1", "held-out"),
        ("Exact match", "eval_exact_match", "held-out"),
        ("Matthews", "eval_matthews", "held-out"),
        ("Spearman", "eval_spearman", "held-out"),
        ("Tokens per second", "tokens_per_second", "padding not counted"),
    ):
        if key in last:
            percent, training = key.endswith(("accuracy", "f1", "match")), key.removeprefix("eval_")
            if training != key and training in last:
                note += f"; training {_number(last[training], percent)}"
            number = _number(last[key], percent)
            tiles.append(f'<div class="tile"><small>{name}</small><b>{number}</b><small>{note}</small></div>')
    return "".join(tiles)


def _chart(chart: Chart, rows: list[dict], resumed: list[int]) -> str:
    """A figure: an SVG that stretches to any width, under labels that do not stretch. '' without data."""
    last = max([1, *(row["step"] for row in rows)])
    lines = {name: points for name, what in chart.lines.items() if (points := _points(what, rows, last))}
    measured = [name for name in lines if isinstance(chart.lines[name], str)]
    if not measured:
        return ""
    values = [value for points in lines.values() for _, value in points]
    ticks = _ticks(min(values + [0.0] * chart.from_zero), max(values))

    def x(step: float) -> str:
        return f"{100 * step / last:.2f}"

    def y(value: float) -> str:
        return f"{100 * (ticks[-1] - value) / (ticks[-1] - ticks[0]):.2f}"

    drawn = [f'<path class="grid" d="{"".join(f"M0 {y(tick)}H100" for tick in ticks)}"/>']
    drawn += [f'<path class="resumed" d="M{x(step)} 0V100"/>' for step in resumed]
    legend = ""
    for colour, (name, what) in enumerate(chart.lines.items()):
        if points := lines.get(name, []):
            reference = colour == REFERENCE or name not in measured
            style = f"s{REFERENCE} dashed" if reference else f"s{colour}"
            places = [f"{x(step)} {y(value)}" for step, value in points]
            drawn.append(f'<path class="{style}" d="M{"L".join(places)}"/>')
            if len(points) == 1 or (str(what).startswith("eval_") and len(points) <= MOST_DOTS):
                dots = "".join(f"M{place}h0" for place in places)  # a line without length is a round dot
                drawn.append(f'<path class="{style} dots" d="{dots}"/>')
            newest = _number(points[-1][1], chart.percent)
            legend += f'<span><i class="{style}"></i>{name} <b>{newest}</b></span>'
    labels = [f'<span class="y" style="top:{y(t)}%">{_short(t, chart.percent)}</span>' for t in ticks]
    steps = [step for step in _ticks(0, last) if step <= last]
    labels += [f'<span class="x" style="left:{x(step)}%">{_short(step)}</span>' for step in steps]
    shown = [{"name": name, "points": lines[name]} for name in measured]
    data = html.escape(json.dumps({"last": last, "percent": chart.percent, "lines": shown}))
    return (
        f'<figure><figcaption>{chart.title}</figcaption><div class="legend">{legend}</div>'
        f'<div class="plot" data-lines="{data}"><svg viewBox="0 0 100 100" '
        f'preserveAspectRatio="none" role="img" aria-label="{chart.title}">{"".join(drawn)}</svg>'
        f"{''.join(labels)}</div></figure>"
    )


def _points(what: str | float, rows: list[dict], last: int) -> list[tuple[int, float]]:
    """(step, value) of a line; of very many the least and greatest of each stretch, so that peaks stay."""
    if not isinstance(what, str):
        return [(0, what), (last, what)]
    points = [(row["step"], row[what]) for row in rows if math.isfinite(row.get(what, math.nan))]
    if len(points) > MOST_POINTS:
        by_value, size = operator.itemgetter(1), math.ceil(len(points) / (MOST_POINTS // 2))
        stretches = [points[start : start + size] for start in range(0, len(points), size)]
        peaks = [{min(stretch, key=by_value), max(stretch, key=by_value)} for stretch in stretches]
        points = [point for pair in peaks for point in sorted(pair)]
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
    """A number to read."""
    if percent:
        return f"{value:.1%}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 else f"{value:.3g}"


def _examples(examples: list[dict]) -> str:
    if not examples:
        return ""
    sentences = [sentence for example in examples for sentence in example["sentences"]]
    masked = [token for sentence in sentences for token in sentence if token.get("fate") == "masked"]
    right = sum(token["guess"] == token["truth"] for token in masked)
    key = (
        f"<span>{_chip('word', 0.8, None)} right, and the model's probability</span>"
        f"<span>{_chip('guess', 0.2, 'word')} wrong, and the truth</span>"
        '<span><span class="t masked">line</span> the model sees [MASK]</span>'
        '<span><span class="t replaced">dots</span> it sees a random token</span>'
        '<span><span class="t kept">dashes</span> it sees the truth</span>'
    )
    return (
        "<section><h2>What the model says of held-out text</h2>"
        f'<p class="soft">{right} of {len(masked)} [MASK] guessed right. This section quotes the corpus.</p>'
        f'<p class="key">{key}</p><div class="examples">{"".join(map(_example, examples))}</div></section>'
    )


def _example(example: dict[str, Any]) -> str:
    paragraphs = [
        f'<p><span class="name">{name}</span>{"".join(map(_token, sentence))}</p>'
        for name, sentence in zip("AB", example["sentences"], strict=False)
    ]
    if (follows := example["next_sentence"]) is not None:
        said, probability = follows["probability"] > 0.5, follows["probability"]
        names = ("B is from elsewhere", "B follows A")
        truth = None if said == follows["truth"] else names[follows["truth"]]
        chip = _chip(names[said], max(probability, 1 - probability), truth)
        paragraphs.append(f'<p><span class="name">A, B</span>{chip}</p>')
    return f'<div class="example">{"".join(paragraphs)}</div>'


def _token(token: dict[str, Any]) -> str:
    """A token in the running text; one that starts a word begins with a space."""
    if "truth" not in token:
        return html.escape(token["text"])
    guess, truth = token["guess"].strip(), token["truth"].strip()
    space = " " if token["truth"].startswith(" ") else ""
    if space and not token["guess"].startswith(" ") and guess.isalnum():
        guess = f"##{guess}"  # goes on with the word before it, said as WordPiece does
    wrong = token["guess"] != token["truth"]
    title = f"the model sees {token['text'].strip()}"
    return space + _chip(guess, token["probability"], truth if wrong else None, token["fate"], title)


def _chip(guess: str, probability: float, truth: str | None, fate: str = "", title: str = "") -> str:
    """What the model says in the colour of right or wrong, the fuller the surer; `truth` if it is wrong."""
    guess = html.escape(guess)
    text = f"{guess}<small> {probability:.0%}</small>"
    if truth is not None:
        text = f"<s>{guess}</s><small> {probability:.0%}</small> {html.escape(truth)}"
    return (
        f'<span class="t {"right" if truth is None else "wrong"} {html.escape(fate)}" '
        f'style="--p:{probability:.2f}" title="{html.escape(title)}">{text}</span>'
    )


def _results(results: dict[str, Any]) -> str:
    """The best checkpoint's scores, and the task's tables."""
    scores = results["scores"]
    names = list(next(iter(scores.values())))
    rows = [[split, *(_number(values[name]) for name in names)] for split, values in scores.items()]
    title = f"Scores of the best checkpoint, step {results['step']:,}"
    tables = [
        {"title": title, "columns": ["", *names], "rows": rows},
        *({**table, "title": f"{table['title']}, {results['of']}"} for table in results["tables"]),
    ]  # fmt: skip
    return f"<section><h2>Results</h2>{''.join(map(_table, tables))}</section>"


def _table(table: dict[str, Any]) -> str:
    """A table; if it is `shaded`, numbers are the darker the larger their share of the row."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table["columns"])
    body = ""
    for name, *cells in table["rows"]:
        total = sum(cells) if table.get("shaded") else 0
        body += f"<tr><td>{html.escape(str(name))}</td>"
        for cell in cells:
            style = f' style="--p:{cell / total:.2f}" class="share"' if total else ""
            body += f"<td{style}>{html.escape(str(cell))}</td>"
        body += "</tr>"
    title = html.escape(table["title"])
    return f'<h3>{title}</h3><div class="wide"><table class="grid"><tr>{head}</tr>{body}</table></div>'


def _configuration(run: dict[str, Any], params_digest: str | None) -> str:
    config = run["config"]
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    digests = {
        "data digest": run["identity"]["data_digest"],
        "params digest": params_digest or "(when finished)",
    }
    sections["of this run"] = {name: config[name] for name in config if name not in sections} | digests
    sections["versions"] = run["versions"]
    markup = ""
    for name, values in sections.items():
        rows = "".join(
            f"<tr><td>{html.escape(key)}</td><td><code>{html.escape(str(value)) or '–'}</code></td></tr>"
            for key, value in values.items()
        )
        summary = f"<summary>{html.escape(name)}<small>{len(values)}</small></summary>"
        markup += f"<details>{summary}<table>{rows}</table></details>"
    return markup
