"""The page from what a run folder tells, however hostile, broken or incomplete."""

import json
import math

import pytest

from sempa_mlx.errors import UsageError
from sempa_mlx.report.curves import charts, curve, steady, window
from sempa_mlx.report.documents import Document
from sempa_mlx.report.markup import Markup, element, markup
from sempa_mlx.report.numbers import shown, span, with_error
from sempa_mlx.report.outcome import read_outcome
from sempa_mlx.report.page import is_report
from sempa_mlx.report.report import report_page
from sempa_mlx.report.run_record import read_run
from tests.report.pages import checked, tables, words

HOSTILE = "<script>alert(1)</script> & \"d\" 'q' \u202e\u05d0 \U0001f600 \x07\ud800"
SHOWN = HOSTILE.replace("\x07", "\ufffd").replace("\ud800", "\ufffd")
CONFIG = """
model: {name: tiny}
data: {train: /data/nli.jsonl}
lora: {rank: 4}
objective: {loss: sigmoid, beta: 0.5}
train: {batch_size: 8}
eval: {metric: spearman, data: /data/dev.tsv, pairs: 20}
"""
WHY = "Nothing was measured."


def step(number, loss=0.5, **others):
    return {
        "step": number,
        "loss": loss,
        "rewards/chosen": -0.25 * number,
        "rewards/rejected": -0.5 * number,
        "rewards/margins": 0.25 * number,
        "rewards/accuracies": 0.75,
        "logps/chosen": -20.0,
        "logps/rejected": -30.0,
    } | others


def evaluation(number, score, best):
    return {"step": number, "dev/spearman": score, "best_step": best}


RECORDS = [evaluation(0, 70.0, 0), step(1, 0.7), step(2, 0.4), evaluation(2, 75.5, 2), step(3)]
RESULTS = {"pairs": 24, "seconds": 61.0, "versions": {"mlx": "1.2"}, "machine": {"name": "m"}}


def write_run(folder, records=RECORDS, config=CONFIG, results=RESULTS, tail=""):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(each) + "\n" for each in records)
    (folder / "metrics.jsonl").write_text(lines + tail)
    (folder / "config.yaml").write_text(config)
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def made(folder, documents=(), remarks=()):
    return checked(report_page(read_run(folder), WHY, documents, remarks))


def chart_of(folder, title):
    record = read_run(folder)
    return next(each for each in charts(record, read_outcome(record)) if each.title == title)


def test_a_page_tells_what_was_trained_and_what_came_of_it(tmp_path):
    tree = made(write_run(tmp_path / "run"))
    text = words(tree)
    for part in (
        "Training run run",
        "LoRA adapter of rank 4 on tiny , trained with the loss sigmoid (β 0.5)",
        "on 24 preference rows of nli.jsonl : 3 steps of 8 rows.",
        "Best was step 2: dev Spearman × 100 went from 70.00 to 75.50 (+5.50)",
        "on up to 20 pairs of dev.tsv",
        f"sempa-mlx train -c {tmp_path}/run/config.yaml --adapter-path {tmp_path}/run-again",
        "encoder.json is missing.",
        WHY,
        "sempa-mlx eval generation --text FILE",
        "mlx 1.2",
        "this report sempa-mlx",
    ):
        assert part in text
    assert tables(tree)[None] == [
        ["step", "dev Spearman × 100"],
        ["0", "70.00"],
        ["2, kept", "75.50"],
    ]
    assert len(list(tree.iter("svg"))) == 5
    assert len(list(tree.iter("h1"))) == 1
    meta = {each.get("name"): each.get("content") for each in tree.iter("meta")}
    assert meta["viewport"] == "width=device-width, initial-scale=1"


def test_curves_hold_the_numbers_of_the_log(tmp_path):
    folder = write_run(tmp_path)
    assert curve(read_run(folder), "loss") == [(1, 0.7), (2, 0.4), (3, 0.5)]
    ratios = chart_of(folder, "Log-ratio to the reference, nats")
    # Rewards are beta, here 0.5, times the log-ratio.
    assert list(ratios.lines[0].points) == [(1, -0.5), (2, -1.0), (3, -1.5)]
    assert [line.label for line in ratios.lines] == ["chosen", "rejected"]
    accuracy = chart_of(folder, "Accuracy: chosen above rejected, %")
    assert list(accuracy.lines[0].points) == [(1, 75), (2, 75), (3, 75)]
    dev = chart_of(folder, "Dev Spearman × 100")
    assert list(dev.lines[0].points) == [(0, 70.0), (2, 75.5)]
    assert (dev.best_step, dev.last_step) == (2, 3)
    assert dev.peak == ((2, 75.5), "75.50")


