import json
import math
import re
import shutil

import pytest
from etils import epath

from bert_jax.config import Config
from bert_jax.report import charts
from bert_jax.report.charts import points, short, ticks
from bert_jax.report.report import collect, render
from bert_jax.tasks.config import FinetuneConfig
from bert_jax.training.workdir import record_start, write_examples, write_report, write_results
from tests.pages import Balanced, text_of

SCRIPT = "<script>alert('&')</script>"
TRAINING = {
    "step": 50, "mlm_loss": 6.5, "nsp_loss": 0.7, "mlm_accuracy": 0.05, "nsp_accuracy": 0.5,
    "learning_rate": 1e-3, "grad_norm": 2.5, "tokens_per_second": 9142.5, "padding_fraction": 0.09,
    "data_wait_fraction": 0.03, "time": 0.0,
}  # fmt: skip
HELD_OUT = {
    "step": 100, "eval_mlm_loss": 5.8, "eval_mask_token_loss": 6.32, "eval_unigram_loss": 6.62,
    "eval_mlm_accuracy": 0.169, "eval_nsp_loss": 0.62, "eval_nsp_accuracy": 0.648,
    "eval_shuffled_mask_token_loss": 6.59,
}  # fmt: skip
EXAMPLE = {
    "sentences": [
        [
            {"text": " a"},
            {"text": " [MASK]", "fate": "masked", "truth": " sea", "guess": " <s>", "probability": 0.25},
            {"text": "man", "fate": "kept", "truth": "man", "guess": "man", "probability": 0.9},
        ],
        [{"text": f" {SCRIPT}"}],
    ],
    "next_sentence": {"truth": False, "probability": 0.7},
}


@pytest.fixture
def workdir(tmp_path):
    config = Config().to_dict()
    config["data"]["source"] = f"text:{SCRIPT}"
    config["train"]["num_steps"] = 200
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    content = {"config": config, "identity": {"data_digest": "d1ce"}, "versions": {"jax": "0.10.2"}}
    (workdir / "config.json").write_text(json.dumps(content))
    return workdir


def page_of(workdir, *rows, tail=""):
    """The report of a run that has written these rows of metrics."""
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    write_report(workdir)
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in workdir.glob("*.tmp")] == []
    Balanced().feed(page)
    return page


def curves_of(page):
    """What the script of a page draws."""
    return json.loads(re.findall('<script type="application/json" id="curves">(.*?)</script>', page)[0])


def chart_of(page, title):
    return next(chart for chart in curves_of(page)["charts"] if chart["title"].startswith(title))


def test_lost_time_and_skipped_steps_are_shown(workdir):
    lost = {"step": 150, "goodput": 0.874, "lost_seconds": 1234.4, "restarts": 2}
    skip = {"step": 110, "skipped_from": 100, "skipped_because": "loss is nan at step 109"}
    text = text_of(page_of(workdir, TRAINING, skip, lost))
    assert "goodput 87% (1,234 s not spent on steps)" in text
    assert "Steps 100 to 109 were skipped: loss is nan at step 109" in text


def test_a_finished_run(workdir):
    for step in (0, 70, 200):  # the last: the command was given again after the end
        record_start(workdir, step, "8 × TPU v4")
    write_examples(workdir, [EXAMPLE])
    page = page_of(workdir, TRAINING, HELD_OUT, {"step": 200, "params_digest": "feedbeef"})
    text = text_of(page)
    for shown in (
        "Finished · step 200 of 200 · 01 Jan 1970, 00:00 UTC · on 8 × TPU v4 · resumed at step 70",
        "Loss at [MASK]6.320held-out, nats", "Unigram loss6.620nats",
        "Gain0.300nats per token below the unigram loss", "Shuffled loss6.590nats",
        "MLM accuracy16.9%held-out; training 5.0%", "NSP accuracy64.8%held-out; training 50.0%",
        "Tokens per second9,142", "data digestd1ce", "params digestfeedbeef", "jax0.10.2", "mask_rate0.15",
        "0 of 1 [MASK] predicted right",
    ):  # fmt: skip
        assert shown in text, shown
    titles = re.findall("<figcaption>(.*?),? *(?:nats.*?|before.*?|real.*?)?</figcaption>", page)
    assert titles == [
        *("Masked-LM loss", "Masked-LM accuracy", "Next-sentence loss", "Next-sentence accuracy"),
        *("Learning rate", "Gradient norm", "Throughput", "Waste"),
    ]
    assert titles == [
        re.sub(", (nats|before|real).*", "", chart["title"]) for chart in curves_of(page)["charts"]
    ]
    assert page.count('<div class="plot">') == len(titles)
    assert curves_of(page)["resumed"] == [70]
    assert "http-equiv" not in page  # nothing more to wait for


