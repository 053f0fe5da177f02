"""The Python interface: what it returns is what the commands' own parts return."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest

import sempa_mlx
from sempa_mlx import Encoder, Trained, evaluate_sts, load_config, paraphrase, train
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.encoder.coder_file import CODER_FILE
from sempa_mlx.encoder.paraphrase import Paraphraser, ParaphraseSettings
from sempa_mlx.encoder.settings import EncoderSettings
from sempa_mlx.errors import ConfigError, DataError, UsageError
from sempa_mlx.training.events import Evaluated, StepDone
from tests.command import metrics_of, results_of
from tests.tiny import write_tiny_folder

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, short_demo):
    """A working directory with a model in `base`."""
    write_tiny_folder(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small(**changes):
    """Settings of a run of seconds; `train__iters=1` stands for train.iters=1."""
    common = {"model.name": "base", "data.limit": 24, "output.path": "run"}
    common |= {"train.iters": 4, "train.batch_size": 2, "eval.every": 2}
    common |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config("demo", sets=[f"{name}={value}" for name, value in common.items()])


def test_every_public_name_can_be_had():
    found = {name: getattr(sempa_mlx, name) for name in sempa_mlx.__all__}
    assert all(found.values())
    with pytest.raises(AttributeError, match="Decoder"):
        sempa_mlx.Decoder  # noqa: B018


def test_the_page_runs_as_it_stands(folder):
    """Only the model is a small one, so that it takes seconds."""
    assert len(EXAMPLES) == 8
    names = {}
    for example in EXAMPLES:
        exec(example.replace("smollm2-135m", "base"), names)
    assert {"vectors", "trained", "losses", "score"} <= names.keys()
    assert len(names["losses"]) == 4


def test_settings_are_those_of_the_command_line():
    sets = ["train.iters=7", "objective.loss=ipo"]
    assert load_config("demo", sets=sets) == resolve_config("demo", sets=sets).config
    assert load_config("demo", sets=sets[0]).train.iters == 7
    with pytest.raises(ConfigError, match="learning_rat`"):
        load_config("demo", sets=["train.learning_rat=1"])


def test_a_run_tells_what_its_folder_holds(folder):
    seen = []
    trained = train(small(), on_event=seen.append)
    assert isinstance(trained, Trained)
    assert trained.folder == Path("run")
    results = results_of(folder / "run")
    assert (trained.score, trained.step) == (results["best_dev_score"], results["best_step"])
    assert trained.base_score == results["base_dev_score"]
    assert not trained.is_stopped
    steps = [event.step for event in seen if isinstance(event, StepDone)]
    assert steps == [1, 2, 3, 4]
    assert [event.step for event in seen if isinstance(event, Evaluated)] == [0, 2, 4]
    assert len(metrics_of(folder / "run")) == len(seen)


def test_a_stopped_run_goes_on_where_it_was(folder):
    whole = train(small())
    config = small(output__path="other")
    count = 0

    def after_three_events():
        nonlocal count
        count += 1
        return count == 3

    first = train(config, should_stop=after_three_events)
    assert first.is_stopped
    assert not (folder / "other" / "results.json").exists()
    rest = train(config, resume=True)
    assert (rest.score, rest.step) == (whole.score, whole.step)
    assert [m.get("loss") for m in metrics_of(folder / "other")] == [
        m.get("loss") for m in metrics_of(folder / "run")
    ]


def test_a_taken_folder_is_refused_before_anything_is_read(folder):
    train(small())
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="earlier run"):
        train(small(model__name="nowhere"))
    assert (folder / "run" / "metrics.jsonl").read_bytes() == before


def test_a_coder_that_the_settings_name_is_fitted(folder):
    train(small(sparse__coder="topk", sparse__k=4, sparse__hidden=64, sparse__epochs=1))
    assert (folder / "run" / CODER_FILE).is_file()


def test_sentences_are_scored_as_scipy_does(folder):
    from scipy.stats import spearmanr

    rows = [(4.5, "A cat sleeps", "The cat naps"), (2, "A cat", "A dog"), (0.5, "Two dogs", "Art")]
    table = "".join(f"{score}\t{left}\t{right}\n" for score, left, right in rows)
    Path("pairs.tsv").write_text(table)
    encoder = Encoder.load("base")
    (found,) = evaluate_sts(encoder, "pairs.tsv")
    left, right = (encoder.encode([row[side] for row in rows]) for side in (1, 2))
    expected = spearmanr([row[0] for row in rows], np.sum(left * right, axis=1)).statistic
    assert found.spearman == pytest.approx(expected)
    with pytest.raises(UsageError, match="--protocol"):
        evaluate_sts(encoder, "pairs.tsv", protocol="mteb")
    with pytest.raises(UsageError, match="--tasks"):
        evaluate_sts(encoder, "pairs.tsv", tasks="STSB")


@pytest.mark.parametrize("texts", ["A cat", ["A cat", None], [3], [b"A cat"]])
def test_what_is_no_list_of_texts_is_refused(folder, texts):
    with pytest.raises(UsageError, match="a list of texts"):
        Encoder.load("base").encode(texts)


def test_texts_are_paraphrased_as_the_settings_say(folder):
    encoder = Encoder.load("base")
    encoder.loaded.tokenizer.eos_token_ids = range(0, len(encoder.loaded.tokenizer), 12)
    settings = ParaphraseSettings(k=2, temperature=1.0, seed=3)
    texts = ["A cat sleeps", "", "Two dogs run"]
    found = paraphrase(encoder, texts, settings=settings)
    assert found == Paraphraser(encoder, settings).paraphrase(texts)
    assert [len(each.paraphrases) for each in found] == [2, 0, 2]
    assert [len(each.paraphrases) for each in paraphrase(encoder, texts, k=1)] == [1, 0, 1]
    assert paraphrase(encoder, []) == []
    with pytest.raises(UsageError, match="list of texts"):
        paraphrase(encoder, "A cat sleeps")
    with pytest.raises(UsageError, match="k is 0"):
        paraphrase(encoder, texts, k=0)


def test_texts_that_are_too_long_to_paraphrase_or_to_compare_are_told(folder):
    write_tiny_folder(folder / "short", "qwen3", max_position_embeddings=512)
    encoder = Encoder.load("short")
    with pytest.raises(DataError, match="text 1: needs"):
        paraphrase(encoder, ["A cat", "cat " * 200])
    seeing_little = Encoder(encoder.loaded, EncoderSettings(max_tokens=48))
    with pytest.warns(UserWarning, match="similarities of 1 texts are of their first 48 tokens"):
        paraphrase(seeing_little, ["cat " * 30], settings=ParaphraseSettings(max_tokens=2))


def test_a_fallback_is_said(folder, monkeypatch):
    from dataclasses import replace

    from sempa_mlx import api

    real = api.read_run_data

    def noted(config):
        data = real(config)
        data.train = replace(data.train, note="the demo data instead")
        return data

    with monkeypatch.context() as patch:
        patch.setattr(api, "read_run_data", noted)
        with pytest.warns(UserWarning, match="the demo data instead"):
            train(small(train__iters=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(small(train__iters=1), force=True)


def test_anything_that_encodes_texts_is_scored(tmp_path):
    class Letters:
        def encode(self, texts):
            return [[float(text.count("a")), 1.0] for text in texts]

    (tmp_path / "a.tsv").write_text("3\taa\taa\n2\taa\ta\n1\taa\tb\n")
    (score,) = evaluate_sts(Letters(), tmp_path / "a.tsv")
    assert score.spearman == pytest.approx(1.0)


def test_a_scale_that_is_no_number_is_refused():
    for settings in (EncoderSettings, ParaphraseSettings):
        with pytest.raises(UsageError, match="adapter_scale is nan"):
            settings(adapter_scale=float("nan"))