def test_without_a_reference_there_is_no_ratio_to_it(tmp_path):
    folder = write_run(tmp_path, config=CONFIG.replace("loss: sigmoid", 'loss: "simpo + sft"'))
    found = chart_of(folder, "Log-probability, nats")
    assert list(found.lines[1].points) == [(1, -30.0), (2, -30.0), (3, -30.0)]


def test_each_term_of_a_loss_has_a_chart(tmp_path):
    terms = {"loss/preference": 0.25, "loss/embedding": 1.5}
    folder = write_run(tmp_path, [step(1, **terms), step(2, **terms)])
    assert list(chart_of(folder, "Loss, term embedding").lines[0].points) == [(1, 1.5), (2, 1.5)]


def test_steady_curves_are_means_of_steps_around():
    points = [(number, float(number % 7)) for number in range(1, 101)]
    assert window(100) == 5
    found = steady(points)
    values = [value for _, value in points]
    for index, (number, mean) in enumerate(found):
        near = values[max(0, index - 2) : index + 3]
        assert (number, mean) == (points[index][0], pytest.approx(sum(near) / len(near)))
    with_gap = [(1, 1.0), (2, math.nan), *((n, 3.0) for n in range(3, 61))]
    assert [math.isnan(value) for _, value in steady(with_gap)[:3]] == [False, True, False]
    assert steady(with_gap)[0] == (1, 1.0)
    assert steady(points[:39]) == []


def test_a_scale_found_after_training_is_what_was_kept(tmp_path):
    dial = {"step": 2, "best_scale": 0.5, "dial": {"1": 75.5, "0.25": None, "0.5": 76.25}}
    folder = write_run(tmp_path, [*RECORDS, dial])
    outcome = read_outcome(read_run(folder))
    assert (outcome.base, outcome.best_in_training, outcome.best) == (70.0, 75.5, 76.25)
    tree = made(folder)
    assert "Best was step 2 at scale 0.5" in words(tree)
    assert "70.00 to 76.25 (+6.25)" in words(tree)
    assert "Step and scale were chosen by this very score" in words(tree)
    assert "best of 3 tried" in words(tree)
    assert chart_of(folder, "Dev Spearman × 100").peak == ((2, 75.5), "75.50 at scale 1")
    assert ["0.5, kept", "76.25"] in [row for rows in tables(tree).values() for row in rows]
    assert "0.25 undefined" in words(tree)


def test_a_scale_found_at_every_evaluation_counts(tmp_path):
    best = {"step": 2, "dev/spearman@0.5": 78.0, "dev/spearman": 75.0, "best_step": 2}
    outcome = read_outcome(read_run(write_run(tmp_path, [evaluation(0, 70.0, 0), step(1), best])))
    assert (outcome.scores, outcome.scale, outcome.best) == (((0, 70.0), (2, 78.0)), 0.5, 78.0)


@pytest.mark.parametrize(
    ("metric", "records", "told"),
    [
        ("loss", {"eval/loss": 0.125}, "dev loss went from undefined to 0.1250"),
        ("accuracy", {"eval/accuracies": 0.875}, "dev accuracy × 100 went from undefined to 87.5"),
    ],
)
def test_other_scores_may_choose_the_step(tmp_path, metric, records, told):
    best = {"step": 1, "dev/spearman": 71.0, "best_step": 1} | records
    config = CONFIG.replace("metric: spearman", f"metric: {metric}")
    tree = made(write_run(tmp_path, [evaluation(0, 70.0, 0), step(1), best], config))
    assert told in words(tree)
    assert "Dev Spearman × 100" in [each.text for each in tree.iter("figcaption")]


def test_a_run_that_never_beat_the_base_says_so(tmp_path):
    tree = made(write_run(tmp_path, [evaluation(0, 70.0, 0), step(1), evaluation(1, 60.0, 0)]))
    assert "No step beat the base (70.00)" in words(tree)


def test_undefined_scores_are_words_not_numbers(tmp_path):
    records = [evaluation(0, None, 0), step(1, math.nan), evaluation(1, None, 0)]
    text = words(made(write_run(tmp_path, records)))
    assert "No step beat the base (undefined)" in text
    assert "nan" not in text.lower().split()
    assert "not drawn: Dev Spearman × 100; Loss." in text


def test_skipped_steps_are_told(tmp_path):
    tree = made(write_run(tmp_path, [*RECORDS, {"step": 4, "skipped_rows": [1, 2]}]))
    assert "not finite: step 4" in words(tree)


# Foreign text


