"""The commands of two words: `eval` and `data`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_options import (
    AdaptersOption,
    LayerOption,
    MethodsOption,
    ModelOption,
    NoBaseOption,
    OutOption,
    PostFitOption,
    PostOption,
    ProtocolOption,
    ScalesOption,
    SentencesOption,
    StsOption,
    TasksOption,
    TunedOption,
    console,
)

eval_app = typer.Typer(no_args_is_help=True, help="Measure what training did.")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before paying for training.")


@eval_app.command("sts", epilog="Example:  sempa-mlx eval sts --data hub --adapter-path adapters")
def eval_sts(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    details: Annotated[
        bool, typer.Option("--details", help="Print intervals, subsets, and paired tests as well.")
    ] = False,
    adapter_method: Annotated[
        list[str] | None,
        typer.Option("--adapter-method", help="Methods of the adapters. [their own]"),
    ] = None,
    layer: LayerOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First find the methods' parameters on STS-B dev.")
    ] = False,
    tune_pairs: Annotated[
        int | None, typer.Option("--tune-pairs", min=2, help="Dev pairs to tune on. [all]")
    ] = None,
    tuned: TunedOption = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
    fail_under: Annotated[
        float | None, typer.Option("--fail-under", help="Exit 1 if the best average is lower.")
    ] = None,
) -> None:
    """Compare base and adapters on the seven STS tasks, or on your own pairs (Spearman x 100)."""
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_sts import run_eval_sts
    from sempa_mlx.commands.tune import tune_first
    from sempa_mlx.commands.vectors import VectorOptions

    methods = [] if no_base else method or ["prompteol"]
    systems = Systems(
        *(model, adapter_path or [], adapter_scale or [1.0], methods),
        adapter_methods=adapter_method or [],
        options=VectorOptions(layer, tuned, post, post_fit),
    )
    if tune:
        systems = tune_first(console, systems, data, tune_pairs)
    names = tuple(tasks.split(",")) if tasks else None
    run_eval_sts(
        *(console, systems, data, names, protocol), details=details, out=out, fail_under=fail_under
    )


@eval_app.command(
    "generation",
    epilog="Example:  sempa-mlx eval generation --text wiki.txt --tasks hellaswag --data lm",
)
def eval_generation(
    text: Annotated[
        Path | None, typer.Option("--text", help="UTF-8 text to predict: perplexity and KL.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", help="Of: perplexity, hellaswag, truthfulqa, mmlu, gsm8k; comma-separated."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the files of the tasks.")
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option("--harness", help="Tasks for lm-evaluation-harness (extra lm-eval)."),
    ] = None,
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="First n questions of a task; of MMLU, of a subject."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="First n tokens of the text.")
    ] = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare base and adapters as generators: perplexity, KL to the base, benchmarks."""
    from sempa_mlx.commands.evaluate_generation import GenerationRequest, run_eval_generation
    from sempa_mlx.commands.generators import Generators

    names, asked = (tuple(each.split(",")) if each else () for each in (tasks, harness))
    request = GenerationRequest(names, text, data, limit, max_tokens, asked)
    generators = Generators(model, adapter_path or [], adapter_scale or [1.0], not no_base)
    run_eval_generation(console, generators, request, out=out)


@eval_app.command(
    "frontier",
    epilog="Example:  sempa-mlx eval frontier --adapter-path adapters --text wiki.txt --plot f.svg",
)
def eval_frontier(
    text: Annotated[Path, typer.Option("--text", help="UTF-8 text to predict.")],
    adapter_path: Annotated[
        Path, typer.Option("--adapter-path", help="Run folder with an adapter.")
    ] = Path("adapters"),
    model: ModelOption = None,
    adapter_scale: Annotated[
        list[float] | None,
        typer.Option("--adapter-scale", help="May be repeated. [default: 8 scales, 0 to 1.25]"),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="`stsb` (dev), `demo`, or a file of scored pairs.")
    ] = "stsb",
    pairs: Annotated[
        int | None, typer.Option("--pairs", min=2, help="So many, spread over the file. [all]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=2, help="First n tokens of the text.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it into this SVG file.")] = None,
    out: OutOption = None,
) -> None:
    """Show what an adapter's scale buys in STS and costs in perplexity, without training again."""
    from sempa_mlx.commands.evaluate_frontier import FrontierRequest, run_eval_frontier

    request = FrontierRequest(
        adapter_path, text, model, tuple(adapter_scale or ()), data, pairs, max_tokens
    )
    run_eval_frontier(console, request, plot=plot, out=out)


@eval_app.command("geometry", epilog="Example:  sempa-mlx eval geometry --adapter-path adapters")
def eval_geometry(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: SentencesOption = "hub",
    positives_from: Annotated[
        float, typer.Option("--positives-from", help="Pairs scored so high are positives.")
    ] = 4.0,
    layer: LayerOption = None,
    tuned: TunedOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare how base and adapters fill the space: alignment, uniformity, isotropy."""
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_geometry import run_eval_geometry
    from sempa_mlx.commands.vectors import VectorOptions

    methods = [] if no_base else method or ["prompteol"]
    options = VectorOptions(layer, tuned, post, post_fit)
    systems = Systems(model, adapter_path or [], adapter_scale or [1.0], methods, options=options)
    run_eval_geometry(console, systems, data, positives_from=positives_from, out=out)


@eval_app.command("tokens", epilog="Example:  sempa-mlx eval tokens --adapter-path adapters")
def eval_tokens(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: SentencesOption = "hub",
    top: Annotated[int, typer.Option("--top", min=1, help="K of Hit@K.")] = 10,
    show: Annotated[int, typer.Option("--show", min=0, help="Sentences to show.")] = 10,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare the words that embeddings of base and adapters lie closest to."""
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_tokens import run_eval_tokens

    methods = [] if no_base else method or ["prompteol"]
    systems = Systems(model, adapter_path or [], adapter_scale or [1.0], methods)
    run_eval_tokens(console, systems, data, top=top, show=show, out=out)


@data_app.command("check", epilog="Example:  sempa-mlx data check pairs.jsonl")
def data_check(file: Annotated[Path, typer.Argument(help="Preference file.")]) -> None:
    """Count the rows of a preference file and list every fault."""
    from sempa_mlx.commands.data import run_check

    run_check(console, file)


@data_app.command(
    "leaks", epilog="Example:  sempa-mlx data leaks pairs.jsonl --data hub --fail-over 0"
)
def data_leaks(
    train: Annotated[str, typer.Argument(help="Preference file, `nli` or `demo`.")],
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    candidates: Annotated[
        int, typer.Option("--candidates", min=2, max=3, help="3 looks at neutrals as well.")
    ] = 2,
    show: Annotated[int, typer.Option("--show", min=0, help="Sentences to show a task.")] = 5,
    out: OutOption = None,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over", min=0, max=1, help="Exit 1 if a larger share of a task's is leaked."
        ),
    ] = None,
) -> None:
    """Tell which sentences of STS test sets stand in training rows: exactly, nearly, and as what.

    --fail-over counts exact and normalised matches, not near ones.
    """
    from sempa_mlx.commands.leaks import LeakRequest, run_leaks

    names = tuple(tasks.split(",")) if tasks else None
    request = LeakRequest(train, data, names, protocol, candidates)
    run_leaks(console, request, show=show, out=out, fail_over=fail_over)


@data_app.command("download", epilog="Example:  sempa-mlx data download")
def data_download() -> None:
    """Fetch the NLI triplets and the STS sets, once."""
    from sempa_mlx.commands.data import run_download

    run_download(console)
