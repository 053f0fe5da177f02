"""Which adapter is kept, by which metric, at which scale."""

import json
import math

import numpy as np
import pytest

from sempa_mlx.config import EvalConfig
from sempa_mlx.data.records import StsPair, StsTask
from sempa_mlx.data.sts_files import read_sts_file
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.settings import read_settings
from sempa_mlx.evaluation.sts import distinct_sentences, evaluate_sts
from sempa_mlx.run.selection import DevEvaluation, best_scale, spread
from tests.command import (
    done,
    metrics_of,
    refused,
    results_of,
    training,
    write_inputs,
    write_triplets,
)

NAN = math.nan


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"), num_hidden_layers=1)
    write_triplets(folder / "held_out.jsonl", count=7)
    return folder


@pytest.mark.parametrize(
    ("found", "best"),
    [
        ({1.0: 70.0, 0.5: 71.0, 0.25: 69.0}, 0.5),
        ({0.25: 70.0, 1.0: 70.0, 0.5: 70.0}, 1.0),
        ({1.0: NAN, 0.5: -3.0}, 0.5),
        ({1.0: NAN, 0.5: NAN}, 1.0),
    ],
)
def test_the_best_scale(found, best):
    assert best_scale(found) == best


class Scripted(DevEvaluation):
    """Gives made-up scores instead of embedding anything."""

    def _vectors(self, scale):
        self.asked.append(scale)
        return np.full((2, 2), scale)

    def _spearman_of(self, vectors):
        return {0.25: 60.0, 0.5: 65.0, 1.0: 63.0}[vectors[0, 0]]


def scripted(**settings):
    evaluation = Scripted(None, None, EvalConfig(dial=(0.25, 0.5), **settings), None)
    evaluation.asked = []
    return evaluation


def test_scales_are_tried_at_every_evaluation_if_asked():
    evaluation = scripted(dial_always=True)
    score = evaluation(3)
    assert (score.value, score.scale) == (65.0, 0.5)
    spearman = {name: value for name, value in score.metrics.items() if "spearman" in name}
    assert spearman == {
        "dev/spearman@0.25": 60.0,
        "dev/spearman@0.5": 65.0,
        "dev/spearman": 63.0,
    }


def test_the_base_and_runs_that_do_not_ask_are_scored_once():
    for evaluation, step in ((scripted(dial_always=True), 0), (scripted(), 3)):
        assert evaluation(step).scale == 1.0
        assert evaluation.asked == [1.0]


def test_runs_chosen_by_another_score_are_not_dialled():
    evaluation = scripted(dial_always=True, metric="accuracy")
    assert evaluation(3).scale == 1.0
    assert evaluation.asked == [1.0]


def test_the_spread_of_embeddings_is_measured_at_full_scale(inputs, tmp_path):
    """Against the plain sums over all pairs of the dev set's sentences."""
    done(*training(inputs), "--adapter-path", tmp_path)
    line = next(line for line in metrics_of(tmp_path) if "dev/spearman" in line)
    texts = distinct_sentences([StsTask("dev", "dev", read_sts_file(inputs / "dev.tsv"))])
    units = Encoder.load(inputs / "base").encode(texts).astype(np.float64)
    pairs = (units @ units.T)[np.triu_indices(len(units), 1)]
    assert line["dev/average_cosine"] == pytest.approx(pairs.mean(), abs=1e-5)
    assert line["dev/uniformity"] == pytest.approx(np.log(np.exp(4 * pairs - 4).mean()), abs=1e-4)
    assert 0 < line["dev/isotropy"] <= 1


def test_embeddings_that_are_not_finite_have_no_spread():
    found = spread(np.array([[1.0, np.nan], [0.0, 1.0]]))
    assert len(found) == 3
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize(("metric", "sign"), [("loss", -1), ("accuracy", 1)])
def test_the_best_step_by_held_out_rows(metric, sign, inputs, tmp_path):
    held_out = f"data.dev={inputs / 'held_out.jsonl'}"
    line = training(inputs, f"eval.metric={metric}", held_out)
    outcome = done(*line, "--adapter-path", tmp_path)
    assert "Spearman; held_out.jsonl: 7 rows (0 dropped)" in " ".join(outcome.err.split())
    name = {"loss": "eval/loss", "accuracy": "eval/accuracies"}[metric]
    found = {line["step"]: line[name] for line in metrics_of(tmp_path) if name in line}
    assert found.keys() == {0, 1, 2, 3}
    if metric == "loss":
        assert found[0] == pytest.approx(math.log(2), abs=1e-4)
    best = max(found, key=lambda step: (sign * found[step], -step))
    results = results_of(tmp_path)
    assert (results["metric"], results["best_step"]) == (metric, best)
    assert results["best_dev_score"] == pytest.approx(sign * found[best])
    assert results["dial"] == {}, "the dial is searched by Spearman alone"


