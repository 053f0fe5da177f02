"""The commands `data check`, `data leaks` and `data download`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_options import (
    OutOption,
    ProtocolOption,
    StsOption,
    TasksOption,
    console,
    data_option,
    examples,
    output_option,
)

data_app = typer.Typer(help="Look at data before paying for training.")


@data_app.command(
    "check",
    epilog=examples(
        "sempa-mlx data check pairs.jsonl", "sempa-mlx data check pairs.jsonl.gz --json"
    ),
)
def data_check(file: Annotated[Path, typer.Argument(help="Preference file.")]) -> None:
    """Count the rows of a preference file and list every fault."""
    from sempa_mlx.commands.data import run_check

    run_check(console, file)


@data_app.command(
    "leaks",
    epilog=examples(
        "sempa-mlx data leaks pairs.jsonl --data hub --fail-over 0",
        "sempa-mlx data leaks nli --data sts --tasks STSB,SICKR --out leaks.json",
    ),
)
def data_leaks(
    train: Annotated[str, typer.Argument(help="Preference file, `nli` or `demo`.")],
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    candidates: Annotated[
        int, data_option("--candidates", min=2, max=3, help="3 looks at neutrals as well.")
    ] = 2,
    show: Annotated[int, output_option("--show", min=0, help="Sentences to show a task.")] = 5,
    out: OutOption = None,
    fail_over: Annotated[
        float | None,
        output_option(
            "--fail-over", min=0, max=1, help="Exit 1 if a larger share of a task's is leaked."
        ),
    ] = None,
) -> None:
    """Tell which sentences of STS test sets occur in training rows: exactly, nearly, and as what.

    --fail-over counts exact and normalised matches, not near ones.
    """
    from sempa_mlx.commands.leaks import LeakRequest, run_leaks

    names = tuple(tasks.split(",")) if tasks else None
    request = LeakRequest(train, data, names, protocol, candidates)
    run_leaks(console, request, show=show, out=out, fail_over=fail_over)


@data_app.command(
    "download", epilog=examples("sempa-mlx data download", "sempa-mlx data download --json")
)
def data_download() -> None:
    """Fetch the NLI triplets and the STS sets, once."""
    from sempa_mlx.commands.data import run_download

    run_download(console)