def test_the_batch_is_that_of_the_phase(workdir):
    content = json.loads((workdir / "config.json").read_text())
    content["config"]["phases"] = [
        {"num_steps": 60, "data": {"max_seq_length": 16}},
        {"num_steps": 140, "data": {"global_batch_size": 64}},
    ]
    (workdir / "config.json").write_text(json.dumps(content))
    assert "256 rows of 16 tokens a step in this phase" in page_of(workdir, TRAINING)
    assert "64 rows of 128 tokens a step in this phase" in page_of(workdir, TRAINING, HELD_OUT)
    finished = TRAINING | {"step": 200, "params_digest": "feedbeef"}
    assert "64 rows of 128 tokens a step in the last phase" in page_of(workdir, finished)


def test_fine_tuning_has_no_phases(workdir):
    content = json.loads((workdir / "config.json").read_text())
    content["config"] = FinetuneConfig(init_from="runs/base").to_dict()
    (workdir / "config.json").write_text(json.dumps(content))
    text = text_of(page_of(workdir))
    assert "classification from runs/base ·\n32 rows of 128 tokens a step" in text
    assert "phase" not in text


@pytest.mark.parametrize(
    ("of_run", "of_phases", "training", "held_out", "name"),
    [
        ("none", [], [], [], None),
        ("sentence_order", [], [50, 100], [100], "Sentence-order"),
        ("next_sentence", ["none", None], [100], [100], "Next-sentence"),
        ("none", ["none", "sentence_order"], [100], [], "Sentence-order"),
    ],
)
def test_scores_of_pairs_are_shown_where_there_are_pairs(
    workdir, of_run, of_phases, training, held_out, name
):
    """Elsewhere they are zeros in metrics.jsonl."""
    content = json.loads((workdir / "config.json").read_text())
    content["config"]["data"]["second_objective"] = of_run
    changes = [{"data": {"second_objective": second}} if second else {} for second in of_phases]
    content["config"]["phases"] = [{"num_steps": 50} | change for change in changes]
    (workdir / "config.json").write_text(json.dumps(content))
    transport = {"eval_transport_mask_token_loss": 5.0, "eval_transport_nsp_loss": 0.6}
    numbered = [{"phase": 1}, {"phase": 2}] if of_phases else [{}, {}]
    rows = TRAINING | numbered[0], TRAINING | {"step": 100} | numbered[1], HELD_OUT | transport
    page = page_of(workdir, *rows)
    lines = [
        {line["name"]: [step for step, _ in line["points"]] for line in chart["lines"]}
        for chart in curves_of(page)["charts"]
        if name and chart["title"].startswith(f"{name} loss")
    ]
    assert [line.get("training", []) for line in lines] == ([training] if name else [])
    assert [line.get("held-out", []) for line in lines] == ([held_out] if name else [])
    assert bool(held_out) == ("64.8%" in page)
    newest = collect(workdir)["newest"]
    assert newest["eval_transport_mask_token_loss"] == 5.0
    assert ("eval_transport_nsp_loss" in newest) == bool(held_out)


