"""`sempa-mlx config`: recipes, and what settings come to. Loads no model and no mlx."""

from collections.abc import Sequence
from pathlib import Path

from sempa_mlx.config_notes import write_commented
from sempa_mlx.config_recipes import list_recipes, recipe_path, recipe_summary
from sempa_mlx.config_resolve import resolve_config
from sempa_mlx.console import Console
from sempa_mlx.errors import ConfigError, Problem
from sempa_mlx.files import refuse_existing, write_text


def run_list(console: Console) -> None:
    """Print every recipe with its purpose; its name alone if quiet."""
    about = {name: recipe_summary(name) for name in list_recipes()}
    width = max(map(len, about))
    for name, text in about.items():
        console.result(name if console.mode == "quiet" else f"{name.ljust(width)}  {text}")
    console.document([{"name": name, "about": text} for name, text in about.items()])


def run_show(console: Console, source: str | None, sets: Sequence[str]) -> None:
    """Print resolved settings, each with where it comes from."""
    resolved = resolve_config(source, sets=sets)
    console.say(f"# {resolved.origin}")
    console.result(write_commented(resolved.config, resolved.sources).rstrip())
    console.document(
        {
            "origin": resolved.origin,
            "config": resolved.config.model_dump(mode="json"),
            "sources": resolved.sources,
        }
    )


def run_copy(console: Console, recipe: str, file: Path, *, force: bool) -> None:
    """Copy a recipe's file, comments and all."""
    text = recipe_path(recipe).read_text(encoding="utf-8")
    refuse_existing(file, force=force)
    write_text(file, text)
    console.result(str(file))
    console.say(f"change it, then:  sempa-mlx train --config {file}")
    console.document({"recipe": recipe, "file": str(file)})


def run_validate(console: Console, files: Sequence[str]) -> None:
    """Check settings files.

    Raises:
        ConfigError: the faults of all files.
    """
    problems: list[Problem] = []
    sound: list[str] = []
    for file in files:
        try:
            sound.append(resolve_config(file).origin)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems, state="nothing was started")
    for origin in sound:
        console.result(f"{origin}: no faults")
    console.document([{"origin": origin, "ok": True} for origin in sound])
