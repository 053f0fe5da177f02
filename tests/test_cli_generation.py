import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sempa_mlx.config import LoraConfig
from sempa_mlx.data.lm_tasks import load_lm_tasks
from sempa_mlx.data.records import StsTask
from sempa_mlx.data.sources import dev_source
from sempa_mlx.data.sts_sets import load_dev_pairs
from sempa_mlx.encoder.encoder import Encoder
from sempa_mlx.encoder.fitting import fit_after
from sempa_mlx.evaluation.benchmarks import Benchmarks
from sempa_mlx.evaluation.generation import text_drift
from sempa_mlx.evaluation.sts import evaluate_sts
from sempa_mlx.model.load import load_model
from sempa_mlx.model.lora import adapter_weights, dialled, load_adapter, save_adapter
from tests.command import done, files_below, refused
from tests.lm_files import write_lm_files
from tests.tiny import put_adapter, write_tiny_folder

LORA = LoraConfig(rank=4, alpha=8.0)  # as `put_adapter` has it


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A base, an adapter that changes much, a text and benchmarks; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("space")
    write_tiny_folder(folder / "base")
    loaded = load_model(str(folder / "base"))
    put_adapter(loaded.model, 0.3)
    save_adapter(folder / "run", adapter_weights(loaded.model), LORA, loaded)
    write_lm_files(folder / "lm")
    (folder / "text.txt").write_text("A man reads two books.\nThe children sleep.\n" * 30)
    return folder


def generation(space, *options):
    return ["eval", "generation", "--adapter-path", space / "run", *options]


def tasks_of(space, names, *options):
    return generation(space, "--tasks", names, "--data", space / "lm", "--limit", "2", *options)


@pytest.fixture(scope="module")
def adapted(space):
    loaded = load_model(str(space / "base"))
    load_adapter(loaded, space / "run")
    return loaded


def test_base_and_scales_are_measured_on_the_same_text(space, here, adapted):
    scales = [word for scale in (0, 0.5, 1) for word in ("--adapter-scale", str(scale))]
    document = done("--json", *generation(space, "--text", space / "text.txt", *scales)).document
    base, off, half, on = document["results"]
    assert [row["system"] for row in document["results"]] == ["base", "run x0", "run x0.5", "run"]
    assert [row["adapter_scale"] for row in document["results"]] == [0, 0, 0.5, 1]
    assert {**base, "system": 0} == {**off, "system": 0}
    assert base["kl"] == base["kl_standard_error"] == 0
    assert 0 < half["kl"] < on["kl"]
    tokens = adapted.tokenizer.encode((space / "text.txt").read_text().rstrip("\n"), verbose=False)
    (drift,) = text_drift(adapted.model, tokens, [0.5])
    assert half["num_tokens"] == len(tokens) > 512
    assert half["perplexity"] == pytest.approx(drift.perplexity.perplexity, rel=1e-5)
    assert half["standard_error"] == pytest.approx(drift.perplexity.standard_error, rel=1e-3)
    assert half["kl"] == pytest.approx(drift.kl.value, rel=1e-3)
    assert half["kl_standard_error"] == pytest.approx(drift.kl.standard_error, rel=1e-2)


def test_one_window_has_an_error_that_is_null(space, here):
    arguments = generation(space, "--text", space / "text.txt", "--max-tokens", "40")
    base, _ = done("--json", *arguments).document["results"]
    assert (base["num_tokens"], base["num_scored"], base["standard_error"]) == (40, 39, None)
    assert "±" not in done(*arguments, "--no-base").out.replace("± standard error", "")


