"""Against lm-evaluation-harness itself: `pytest -m lm_eval` with the extra `lm-eval` installed."""

import functools
import math

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import log_softmax

from sempa_mlx.data.lm_tasks import FILES, load_lm_tasks
from sempa_mlx.errors import DataError, UsageError
from sempa_mlx.evaluation.benchmarks import Benchmarks
from sempa_mlx.model.load import load_model
from tests.lm_files import SUBJECTS, write_lm_files
from tests.tiny import put_adapter, tiny_loaded

pytest.importorskip("lm_eval")

import datasets
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from sempa_mlx.evaluation.lm_eval import SHOTS, HarnessModel, harness_figures
from tests.harness_tasks import local_tasks

pytestmark = [
    pytest.mark.lm_eval,
    pytest.mark.filterwarnings("ignore"),  # those of its many packages
    pytest.mark.timeout(1200),
]
NAMES = {  # the harness's name and metric of each of our figures
    ("hellaswag", "acc"): ("local_hellaswag", "acc"),
    ("hellaswag", "acc_norm"): ("local_hellaswag", "acc_norm"),
    ("truthfulqa_mc1", "acc"): ("local_truthfulqa_mc1", "acc"),
    ("truthfulqa_mc2", "true_mass"): ("local_truthfulqa_mc2", "acc"),
    ("mmlu", "acc"): ("local_mmlu", "acc"),
    ("gsm8k", "strict"): ("local_gsm8k", "exact_match (strict-match)"),
    ("gsm8k", "flexible"): ("local_gsm8k", "exact_match (flexible-extract)"),
}
loaded_of = functools.cache(tiny_loaded)


@pytest.fixture(autouse=True)
def harness(tmp_path_factory, monkeypatch):
    """Its caches are a test's own, and the local tasks have the shots of those they stand for."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    for name, shots in list(SHOTS.items()):
        monkeypatch.setitem(SHOTS, f"local_{name.removesuffix('_cot')}", shots)


def compared(loaded, data, folder, subjects, limit):
    """Our figures and the harness's, by our names."""
    ours = Benchmarks(loaded, load_lm_tasks(data, list(FILES), limit)).figures()
    tasks = local_tasks(data, folder, subjects=subjects, limit=limit)
    theirs = harness_figures(loaded, sorted({name for name, _ in NAMES.values()}), include=tasks)
    by_name = {(figure.task, figure.metric): figure.mean for figure in theirs}
    return {
        (figure.task, figure.metric): (figure.mean, by_name[NAMES[figure.task, figure.metric]])
        for figure in ours
    }


def assert_equal(found):
    for name, (ours, theirs) in found.items():
        assert ours.count == theirs.count, name
        assert ours.value == pytest.approx(theirs.value, abs=1e-4), name
        assert ours.standard_error == pytest.approx(theirs.standard_error, abs=1e-4, nan_ok=True)


def test_our_tasks_give_the_harness_figures(tmp_path, monkeypatch):
    monkeypatch.setattr("sempa_mlx.evaluation.benchmarks.MAX_TOKENS", 8)
    monkeypatch.setattr("sempa_mlx.evaluation.lm_eval.MAX_TOKENS", 8)
    data = write_lm_files(tmp_path / "data", 8)
    found = compared(loaded_of("llama"), data, tmp_path / "tasks", SUBJECTS, 6)
    assert {*found} == {*NAMES}
    assert_equal(found)


