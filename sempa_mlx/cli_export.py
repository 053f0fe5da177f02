"""The commands that carry models elsewhere, and from there: `export` and `import-peft`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_options import ModelOption, console


def export(
    to: Annotated[
        Literal["mlx", "peft", "fused", "encoder", "sparse-autoencoder"],
        typer.Option(
            "--to",
            help="mlx and peft: an adapter. fused: a model. encoder: all in one folder. "
            "sparse-autoencoder: a coder for sentence-transformers.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    adapter_path: Annotated[
        Path, typer.Option("--adapter-path", help="Run folder, or another adapter folder.")
    ] = Path("adapters"),
    adapter_scale: Annotated[
        float | None,
        typer.Option("--adapter-scale", min=0, help="The dial, put into the weights. [the run's]"),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="What a PEFT adapter names as its base.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16 or float16. [default: float32]"),
    ] = None,
    q_bits: Annotated[
        int | None, typer.Option("--q-bits", help="Quantise a fused model; proved on real text.")
    ] = None,
    q_group_size: Annotated[
        int | None, typer.Option("--q-group-size", help="Weights that share a scale. [default: 64]")
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            min=0,
            help="Of a fused model, as a share of the adapter's effect. [default: 0.1]",
        ),
    ] = None,
    coder: Annotated[
        Path | None, typer.Option("--coder", help="Coder file, or run folder that holds one.")
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", help="OWNER/NAME on the Hub to upload the folder to.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make that repository a private one.")
    ] = False,
) -> None:
    """Write an adapter, or base and adapter as one, in a form that other programs read."""
    from sempa_mlx.commands.export import ExportRequest, run_export

    packing = {"dtype": dtype, "bits": q_bits, "group_size": q_group_size}
    run_export(
        console,
        ExportRequest(
            *(to, out, adapter_path, coder, base, adapter_scale, packing),
            *(max_error, push, private),
        ),
    )


def import_peft(
    source: Annotated[
        Path, typer.Argument(help="Folder with adapter_model.safetensors and its config.")
    ],
    out: Annotated[Path, typer.Option("--adapter-path", help="Folder to write.")] = Path(
        "adapters"
    ),
    model: ModelOption = None,
) -> None:
    """Turn a PEFT LoRA, rsLoRA or DoRA into an adapter folder that every command here takes."""
    from sempa_mlx.commands.export import run_import_peft

    run_import_peft(console, source, out, model)


def add_to(app: typer.Typer) -> None:
    """Put the commands on the program's command line."""
    app.command(
        epilog="Example:  sempa-mlx export --to peft --adapter-path adapters --out peft   |   "
        "sempa-mlx export --to fused --out model --q-bits 8"
    )(export)
    app.command(
        "import-peft", epilog="Example:  sempa-mlx import-peft SemPA-Qwen --adapter-path sempa"
    )(import_peft)