def test_hostile_text_stays_text(tmp_path):
    config = CONFIG.replace("name: tiny", f"name: {json.dumps(SHOWN)}")
    results = RESULTS | {"versions": {HOSTILE: HOSTILE}, "model": {"name": ["</style>", HOSTILE]}}
    row = {"system": f"base {HOSTILE}", "scores": {HOSTILE: 60.0}, "average": 60.0}
    document = Document("sts", HOSTILE, {"pairs": {HOSTILE: 2}, "results": [row]}, [row])
    folder = write_run(tmp_path / "a <b> & 'c'", config=config, results=results)
    tree = made(folder, [document], [HOSTILE])
    assert words(tree).count("<script>alert(1)</script>") >= 6
    assert "a <b> & 'c'" in words(tree)
    assert tables(tree)["STS, Spearman × 100"][0][1] == " ".join(SHOWN.split())
    bidi = [each.text for each in tree.iter("bdi")]
    assert SHOWN in bidi, "text of another direction cannot reach what stands around it"


def test_markup_is_not_escaped_twice():
    assert element("p", {"title": 'a "b"'}, "x < y", element("b", {}, "&")) == (
        '<p title="a &quot;b&quot;">x &lt; y<b>&amp;</b></p>'
    )
    assert markup(Markup("<b/>")) == "<b/>"
    assert element("line", {"x1": 1.0, "x2": 0.126, "y1": None, "y2": 3}) == (
        '<line x1="1" x2="0.13" y2="3"/>'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (shown(1234.5, 1), "1,234.5"),
        (shown(-0.001, 2), "0.00"),
        (shown(-0.5, 1, "+"), "\u22120.5"),
        (shown(0.5, 1, "+"), "+0.5"),
        (shown(math.nan, 2, "+"), "undefined"),
        (shown(math.inf, 2), "infinite"),
        (with_error(1.0, math.nan, 1), "1.0"),
        (with_error(1.0, 0.25, 2), "1.00 ± 0.25"),
        (with_error(math.nan, 0.25, 2), "undefined"),
        (span(-1.0, 2.0, 1), "\u22121.0 to 2.0"),
        (span(math.nan, 2.0, 1), "undefined"),
    ],
)
def test_numbers_are_written_the_same_everywhere(text, expected):
    assert text == expected


# Broken and missing parts


def test_a_line_cut_off_is_left_out_and_told(tmp_path):
    folder = write_run(tmp_path, tail='{"step": 4, "lo')
    assert "The last line of metrics.jsonl is cut off" in words(made(folder))
    assert len(read_run(folder).metrics) == len(RECORDS)


def test_broken_lines_are_left_out_and_told(tmp_path):
    tail = '[1]\n{"loss": 1}\n{"step": true}\n\n' + json.dumps(step(9)) + "\n"
    folder = write_run(tmp_path, tail=tail)
    assert "broken lines are left out (3: 6, 7, 8)" in words(made(folder))
    assert read_run(folder).metrics[-1]["step"] == 9


def test_bytes_that_are_no_text_do_not_stop_a_report(tmp_path):
    folder = write_run(tmp_path)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    (folder / "results.json").write_bytes(b"\xff")
    text = words(made(folder))
    assert "broken lines" in text
    assert "results.json is broken and left out." in text


def test_a_run_that_goes_on_has_a_report(tmp_path):
    folder = write_run(tmp_path, results=None)
    (folder / "checkpoints" / "step-000002").mkdir(parents=True)
    text = words(made(folder))
    assert "results.json is missing: the run has not finished." in text
    assert "its state at step 3" in text
    assert f"--adapter-path {folder} --resume" in text


def test_a_run_of_metrics_alone_has_a_report(tmp_path):
    folder = write_run(tmp_path)
    (folder / "config.yaml").unlink()
    text = words(made(folder))
    assert "config.yaml: cannot be read: No such file or directory." in text
    assert "unknown data" in text
    assert "nan" not in text.lower().split()


def test_a_run_of_settings_alone_has_a_report(tmp_path):
    folder = write_run(tmp_path, results=None)
    (folder / "metrics.jsonl").unlink()
    tree = made(folder)
    assert "metrics.jsonl is missing: there are no curves." in words(tree)
    assert "tells of no evaluation" in words(tree)
    assert list(tree.iter("svg")) == []


def test_settings_of_a_later_version_are_shown(tmp_path):
    folder = write_run(tmp_path, config=CONFIG + "later: {thing: 3}\n")
    assert "thing 3" in words(made(folder)) or "later" in words(made(folder))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"neither metrics\.jsonl nor config\.yaml"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_a_report_is_known_by_its_beginning(tmp_path):
    text = report_page(read_run(write_run(tmp_path)), WHY)
    assert is_report(text[:512])
    assert not is_report("<!DOCTYPE html>\n<html><head></head></html>")
    assert not is_report("")
