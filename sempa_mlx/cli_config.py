"""The commands `config list`, `config show`, `config copy` and `config validate`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_options import ForceOption, complete_recipe, console, examples

config_app = typer.Typer(help="Recipes and their settings.")


@config_app.command(
    "list", epilog=examples("sempa-mlx config list", "sempa-mlx config list --json")
)
def config_list() -> None:
    """List the recipes, and what each is for."""
    from sempa_mlx.commands.config import run_list

    run_list(console)


@config_app.command(
    "show",
    epilog=examples(
        "sempa-mlx config show",
        "sempa-mlx config show demo --set train.seed=3",
        "sempa-mlx config show sempa.yaml --json",
    ),
)
def config_show(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|FILE",
            help="[default: ./sempa.yaml if there is one, else smollm2-135m]",
            autocompletion=complete_recipe,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting: section.key=value; may be repeated."),
    ] = None,
) -> None:
    """Print resolved settings as a file that --config takes, and where each value comes from."""
    from sempa_mlx.commands.config import run_show

    run_show(console, source, sets or [])


@config_app.command(
    "copy",
    epilog=examples(
        "sempa-mlx config copy smollm2-135m", "sempa-mlx config copy bridge my-run.yaml"
    ),
)
def config_copy(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Its name.", autocompletion=complete_recipe)
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path(
        "sempa.yaml"
    ),
    force: ForceOption = False,
) -> None:
    """Copy a recipe into a file to change: every setting is there, each with a comment."""
    from sempa_mlx.commands.config import run_copy

    run_copy(console, recipe, file, force=force)


@config_app.command(
    "validate",
    epilog=examples(
        "sempa-mlx config validate sempa.yaml", "sempa-mlx config validate runs/*.yaml --json"
    ),
)
def config_validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files or recipes.", autocompletion=complete_recipe),
    ],
) -> None:
    """Check settings files; every fault of all of them is listed with its line."""
    from sempa_mlx.commands.config import run_validate

    run_validate(console, files)
