"""Recipes' comments, docs/config.md and docs/help.md are what the code says; help is complete."""

import pytest

from sempa_mlx.config_notes import NOTES
from sempa_mlx.config_recipes import list_recipes, recipe_path
from sempa_mlx.config_resolve import resolve_config
from tests.written import (
    HELP_HEAD,
    HELP_WIDTH,
    ROOT,
    commands,
    config_page,
    help_page,
    recipe_text,
    typer_version,
)

MANY_OPTIONS = 8
COMMANDS = [(words, command) for words, command in commands() if not hasattr(command, "commands")]
NAMES = [" ".join(words) for words, _ in COMMANDS]


def page(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_has_the_comments_of_the_notes(name):
    """If this fails: `make docs`."""
    assert recipe_path(name).read_text(encoding="utf-8") == recipe_text(name)


def test_notes_name_every_setting_in_order():
    assert list(NOTES) == list(resolve_config("demo").sources)


def test_the_page_of_settings_is_that_of_the_code():
    """If this fails: `make docs`."""
    assert page("config.md") == config_page()


def test_the_page_of_help_is_the_real_help():
    """If this fails: `make docs`."""
    head = HELP_HEAD.format(width=HELP_WIDTH, typer=typer_version())
    if not page("help.md").startswith(head):
        pytest.skip(f"docs/help.md was written with another typer than {typer_version()}")
    assert page("help.md") == help_page()


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_help_is_complete(words, command):
    """One line of purpose, two examples of this very command, every option explained."""
    purpose = command.help.split("\n\n")[0]
    assert purpose.endswith(".")
    assert len(purpose) <= 100
    title, *examples = command.epilog.split("\n\n")
    assert title == "Examples:"
    assert len(examples) >= 2
    assert all(f"sempa-mlx {' '.join(words)}" in example for example in examples)
    options = [each for each in command.params if each.param_type_name == "option"]
    assert [each.name for each in options if not each.help] == []
    if len(options) > MANY_OPTIONS:
        panels = {each.rich_help_panel for each in options}
        assert len(panels) > 2


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_defaults_are_written_one_way(words, command):
    """`[default: x]`, never a bare `[x]` or `(default x)`."""
    for parameter in command.params:
        text = (parameter.help or "").replace("[default: ", "[").replace("[", "", 1)
        assert "[" not in text
        if "[" in (parameter.help or ""):
            assert "[default: " in parameter.help
