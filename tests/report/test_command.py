"""`sempa-mlx report` on a tiny run: the whole way, and whatever may stand in it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests.command import done, files_below, refused, training, write_inputs, write_pairs
from tests.report.pages import checked, tables, words


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Inputs, a finished run, and results of every kind; tests write elsewhere."""
    folder = write_inputs(tmp_path_factory.mktemp("space"))
    write_pairs(folder / "other.tsv", 9)
    write_pairs(folder / "sts" / "STSB" / "test.tsv", 7)
    (folder / "text.txt").write_text("A man reads a page about two dogs. " * 12)
    done(*training(folder), "--adapter-path", folder / "run")
    both = ["--model", folder / "base", "--adapter-path", folder / "run"]
    pairs = ["--data", folder / "other.tsv"]
    text = ["--text", folder / "text.txt"]
    done("eval", "sts", *both, *pairs, "--out", folder / "sts.json")
    done("eval", "geometry", *both, *pairs, "--out", folder / "geometry.json")
    done("eval", "generation", *both, *text, "--out", folder / "generation.json")
    adapter = ["--adapter-path", folder / "run", "--adapter-scale", 1]
    done("eval", "frontier", *adapter, *pairs, *text, "--out", folder / "frontier.json")
    return folder


def report(space, *options, out="report.html"):
    done("report", space / "run", "--out", out, *options)
    return checked(Path(out).read_text(encoding="utf-8"))


def no_model():
    problem = AssertionError("a model is loaded")
    return mock.patch("sempa_mlx.model.recorded.load_model", side_effect=problem)


def test_a_report_of_a_run_is_one_page(space, here):
    before = files_below(space)
    outcome = done("report", space / "run", "--out", "report.html")
    assert outcome.out == "report.html\n"
    text = Path("report.html").read_text(encoding="utf-8")
    tree = checked(text)
    assert len(list(tree.iter("svg"))) == 5 + 2
    assert "of dev.tsv" in words(tree)
    assert "Map of 24 sentences before training" in text
    assert {*files_below(here)} == {"report.html"}
    assert files_below(space) == before


def test_measured_figures_are_those_of_eval(space, here):
    found = json.loads((space / "sts.json").read_text())["results"]
    document = done(
        *["--json", "report", space / "run", "--data", space / "other.tsv", "--out", "a.html"]
    ).document
    expected = [row["average"] for row in found]
    told = document["measured"]
    assert [told["base"], told["trained"]] == pytest.approx(expected, abs=1e-4)
    assert (told["pairs"], told["data"]) == (9, "other.tsv")
    tree = checked(Path("a.html").read_text())
    rows = tables(tree)["Measured for this report, Spearman × 100, 9 pairs of other.tsv"]
    minus = "\N{MINUS SIGN}"
    assert [row[1].replace(minus, "-") for row in rows[1:3]] == [f"{each:.2f}" for each in expected]
    geometry = json.loads((space / "geometry.json").read_text())["results"]
    table = tables(tree)["Before and after training"]
    assert table[1][1:] == [f"{row['alignment']:.3f}" for row in geometry]


def test_results_of_every_kind_become_tables(space, here):
    kinds = ("sts", "geometry", "generation", "frontier")
    options = [word for kind in kinds for word in ("--results", space / f"{kind}.json")]
    tree = report(space, "--no-measure", *options)
    found = tables(tree)
    for name in (
        "STS, Spearman × 100",
        "Base and adapter as generators",
        "What the scale of run gains and costs",
    ):
        assert name in found
    assert any(name.startswith("Geometry of") for name in found if name)
    perplexity = json.loads((space / "generation.json").read_text())["results"][1]["perplexity"]
    assert found["Base and adapter as generators"][2][1].startswith(f"{perplexity:.2f}")
    assert "No results file was given" not in words(tree)


def test_without_measuring_no_model_is_loaded(space, here):
    with no_model():
        tree = report(space, "--no-measure")
    assert "Nothing was measured for this report (--no-measure)." in words(tree)
    with no_model(), pytest.raises(AssertionError, match="a model is loaded"):
        done("report", space / "run", "--debug", "--out", "b.html")


def test_pairs_limit_what_is_measured(space, here):
    document = done("--json", "report", space / "run", "--pairs", "5", "-o", "r.html").document
    assert document["measured"]["pairs"] == 5
    assert "5 of 12 pairs of dev.tsv" in words(checked(Path("r.html").read_text()))


def test_a_folder_of_sets_gives_its_stsb(space, here):
    tree = report(space, "--data", space / "sts")
    assert "7 pairs of STS-B test" in words(tree)


def test_dev_pairs_that_are_gone_are_told(space, here):
    run = here / "run"
    run.mkdir()
    for path in (space / "run").iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("dev.tsv", "gone.tsv"))
    outcome = done("report", run, "--pairs", "4")
    assert "packaged pairs are measured" in outcome.err
    text = words(checked((run / "report.html").read_text()))
    assert "The run's dev pairs are not there" in text
    assert "4 of 210 pairs of" in text


def test_an_earlier_report_is_replaced_and_nothing_else(space, here):
    report(space, "--no-measure")
    first = Path("report.html").read_bytes()
    report(space, "--no-measure")
    assert Path("report.html").read_bytes() == first, "the same run makes the same page"
    Path("notes.html").write_text("<!DOCTYPE html>\n<html><body>mine</body></html>")
    arguments = ["report", space / "run", "--no-measure", "--out", "notes.html"]
    assert "add --force" in refused(2, *arguments).err
    assert "mine" in Path("notes.html").read_text()
    done(*arguments, "--force")
    checked(Path("notes.html").read_text())
    Path("link.html").symlink_to("report.html")
    assert "symbolic link" in refused(2, *arguments[:-1], "link.html").err
    assert "is a folder" in refused(2, *arguments[:-1], here).err


def test_what_cannot_be_is_refused_before_anything_is_loaded(space, here):
    (here / "empty").mkdir()
    Path("wrong.json").write_text('{"metric": 3}')
    with no_model():
        assert "no run: neither" in refused(2, "report", here / "empty").err
        assert "no such folder" in refused(2, "report", here / "nowhere").err
        run = ["report", space / "run", "--out", "r.html"]
        wrong = refused(3, *run, "--results", "wrong.json").err
        assert "not a results file" in wrong
        assert "`eval sts`, `eval generation`, `eval geometry` or `eval frontier`" in wrong
        assert "leave out --data" in refused(2, *run, "--no-measure", "--data", "x.tsv").err
        assert "no such file or folder" in refused(3, *run, "--data", "x.tsv").err
    assert not Path("r.html").exists()


def test_a_base_that_is_gone_names_the_way_out(space, here):
    run = here / "run"
    run.mkdir()
    for path in (space / "run").iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    adapter = run / "adapter_config.json"
    adapter.write_text(adapter.read_text().replace(str(space / "base"), "/nowhere/base"))
    assert "--no-measure" in refused(1, "report", run).err
    assert not (run / "report.html").exists()
    adapter.unlink()
    done("report", run)
    assert "the folder holds no adapter" in words(checked((run / "report.html").read_text()))


def test_help_needs_no_heavy_module():
    code = (
        "import sys; from sempa_mlx.__main__ import run\n"
        "sys.argv = ['sempa-mlx', 'report', '--help']\n"
        "try: run()\n"
        "except SystemExit: pass\n"
        "assert not {'mlx', 'numpy', 'scipy'} & {*sys.modules}, 'heavy'"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"--no-measure", found.stdout)
