"""`report.html`: a run on one self-contained page, made from nothing but the files in its folder."""

import json
import re
import time
from typing import Any

from etils import epath

from bert_jax.files import read_rows
from bert_jax.report.charts import curves, number, probe_metrics
from bert_jax.report.pages import PAGES

REFRESH = 60  # seconds between reloads of an open page while the run continues
PART = re.compile(r"(fold|seed)_\d+")  # the folder of one of several runs
TILES = (
    ("Loss at [MASK]", "eval_mask_token_loss", "held-out, nats per token"),
    ("Unigram loss", "eval_unigram_loss", "nats per token, from token frequencies alone"),
    ("Gain", "gain", "nats per token below the unigram loss"),
    ("Shuffled loss", "eval_shuffled_mask_token_loss", "nats per token, visible tokens shuffled"),
    ("MLM accuracy", "eval_mlm_accuracy", "held-out"),
    ("NSP accuracy", "eval_nsp_accuracy", "held-out"),
    ("Accuracy", "eval_accuracy", "held-out"),
    ("F1", "eval_f1", "held-out"),
    ("Exact match", "eval_exact_match", "held-out"),
    ("Matthews", "eval_matthews", "held-out"),
    ("Spearman", "eval_spearman", "held-out"),
    ("Tokens per second", "tokens_per_second", "padding not counted"),
)
OF_PAIRS = re.compile(r"(eval_|)(?:\w+_)?nsp_(?:loss|accuracy)$")  # also of a source
# Names of second objectives: long, short, and for a B that does not follow A.
SECOND = {
    "next_sentence": ("Next-sentence", "NSP", "B is from elsewhere"),
    "sentence_order": ("Sentence-order", "SOP", "B precedes A"),
}


def render(data: dict[str, Any]) -> str:
    """Renders what `collect` returned as an HTML page."""
    return PAGES.get_template("report.html").render(data)


def collect(workdir: epath.Path) -> dict[str, Any]:
    """Everything that the page shows, from the files in a run's folder; only `config.json` must exist."""
    run = json.loads((workdir / "config.json").read_bytes())
    rows, starts = (read_rows(workdir / f"{name}.jsonl") for name in ("metrics", "starts"))
    examples, results = (
        json.loads(file.read_bytes()) if (file := workdir / f"{name}.json").exists() else None
        for name in ("examples", "results")
    )
    config = run["config"]
    held_out, *of_phases = _second_objectives(config)
    rows = [_without_zeros(row, held_out, of_phases) for row in rows]
    second = next((name for name in (held_out, *reversed(of_phases)) if name in SECOND), "next_sentence")
    long, short, elsewhere = SECOND[second]
    newest = {"step": 0} | {key: value for row in rows for key, value in row.items()}  # of every metric
    total = config["train"]["num_steps"]
    resumed = sorted({start["step"] for start in starts if 0 < start["step"] < total})
    shown = curves(rows, resumed, _phases(config), fine_tuning="task" in config)
    for chart in shown["charts"]:
        chart["title"] = chart["title"].replace("Next-sentence", long)
    return {
        "title": _title(workdir),
        "config": config,
        "batch": _data_of_phase(config, newest["step"]),
        "finished": "params_digest" in newest,
        "refresh": REFRESH,
        "newest": newest,
        "time": time.strftime("%d %b %Y, %H:%M UTC", time.gmtime(newest["time"])) if "time" in newest else "",
        "devices": starts[-1]["devices"] if starts else "",
        "skipped": [row for row in rows if "skipped_from" in row],
        "tiles": [tile | {"name": tile["name"].replace("NSP", short)} for tile in _tiles(newest)],
        "curves": shown,
        "examples": [_example(example, elsewhere) for example in examples or []],
        "masks": _masks(examples or []),
        "tables": _sources(newest) + (_tables(results) if results else []),
        "settings": _settings(run, newest.get("params_digest", "(when finished)")),
    }


