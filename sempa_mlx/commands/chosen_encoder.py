"""The encoder that a command works with: what it names, else a run here, else the packaged."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sempa_mlx.commands.vectors import parameters_of
from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError

if TYPE_CHECKING:
    from sempa_mlx.commands.embed import EmbedRequest
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.model.recorded import RecordedBase

Value = TypeVar("Value", bool, float)
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_RUN = Path("adapters")


def with_run_as_run(request: "EmbedRequest") -> "EmbedRequest":
    """Let a folder with adapter and base, such as an exported encoder, be named as the model.

    Raises:
        UsageError: another adapter is named beside it.
    """
    from sempa_mlx.model.lora import CONFIG_FILE
    from sempa_mlx.model.released import find_run

    if request.model is None:
        return request
    run = find_run(Path(request.model))
    if not (run / CONFIG_FILE).is_file():
        return request
    if request.adapter_path is not None:
        what = f"--model {request.model} has an adapter of its own"
        raise UsageError(Problem(what, fix="leave --adapter-path out, or name its base"))
    return replace(request, model=None, adapter_path=run)


def load_encoder(console: Console, request: "EmbedRequest") -> "Encoder":
    """Load what is named, else the run in ./adapters, else the default model and its adapter."""
    from sempa_mlx.encoder.encoder import Encoder
    from sempa_mlx.encoder.settings import EncoderSettings, read_settings
    from sempa_mlx.model.lora import read_adapter_config
    from sempa_mlx.model.released import shown

    request = with_run_as_run(request)
    run = run_folder(request)
    if run is not None:
        read_adapter_config(run)  # a folder without an adapter would pass for a model
    settings = read_settings(run) if run is not None else EncoderSettings()
    settings = replace(
        settings.with_method(request.method),
        normalize=_first(request.normalize, settings.normalize),
        truncate_dim=(
            settings.truncate_dim if request.truncate_dim is None else request.truncate_dim
        ),
        adapter_scale=_first(request.adapter_scale, settings.adapter_scale),
    )
    if request.options.post is not None:  # in the place of the run's own, which may not fit
        settings = replace(settings, post=None)
    with console.working("loading the model"):
        if request.model is None and run is not None:
            encoder = Encoder.load(run, settings=settings)
        else:
            encoder = Encoder.load(
                request.model or DEFAULT_MODEL, adapter_path=run, settings=settings
            )
    name = encoder.loaded.location.name
    adapter = f" + adapter {shown(run)} at scale {settings.adapter_scale:g}" if run else ""
    encoder = request.options.apply(console, name, encoder)
    console.say(f"model: {name}{adapter}; {parameters_of(encoder)}; {encoder.dim} dimensions")
    return encoder


def run_folder(request: "EmbedRequest") -> Path | None:
    """Return the run folder that a request names; where it names nothing, the default.

    That is ./adapters if there is a run, else the packaged adapter, if its base is there as well:
    the weights that the Hub has under the same name are others.
    """
    from sempa_mlx.model.lora import CONFIG_FILE

    if request.adapter_path is not None or request.model is not None:
        return request.adapter_path
    if (DEFAULT_RUN / CONFIG_FILE).is_file():
        return DEFAULT_RUN
    from sempa_mlx.model.load import released_for

    return released_for(DEFAULT_MODEL)


def chosen_base(model: str | None, adapters: Sequence[Path]) -> "RecordedBase":
    """Return the base that is named, else the first adapter's, else the default one.

    Raises:
        ModelError: one of the adapters' folders cannot be read, or the first names no base.
    """
    from sempa_mlx.model.lora import check_adapter
    from sempa_mlx.model.recorded import RecordedBase, recorded_base

    configs = [check_adapter(folder) for folder in adapters]
    if model is None and adapters:
        return recorded_base(adapters[0], configs[0])
    return RecordedBase(model or DEFAULT_MODEL, None)


def _first(wanted: Value | None, stored: Value) -> Value:
    """Return what the line asks for, else what the run folder says."""
    return stored if wanted is None else wanted