@pytest.mark.slow
def test_the_embedded_model_gives_the_harness_figures_on_real_rows(tmp_path, shared_data):
    """A few rows; the table in docs/generation.md is of more."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (shared_data / "lm").iterdir():
        (data / path.name).symlink_to(path)
    found = compared(load_model("smollm2-135m"), data, tmp_path / "tasks", (), 4)
    assert_equal({name: pair for name, pair in found.items() if name[0] != "mmlu"})


def requests(kind, *arguments):
    return [Instance(kind, {}, each, 0) for each in arguments]


def naive(loaded, context, continuation):
    """Log-likelihood and greediness from one whole forward pass."""
    logps = log_softmax(np.array(loaded.model(mx.array([context + continuation])))[0], axis=1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    score = sum(logps[at, token] for at, token in zip(places, continuation, strict=True))
    greedy = all(
        logps[at].argmax() == token for at, token in zip(places, continuation, strict=True)
    )
    return score, greedy


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_loglikelihoods_are_those_of_whole_sequences(kind):
    loaded = loaded_of(kind)
    model = HarnessModel(loaded)
    encode = loaded.tokenizer._tokenizer.encode
    likely = int(np.argmax(np.array(loaded.model(mx.array([encode("A cat")])))[0, -1]))
    said = loaded.tokenizer.decode([likely])
    pairs = [("A cat", " sleeps"), ("A cat", " runs away"), ("Two dogs", " run"), ("", "A man")]
    pairs += [("A cat", said)] if encode(f"A cat{said}")[len(encode("A cat")) :] == [likely] else []
    found = model.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, text), (score, greedy) in zip(pairs, found, strict=True):
        if context:
            tokens = encode(context), encode(context + text)[len(encode(context)) :]
        else:
            tokens = [loaded.tokenizer.bos_token_id], encode(text)
        expected = naive(loaded, *tokens)
        assert score == pytest.approx(expected[0], abs=1e-3)
        assert greedy == expected[1]


def test_rolling_windows_score_each_token_once():
    loaded = tiny_loaded(max_position_embeddings=16)
    text = "Two dogs run on the grass while a man is watching them. " * 2
    tokens = loaded.tokenizer._tokenizer.encode(text)
    found = HarnessModel(loaded).loglikelihood_rolling(
        requests("loglikelihood_rolling", (text,), ("A cat",))
    )
    assert len(tokens) > 40
    expected, done = 0.0, 0
    while done < len(tokens):
        upto = min(done + 16, len(tokens))
        start = max(0, upto - 17)
        context = tokens[max(0, upto - 17) : done] if start else []
        before = [loaded.tokenizer.bos_token_id, *tokens[:done]] if not start else context
        expected += naive(loaded, before[-(17 - (upto - done)) :], tokens[done:upto])[0]
        done = upto
    assert found[0] == pytest.approx(expected, abs=1e-2)
    short = loaded.tokenizer._tokenizer.encode("A cat")
    assert found[1] == pytest.approx(
        naive(loaded, [loaded.tokenizer.bos_token_id], short)[0], abs=1e-3
    )


def test_texts_are_generated_until_they_stop():
    model = HarnessModel(loaded_of("llama"))
    wanted = {"until": ["zzz"], "max_gen_toks": 6, "do_sample": False}
    (whole, other) = model.generate_until(
        requests("generate_until", ("A cat", wanted), ("Two", wanted))
    )
    stop = whole[2:4]
    stopped = model.generate_until(
        requests(
            "generate_until",
            ("A cat", wanted | {"until": stop}),
            ("Two", wanted),
            ("A cat", wanted),
        )
    )
    assert stopped == [whole.split(stop)[0], other, whole]


def test_sampling_is_refused():
    wanted = {"do_sample": True, "temperature": 0.7}
    with pytest.raises(UsageError, match="sample"):
        HarnessModel(loaded_of("llama")).generate_until(
            requests("generate_until", ("A cat", wanted))
        )


def test_the_adapter_counts_as_dialled():
    loaded = tiny_loaded()
    put_adapter(loaded.model)
    asked = requests("loglikelihood", ("A cat", " sleeps"))
    base = HarnessModel(loaded_of("llama")).loglikelihood(asked, disable_tqdm=True)
    off, half, on = (
        HarnessModel(loaded, scale=scale).loglikelihood(asked, disable_tqdm=True)
        for scale in (0.0, 0.5, 1.0)
    )
    assert off == base
    assert len({score for ((score, _),) in (off, half, on)}) == 3


def test_the_papers_shots_are_set(tmp_path):
    data = write_lm_files(tmp_path / "data")
    folder = local_tasks(data, tmp_path / "tasks", subjects=SUBJECTS)
    figures = harness_figures(
        loaded_of("llama"), ["local_mmlu", "local_hellaswag"], limit=2, include=folder
    )
    assert [(figure.task, figure.metric, figure.shots) for figure in figures] == [
        ("local_mmlu", "acc", 5),
        ("local_hellaswag", "acc", 0),
        ("local_hellaswag", "acc_norm", 0),
    ]
    assert [figure.mean.count for figure in figures] == [4, 2, 2]
    assert not math.isnan(figures[0].mean.standard_error)


def test_unknown_tasks_and_data_out_of_reach_are_told(tmp_path):
    with pytest.raises(UsageError, match="no task 'helaswag'"):
        harness_figures(loaded_of("llama"), ["helaswag"])
    assert "hellaswag" in TaskManager().all_tasks
    with pytest.raises(DataError, match="no data for hellaswag"):
        harness_figures(loaded_of("llama"), ["hellaswag"], limit=1)
