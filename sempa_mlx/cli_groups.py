"""The commands `eval sts`, `eval geometry` and `eval tokens`."""

from functools import partial
from typing import Annotated

import typer

from sempa_mlx.cli_checks import refuse_unused
from sempa_mlx.cli_generation import generation_app
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
    data_option,
    embedding_option,
    examples,
    output_option,
)

eval_app = typer.Typer(help="Measure what training did.")


eval_app.add_typer(generation_app)
tuning_option = partial(typer.Option, rich_help_panel="Tuning")


def _of_systems(
    adapters: object, scales: object, methods: object, *, no_base: bool
) -> tuple[tuple[str, object, object, str], ...]:
    """Return what `refuse_unused` is to know of options that base and adapters share."""
    return (
        ("--adapter-scale", scales, adapters, "--adapter-path"),
        ("--method", methods, not no_base, "the base, which --no-base leaves out"),
    )


@eval_app.command(
    "sts",
    epilog=examples(
        "sempa-mlx eval sts --data hub --adapter-path adapters",
        "sempa-mlx eval sts --data pairs.tsv --method prompteol --method mean --details",
        "sempa-mlx eval sts --adapter-path adapters --adapter-scale 0.5 --out sts.json",
    ),
)
def eval_sts(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    details: Annotated[
        bool, output_option("--details", help="Print intervals, subsets, and paired tests as well.")
    ] = False,
    adapter_method: Annotated[
        list[str] | None,
        embedding_option(
            "--adapter-method",
            help="Methods of the adapters; may be repeated. [default: their own]",
        ),
    ] = None,
    layer: LayerOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    tune: Annotated[
        bool, tuning_option("--tune", help="First find the methods' parameters on STS-B dev.")
    ] = False,
    tune_pairs: Annotated[
        int | None,
        tuning_option("--tune-pairs", min=2, help="Dev pairs to tune on. [default: all]"),
    ] = None,
    tuned: TunedOption = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
    fail_under: Annotated[
        float | None, output_option("--fail-under", help="Exit 1 if the best average is lower.")
    ] = None,
) -> None:
    """Compare base and adapters on the seven STS tasks, or on your own pairs (Spearman x 100)."""
    refuse_unused(
        *_of_systems(adapter_path, adapter_scale, method, no_base=no_base),
        ("--adapter-method", adapter_method, adapter_path, "--adapter-path"),
        ("--tune-pairs", tune_pairs, tune, "--tune"),
    )
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_sts import run_eval_sts
    from sempa_mlx.commands.tune import tune_first
    from sempa_mlx.commands.vectors import VectorOptions

    methods = [] if no_base else method or ["prompteol"]
    systems = Systems(
        *(model, adapter_path or [], adapter_scale or [], methods),
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
    "geometry",
    epilog=examples(
        "sempa-mlx eval geometry --adapter-path adapters",
        "sempa-mlx eval geometry --data notes.txt --method prompteol --method mean",
    ),
)
def eval_geometry(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: SentencesOption = "hub",
    positives_from: Annotated[
        float, data_option("--positives-from", help="Pairs scored so high are positives.")
    ] = 4.0,
    layer: LayerOption = None,
    tuned: TunedOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare how base and adapters fill the space: alignment, uniformity, isotropy."""
    refuse_unused(*_of_systems(adapter_path, adapter_scale, method, no_base=no_base))
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_geometry import run_eval_geometry
    from sempa_mlx.commands.vectors import VectorOptions

    methods = [] if no_base else method or ["prompteol"]
    options = VectorOptions(layer, tuned, post, post_fit)
    systems = Systems(model, adapter_path or [], adapter_scale or [], methods, options=options)
    run_eval_geometry(console, systems, data, positives_from=positives_from, out=out)


@eval_app.command(
    "tokens",
    epilog=examples(
        "sempa-mlx eval tokens --adapter-path adapters",
        "sempa-mlx eval tokens --data notes.txt --top 5 --out tokens.json",
    ),
)
def eval_tokens(
    model: ModelOption = None,
    adapter_path: AdaptersOption = None,
    adapter_scale: ScalesOption = None,
    method: MethodsOption = None,
    data: SentencesOption = "hub",
    top: Annotated[int, output_option("--top", min=1, help="K of Hit@K.")] = 10,
    show: Annotated[int, output_option("--show", min=0, help="Sentences to show.")] = 10,
    no_base: NoBaseOption = False,
    out: OutOption = None,
) -> None:
    """Compare the words that embeddings of base and adapters lie closest to."""
    refuse_unused(*_of_systems(adapter_path, adapter_scale, method, no_base=no_base))
    from sempa_mlx.commands.evaluate import Systems
    from sempa_mlx.commands.evaluate_tokens import run_eval_tokens

    methods = [] if no_base else method or ["prompteol"]
    systems = Systems(model, adapter_path or [], adapter_scale or [], methods)
    run_eval_tokens(console, systems, data, top=top, show=show, out=out)
