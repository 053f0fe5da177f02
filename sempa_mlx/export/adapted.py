"""What every export starts from: an adapter on its base, checked against it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sempa_mlx.encoder.settings import EncoderSettings, read_settings
from sempa_mlx.errors import ModelError, Problem
from sempa_mlx.model.head import text_model
from sempa_mlx.model.load import ALIASES, FOLDER, GGUF_FILE, LoadedModel, Location, load_model
from sempa_mlx.model.lora import load_adapter, read_adapter_config
from sempa_mlx.model.recorded import recorded_base

# Types of mlx-lm's models whose weights have the names and shapes that transformers gives them:
# `tests/test_interop_export.py` compares the logits of every one of them.
SHARED_TYPES = frozenset(
    {
        *("cohere", "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo2"),
        *("phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm", "starcoder2"),
    }
)
NOTHING = "nothing was written"
BASE_NAME = "base_name"  # under `sempa` in the config of an adapter that lies beside its base


@dataclass(frozen=True, slots=True, eq=False)
class Adapted:
    """An adapter folder, opened.

    Attributes:
        folder: where it lies.
        config: its `adapter_config.json`.
        loaded: its base with the adapter on.
        settings: how it embeds; the defaults if the folder does not say.
    """

    folder: Path
    config: dict[str, Any]
    loaded: LoadedModel
    settings: EncoderSettings

    @property
    def public_name(self) -> str | None:
        """The Hub id of the base, if it has one, or had one before it was copied."""
        noted = (self.config.get("sempa") or {}).get(BASE_NAME)
        return public_name(self.loaded.location) or noted

    def scale(self, wanted: float | None) -> float:
        """Return the dial to export at: what is asked for, else the folder's own."""
        return self.settings.adapter_scale if wanted is None else wanted


def open_adapted(folder: Path, *, model: str | None = None, dtype: str = "auto") -> Adapted:
    """Load an adapter and its base.

    Args:
        folder: of the adapter.
        model: where the base lies now; by default where the folder says.
        dtype: precision of the base.

    Raises:
        ModelError: the adapter or its base cannot be read, or do not belong together.
    """
    config = read_adapter_config(folder)
    name, revision = (model, None) if model else recorded_base(folder, config)
    loaded = load_model(name, revision=revision, dtype=dtype)
    load_adapter(loaded, folder)
    return Adapted(folder, config, loaded, read_settings(folder))


def public_name(location: Location) -> str | None:
    """Return the Hub id under which others find a model; None for files of this machine."""
    if location.name in ALIASES:
        return ALIASES[location.name].hub_id
    return None if location.origin in (FOLDER, GGUF_FILE) else location.name


def check_shared(loaded: LoadedModel) -> None:
    """Refuse models that transformers knows under other names.

    Raises:
        ModelError: it is none of `SHARED_TYPES`.
    """
    inner = text_model(loaded.model)
    kind = str(inner.args.model_type)
    if inner is not loaded.model or kind not in SHARED_TYPES:
        what = f"models of type `{kind}` may have other names in transformers than in mlx-lm"
        known = f"known to be alike: {', '.join(sorted(SHARED_TYPES))}"
        raise ModelError(Problem(what, loaded.location.name, fix=known), state=NOTHING)
