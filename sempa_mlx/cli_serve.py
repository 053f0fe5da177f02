"""The command `serve`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_options import (
    LayerOption,
    MethodOption,
    ModelOption,
    RunOption,
    ScaleOption,
    console,
    examples,
)

serve_app = typer.Typer()
access_option = partial(typer.Option, rich_help_panel="Address and access")
limit_option = partial(typer.Option, rich_help_panel="Limits")


@serve_app.command(
    epilog=examples(
        "sempa-mlx serve",
        "sempa-mlx serve --adapter-path adapters --port 0",
        "SEMPA_API_KEY=... sempa-mlx serve --host 0.0.0.0 --allow-host my-machine.local",
    )
)
def serve(
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: ScaleOption = None,
    method: MethodOption = None,
    layer: LayerOption = None,
    host: Annotated[
        str, access_option("--host", help="Beyond loopback only with a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, access_option("--port", min=0, max=65535, help="0: a free one, which is printed.")
    ] = 8080,
    api_key: Annotated[
        str | None,
        access_option(
            "--api-key", help="What clients must show. [default: SEMPA_API_KEY of the environment]"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, access_option("--api-key-file", help="File that holds the key.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        access_option("--allow-host", help="Further name of this machine; may be repeated."),
    ] = None,
    name: Annotated[
        str | None,
        access_option("--name", help="What clients call the model. [default: its own name]"),
    ] = None,
    timeout: Annotated[
        float, limit_option("--timeout", min=1, help="Seconds that a request may take.")
    ] = 600.0,
    batch_tokens: Annotated[
        int,
        limit_option(
            "--batch-tokens", min=64, help="Tokens of one embedding batch, padding counted."
        ),
    ] = 4096,
    batching: Annotated[
        bool, limit_option("--batching/--no-batching", help="Let requests share batches.")
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
    access = (host, port, api_key, api_key_file, tuple(allow_host or ()), name)
    run_serve(console, ServeRequest(embed, *access, timeout, batch_tokens, batching))
