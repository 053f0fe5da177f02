"""Which generators are compared: a base, and adapters along their scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sempa_mlx.commands.chosen_encoder import chosen_base
from sempa_mlx.commands.evaluate import adapter_names, at_scale
from sempa_mlx.console import Console
from sempa_mlx.errors import UsageError

if TYPE_CHECKING:
    from sempa_mlx.model.load import LoadedModel


@dataclass(frozen=True, slots=True)
class LoadedSystems:
    """A model in memory, and what is measured on it: (name, scale of its adapter)."""

    loaded: "LoadedModel"
    systems: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Generators:
    """A base and adapters under several scales, one set of weights at a time.

    Without `scales` an adapter is measured at its run's own, as it embeds.
    """

    model: str | None
    adapters: Sequence[Path]
    scales: Sequence[float]
    with_base: bool = True

    def load(self, console: Console) -> Iterator[LoadedSystems]:
        """Yield what is compared, the base first.

        The base is the first adapter's model with the adapter at 0, which is the base bit for bit.

        Raises:
            UsageError: there is nothing to measure.
            ModelError: base or adapter cannot be loaded, or do not belong together.
        """
        from sempa_mlx.encoder.settings import read_scale
        from sempa_mlx.model.load import load_model
        from sempa_mlx.model.lora import load_adapter
        from sempa_mlx.model.released import shown

        if not (self.with_base or self.adapters):
            raise UsageError("nothing to measure: --no-base needs an --adapter-path")
        base, revision = chosen_base(self.model, self.adapters)
        systems = [("base", 0.0)] if self.with_base else []
        if not self.adapters:
            with console.working(f"loading {base}"):
                loaded = load_model(base, revision=revision)
            yield LoadedSystems(loaded, tuple(systems))
        names = adapter_names(self.adapters)
        own = {} if self.scales else {folder: read_scale(folder) for folder in self.adapters}
        for folder in self.adapters:
            with console.working(f"loading {shown(folder)}"):
                loaded = load_model(base, revision=revision)
                load_adapter(loaded, folder)
            scales = self.scales or (own[folder],)
            systems += [(at_scale(names[folder], scale), scale) for scale in scales]
            yield LoadedSystems(loaded, tuple(systems))
            systems = []
            del loaded
