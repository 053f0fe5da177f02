"""The base that an adapter folder names, and loading both."""

from pathlib import Path
from typing import Any, NamedTuple

from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.load import LoadedModel, load_model
from sempa_mlx.model.lora import CONFIG_FILE, load_adapter, read_adapter_config
from sempa_mlx.model.released import find_run


class RecordedBase(NamedTuple):
    """What an adapter was trained on: a name as `load_model` takes it, and the Hub's commit."""

    name: str
    revision: str | None


def recorded_base(folder: Path, config: dict[str, Any]) -> RecordedBase:
    """Return the base that an adapter folder's config names.

    Raises:
        ModelError: it names none.
    """
    if not isinstance(config.get("model"), str):
        place = str(folder / CONFIG_FILE)
        raise ModelError(Problem("names no base", place, fix="name it: --model"))
    return RecordedBase(config["model"], (config.get("sempa") or {}).get("base_revision"))


def load_with_adapter(
    source: str | Path,
    adapter_path: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: str = "auto",
) -> tuple[LoadedModel, Path | None]:
    """Load a model, or a run folder with its adapter and its base; return the run folder, if any.

    Args:
        source: as `load_model` takes it, or a run folder, or the packaged adapter.
        adapter_path: a run folder, or the packaged one, whose adapter goes on `source`.
        revision: a Hub commit, branch or tag of `source`; a run folder says its base's itself.
        dtype: the model's precision, or `auto`.

    Raises:
        ModelError: model or adapter cannot be loaded, or do not belong together.
    """
    run = find_run(Path(source))
    if (run / CONFIG_FILE).is_file():
        adapter_path = run
        source, revision = recorded_base(run, read_adapter_config(run))
    loaded = load_model(str(source), revision=revision, dtype=dtype)
    if adapter_path is None:
        return loaded, None
    run = find_run(Path(adapter_path))
    load_adapter(loaded, run)
    return loaded, run