def test_a_single_value_is_a_dot_and_two_are_a_line(workdir):
    def dots(*rows):
        lines = chart_of(page_of(workdir, *rows), "Masked-LM loss")["lines"]
        return {line["name"]: line["dots"] for line in lines}

    second = TRAINING | {"step": 101}
    assert dots(TRAINING) == {"training": True}
    assert dots(TRAINING, second) == {"training": False}
    held_out = {key: HELD_OUT[key] for key in ("step", "eval_mlm_loss")}
    assert dots(TRAINING, held_out, second, held_out | {"step": 101}) == {"training": False, "held-out": True}


def test_latest_values_are_readable_without_script(workdir):
    page = page_of(workdir, TRAINING, HELD_OUT)
    assert "training 6.500" in text_of(page)
    assert "held-out, [MASK] only 6.320" in text_of(page)
    assert "The curves are drawn with JavaScript" in "".join(re.findall("<noscript>(.*?)</noscript>", page))


def test_title_of_one_of_several_folds_and_seeds(workdir):
    part = workdir / "fold_1/seed_0"
    part.mkdir(parents=True)
    shutil.copy(workdir / "config.json", part)
    assert f"<h1>{workdir.name}/fold_1/seed_0</h1>" in page_of(part, TRAINING)


def test_examples_show_guess_probability_and_truth(workdir):
    write_examples(workdir, [EXAMPLE])
    page = page_of(workdir)
    first, second, judged = re.findall(r'<p><span class="name">.*?</p>', page)
    assert text_of(first) == "A a <s> 25% seaman 90%"
    assert 'class="t wrong masked"' in first
    assert "<s>&lt;s&gt;</s>" in first
    assert 'class="t right kept"' in first
    assert text_of(second) == f"B {SCRIPT}"
    assert text_of(judged) == "A, BB follows A 70% B is from elsewhere"
    assert "wrong" in judged


def test_everything_is_escaped_and_nothing_is_loaded(workdir):
    record_start(workdir, 0, SCRIPT)
    write_examples(workdir, [EXAMPLE])
    table = {"title": SCRIPT, "columns": ["", SCRIPT], "rows": [[SCRIPT, SCRIPT]]}
    write_results(workdir, {"step": 9, "of": SCRIPT, "scores": {SCRIPT: {SCRIPT: 0.5}}, "tables": [table]})
    skip = {"step": 110, "skipped_from": 100, "skipped_because": SCRIPT}
    page = page_of(workdir, TRAINING, HELD_OUT, skip)
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script") == 2
    assert text_of(page).count(SCRIPT) == 12  # source 2, devices, sentence, skipped steps, tables 3 and 4
    assert re.findall(r"//\w|@import|url\(|\bsrc=|\bhref=", page) == []


def test_names_of_lines_cannot_end_the_script(workdir):
    (workdir / "metrics.jsonl").write_text(json.dumps(TRAINING) + "\n")
    data = collect(workdir)
    chart = data["curves"]["charts"][0]
    chart["title"] = chart["lines"][0]["name"] = f"</script>{SCRIPT}<!--"
    page = render(data)
    Balanced().feed(page)
    assert page.count("<script") == page.count("</script") == 2
    assert "<!--" not in page
    assert chart_of(page, "</script>")["lines"][0]["name"] == f"</script>{SCRIPT}<!--"


def test_results_are_tables_with_shares_by_row(workdir):
    table = {"title": "Confusion", "columns": ["", "no", "yes"], "rows": [["no", 3, 1], ["yes", 0, 0]],
             "shaded": True}  # fmt: skip
    scores = {"eval": {"accuracy": 0.75, "f1": 0.5}, "test": {"accuracy": 1.0, "f1": 0.25}}
    write_results(workdir, {"step": 1200, "of": "test", "scores": scores, "tables": [table]})
    page = page_of(workdir)
    rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    assert rows[:6] == [
        ["", "accuracy", "f1"], ["eval", "0.750", "0.500"], ["test", "1.000", "0.250"],
        ["", "no", "yes"], ["no", "3", "1"], ["yes", "0", "0"],
    ]  # fmt: skip
    assert re.findall("<h3>(.*?)</h3>", page) == [
        "Scores of the best checkpoint, step 1,200",
        "Confusion, test",
    ]
    assert re.findall(r'class="share" style="--p:(.*?)"', page) == ["0.75", "0.25"]  # none in an empty row


