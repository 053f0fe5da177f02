"""The command line: parse, build the settings, make one call, print.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_boundary import answer
from sempa_mlx.cli_checks import find_runs
from sempa_mlx.cli_config import config_app
from sempa_mlx.cli_data import data_app
from sempa_mlx.cli_export import export_app
from sempa_mlx.cli_groups import eval_app
from sempa_mlx.cli_options import (
    ForceOption,
    FormatOption,
    LayerOption,
    MethodOption,
    ModelOption,
    PostFitOption,
    PostOption,
    PrecisionOption,
    RunOption,
    ScaleOption,
    SparseOption,
    TunedOption,
    console,
    embedding_option,
    examples,
    model_option,
    output_option,
)
from sempa_mlx.cli_paraphrase import paraphrase_app
from sempa_mlx.cli_report import report_app
from sempa_mlx.cli_serve import serve_app
from sempa_mlx.cli_sparse import sparse_app
from sempa_mlx.cli_train import train_app
from sempa_mlx.commands.group import Commands
from sempa_mlx.console import Mode

HELP = """Turn one small language model into a generator that also embeds (SemPA on MLX).

Exit codes: 0 done, 1 run failed, 2 usage or settings, 3 bad data, 4 memory or disk,
130 and 143 interrupted.
--json, --quiet and --debug may stand anywhere on the line.
"""
GLOBAL_FLAGS = ("--json", "--quiet", "--debug")

app = typer.Typer(
    cls=Commands,
    rich_markup_mode="markdown",  # the other mode swallows [words in brackets]
    help=HELP,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_app)
app.add_typer(report_app)
app.add_typer(export_app)
app.add_typer(paraphrase_app)
app.add_typer(serve_app)
app.add_typer(eval_app, name="eval")
app.add_typer(sparse_app, name="sparse")
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        from sempa_mlx.runtime import package_versions

        console.result("\n".join(f"{name} {found}" for name, found in package_versions().items()))
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show versions.")
    ] = False,
    json_mode: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the bare result only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Take the options that every command has."""


@app.command(
    epilog=examples(
        "sempa-mlx embed notes.txt",
        "cat notes.txt | sempa-mlx embed - > notes.jsonl",
        "sempa-mlx embed notes.txt --adapter-path adapters --update",
        "sempa-mlx embed notes.txt --sparse coder.safetensors --k 32",
    )
)
def embed(
    file: Annotated[str, typer.Argument(help="A text a line; `-` reads stdin.")],
    out: Annotated[
        str | None, output_option("-o", "--out", help="Output file. [default: FILE.npy]")
    ] = None,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
    layer: LayerOption = None,
    tuned: TunedOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    normalize: Annotated[
        bool | None,
        embedding_option("--normalize/--no-normalize", help="Unit length. [default: yes]"),
    ] = None,
    truncate_dim: Annotated[
        int | None,
        embedding_option("--truncate-dim", help="First n numbers of a vector. [default: all]"),
    ] = None,
    sparse: SparseOption = None,
    k: Annotated[
        int | None, embedding_option("--k", min=1, help="Values of a code. [default: the coder's]")
    ] = None,
    file_format: FormatOption = None,
    batch_tokens: Annotated[
        int,
        embedding_option("--batch-tokens", min=64, help="Tokens of one batch, padding counted."),
    ] = 4096,
    update: Annotated[
        bool, output_option("--update", help="Embed new lines only; keep vectors of the others.")
    ] = False,
    precision: PrecisionOption = None,
    force: ForceOption = False,
) -> None:
    """Turn each line of a text file into a vector, or into a sparse code."""
    from sempa_mlx.commands.embed import EmbedRequest, run_embed
    from sempa_mlx.commands.embed_sparse import SparseOptions
    from sempa_mlx.commands.vectors import VectorOptions

    options = VectorOptions(layer, tuned, post, post_fit)
    request = EmbedRequest(
        *(file, out, file_format, model, adapter_path, adapter_scale, method),
        *(normalize, truncate_dim, options, SparseOptions(sparse, k), update, precision),
    )
    run_embed(console, request, batch_tokens=batch_tokens, force=force)


@app.command(
    epilog=examples(
        'sempa-mlx search notes.txt.npz "a cat on a stone" -k 5',
        "cat queries.txt | sempa-mlx search notes.txt.npy - --texts notes.txt --json",
    )
)
def search(
    store: Annotated[Path, typer.Argument(help="What `embed` wrote.")],
    query: Annotated[str, typer.Argument(help="A text; `-` reads one a line from stdin.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Lines of each query.")] = 5,
    texts: Annotated[
        Path | None, output_option("--texts", help="The text file, to show lines of a .npy.")
    ] = None,
    model: ModelOption = None,
    adapter_path: Annotated[
        Path | None,
        model_option("--adapter-path", callback=find_runs, help="Where the run folder lies now."),
    ] = None,
    sparse: SparseOption = None,
    post: Annotated[
        Path | None, embedding_option("--post", help="Where the fitted map of a .npy lies now.")
    ] = None,
    precision: PrecisionOption = None,
    rescore: Annotated[
        int | None,
        typer.Option("--rescore", min=1, help="Candidates of codes for each hit. [default: 8]"),
    ] = None,
) -> None:
    """Find the lines of an embedded file that are nearest to a text.

    Model, adapter and coder are those that made the file; it knows where they are.
    """
    from sempa_mlx.commands.search import SearchRequest, run_search

    request = SearchRequest(
        *(store, query, k, texts, model, adapter_path, sparse, post, precision, rescore)
    )
    run_search(console, request)


@app.command(epilog=examples("sempa-mlx doctor", "sempa-mlx doctor --json"))
def doctor() -> None:
    """Show what this machine can do, and what is missing."""
    from sempa_mlx.commands.doctor import run_doctor

    run_doctor(console)


@app.command(epilog=examples("sempa-mlx demo", "sempa-mlx demo --folder /tmp/sempa-demo"))
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where to write.")] = Path("sempa-demo"),
) -> None:
    """Train, compare, embed and search on the embedded model and the demo data."""
    from sempa_mlx.commands.demo import run_demo

    run_demo(console, folder)


def main() -> None:
    """Run the program; every error becomes one clear message and its exit code."""
    atexit.register(_let_go_of_streams)
    arguments = sys.argv[1:]
    flags = {flag for flag in GLOBAL_FLAGS if flag in arguments}
    mode: Mode = "json" if "--json" in flags else "quiet" if "--quiet" in flags else "human"
    console.mode = mode
    debug = "--debug" in flags or bool(os.environ.get("SEMPA_DEBUG"))
    line = [arg for arg in arguments if arg not in flags]
    sys.exit(answer(lambda: app(args=line, prog_name="sempa-mlx"), console, debug=debug))


def _let_go_of_streams() -> None:
    # MLX wants every thread that used it to do this before it ends, the main thread too; after it
    # the thread can compute no more, so it comes last of all.
    if mlx := sys.modules.get("mlx.core"):
        mlx.clear_streams()
