"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_checks import place_to_write, refuse_unused
from sempa_mlx.cli_options import ForceOption, console, examples

report_app = typer.Typer()


@report_app.command(
    epilog=examples(
        "sempa-mlx report adapters",
        "sempa-mlx report adapters --results sts.json --data hub --out report.html",
    )
)
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="`hub` or a folder of STS sets (STS-B test), or a file of scored pairs. "
            "[default: the run's dev pairs]",
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option("--pairs", min=2, help="So many, spread over the file. [default: 200]"),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="What `eval ... --out` wrote; may be repeated."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Load the model and measure.")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            *("-o", "--out"),
            help="File to write. [default: RUN/report.html]",
            callback=place_to_write,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write one HTML page about a run: curves, scores, geometry, maps, words, settings."""
    from sempa_mlx.commands.report import NUM_PAIRS, ReportRequest, run_report

    refuse_unused(("--pairs", pairs, measure, "measuring, which --no-measure leaves out"))
    request = ReportRequest(run, data, pairs or NUM_PAIRS, results or [], measure)
    run_report(console, request, out=out, force=force)
