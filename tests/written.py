"""What is written from the code: recipes, docs/config.md, docs/help.md. `make docs` runs this.

A test compares each file with what stands here, so neither can change alone.
"""

import os
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import typer

from sempa_mlx.cli import app
from sempa_mlx.config import SempaConfig
from sempa_mlx.config_notes import (
    NOTES,
    SECTIONS,
    recipe_comments,
    value_ranges,
    write_commented,
)
from sempa_mlx.config_recipes import list_recipes, recipe_path
from sempa_mlx.config_resolve import resolve_config
from tests.command import done

ROOT = Path(__file__).parents[1]
GUIDE = (
    '# Ranges stand in brackets; null means "not set". '
    "Check a copy with: sempa-mlx config validate FILE"
)
CONFIG_HEAD = """# Settings

Every setting, its default and its range. Written from the code by `make docs`; a test compares
them. null means "not set". The recipes differ from the defaults in a few values each.

```sh
sempa-mlx config list                          # the recipes
sempa-mlx config copy smollm2-135m             # a whole file to change: ./sempa.yaml
sempa-mlx config validate sempa.yaml           # every fault with its line; starts nothing
sempa-mlx config show sempa.yaml --set train.seed=3   # resolved values, and where each comes from
sempa-mlx train --config sempa.yaml --set train.seed=3
```

Later layers win: defaults, then the recipe or file, then `--set section.key=value`, then named
options such as `--seed`. A file need not name every key. Unknown keys, wrong types, values out of
range and duplicated keys are errors, also where a later layer would have covered them. With neither
`--config` nor a `./sempa.yaml`, `train` uses the recipe `smollm2-135m`.
"""

HELP_WIDTH = 100
HELP_HEAD = """# The help of every command

What `--help` prints, {width} columns wide. Written by `make docs` with typer {typer}; a test
compares it with the real help.
"""


def recipe_text(name):
    """The recipe with its own first lines and values, and the comments of today."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    own = [line for line in lines[: lines.index("")] if line.startswith("# ")]
    head = [line for line in own if not line.startswith("# Ranges stand in brackets")]
    body = write_commented(resolve_config(name).config, recipe_comments())
    return "\n".join([*head, GUIDE, "", body])


def config_page():
    defaults, ranges = SempaConfig().model_dump(mode="json"), value_ranges()
    parts = [CONFIG_HEAD, *map(_section_table, SECTIONS, [(defaults, ranges)] * len(SECTIONS))]
    return "\n".join(parts)


def _section_table(section, known):
    defaults, ranges = known
    lines = [f"## `{section}`: {SECTIONS[section]}", "", "| key | default | range | what it is |"]
    lines.append("| --- | --- | --- | --- |")
    for key, value in defaults[section].items():
        name = f"{section}.{key}"
        shown = "null" if value is None else str(value).lower() if value in (True, False) else value
        lines.append(f"| `{key}` | `{shown}` | {ranges[name]} | {NOTES[name]} |")
    return "\n".join([*lines, ""])


def commands():
    """Yield the words of every command and group with what typer knows of it, the program first."""

    def below(words, command):
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from below((*words, name), inner)

    yield from below((), typer.main.get_command(app))


def help_of(words):
    """Return what `sempa-mlx WORDS --help` prints, without colour and blanks at ends of lines."""
    with mock.patch.dict(os.environ, {"COLUMNS": str(HELP_WIDTH), "NO_COLOR": "1"}):
        text = done(*words, "--help").out
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()).strip("\n")


def typer_version():
    """Return the version that decides how help looks: its first two numbers."""
    return ".".join(version("typer").split(".")[:2])


def help_page():
    parts = [HELP_HEAD.format(width=HELP_WIDTH, typer=typer_version())]
    for words, _ in commands():
        parts.append(f"## {' '.join(('sempa-mlx', *words))}\n\n```text\n{help_of(words)}\n```\n")
    return "\n".join(parts)


def written():
    """Return every file that is written from the code, with its text."""
    recipes = {recipe_path(name): recipe_text(name) for name in list_recipes()}
    return recipes | {
        ROOT / "docs" / "config.md": config_page(),
        ROOT / "docs" / "help.md": help_page(),
    }


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
