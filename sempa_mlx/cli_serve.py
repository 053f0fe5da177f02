"""The command `serve`."""

from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_options import LayerOption, ModelOption, console

serve_app = typer.Typer()


@serve_app.command(
    epilog="Example:  sempa-mlx serve   |   sempa-mlx serve --adapter-path adapters --port 0   |   "
    "SEMPA_API_KEY=... sempa-mlx serve --host 0.0.0.0 --allow-host my-machine.local"
)
def serve(
    model: ModelOption = None,
    adapter_path: Annotated[
        Path | None, typer.Option("--adapter-path", help="Run folder. [./adapters if there]")
    ] = None,
    adapter_scale: Annotated[
        float | None, typer.Option("--adapter-scale", help="The dial.")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="Embedding method.")] = None,
    layer: LayerOption = None,
    host: Annotated[str, typer.Option("--host", help="Beyond loopback only with a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: a free one, which is printed.")
    ] = 8080,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="What clients must show. [SEMPA_API_KEY]")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", help="File that holds the key.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Further name of this machine; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="What clients call the model. [its own name]")
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that a request may take.")
    ] = 600.0,
    batch_tokens: Annotated[
        int, typer.Option("--batch-tokens", min=64, help="Of one embedding batch.")
    ] = 4096,
    batching: Annotated[
        bool, typer.Option("--batching/--no-batching", help="Let requests share batches.")
    ] = True,
) -> None:
    """Serve embeddings and chat in OpenAI's shape from one model in memory.

    Embeddings use the adapter; chat does not, unless the model's name ends in `:sempa`. Prints the
    URL; Ctrl-C stops it.
    """
    from sempa_mlx.commands.embed import EmbedRequest
    from sempa_mlx.commands.serve import ServeRequest, run_serve
    from sempa_mlx.commands.vectors import VectorOptions

    embed = EmbedRequest(
        *("", None, None, model, adapter_path, adapter_scale, method, None, None),
        VectorOptions(layer),
    )
    request = ServeRequest(
        *(embed, host, port, api_key, api_key_file, tuple(allow_host or ()), name),
        *(timeout, batch_tokens, batching),
    )
    run_serve(console, request)
