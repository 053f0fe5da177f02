import functools
import math

import numpy as np
import pytest

from sempa_mlx.data.lm_tasks import FILES, load_lm_tasks
from sempa_mlx.evaluation.benchmarks import Benchmarks
from sempa_mlx.evaluation.choices import ChoiceScoring, accuracy, true_mass
from sempa_mlx.model.lora import dialled
from tests.lm_files import write_lm_files
from tests.tiny import put_adapter, tiny_loaded

loaded_of = functools.cache(tiny_loaded)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = write_lm_files(tmp_path_factory.mktemp("lm"))
    return load_lm_tasks(folder, ["hellaswag", "truthfulqa", "mmlu"], 3)


@pytest.fixture(scope="module")
def measured(tasks):
    found = Benchmarks(loaded_of("llama"), tasks).figures()
    return {(figure.task, figure.metric): figure for figure in found}


def test_every_metric_of_every_task_has_a_figure(measured):
    assert {key: (figure.shots, figure.mean.count) for key, figure in measured.items()} == {
        ("hellaswag", "acc"): (0, 3),
        ("hellaswag", "acc_norm"): (0, 3),
        ("truthfulqa_mc1", "acc"): (0, 3),
        ("truthfulqa_mc2", "true_mass"): (0, 3),
        ("mmlu", "acc"): (5, 6),
    }
    assert next(iter(measured)) == ("hellaswag", "acc")
    for figure in measured.values():
        assert 0 <= figure.mean.value <= 1


def test_figures_are_means_over_questions_with_their_errors(tasks, measured):
    for task in tasks:
        scores = ChoiceScoring(loaded_of("llama"), task.questions).log_likelihoods()
        pairs = list(zip(scores, task.questions, strict=True))
        metric = true_mass if task.name == "truthfulqa_mc2" else accuracy
        values = [metric(*pair) for pair in pairs]
        found = measured[task.name, task.metrics[0]].mean
        assert found.value == pytest.approx(np.mean(values), abs=1e-6)
        if task.name == "mmlu":  # two subjects of three
            spread = np.var(values[:3]) * 3 + np.var(values[3:]) * 3
            expected = math.sqrt(spread / 4 / 6)
        else:
            expected = np.std(values, ddof=1) / math.sqrt(3)
        assert found.standard_error == pytest.approx(expected, abs=1e-6)


def test_worked_answers_are_generated_and_read(tmp_path, monkeypatch):
    tasks = load_lm_tasks(write_lm_files(tmp_path), ["gsm8k"])
    texts = [" He has some. The answer is 1,000.", " 1001 books", " none"]
    asked = []

    def continued(loaded, prompts, *, max_tokens, stops, on_progress):
        asked.append((len(prompts), max_tokens, stops))
        on_progress(3)
        return texts

    monkeypatch.setattr("sempa_mlx.evaluation.benchmarks.continue_greedily", continued)
    done = []
    benchmarks = Benchmarks(loaded_of("llama"), tasks)
    strict, flexible = benchmarks.figures(done.append)
    assert asked == [(3, 256, ("Q:", "</s>", "<|im_end|>"))]
    assert sum(done) == benchmarks.num_prompts == 3
    assert (strict.task, strict.metric, strict.shots) == ("gsm8k", "strict", 8)
    assert (strict.mean.value, flexible.mean.value) == pytest.approx((1 / 3, 2 / 3))


def test_the_model_generates_its_worked_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("sempa_mlx.evaluation.benchmarks.MAX_TOKENS", 3)
    tasks = load_lm_tasks(write_lm_files(tmp_path), ["gsm8k"], 2)
    found = Benchmarks(loaded_of("llama"), tasks).figures()
    assert [figure.mean.count for figure in found] == [2, 2]
    assert [figure.mean.value for figure in found] == [0.0, 0.0]


def test_one_preparation_serves_every_scale(tasks):
    loaded = tiny_loaded()
    put_adapter(loaded.model, 0.5)
    benchmarks = Benchmarks(loaded, tasks[1:3])
    with dialled(loaded.model, 0.0):
        off = benchmarks.figures()
    on = benchmarks.figures()
    assert off == Benchmarks(loaded_of("llama"), tasks[1:3]).figures()
    assert on != off


def test_no_tasks_no_figures():
    assert Benchmarks(loaded_of("llama"), []).figures() == []


def test_names_of_tasks_are_those_of_files(tmp_path):
    names = {task.name.partition("_")[0] for task in load_lm_tasks(write_lm_files(tmp_path), FILES)}
    assert names == set(FILES)


def test_a_broken_model_has_no_accuracy(tmp_path):
    loaded = tiny_loaded()
    weight = loaded.model.model.norm.weight
    loaded.model.update({"model": {"norm": {"weight": weight * math.nan}}})
    tasks = load_lm_tasks(write_lm_files(tmp_path), ["hellaswag", "truthfulqa", "mmlu", "gsm8k"], 2)
    figures = Benchmarks(loaded, tasks).figures()
    assert len(figures) == 7
    assert all(math.isnan(figure.mean.value) for figure in figures)
