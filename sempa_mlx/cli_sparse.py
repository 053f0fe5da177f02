"""The commands `sparse fit`, `sparse explain` and `eval sparse`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_groups import eval_app
from sempa_mlx.cli_options import (
    ForceOption,
    ModelOption,
    OutOption,
    ProtocolOption,
    StsOption,
    TasksOption,
    console,
)

sparse_app = typer.Typer(help="Sparse codes of embeddings (SPOD): fit a coder, look inside.")

RunOption = Annotated[
    Path | None, typer.Option("--adapter-path", help="Run folder. [./adapters if there]")
]
ScaleOption = Annotated[float | None, typer.Option("--adapter-scale", help="The dial.")]
MethodOption = Annotated[str | None, typer.Option("--method", help="Embedding method.")]


@sparse_app.command(
    "fit", epilog="Example:  sempa-mlx sparse fit --data nli.jsonl --out coder.safetensors --k 32"
)
def sparse_fit(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Preference file, `nli` or `demo` (codes of paraphrases are drawn together), or a "
            "text of one sentence a line.",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The coder, a .safetensors file.")],
    coder: Annotated[
        Literal["topk", "fista", "lexical"],
        typer.Option(
            "--coder",
            help="topk: learned, tied; fista: learned dictionary; lexical: the model's own tokens.",
        ),
    ] = "topk",
    k: Annotated[int, typer.Option("--k", min=1, help="Values of a code.")] = 32,
    hidden: Annotated[
        int | None, typer.Option("--hidden", min=1, help="Latents. [4 a dimension]")
    ] = None,
    sentences: Annotated[
        int, typer.Option("--sentences", min=2, help="Distinct sentences to fit to, at most.")
    ] = 15_000,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 3,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Sentences a step.")
    ] = 1024,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="Adam's; topk.")] = 4e-4,
    preference: Annotated[
        float, typer.Option("--preference", min=0, help="Weight of the ranking of codes; topk.")
    ] = 1.0,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    force: ForceOption = False,
) -> None:
    """Fit a sparse coder to a model's embeddings; the model stays as it is."""
    from sempa_mlx.commands.sparse import System, run_sparse_fit
    from sempa_mlx.config import SparseConfig

    settings = SparseConfig(
        coder=coder,
        k=k,
        hidden=hidden,
        sentences=sentences,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        preference=preference,
    )
    system = System(model, adapter_path, adapter_scale, method)
    run_sparse_fit(console, system, data, settings, out, seed=seed, force=force)


@sparse_app.command(
    "explain",
    epilog='Example:  sempa-mlx sparse explain "A dog runs." --coder coder.safetensors',
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
    epilog="Example:  sempa-mlx eval sparse --coder coder.safetensors --pairs nli-dev.jsonl",
)
def eval_sparse(
    coder: Annotated[
        list[Path],
        typer.Option("--coder", help="Coder file, or run folder that holds one; may be repeated."),
    ],
    k: Annotated[
        list[int] | None,
        typer.Option("--k", min=1, help="Values of a code; may be repeated. [1, 2, 4 to 128]"),
    ] = None,
    data: StsOption = "hub",
    tasks: TasksOption = None,
    protocol: ProtocolOption = None,
    fit: Annotated[
        Path | None,
        typer.Option("--fit", help="Unlabelled texts to fit mean, PCA, int8 to. [anchors of NLI]"),
    ] = None,
    pairs: Annotated[
        str | None,
        typer.Option("--pairs", help="Preference file, `nli` or `demo`: find best candidates."),
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
