"""The commands `export` and `import-peft`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_options import ModelOption, console

export_app = typer.Typer()


@export_app.command(
    epilog="Example:  sempa-mlx export --to fused --adapter-path adapters --out fused   |   "
    "sempa-mlx export --to peft --out peft --push owner/name --private"
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
    adapter_path: Annotated[Path, typer.Option("--adapter-path")] = Path("adapters"),
    coder: Annotated[
        Path | None, typer.Option("--coder", help="Coder file, or run folder that holds one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the base lies now. [as the run says]")
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="What others call the base: owner/model.")
    ] = None,
    adapter_scale: Annotated[
        float | None, typer.Option("--adapter-scale", help="The dial. [the run folder's own]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Of fused weights: float32, bfloat16, float16. [the base's]"),
    ] = None,
    q_bits: Annotated[
        int | None, typer.Option("--q-bits", help="Quantise fused weights: 2 to 8 bits.")
    ] = None,
    q_group_size: Annotated[
        int | None, typer.Option("--q-group-size", help="Weights to a scale: 32, 64, 128. [64]")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            help="How far logits of the fused model may be off, as a share of what the adapter "
            "changes. [0.001 in float32, 0.1 in 16 bits, 0.5 quantised]",
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="Upload it to the Hub: owner/name.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Push to a private repository.")] = (
        False
    ),
) -> None:
    """Write what was trained in a form that other programs read, or push it to the Hub."""
    from sempa_mlx.commands.export import ExportRequest, FuseOptions, run_export

    fuse = FuseOptions(dtype, q_bits, q_group_size, max_error)
    request = ExportRequest(
        *(to, out, adapter_path, coder, model, base, adapter_scale, fuse, push, private)
    )
    run_export(console, request)


@export_app.command(
    "import-peft", epilog="Example:  sempa-mlx import-peft sempa-llama --adapter-path adapters"
)
def import_peft(
    folder: Annotated[Path, typer.Argument(help="Folder with an adapter of PEFT.")],
    adapter_path: Annotated[Path, typer.Option("--adapter-path", help="New adapter folder.")],
    model: ModelOption = None,
) -> None:
    """Turn a LoRA, rsLoRA or DoRA adapter of PEFT, such as SemPA's, into an adapter here."""
    from sempa_mlx.commands.import_peft import run_import_peft

    run_import_peft(console, folder, adapter_path, model)
