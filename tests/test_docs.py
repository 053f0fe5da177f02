"""The documentation: whole, linked, and of commands that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from sempa_mlx.cli import GLOBAL_FLAGS, app
from tests import written

pytestmark = pytest.mark.unmeasured

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
HELP = [command.epilog for _, command in written.commands() if command.epilog]
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def commands(page):
    """Return the words of every sempa-mlx command in the page's shell blocks."""
    return [
        words
        for block in BLOCK.findall(page.read_text(encoding="utf-8"))
        for line in block.replace("\\\n", " ").splitlines()
        for words in commands_of(line)
    ]


def commands_of(line):
    """Return the words of every sempa-mlx command in one line of a shell."""
    words = shlex.split(line, comments=True)
    starts = [i for i, word in enumerate(words) if Path(word).name == "sempa-mlx"]
    ends = [i for i, word in enumerate(words) if word in ("|", ">", "&&")] + [len(words)]
    return [words[i + 1 : min(end for end in ends if end > i)] for i in starts]


def faults(words):
    """Return what the command line does not know of these words."""
    command = typer.main.get_command(app)
    rest = [word for word in words if word not in GLOBAL_FLAGS]
    while hasattr(command, "commands"):
        if not rest:
            return []
        if rest[0] not in command.commands:
            return [] if rest[0].startswith("-") else [rest[0]]
        command = command.commands[rest.pop(0)]
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    known |= {"--help", "-h"}
    return [word for word in rest if word.startswith("-") and len(word) > 1 and word not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_whole(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"^(?:<{7}|={7}|>{7})(?: |$)", text, re.MULTILINE)
    assert text.count("```") % 2 == 0
    assert [link for link in LINK.findall(text) if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    assert [(words, wrong) for words in commands(page) if (wrong := faults(words))] == []


@pytest.mark.parametrize("epilog", HELP, ids=range(len(HELP)))
def test_examples_of_the_help_exist(epilog):
    examples = [line.removeprefix("- ") for line in epilog.split("\n\n")[1:]]
    found = [words for line in examples for words in commands_of(line)]
    assert len(found) >= len(examples)
    assert [(words, wrong) for words in found if (wrong := faults(words))] == []


def test_commands_are_found_and_wrong_ones_are_told():
    assert len(commands(ROOT / "README.md")) > 10
    assert faults(["eval", "sts", "--datum", "x", "--json"]) == ["--datum"]
    assert faults(["evil"]) == ["evil"]


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    names = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in names if f"({name})" not in index} == set()


TEST = re.compile(r"`(tests/[\w/]+(?:\.py)?)(?:::(\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    named = TEST.findall(page.read_text(encoding="utf-8"))
    missing = [path for path, _ in named if not (ROOT / path).exists()]
    assert missing == []
    assert [
        name
        for path, name in named
        if name and f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ] == []


def test_the_kept_results_are_those_of_the_page():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    kept = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    rows = {}
    for line in page.splitlines():
        name, *cells = (cell.strip(" *") for cell in line.strip("|").split("|"))
        rows.setdefault(name.replace("*", ""), cells)
    for each in kept:
        shown = [f"{value:.2f}" for value in (*each["scores"], each["average"])]
        found = [cell.replace("*", "").split(" ")[0] for cell in rows[each["system"]][:8]]
        assert found == shown, each["system"]
        mean = sum(each["scores"]) / len(each["scores"])
        assert abs(mean - each["average"]) < 0.011, each["system"]


def test_the_checklist_adds_up():
    page = (ROOT / "docs" / "ux-checklist.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .+? \| ([012]) \| ", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 31))
    assert f"{sum(int(grade) for _, grade in rows)} of 60" in page
