"""The command `train`."""

from functools import partial
from typing import Annotated, Any

import typer

from sempa_mlx.cli_options import (
    ForceOption,
    ModelOption,
    complete_recipe,
    console,
    data_option,
    examples,
    output_option,
)

train_app = typer.Typer()
setting = partial(typer.Option, rich_help_panel="Settings")
start_option = partial(typer.Option, rich_help_panel="How to start")


@train_app.command(
    epilog=examples(
        "sempa-mlx train",
        "sempa-mlx train --data pairs.jsonl --dry-run",
        "sempa-mlx train --data pairs.jsonl --config bridge --set train.batch_size=64",
        "sempa-mlx train --resume --adapter-path adapters",
    )
)
def train(
    config: Annotated[
        str | None,
        setting(
            "-c",
            "--config",
            help="Recipe or file. [default: ./sempa.yaml if there is one, else smollm2-135m]",
            autocompletion=complete_recipe,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None, setting("--set", help="Any setting: section.key=value; may be repeated.")
    ] = None,
    model: ModelOption = None,
    data: Annotated[
        str | None, data_option("--data", help="Preference file, `nli` or `demo`.")
    ] = None,
    iters: Annotated[int | None, setting("--iters", help="At most so many steps.")] = None,
    batch_size: Annotated[int | None, setting("--batch-size", help="Pairs a step.")] = None,
    learning_rate: Annotated[
        float | None, setting("--learning-rate", help="Peak of the schedule.")
    ] = None,
    beta: Annotated[float | None, setting("--beta", help="DPO's beta.")] = None,
    seed: Annotated[int | None, setting("--seed", help="Order and initialisation.")] = None,
    adapter_path: Annotated[
        str | None, output_option("--adapter-path", help="Run folder. [default: adapters]")
    ] = None,
    resume: Annotated[
        bool, start_option("--resume", help="Go on with the run in --adapter-path.")
    ] = False,
    dry_run: Annotated[
        bool,
        start_option(
            "--dry-run", help="Check settings and data, estimate memory and time, start nothing."
        ),
    ] = False,
    force: ForceOption = False,
) -> None:
    """Train an adapter on paraphrase preferences; the best step on STS dev is kept.

    Options without a default take the value of the settings (sempa-mlx config show).
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