def test_tasks_are_measured_at_every_scale(space, here, adapted):
    outcome = done(
        "--json", *tasks_of(space, "hellaswag,truthfulqa", "--no-base", "--adapter-scale", "0.5")
    )
    (row,) = outcome.document["results"]
    assert row["system"] == "run x0.5"
    assert "perplexity" not in row
    tasks = load_lm_tasks(space / "lm", ["hellaswag", "truthfulqa"], 2)
    with dialled(adapted.model, 0.5):
        expected = Benchmarks(adapted, tasks).figures()
    for found, figure in zip(row["figures"], expected, strict=True):
        assert (found["task"], found["metric"]) == (figure.task, figure.metric)
        assert (found["shots"], found["count"]) == (figure.shots, 2)
        assert found["value"] == pytest.approx(figure.mean.value, abs=1e-5)
        assert found["standard_error"] == pytest.approx(figure.mean.standard_error, abs=1e-5)


def test_people_get_a_table_of_everything(space, here, monkeypatch):
    monkeypatch.setattr("sempa_mlx.evaluation.benchmarks.MAX_TOKENS", 3)
    outcome = done(
        *tasks_of(space, "perplexity,hellaswag,truthfulqa,mmlu,gsm8k"),
        *["--text", space / "text.txt", "--out", "results.json"],
    )
    lines = [line for line in outcome.out.splitlines() if line]
    assert lines[0] == "generation, accuracies x 100, ± standard error"
    for column in (
        *("perplexity", "KL to base", "hellaswag", "hellaswag norm", "truthfulqa mc1"),
        *("truthfulqa mc2", "mmlu", "gsm8k strict", "gsm8k flexible"),
    ):
        assert column in lines[1]
    base = next(line for line in lines if line.startswith("base"))
    assert len(re.findall(r"\d+\.\d+ ± \d+\.\d+", base)) == 9
    assert "0.0000 ± 0.0000" in base
    assert any(line.startswith("run ") for line in lines)
    for note in (
        "perplexity: ",
        "hellaswag: 2 items",
        "mmlu: 4 items, 5 shots",
        "gsm8k: 2 items, 8 shots",
        "no activity labels",
    ):
        assert note in outcome.out
    assert len(json.loads(Path("results.json").read_text())["results"]) == 2
    assert list(files_below(here)) == ["results.json"]


