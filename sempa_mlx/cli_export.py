"""The commands `export` and `import-peft`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_checks import find_runs, finite
from sempa_mlx.cli_options import (
    ModelOption,
    console,
    examples,
    model_option,
)

export_app = typer.Typer()
fused_option = partial(typer.Option, rich_help_panel="Fused weights")
hub_option = partial(typer.Option, rich_help_panel="Hugging Face Hub")


@export_app.command(
    epilog=examples(
        "sempa-mlx export --to fused --adapter-path adapters --out fused",
        "sempa-mlx export --to peft --out peft --push owner/name --private",
    )
)
def export(
    to: Annotated[
        Literal["mlx", "peft", "fused", "encoder", "sentence-transformers", "sparse-autoencoder"],
        typer.Option(
            "--to",
            help="An adapter for mlx-lm or PEFT; base and adapter fused into one model; one folder "
            "with all that an encoder needs; a model, or a coder, for sentence-transformers.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="New folder.")],
    adapter_path: Annotated[
        Path, model_option("--adapter-path", callback=find_runs, help="Run folder.")
    ] = Path("adapters"),
    coder: Annotated[
        Path | None, model_option("--coder", help="Coder file, or run folder that holds one.")
    ] = None,
    model: Annotated[
        str | None,
        model_option("--model", help="Where the base lies now. [default: as the run says]"),
    ] = None,
    base: Annotated[
        str | None, model_option("--base", help="What others call the base: owner/model.")
    ] = None,
    adapter_scale: Annotated[
        float | None,
        model_option(
            "--adapter-scale", callback=finite, help="The dial. [default: the run folder's own]"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        fused_option("--dtype", help="float32, bfloat16, float16. [default: see docs/export.md]"),
    ] = None,
    q_bits: Annotated[int | None, fused_option("--q-bits", help="Quantise to 2 to 8 bits.")] = None,
    q_group_size: Annotated[
        int | None,
        fused_option("--q-group-size", help="Weights to a scale: 32, 64, 128. [default: 64]"),
    ] = None,
    max_error: Annotated[
        float | None,
        fused_option(
            "--max-error",
            help="How far logits of the fused model may be off, as a share of what the adapter "
            "changes. [default: 0.001 in float32, 0.1 in 16 bits, 0.5 quantised]",
        ),
    ] = None,
    push: Annotated[str | None, hub_option("--push", help="Upload it there: owner/name.")] = None,
    private: Annotated[bool, hub_option("--private", help="Push to a private repository.")] = False,
) -> None:
    """Write what was trained in a form that other programs read, or push it to the Hub."""
    from sempa_mlx.commands.export import ExportRequest, FuseOptions, run_export

    fuse = FuseOptions(dtype, q_bits, q_group_size, max_error)
    request = ExportRequest(
        *(to, out, adapter_path, coder, model, base, adapter_scale, fuse, push, private)
    )
    run_export(console, request)


@export_app.command(
    "import-peft",
    epilog=examples(
        "sempa-mlx import-peft sempa-llama --adapter-path adapters",
        "sempa-mlx import-peft sempa-llama --adapter-path adapters --model ./llama-2-7b",
    ),
)
def import_peft(
    folder: Annotated[Path, typer.Argument(help="Folder with an adapter of PEFT.")],
    adapter_path: Annotated[Path, typer.Option("--adapter-path", help="New adapter folder.")],
    model: ModelOption = None,
) -> None:
    """Turn a LoRA, rsLoRA or DoRA adapter of PEFT, such as SemPA's, into an adapter here."""
    from sempa_mlx.commands.import_peft import run_import_peft

    run_import_peft(console, folder, adapter_path, model)
