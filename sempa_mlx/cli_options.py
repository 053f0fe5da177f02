"""What several commands share: the console they print to, and options of one meaning."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sempa_mlx.cli_checks import find_runs, finite, place_to_write
from sempa_mlx.console import Console

console = Console()

# Options under the headings by which help groups them.
model_option = partial(typer.Option, rich_help_panel="Model")
embedding_option = partial(typer.Option, rich_help_panel="Embedding")
data_option = partial(typer.Option, rich_help_panel="Data")
output_option = partial(typer.Option, rich_help_panel="Output")


def examples(*commands: str) -> str:
    """Return what stands below a command's help: commands to copy, one a line."""
    return "\n\n".join(["Examples:", *(f"- {command}" for command in commands)])


def complete_recipe(incomplete: str) -> list[str]:
    """Complete the name of a recipe; where none fits, the shell completes files."""
    from sempa_mlx.config_recipes import list_recipes

    return [name for name in list_recipes() if name.startswith(incomplete)]


ModelOption = Annotated[
    str | None, model_option("--model", help="Alias, folder, Hub id or GGUF file.")
]
AdaptersOption = Annotated[
    list[Path] | None,
    model_option(
        "--adapter-path",
        callback=find_runs,
        help="Run folder with an adapter, or smollm2-135m-nli; may be repeated.",
    ),
]
ScalesOption = Annotated[
    list[float] | None,
    model_option(
        "--adapter-scale",
        callback=finite,
        help="0 = base, 1 = full adapter; may be repeated. [default: the run's own]",
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    embedding_option("--method", help="Method of the base; may be repeated. [default: prompteol]"),
]
SentencesOption = Annotated[
    str,
    data_option(
        "--data",
        help="`hub` or a folder of STS sets (STS-B test is used), a file of scored pairs "
        "(.tsv, .csv, .jsonl), or a text of one sentence a line.",
    ),
]
StsOption = Annotated[
    str, data_option("--data", help="`hub`, a folder of STS sets, or a file of scored pairs.")
]
TasksOption = Annotated[
    str | None,
    data_option(
        "--tasks",
        help="Comma-separated. `hub` also has BIOSSES, STS17, STS22, STSb-multi, whole or as "
        "STS17/en-de. [default: the seven]",
    ),
]
ProtocolOption = Annotated[
    Literal["senteval", "mteb"] | None,
    data_option("--protocol", help="How the seven sets are read. [default: senteval]"),
]
LayerOption = Annotated[
    int | None,
    embedding_option(
        "--layer", help="Read states after this many blocks; -1 = final. [default: the method's]"
    ),
]
TunedOption = Annotated[
    Path | None, embedding_option("--tuned", help="File of parameters found by eval sts --tune.")
]
PostOption = Annotated[
    str | None,
    embedding_option(
        "--post",
        help="abtt, abtt:N, standardize or whiten (fitted once), or a fitted .safetensors.",
    ),
]
PostFitOption = Annotated[
    Path | None,
    embedding_option(
        "--post-fit", help="Unlabelled texts to fit --post to. [default: anchors of NLI]"
    ),
]
NoBaseOption = Annotated[bool, model_option("--no-base", help="Measure the adapters only.")]
SparseOption = Annotated[
    Path | None,
    embedding_option("--sparse", help="Sparse coder: its file, or the run folder that holds one."),
]
RunOption = Annotated[
    Path | None,
    model_option(
        "--adapter-path",
        callback=find_runs,
        help="Run folder. [default: ./adapters if there, else smollm2-135m-nli]",
    ),
]
ScaleOption = Annotated[
    float | None,
    model_option(
        "--adapter-scale",
        callback=finite,
        help="The dial: 0 = base, 1 = full adapter. [default: the run's own]",
    ),
]
MethodOption = Annotated[
    str | None,
    embedding_option("--method", help="Embedding method. [default: the run's own, else prompteol]"),
]
OutOption = Annotated[
    Path | None,
    output_option("--out", callback=place_to_write, help="Write the results here as JSON."),
]
ForceOption = Annotated[bool, output_option("--force", help="Replace what is there.")]
FormatOption = Annotated[
    str | None,
    output_option(
        "--format",
        help="npy, npz, jsonl, csv, safetensors or parquet; with --sparse: npz, safetensors or "
        "jsonl. [default: as -o ends]",
    ),
]
PrecisionOption = Annotated[
    Literal["int8", "binary"] | None,
    output_option("--precision", help="Codes of a byte or a bit a number beside a .npy."),
]
