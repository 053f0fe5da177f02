"""A command line that cannot be understood: one clear line, the closest match, exit code 2."""

import subprocess
import sys

import pytest

from tests.command import refused, run

LINES = [
    (["embed"], "missing argument 'file'", "see sempa-mlx embed --help"),
    (["embed", "a.txt", "--modle", "b"], "no such option: --modle", "did you mean `--model`?"),
    (["embed", "a.txt", "--xyzzy"], "no such option: --xyzzy", "see sempa-mlx embed --help"),
    (["emed", "a.txt"], "no such command 'emed'", "did you mean `embed`?"),
    (["xyzzy"], "no such command 'xyzzy'", "commands: demo, train, embed, search"),
    (["eval", "stz"], "no such command 'stz'", "did you mean `sts`? commands: sts, geometry"),
    (["train", "--iters", "many"], "invalid value for '--iters': should be a valid integer", ""),
    (["train", "--iters"], "option '--iters' requires an argument", "--help"),
    (["export", "--to", "onnx", "--out", "o"], "invalid value for '--to': 'onnx' is not one", ""),
    (["eval", "sts", "--protocol", "mine"], "invalid value for '--protocol': 'mine'", ""),
    (["embed", "a", "--batch-tokens", "1"], "should be greater than or equal to 64", ""),
    (["embed", "a.txt", "b.txt"], "got unexpected extra argument(s) (b.txt)", ""),
    (["embed", "a.txt", "--xyz[red]"], "no such option: --xyz[red]", ""),
]


@pytest.mark.parametrize(("line", "what", "fix"), LINES)
def test_a_line_that_cannot_be_parsed_is_told_in_one(line, what, fix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = refused(2, *line)
    (error,) = outcome.errors
    assert what in error
    assert fix in outcome.err
    assert "\nnothing was started" in outcome.err
    assert "Usage:" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "what", "fix"), LINES)
def test_in_json_mode_it_is_a_document(line, what, fix):
    outcome = run(*line, "--json")
    assert (outcome.code, outcome.err) == (2, "")
    (problem,) = outcome.document["error"]["problems"]
    assert what in problem["what"]
    assert fix in problem["fix"]
    assert outcome.document["error"]["code"] == 2


@pytest.mark.parametrize("line", [[], ["eval"], ["config"], ["data"], ["sparse"]])
def test_a_group_alone_shows_what_it_holds(line):
    outcome = run(*line)
    assert outcome.code == 2
    assert "Commands" in outcome.out
    assert "error" not in outcome.err
    document = run(*line, "--json").document
    assert document["error"]["problems"][0]["what"] == "missing command"


def test_debug_mode_shows_no_traceback_of_a_wrong_line():
    assert "Traceback" not in refused(2, "embed", "--debug").err


@pytest.mark.parametrize("line", ["", "--help", "train --help"])
def test_help_into_a_closed_pipe_is_quiet(line):
    command = f"{sys.executable} -m sempa_mlx {line} | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("0\n", "")
