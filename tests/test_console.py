"""What is printed on a terminal, and what on a pipe."""

import io
import json
import sys

import pytest

from sempa_mlx import console as module
from sempa_mlx.console import Console, fitting
from sempa_mlx.errors import DataError, Problem

PROBLEMS = (
    Problem("is [bold]empty[/]", "a.txt:3", "   3 | x", "write something"),
    Problem("too long", fix="cut it"),
)


class Screen(io.StringIO):
    def isatty(self):
        return True


def on_a_terminal(monkeypatch):
    """Return a console on terminals of 40 columns, and a function that reads what is there.

    To be called in the test itself: before it, pytest has yet to put its own streams in place.
    """
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    out, err = Screen(), Screen()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return Console(), lambda: (out.getvalue(), err.getvalue())


DATA = "[b]x[/x]\t:dog: 12:100:3 ends in blanks  "


def test_data_is_printed_as_it_is(capsys):
    console = Console()
    console.result(DATA)
    console.say(DATA)
    console.error(DataError(Problem("wrong", evidence=DATA, fix=DATA)))
    out, err = capsys.readouterr()
    assert out == f"{DATA}\n"
    assert err == f"{DATA}\nerror: wrong\n  {DATA}\n  {DATA}\n"


def test_data_stays_what_it_is_on_a_terminal(monkeypatch):
    console, read = on_a_terminal(monkeypatch)
    console.result(DATA)
    assert read()[0] == f"{DATA.expandtabs()}\n"


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_facts_are_left_out_from_the_end():
    assert fitting(["loss 0.5", "margin 2", "rate"], 18) == "loss 0.5  margin 2"
    assert fitting(["loss 0.5", "margin 2", "rate"], 17) == "loss 0.5"
    assert fitting(["too long"], 3) == ""


def test_a_bar_is_drawn_on_a_terminal(monkeypatch, clock):
    console, read = on_a_terminal(monkeypatch)
    assert console.is_live
    with console.progress("embedding", 10, "texts") as advance:
        clock[0] += 2.0
        advance(4)
        advance(6)
    with console.progress("counting", None, "texts") as advance:
        clock[0] += 1.0
        advance(1)
    out, err = read()
    assert out == ""
    assert "embedding" in err
    assert "5 texts/s" in err


def test_steps_are_drawn_on_a_terminal(monkeypatch):
    console, read = on_a_terminal(monkeypatch)
    with console.steps(3) as show:
        for step in (1, 2, 3):
            show(step, ["loss 0.5", "margin 2", "a fact that has no room on this line"])
    err = read()[1]
    assert "step 3/3 loss 0.5" in err
    assert "no room" not in err


def test_work_without_steps_has_a_sign_on_a_terminal(monkeypatch):
    console, read = on_a_terminal(monkeypatch)
    with console.working("loading [it]"):
        pass
    assert "loading [it]" in read()[1]


def test_a_wide_table_is_stacked_on_a_terminal(monkeypatch):
    console, read = on_a_terminal(monkeypatch)
    columns = ("system", "a long name", "another name")
    console.table(
        "Scores", columns, [("base", "1.0", "2.0"), ("adapter of this run", "3.0", "4.0")]
    )
    assert read()[0].splitlines() == [
        *("", "Scores", "", "base", "  a long name   1.0", "  another name  2.0"),
        *("adapter of this run", "  a long name   3.0", "  another name  4.0"),
    ]


def test_talk_goes_to_stderr_and_facts_are_aligned(capsys):
    console = Console()
    console.heading("A stage")
    console.facts({"model": "tiny", "rate": "[5]"})
    assert capsys.readouterr() == ("", "\nA stage\n  model  tiny\n  rate   [5]\n")


def test_on_a_pipe_progress_is_a_line_every_ten_seconds(capsys, clock):
    console = Console()
    with console.progress("embedding", 100, "texts") as advance:
        clock[0] += 9.0
        advance(30)
        clock[0] += 1.0
        advance(20)
        advance(50)
    with console.progress("reading", None, "lines") as advance:
        clock[0] += 10.0
        advance(5)
    assert capsys.readouterr().err.splitlines() == [
        "embedding: 50/100 texts, 5 texts/s",
        "reading: 5 lines, 0 lines/s",
    ]


def test_on_a_pipe_steps_are_a_line_every_ten_seconds_and_the_last(capsys, clock):
    with Console().steps(4) as show:
        show(1, ["loss 0.9"])
        clock[0] += 10.0
        show(2, ["loss 0.8"])
        show(3, ["loss 0.7"])
        show(4, ["loss 0.6", "margin 1"])
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["step 2/4  loss 0.8", "step 4/4  loss 0.6  margin 1"]


@pytest.mark.parametrize("mode", ["quiet", "json"])
def test_only_people_are_talked_to(capsys, mode):
    console = Console(mode)
    console.say("talk")
    console.heading("Heading")
    with console.working("loading"), console.progress("embedding", 2, "texts") as advance:
        advance(2)
    with console.steps(1) as show:
        show(1, ["loss 0.9"])
    console.warn("[it] matters")
    captured = capsys.readouterr()
    assert captured == ("", "warning: [it] matters\n")


def test_a_muted_console_tells_errors_alone(capsys):
    console = Console()
    console.mute()
    console.result("a result")
    console.say("talk")
    console.error(DataError("broken"))
    assert capsys.readouterr() == ("", "error: broken\n")


def test_each_mode_has_its_own_results(capsys):
    for mode in ("human", "quiet", "json"):
        console = Console(mode)
        console.result("[x] is no markup")
        console.table("Scores", ("system", "score"), [("base", "70.5")], note="a note")
        console.document({"é": 1})
    _, human, quiet = capsys.readouterr().out.split("[x] is no markup\n")
    table = "\nScores\n\nsystem  score\n------  -----\nbase     70.5\n\na note\n"
    assert human == table
    assert quiet == table + json.dumps({"é": 1}, indent=2, ensure_ascii=False) + "\n"


def test_every_problem_is_told_with_its_evidence_and_its_fix(capsys):
    Console().error(DataError(PROBLEMS, state="nothing was started"))
    assert capsys.readouterr().err.splitlines() == [
        "error: a.txt:3: is [bold]empty[/]",
        "   3 | x",
        "  write something",
        "error: too long",
        "  cut it",
        "2 problems; nothing was started",
    ]
    Console().error(DataError(PROBLEMS))
    assert capsys.readouterr().err.splitlines()[-1] == "2 problems"


def test_errors_are_a_document_where_a_program_reads(capsys):
    Console("json").error(DataError(PROBLEMS[1], state="nothing was started"))
    problem = {"what": "too long", "place": "", "evidence": "", "fix": "cut it"}
    error = {"problems": [problem], "state": "nothing was started", "code": 3}
    assert capsys.readouterr() == (json.dumps({"error": error}, indent=2) + "\n", "")


def test_a_reader_that_has_gone_is_the_callers_business(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    with pytest.raises(BrokenPipeError):
        Console().result("a result")