def test_a_base_alone_is_measured(space, here):
    document = done(
        *["--json", "eval", "generation", "--model", space / "base"],
        *["--tasks", "hellaswag", "--data", space / "lm"],
    ).document
    (row,) = document["results"]
    assert (row["system"], row["adapter_scale"]) == ("base", 0)
    assert [figure["count"] for figure in row["figures"]] == [6, 6]


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (2, [], "nothing to measure"),
        (2, ["--tasks", "perplexity"], "perplexity needs a text"),
        (2, ["--tasks", "hellaswag"], "the tasks need their files"),
        (2, ["--tasks", "helaswag", "--data", "lm"], "unknown task 'helaswag'"),
        (2, ["--text", "text.txt", "--no-base"], "--no-base needs an --adapter-path"),
        (3, ["--text", "nowhere.txt"], "no such file"),
        (3, ["--text", "empty.txt"], "the file is empty"),
        (3, ["--tasks", "mmlu", "--data", "nowhere"], "no file mmlu_dev.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_refused(here, code, options, expected):
    Path("text.txt").write_text("A cat sleeps.")
    Path("empty.txt").write_text(" \n")
    assert expected in refused(code, "eval", "generation", *options).err


def test_without_the_harness_its_tasks_name_the_extra(space, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "sempa_mlx.evaluation.lm_eval", raising=False)
    outcome = refused(2, *generation(space, "--harness", "hellaswag"))
    assert "needs the package lm_eval" in outcome.err
    assert "pip install 'sempa-mlx[lm-eval]'" in outcome.err


# frontier


def frontier(space, *options):
    arguments = ["eval", "frontier", "--adapter-path", space / "run", "--data", "demo"]
    return [*arguments, "--pairs", "20", "--text", space / "text.txt", *options]


def test_the_frontier_has_a_row_a_scale(space, here, adapted):
    document = done(
        *["--json", *frontier(space, "--adapter-scale", "1", "--adapter-scale", "0.5")],
        *["--out", "results.json", "--plot", "plots/frontier.svg"],
    ).document
    rows = document["results"]
    assert [row["adapter_scale"] for row in rows] == [0, 0.5, 1], "the base is always there"
    assert (rows[0]["kl"], rows[0]["on_frontier"]) == (0, True)
    tokens = adapted.tokenizer.encode((space / "text.txt").read_text().rstrip("\n"), verbose=False)
    (drift,) = text_drift(adapted.model, tokens, [0.5])
    assert rows[1]["kl"] == pytest.approx(drift.kl.value, rel=1e-3)
    assert rows[1]["perplexity"] == pytest.approx(drift.perplexity.perplexity, rel=1e-5)
    pairs = load_dev_pairs(dev_source("demo").path, 20)
    encoder = Encoder(adapted).with_scale(0.5)
    (score,) = evaluate_sts(encoder, [StsTask("dev", "dev", pairs)])
    assert rows[1]["spearman"] == pytest.approx(score.spearman * 100)
    assert document["pairs"] == {"source": "demo", "count": 20}
    assert json.loads(Path("results.json").read_text()) == document
    assert Path("plots/frontier.svg").read_text().count("<circle") == 3


def test_people_get_a_table_of_the_frontier(space, here):
    outcome = done(*frontier(space, "--max-tokens", "100"))
    lines = [line for line in outcome.out.splitlines() if line]
    assert lines[0] == "run: what its scale gains and costs"
    columns = ["scale", "Spearman", "gain", "perplexity", "x", "base", "KL"]
    assert lines[1].split() == columns
    scales = ["0", "0.125", "0.25", "0.375", "0.5", "0.75", "1", "1.25"]
    assert [line.split()[0] for line in lines[3:11]] == scales
    assert lines[3].split()[1] == "*", "the base is on the frontier"
    assert lines[3].split()[3] == "+0.00"
    assert max(map(len, lines[1:11])) <= 60
    assert "20 pairs of demo" in outcome.out
    assert files_below(here) == {}


def test_an_undefined_spearman_is_said_to_be(space, here):
    Path("pairs.tsv").write_text("3\tA cat\tA dog\n3\tTwo dogs\tA man\n")
    arguments = [*frontier(space, "--adapter-scale", "1"), "--data", "pairs.tsv", "--pairs", "2"]
    assert "undefined" in done(*arguments).out
    rows = done("--json", *arguments).document["results"]
    assert [(row["spearman"], row["on_frontier"]) for row in rows] == [(None, False)] * 2


def test_a_frontier_needs_an_adapter_and_pairs(space, here):
    assert (
        "not an adapter folder"
        in refused(1, "eval", "frontier", "--data", "demo", "--text", space / "text.txt").err
    )
    assert "no such file" in refused(3, *frontier(space, "--data", "nowhere.tsv")).err


def test_the_base_is_scale_0_also_among_negative_scales(space, here):
    lines = done(*frontier(space, "--adapter-scale", "-0.5")).out.splitlines()
    base = next(line for line in lines if line.split()[:1] == ["0"])
    assert "+0.00" in base
    assert base.split()[-2:] == ["1.000", "0.0000"]


def test_a_text_of_one_token_has_no_perplexity(space, here):
    Path("a.txt").write_text("a")
    outcome = done(*frontier(space, "--adapter-scale", "1"), "--text", "a.txt")
    assert "nan" not in outcome.out
    assert outcome.out.count("undefined") == 6
    done(*frontier(space), "--text", "a.txt", "--plot", "p.svg", "--out", "p.json")
    assert "<circle" not in Path("p.svg").read_text(), "a point has no place without a KL"
    assert json.loads(Path("p.json").read_text())["results"]


def test_a_frontier_leaves_out_the_map_of_one_scale(space, here, tmp_path):
    encoder = Encoder.load(space / "run")
    texts = ["A cat", "A dog", "Two men"]
    post, _ = fit_after(encoder, texts, "standardize", 0, folder=tmp_path / "maps")
    mapped = Encoder(encoder.loaded, replace(encoder.settings, post=post))
    shutil.copytree(space / "run", tmp_path / "mapped")
    mapped.save_settings(tmp_path / "mapped")
    arguments = [*frontier(space), "--adapter-path", tmp_path / "mapped"]
    outcome = done(*arguments, "--adapter-scale", "1")
    assert "without the fitted standardize" in outcome.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--text", "text.txt", "--adapter-scale", "0.5"], "--adapter-scale does nothing without"),
        (["--text", "text.txt", "--limit", "3"], "--limit does nothing without --tasks or"),
        (["--text", "text.txt", "--data", "lm"], "--data does nothing without --tasks"),
        (["--tasks", "mmlu", "--data", "lm", "--max-tokens", "9"], "--max-tokens does nothing"),
        (["--text", "text.txt", "--out", "."], "is a folder"),
        (["--text", "text.txt", "--out", "/dev/null"], "is no file"),
        (["--text", "text.txt", "--out", "text.txt/a.json"], "text.txt: is not a folder"),
        (["--text", "text.txt", "--adapter-scale", "nan", "--adapter-path", "x"], "is no number"),
    ],
)
def test_what_would_do_nothing_or_fail_at_the_end_is_refused_at_once(here, options, expected):
    Path("text.txt").write_text("A cat sleeps.")
    assert expected in refused(2, "eval", "generation", *options).err


