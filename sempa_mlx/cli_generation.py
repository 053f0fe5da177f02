"""The commands `eval generation` and `eval frontier`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_checks import find_runs, finite, place_to_write, refuse_unused
from sempa_mlx.cli_options import (
    AdaptersOption,
    ModelOption,
    NoBaseOption,
    OutOption,
    ScalesOption,
    console,
    data_option,
    examples,
    model_option,
    output_option,
)
from sempa_mlx.cli_torch import let_torch_in

generation_app = typer.Typer()


@generation_app.command(
    "generation",
    epilog=examples(
        "sempa-mlx eval generation --text wiki.txt --tasks hellaswag --data lm",
        "sempa-mlx eval generation --text wiki.txt --adapter-path adapters --adapter-scale 0.5",
    ),
)
def eval_generation(
    text: Annotated[
        Path | None, data_option("--text", help="UTF-8 text to predict: perplexity and KL.")
    ] = None,
    tasks: Annotated[
        str | None,
        data_option(
            "--tasks",
            help="Of: perplexity, hellaswag, truthfulqa, mmlu, gsm8k; comma-separated. "
            "[default: perplexity]",
        ),
    ] = None,
    data: Annotated[
        Path | None, data_option("--data", help="Folder with the files of the tasks.")
    ] = None,
    harness: Annotated[
        str | None,
        data_option("--harness", help="Tasks for lm-evaluation-harness (extra lm-eval)."),
    ] = None,
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    limit: Annotated[
        int | None,
        data_option(
            "--limit",
            min=1,
            help="First n questions of a task; of MMLU, of a subject. [default: all]",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        data_option("--max-tokens", min=2, help="First n tokens of the text. [default: all]"),
    ] = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare base and adapters as generators: perplexity, KL to the base, benchmarks."""
    refuse_unused(
        ("--adapter-scale", adapter_scale, adapter_path, "--adapter-path"),
        ("--max-tokens", max_tokens, text, "--text"),
        ("--data", data, tasks, "--tasks"),
        ("--limit", limit, tasks or harness, "--tasks or --harness"),
    )
    names, asked = (tuple(each.split(",")) if each else () for each in (tasks, harness))
    if asked:
        let_torch_in()  # lm-evaluation-harness imports it

    from sempa_mlx.commands.evaluate_generation import GenerationRequest, run_eval_generation
    from sempa_mlx.commands.generators import Generators

    request = GenerationRequest(names, text, data, limit, max_tokens, asked)
    generators = Generators(model, adapter_path or [], adapter_scale or [], not no_base)
    run_eval_generation(console, generators, request, out=out)


@generation_app.command(
    "frontier",
    epilog=examples(
        "sempa-mlx eval frontier --adapter-path adapters --text wiki.txt --plot f.svg",
        "sempa-mlx eval frontier --text wiki.txt --data demo --adapter-scale 0.5 --out f.json",
    ),
)
def eval_frontier(
    text: Annotated[Path, data_option("--text", help="UTF-8 text to predict.")],
    adapter_path: Annotated[
        Path,
        model_option("--adapter-path", callback=find_runs, help="Run folder with an adapter."),
    ] = Path("adapters"),
    model: ModelOption = None,
    adapter_scale: Annotated[
        list[float] | None,
        model_option(
            "--adapter-scale",
            callback=finite,
            help="May be repeated. [default: 8 scales, 0 to 1.25]",
        ),
    ] = None,
    data: Annotated[
        str, data_option("--data", help="`stsb` (dev), `demo`, or a file of scored pairs.")
    ] = "stsb",
    pairs: Annotated[
        int | None,
        data_option("--pairs", min=2, help="So many, spread over the file. [default: all]"),
    ] = None,
    max_tokens: Annotated[
        int | None,
        data_option("--max-tokens", min=2, help="First n tokens of the text. [default: all]"),
    ] = None,
    plot: Annotated[
        Path | None,
        output_option("--plot", callback=place_to_write, help="Draw it into this SVG file."),
    ] = None,
    out: OutOption = None,
) -> None:
    """Show what an adapter's scale buys in STS and costs in perplexity, without training again."""
    from sempa_mlx.commands.evaluate_frontier import FrontierRequest, run_eval_frontier

    request = FrontierRequest(
        adapter_path, text, model, tuple(adapter_scale or ()), data, pairs, max_tokens
    )
    run_eval_frontier(console, request, plot=plot, out=out)