def _data_of_phase(config: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns the settings of data that hold after so many steps; at the end, those of the last phase."""
    data, end = config["data"], 0
    for phase in config.get("phases", ()):
        data, end = config["data"] | phase.get("data", {}), end + phase["num_steps"]
        if step < end:
            break
    return data


def _second_objectives(config: dict[str, Any]) -> list[str]:
    """Returns the second objective of held-out text, and those of all phases."""
    held_out = config["data"].get("second_objective", "")
    phases = config.get("phases") or [{}]
    return [held_out, *(phase.get("data", {}).get("second_objective", held_out) for phase in phases)]


def _without_zeros(row: dict[str, Any], held_out: str, of_phases: list[str]) -> dict[str, Any]:
    """Returns a row without the scores of pairs where there are none."""
    objectives = {"": of_phases[row.get("phase", 1) - 1], "eval_": held_out}
    return {
        key: value
        for key, value in row.items()
        if not ((match := OF_PAIRS.match(key)) and objectives[match[1]] == "none")
    }


def _phases(config: dict[str, Any]) -> list[tuple[int, str]]:
    """Returns the first step of each phase and what it changes; none for a run without phases."""
    first, found = 0, []
    for phase in config.get("phases", ()):
        values = [
            f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
            for fields in phase.values()
            if isinstance(fields, dict)
            for field, value in fields.items()
        ]
        found.append((first, ", ".join(values)))
        first += phase["num_steps"]
    return found


def _title(workdir: epath.Path) -> str:
    """Returns the name of a run's folder; for a fold or seed, after the names of the folders above."""
    return _title(workdir.parent) + f"/{workdir.name}" if PART.fullmatch(workdir.name) else workdir.name


def _tiles(newest: dict[str, Any]) -> list[dict[str, str]]:
    """Returns the headline numbers that exist: name, value, note."""
    if "eval_mask_token_loss" in newest:
        newest = newest | {"gain": newest["eval_unigram_loss"] - newest["eval_mask_token_loss"]}
    tiles = []
    for name, key, note in TILES:
        if key in newest:
            percent, training = key.endswith(("accuracy", "f1", "match")), key.removeprefix("eval_")
            if training != key and training in newest:
                note += f"; training {number(newest[training], percent)}"
            tiles.append({"name": name, "value": number(newest[key], percent), "note": note})
    for key, title, majority in probe_metrics(newest):
        note = f"held-out; largest class {number(newest[majority])}" if majority else "held-out"
        tiles.append({"name": f"Probe {title}", "value": number(newest[key]), "note": note})
    return tiles


def _masks(examples: list[dict[str, Any]]) -> tuple[int, int]:
    """Counts the [MASK] of the examples that are predicted correctly, and all of them."""
    tokens = [token for example in examples for sentence in example["sentences"] for token in sentence]
    masked = [token for token in tokens if token.get("fate") == "masked"]
    return sum(token["guess"] == token["truth"] for token in masked), len(masked)


def _example(example: dict[str, Any], elsewhere: str) -> dict[str, list[Any]]:
    """Paragraphs by name: sentences A and B, then the prediction for the pair.

    A paragraph is a list of texts and predictions; a prediction that is right has no `truth`. `elsewhere`
    says where B is if it does not follow A.
    """
    paragraphs = {
        name: [part for token in sentence for part in _token(token)]
        for name, sentence in zip("AB", example["sentences"], strict=False)
    }
    if (follows := example["next_sentence"]) is not None:
        probability, names = follows["probability"], (elsewhere, "B follows A")
        guess = probability > 0.5
        truth = None if guess == follows["truth"] else names[follows["truth"]]
        pair = {"guess": names[guess], "probability": max(probability, 1 - probability), "truth": truth}
        paragraphs["A, B"] = [pair]
    return paragraphs


def _token(token: dict[str, Any]) -> list[Any]:
    """Returns the text of a token, or its prediction, after a space if the token starts a word."""
    if "truth" not in token:
        return [token["text"]]
    guess, truth = token["guess"].strip(), token["truth"].strip()
    space = " " if token["truth"].startswith(" ") else ""
    if space and not token["guess"].startswith(" ") and guess.isalnum():
        guess = f"##{guess}"  # continues the word before it, written as in WordPiece
    return [space, {
        "guess": guess,
        "probability": token["probability"],
        "truth": None if token["guess"] == token["truth"] else truth,
        "fate": token["fate"],
        "title": f"the model sees {token['text'].strip()}",
    }]  # fmt: skip


def _sources(newest: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of the sources of a mixture, for a run that has several."""
    columns = {
        "rows of this phase": "share_{}",
        "tokens of this phase": "token_share_{}",
        "epochs": "epochs_{}",
        "held-out loss at [MASK]": "eval_{}_mask_token_loss",
        "unigram": "eval_{}_unigram_loss",
    }
    names = [key.removeprefix("share_") for key in newest if key.startswith("share_")]
    rows = [
        [name, *(_cell(newest.get(key.format(name)), "share" in key) for key in columns.values())]
        for name in names
    ]
    table = {"title": "Sources", "columns": ["", *columns], "rows": rows, "shaded": False}
    return [table] if rows else []


def _cell(value: float | None, percent: bool) -> str:
    return "–" if value is None else number(value, percent)


def _tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the best checkpoint's scores by split, and the tables of its task."""
    scores, of = results["scores"], results["of"]
    best = {
        "title": f"Scores of the best checkpoint, step {results['step']:,}",
        "columns": ["", *scores[of]],
        "rows": [[split, *map(number, values.values())] for split, values in scores.items()],
    }
    of_task = [table | {"title": f"{table['title']}, {of}"} for table in results["tables"]]
    return [{"shaded": False} | table for table in (best, *of_task)]


def _settings(run: dict[str, Any], params_digest: str) -> dict[str, dict[str, Any]]:
    """Settings by section; those of no section and the digests are the section `run`."""
    sections = {name: values for name, values in run["config"].items() if isinstance(values, dict)}
    own = {name: value for name, value in run["config"].items() if name not in sections}
    digests = {"data digest": run["identity"]["data_digest"], "params digest": params_digest}
    return sections | {"run": own | digests, "versions": run["versions"]}