def test_all_adapters_are_looked_at_before_the_first_is_measured(space, here):
    shutil.copytree(space / "run", "cut")
    weights = Path("cut/adapters.safetensors")
    weights.write_bytes(weights.read_bytes()[:100])
    for command in (generation(space, "--text", space / "text.txt"), sts_of(space)):
        outcome = refused(1, *command, "--adapter-path", "cut")
        assert "cut/adapters.safetensors: unreadable" in outcome.err
        assert "loading" not in outcome.err


def sts_of(space):
    Path("pairs.tsv").write_text("3\tA cat\tA dog\n1\tTwo dogs\tA man\n")
    return ["eval", "sts", "--data", "pairs.tsv", "--adapter-path", space / "run"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--adapter-scale", "0.5"], "--adapter-scale does nothing without --adapter-path"),
        (["--adapter-method", "mean"], "--adapter-method does nothing without --adapter-path"),
        (["--tune-pairs", "5"], "--tune-pairs does nothing without --tune"),
        (["--no-base", "--method", "mean"], "--method does nothing without the base"),
    ],
)
def test_options_of_sts_that_would_do_nothing_are_refused(here, options, expected):
    assert expected in refused(2, "eval", "sts", "--data", "x.tsv", *options).err


def test_a_place_that_may_not_be_looked_into_is_refused(here, monkeypatch):
    """As a folder of another user; whoever runs this may look anywhere."""
    Path("text.txt").write_text("A cat sleeps.")
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != here.name)
    outcome = refused(2, "eval", "generation", "--text", "text.txt", "--out", "new/a.json")
    assert "cannot be written to" in outcome.err


def test_an_adapter_without_a_recorded_base_is_measured_on_the_one_that_is_named(space, here):
    shutil.copytree(space / "run", "run")
    config = json.loads(Path("run/adapter_config.json").read_text())
    del config["model"]
    Path("run/adapter_config.json").write_text(json.dumps(config))
    line = [*sts_of(space)[:-2], "--adapter-path", "run"]
    assert "names no base" in refused(1, *line).err
    done(*line, "--model", space / "base")


def test_what_is_read_is_not_written_over(space, here):
    shutil.copy(space / "text.txt", here)
    Path("dev.tsv").write_text("3\tA cat\tA dog\n1\tTwo dogs\tA man\n")
    before = files_below(here)
    text = ("eval", "generation", "--text", "text.txt", "--model", space / "base")
    lines = [(*text, "--out", "text.txt")]
    both = ("--text", "text.txt", "--data", "dev.tsv", "--adapter-path", space / "run")
    lines += [("eval", "frontier", *both, "--plot", "dev.tsv")]
    lines += [("eval", "frontier", *both, "--out", "text.txt")]
    for line in lines:
        assert "is read, so it is not written" in refused(2, *line).errors[0]
    assert files_below(here) == before
