"""The command `paraphrase`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sempa_mlx.cli_checks import finite
from sempa_mlx.cli_options import (
    ForceOption,
    ModelOption,
    RunOption,
    console,
    examples,
    model_option,
    output_option,
)

paraphrase_app = typer.Typer()
draw_option = partial(typer.Option, rich_help_panel="Drawing")


@paraphrase_app.command(
    epilog=examples(
        'sempa-mlx paraphrase "The flight was cancelled because of fog." -k 5',
        "sempa-mlx paraphrase - -o notes.jsonl < notes.txt",
    )
)
def paraphrase(
    text: Annotated[
        str,
        typer.Argument(help="A text, also if it is the name of a file; `-` reads one a line."),
    ],
    k: Annotated[int, draw_option("-k", "--k", help="Paraphrases of each text.")] = 3,
    out: Annotated[
        Path | None, output_option("-o", "--out", help="Write JSON lines here, one a text: .jsonl.")
    ] = None,
    model: ModelOption = None,
    adapter_path: RunOption = None,
    adapter_scale: Annotated[
        float,
        model_option(
            "--adapter-scale",
            callback=finite,
            help="The adapter's strength while generating; 0: the base, bit for bit. "
            "Similarities keep the run's own.",
        ),
    ] = 1.0,
    temperature: Annotated[
        float, draw_option("--temperature", help="Higher: freer; 0: always the likeliest (-k 1).")
    ] = 0.8,
    top_p: Annotated[
        float, draw_option("--top-p", help="Draw from the likeliest tokens of this mass.")
    ] = 0.95,
    max_tokens: Annotated[
        int | None,
        draw_option(
            "--max-tokens", help="Longer draws are dropped. [default: twice the text's and 32]"
        ),
    ] = None,
    template: Annotated[
        str | None,
        draw_option("--template", help="Prompt, P1 to P5. [default: the run's, else P1]"),
    ] = None,
    seed: Annotated[int, draw_option("--seed", help="The same seed, the same output.")] = 0,
    force: ForceOption = False,
) -> None:
    """Say a text, or each line of stdin, in other words.

    Draws distinct paraphrases from the model, and ranks them by its own embeddings' similarity.
    Case, blanks and punctuation make no difference between two. Empty lines have none.
    """
    from sempa_mlx.commands.paraphrase import ParaphraseRequest, run_paraphrase

    request = ParaphraseRequest(
        *(text, out, model, adapter_path, k, temperature, top_p),
        *(max_tokens, template, adapter_scale, seed),
    )
    run_paraphrase(console, request, force=force)
