"""What several commands share: the console they print to, and options of one meaning."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.console import Console

console = Console()


def examples(*commands: str) -> str:
    """Return what stands below a command's help: commands to copy, one a line."""
    return "\n\n".join(["Examples:", *(f"- {command}" for command in commands)])


def complete_recipe(incomplete: str) -> list[str]:
    """Complete the name of a recipe; where none fits, the shell completes files."""
    from sempa_mlx.config_recipes import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


ModelOption = Annotated[
    str | None, typer.Option("--model", help="Alias, folder, Hub id or GGUF file.")
]
AdaptersOption = Annotated[
    list[Path] | None,
    typer.Option("--adapter-path", help="Run folder with an adapter; may be repeated."),
]
ScalesOption = Annotated[
    list[float] | None,
    typer.Option(
        "--adapter-scale", help="0 = base, 1 = full adapter; may be repeated. [default: 1]"
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="Method of the base; may be repeated. [default: prompteol]"),
]
SentencesOption = Annotated[
    str,
    typer.Option(
        "--data",
        help="`hub` or a folder of STS sets (STS-B test is used), a file of scored pairs "
        "(.tsv, .csv, .jsonl), or a text of one sentence a line.",
    ),
]
StsOption = Annotated[
    str, typer.Option("--data", help="`hub`, a folder of STS sets, or a file of scored pairs.")
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help="Comma-separated; none: the seven. `hub` also has BIOSSES, STS17, STS22, STSb-multi, "
        "whole or as STS17/en-de.",
    ),
]
ProtocolOption = Annotated[
    Literal["senteval", "mteb"] | None,
    typer.Option("--protocol", help="How the seven sets are read; senteval unless told."),
]
LayerOption = Annotated[
    int | None,
    typer.Option("--layer", help="Read states after this many blocks; -1 = final. [the method's]"),
]
TunedOption = Annotated[
    Path | None, typer.Option("--tuned", help="File of parameters found by eval sts --tune.")
]
PostOption = Annotated[
    str | None,
    typer.Option(
        "--post",
        help="abtt, abtt:N, standardize or whiten (fitted once), or a fitted .safetensors.",
    ),
]
PostFitOption = Annotated[
    Path | None,
    typer.Option("--post-fit", help="Unlabelled texts to fit --post to. [anchors of NLI]"),
]
NoBaseOption = Annotated[bool, typer.Option("--no-base", help="Measure the adapters only.")]
SparseOption = Annotated[
    Path | None,
    typer.Option("--sparse", help="Sparse coder: its file, or the run folder that holds one."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Write the results here as JSON.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
PrecisionOption = Annotated[
    Literal["int8", "binary"] | None,
    typer.Option("--precision", help="Codes of a byte or a bit a number beside a .npy."),
]