def test_before_anything_is_measured(workdir):
    write_report(workdir)  # without metrics.jsonl
    assert (workdir / "report.html").read_text() == page_of(workdir)
    text = text_of(page_of(workdir))
    assert "In progress · step 0 of 200" in text
    assert "No measurements yet." in text


def test_half_written_last_line_and_values_that_are_not_numbers(workdir):
    nan = {**TRAINING, "step": 100, "mlm_loss": math.nan}
    page = page_of(workdir, TRAINING, nan, tail='{"step": 150, "mlm')
    assert page == page_of(workdir, TRAINING, nan)
    assert "step 100 of 200" in text_of(page)
    assert 'http-equiv="refresh"' in page
    assert chart_of(page, "Masked-LM loss")["lines"][0]["points"] == [[50, 6.5]]


def test_points_lie_between_the_ticks_of_their_chart(workdir):
    page = page_of(workdir, *({"step": s, "grad_norm": g} for s, g in ((0, 4.0), (50, 1.0), (200, 0.5))))
    chart = chart_of(page, "Gradient norm")
    assert chart["lines"] == [
        {"name": "gradient norm", "measured": True, "style": "s0", "dots": False, "latest": "0.500",
         "points": [[0, 4.0], [50, 1.0], [200, 0.5]]}
    ]  # fmt: skip
    assert chart["ticks"] == [[0, "0"], [1, "1"], [2, "2"], [3, "3"], [4, "4"]]
    curves = curves_of(page)
    assert curves["last"] == 200
    assert curves["ticks"] == [[0, "0"], [50, "50"], [100, "100"], [150, "150"], [200, "200"]]


def test_constants_are_references_from_the_first_to_the_last_step(workdir):
    lines = chart_of(page_of(workdir, TRAINING, HELD_OUT), "Next-sentence accuracy")["lines"]
    assert [line["style"] for line in lines] == ["s0", "s1", "s3 dashed"]
    assert lines[2]["points"] == [[0, 0.5], [100, 0.5]]
    assert [line["measured"] for line in lines] == [True, True, False]


def test_without_next_sentences_they_are_not_shown(workdir):
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"next_sentence"', '"none"'))
    text = text_of(page_of(workdir, TRAINING, HELD_OUT))
    assert "Masked-LM accuracy" in text
    assert not re.search("Next-sentence|NSP", text)


def test_sentence_order_has_names_of_its_own(workdir):
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"next_sentence"', '"sentence_order"'))
    write_examples(workdir, [EXAMPLE])
    text = text_of(page_of(workdir, TRAINING, HELD_OUT))
    assert "SOP accuracy64.8%" in text
    assert "Sentence-order loss" in text
    assert "B follows A 70% B precedes A" in text
    assert not re.search("Next-sentence|NSP|elsewhere", text)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0, [0, 1]),
        (6.3, 6.3, [6, 8]),
        (5.7, 6.74, [5.5, 5.75, 6, 6.25, 6.5, 6.75]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
    ],
)
def test_ticks(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_tick_labels():
    values = (0, 0.25, 2e-5, 500, 1500, 250_000, 2e6)
    assert [short(value) for value in values] == ["0", "0.25", "2e-05", "500", "1.5k", "250k", "2M"]
    assert short(0.125, percent=True) == "12.5%"


def test_long_lines_are_thinned_and_keep_their_peaks():
    rows = [{"step": step, "grad_norm": 1 + step % 7 / 10} for step in range(10_000)]
    rows[6543]["grad_norm"], rows[6549]["grad_norm"] = 99.0, -5.0
    found = points("grad_norm", rows, 10_000)
    assert 200 < len(found) <= charts.MAX_POINTS
    assert found == sorted(found)
    assert {(6543, 99.0), (6549, -5.0)} <= set(found)