def test_a_loss_that_compares_no_completions_cannot_choose_the_best_step(inputs, tmp_path):
    held_out = f"data.dev={inputs / 'held_out.jsonl'}"
    loss = ("objective.loss=embedding + 2 kl", "objective.kl_text=general")
    line = training(inputs, held_out, *loss)
    line += ["--adapter-path", tmp_path / "run", "--set"]
    outcome = refused(2, *line, "eval.metric=loss")
    assert "`embedding + 2 kl` has none" in outcome.err
    outcome = done(*line, "eval.metric=accuracy")
    assert "dev accuracy" in outcome.out or "no step beat the base" in outcome.out
    evaluated = [each for each in metrics_of(tmp_path / "run") if "best_step" in each]
    assert all("eval/accuracies" in each for each in evaluated)
    assert not any("eval/loss" in each for each in evaluated)


def test_settings_that_do_not_go_together_are_all_named(inputs, tmp_path):
    more = ("eval.metric=loss", "lora.dropout=0.1", "train.grad_checkpoint=true")
    outcome = refused(2, *training(inputs, *more), "--adapter-path", tmp_path / "run")
    assert len(outcome.errors) == 2
    assert "set data.dev" in outcome.err
    assert "set lora.dropout=0, or train.grad_checkpoint=false" in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def dialled(inputs, tmp_path_factory):
    """A run whose kept adapter was tried at several scales: the scores of its dev set decide."""
    folder = tmp_path_factory.mktemp("dialled") / "run"
    return folder, done(*training(inputs, "train.seed=3"), "--adapter-path", folder)


def test_the_scale_with_the_best_dev_score_is_written_for_the_encoder(dialled, inputs):
    folder, outcome = dialled
    (line,) = [line for line in metrics_of(folder) if "dial" in line]
    assert line["dial"].keys() == {"0.25", "0.5", "0.75", "1"}
    best = float(max(line["dial"], key=lambda scale: (line["dial"][scale], float(scale))))
    assert line["best_scale"] == best
    assert read_settings(folder).adapter_scale == best
    assert "by adapter scale" in outcome.err
    results = results_of(folder)
    assert results["best_scale"] == best
    rows = [text.split("\t") for text in (inputs / "dev.tsv").read_text().splitlines()]
    task = StsTask("dev", "dev", tuple(StsPair(float(a), b, c) for a, b, c in rows))
    found = evaluate_sts(Encoder.load(folder), [task])[0].spearman * 100
    assert found == pytest.approx(results["best_dev_score"], abs=0.01)


def test_a_neutral_adapter_is_not_dialled(inputs, tmp_path):
    flat = tmp_path / "flat.tsv"
    flat.write_text("3\tA man\tA woman\n3\tA cat\tA dog\n")
    done(*training(inputs, dev=flat), "--adapter-path", tmp_path / "run")
    assert not [line for line in metrics_of(tmp_path / "run") if "dial" in line]
    assert read_settings(tmp_path / "run").adapter_scale == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        ["lora.kind=dora"],
        ["lora.kind=rslora", "lora.plus_ratio=4"],
        ["objective.loss=listwise + 0.1 kl", "train.reference=online"],
        ["train.grad_checkpoint=true", "objective.loss=sigmoid + embedding"],
    ],
)
def test_kinds_of_adapters_and_losses_train_and_load_again(changes, inputs, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = (inputs / "pairs.jsonl").read_text().splitlines()
    ranked = [json.loads(line) | {"neutral": f"A cat, {n}."} for n, line in enumerate(lines)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in ranked))
    done(*training(inputs, *changes, data=rows), "--adapter-path", tmp_path / "run")
    steps = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert Encoder.load(tmp_path / "run").encode(["A cat"]).shape == (1, 32)


def test_a_dev_loss_is_printed_as_it_is_and_reported_on_its_rows(inputs, tmp_path):
    held_out = f"data.dev={inputs / 'held_out.jsonl'}"
    line = training(inputs, "eval.metric=loss", held_out)
    outcome = done(*line, "--adapter-path", tmp_path / "run")
    assert "-0.69" not in outcome.out
    assert "0.69" in outcome.out
    done("report", tmp_path / "run", "--no-measure")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "held_out.jsonl" in page
