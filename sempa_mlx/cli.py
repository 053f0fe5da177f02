"""The command line: parse, build the settings, make one call, print.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sempa_mlx.cli_config import config_app
from sempa_mlx.cli_export import export_app
from sempa_mlx.cli_groups import data_app, eval_app
from sempa_mlx.cli_options import (
    ForceOption,
    LayerOption,
    ModelOption,
    PostFitOption,
    PostOption,
    PrecisionOption,
    SparseOption,
    TunedOption,
    complete_recipe,
    console,
)
from sempa_mlx.cli_serve import serve_app
from sempa_mlx.cli_sparse import sparse_app
from sempa_mlx.commands.group import Commands, ReaderGoneError
from sempa_mlx.console import Mode
from sempa_mlx.errors import SempaError, unexpected

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
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(export_app)
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
    epilog="Example:  sempa-mlx train   |   sempa-mlx train --data pairs.jsonl --iters 100"
)
def train(
    config: Annotated[
        str | None,
        typer.Option("-c", "--config", help="Recipe or file.", autocompletion=complete_recipe),
    ] = None,
    model: ModelOption = None,
    data: Annotated[str | None, typer.Option("--data", help="File, `nli` or `demo`.")] = None,
    adapter_path: Annotated[
        str | None, typer.Option("--adapter-path", help="Run folder. [default: adapters]")
    ] = None,
    iters: Annotated[int | None, typer.Option("--iters", help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", help="Pairs a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak.")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="DPO's beta.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Order and initialisation.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: section.key=value.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --adapter-path.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, start nothing.")] = False,
    force: ForceOption = False,
) -> None:
    """Train an adapter on paraphrase preferences; the best step on STS dev is kept.

    Without arguments: ./sempa.yaml if there is one, else the built-in recipe.
    """
    from sempa_mlx.commands.train import TrainRequest, run_train

    flags = {
        "--model": ("model.name", model),
        "--data": ("data.train", data),
        "--adapter-path": ("output.path", adapter_path),
        "--iters": ("train.iters", iters),
        "--batch-size": ("train.batch_size", batch_size),
        "--learning-rate": ("train.learning_rate", learning_rate),
        "--beta": ("objective.beta", beta),
        "--seed": ("train.seed", seed),
    }
    given: dict[str, tuple[str, Any]] = {k: v for k, v in flags.items() if v[1] is not None}
    run_train(console, TrainRequest(config, sets or [], given, dry_run, force, resume))


@app.command(
    epilog="Example:  sempa-mlx embed notes.txt   |   cat a.txt | sempa-mlx embed - > a.jsonl   "
    "|   sempa-mlx embed notes.txt --sparse coder.safetensors --k 32"
)
def embed(
    file: Annotated[str, typer.Argument(help="A text a line; `-` reads stdin.")],
    out: Annotated[str | None, typer.Option("-o", "--out", help="Output file. [FILE.npy]")] = None,
    model: ModelOption = None,
    adapter_path: Annotated[
        Path | None, typer.Option("--adapter-path", help="Run folder. [./adapters if there]")
    ] = None,
    adapter_scale: Annotated[
        float | None, typer.Option("--adapter-scale", help="The dial.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Embedding method.")] = None,
    layer: LayerOption = None,
    tuned: TunedOption = None,
    post: PostOption = None,
    post_fit: PostFitOption = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Unit length. [default: yes]")
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option("--truncate-dim", help="First n.")] = None,
    sparse: SparseOption = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Values of a code. [the coder's]")
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="npy or jsonl; with --sparse: npz, safetensors or jsonl."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=64)] = 4096,
    update: Annotated[
        bool, typer.Option("--update", help="Embed new lines only; keep vectors of the others.")
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
    epilog='Example:  sempa-mlx search notes.txt.npz "a cat on a stone" -k 5   |   '
    "cat queries.txt | sempa-mlx search notes.txt.npy - --texts notes.txt --json"
)
def search(
    store: Annotated[Path, typer.Argument(help="What `embed` wrote: .npy, .npz, .safetensors.")],
    query: Annotated[str, typer.Argument(help="A text; `-` reads one a line from stdin.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Lines of each query.")] = 5,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="The text file, to show lines of a .npy.")
    ] = None,
    model: ModelOption = None,
    adapter_path: Annotated[
        Path | None, typer.Option("--adapter-path", help="Where the run folder lies now.")
    ] = None,
    sparse: SparseOption = None,
    post: Annotated[
        Path | None, typer.Option("--post", help="Where the fitted map of a .npy lies now.")
    ] = None,
    precision: PrecisionOption = None,
    rescore: Annotated[
        int | None,
        typer.Option("--rescore", min=1, help="Candidates of the codes for each hit. [8]"),
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


@app.command(epilog="Example:  sempa-mlx report adapters --results sts.json")
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="`hub` or a folder of STS sets (STS-B test), or a file of scored pairs. "
            "[the run's dev pairs]",
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option("--pairs", min=2, help="So many, spread over the file.")
    ] = 200,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="What `eval ... --out` wrote; may be repeated."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Load the model and measure.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write. [RUN/report.html]")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write one HTML page about a run: curves, scores, geometry, maps, words, settings."""
    from sempa_mlx.commands.report import ReportRequest, run_report

    request = ReportRequest(run, data, pairs, results or [], measure)
    run_report(console, request, out=out, force=force)


@app.command()
def doctor() -> None:
    """Show what this machine can do, and what is missing."""
    from sempa_mlx.commands.doctor import run_doctor

    run_doctor(console)


@app.command(epilog="Example:  sempa-mlx demo --folder sempa-demo")
def demo(
    folder: Annotated[Path, typer.Option("--folder", help="Where to write.")] = Path("sempa-demo"),
) -> None:
    """Train, compare, embed and search on the embedded model and the demo data."""
    from sempa_mlx.commands.demo import run_demo

    run_demo(console, folder)


def main() -> None:
    """Run the program: every error becomes one clear message and its exit code."""
    arguments = sys.argv[1:]
    flags = {flag for flag in GLOBAL_FLAGS if flag in arguments}
    mode: Mode = "json" if "--json" in flags else "quiet" if "--quiet" in flags else "human"
    console.mode = mode
    debug = "--debug" in flags or bool(os.environ.get("SEMPA_DEBUG"))
    try:
        app(args=[arg for arg in arguments if arg not in flags], prog_name="sempa-mlx")
    except SempaError as error:
        if debug:
            raise
        console.error(error)
        sys.exit(error.exit_code)
    except ReaderGoneError:  # such as `head`: not our error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # the boundary: nothing may reach the user raw
        if debug:
            raise
        console.error(unexpected(error))
        sys.exit(1)
    finally:
        _let_go_of_streams()


def _let_go_of_streams() -> None:
    # MLX wants every thread that used it to do this before it ends, the main thread too.
    if mlx := sys.modules.get("mlx.core"):
        mlx.clear_streams()
