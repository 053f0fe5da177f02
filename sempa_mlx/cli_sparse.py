"""The commands `sparse fit`, `sparse explain` and `eval sparse`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_groups import eval_app
from sempa_mlx.cli_options import (
    ForceOption,
    MethodOption,
    ModelOption,
    OutOption,
    ProtocolOption,
    RunOption,
    ScaleOption,
    StsOption,
    TasksOption,
    console,
    data_option,
    examples,
    output_option,
)

sparse_app = typer.Typer(help="Sparse codes of embeddings (SPOD): fit a coder, look inside.")


coder_option = partial(typer.Option, rich_help_panel="Coder")
fitting_option = partial(typer.Option, rich_help_panel="Fitting")


@sparse_app.command(
    "fit",
    epilog=examples(
        "sempa-mlx sparse fit --data nli.jsonl --out coder.safetensors --k 32",
        "sempa-mlx sparse fit --data notes.txt --out words.safetensors --coder lexical",
    ),
)
def sparse_fit(
    data: Annotated[
        str,
        data_option(
            "--data",
            help="Preference file, `nli` or `demo` (codes of paraphrases are drawn together), or a "
            "text of one sentence a line.",
        ),
    ],
    out: Annotated[Path, output_option("-o", "--out", help="The coder, a .safetensors file.")],
    coder: Annotated[
        Literal["topk", "fista", "lexical"],
        coder_option(
            "--coder",
            help="topk: learned, tied; fista: learned dictionary; lexical: the model's own tokens.",
        ),
    ] = "topk",
    k: Annotated[int, coder_option("--k", min=1, help="Values of a code.")] = 32,
    hidden: Annotated[
        int | None, coder_option("--hidden", min=1, help="Latents. [default: 4 a dimension]")
    ] = None,
    sentences: Annotated[
        int, data_option("--sentences", min=2, help="Distinct sentences to fit to, at most.")
    ] = 15_000,
    epochs: Annotated[int, fitting_option("--epochs", min=1, help="Passes over them.")] = 3,
    batch_size: Annotated[
        int, fitting_option("--batch-size", min=1, help="Sentences a step.")
    ] = 1024,
    learning_rate: Annotated[float, fitting_option("--learning-rate", help="Adam's; topk.")] = 4e-4,
    preference: Annotated[
        float, fitting_option("--preference", min=0, help="Weight of the ranking of codes; topk.")
    ] = 1.0,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
    seed: Annotated[int, fitting_option("--seed", min=0, help="Order and start values.")] = 0,
    force: ForceOption = False,
) -> None:
    """Fit a sparse coder to a model's embeddings; the model stays as it is."""
    from sempa_mlx.commands.sparse import System, run_sparse_fit
    from sempa_mlx.config_recipes import recipe_path
    from sempa_mlx.config_resolve import resolve_config

    given = {
        "--coder": ("sparse.coder", coder),
        "--k": ("sparse.k", k),
        "--hidden": ("sparse.hidden", hidden),
        "--sentences": ("sparse.sentences", sentences),
        "--epochs": ("sparse.epochs", epochs),
        "--batch-size": ("sparse.batch_size", batch_size),
        "--learning-rate": ("sparse.learning_rate", learning_rate),
        "--preference": ("sparse.preference", preference),
    }
    settings = resolve_config(recipe_path("demo"), flags=given).config.sparse
    system = System(model, adapter_path, adapter_scale, method)
    run_sparse_fit(console, system, data, settings, out, seed=seed, force=force)


@sparse_app.command(
    "explain",
    epilog=examples(
        'sempa-mlx sparse explain "A dog runs." --coder coder.safetensors',
        'sempa-mlx sparse explain "A dog runs." "A cat sleeps." --coder adapters --top 5',
    ),
)
def sparse_explain(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Any number of texts.")],
    coder: Annotated[
        Path, typer.Option("--coder", help="Coder file, or run folder that holds one.")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Latents to show.")] = 8,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
) -> None:
    """Show the strongest latents of a text: their words, and sentences that fire them."""
    from sempa_mlx.commands.sparse import System, run_sparse_explain

    system = System(model, adapter_path, adapter_scale, method)
    run_sparse_explain(console, system, coder, texts, top=top)


@eval_app.command(
    "sparse",
    epilog=examples(
        "sempa-mlx eval sparse --coder coder.safetensors --pairs nli-dev.jsonl",
        "sempa-mlx eval sparse --coder adapters --k 16 --k 32 --data sts --out sparse.json",
    ),
)
def eval_sparse(
    coder: Annotated[
        list[Path],
        typer.Option("--coder", help="Coder file, or run folder that holds one; may be repeated."),
    ],
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k", min=1, help="Values of a code; may be repeated. [default: 1, 2, 4 to 128]"
        ),
    ] = None,
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    fit: Annotated[
        Path | None,
        data_option(
            "--fit", help="Unlabelled texts to fit mean, PCA, int8 to. [default: anchors of NLI]"
        ),
    ] = None,
    pairs: Annotated[
        str | None,
        data_option("--pairs", help="Preference file, `nli` or `demo`: find best candidates."),
    ] = None,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
    out: OutOption = None,
) -> None:
    """Compare sparse codes with PCA, cutting, int8 and signs at equal bytes (Spearman x 100)."""
    from sempa_mlx.commands.evaluate_sparse import SparseRequest, run_eval_sparse
    from sempa_mlx.commands.sparse import System
    from sempa_mlx.evaluation.compression import KS

    names = tuple(tasks.split(",")) if tasks else None
    request = SparseRequest(coder, k or KS, data, names, protocol, fit, pairs)
    system = System(model, adapter_path, adapter_scale, method)
    run_eval_sparse(console, system, request, out=out)
