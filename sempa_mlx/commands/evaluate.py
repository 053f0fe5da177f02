"""`sempa-mlx eval`: the systems that are compared, and what is written of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sempa_mlx.commands.chosen_encoder import chosen_base
from sempa_mlx.commands.vectors import VectorOptions, parameters_of, reads_final_states
from sempa_mlx.console import Console
from sempa_mlx.errors import UsageError
from sempa_mlx.files import json_text, write_text

if TYPE_CHECKING:
    from sempa_mlx.encoder.encoder import Encoder


@dataclass(frozen=True, slots=True)
class Systems:
    """What is compared: a base under several methods, and adapters under several scales.

    Without `scales` an adapter is measured at its run's own, as it embeds.
    """

    model: str | None
    adapters: Sequence[Path]
    scales: Sequence[float]
    methods: Sequence[str]
    adapter_methods: Sequence[str] = ()
    options: VectorOptions = field(default_factory=VectorOptions)

    def encoders(self, console: Console) -> Iterator[tuple[str, "Encoder"]]:
        """Yield (name, encoder), the base first; weights are loaded once a base or adapter."""
        from sempa_mlx.encoder.encoder import Encoder
        from sempa_mlx.encoder.methods import find_method
        from sempa_mlx.encoder.settings import EncoderSettings
        from sempa_mlx.model.released import shown

        self.options.check()
        for method in (*self.methods, *self.adapter_methods):
            find_method(method)
        if not (self.methods or self.adapters):
            raise UsageError("nothing to measure: --no-base needs an --adapter-path")
        base, revision = chosen_base(self.model, self.adapters)
        if self.methods:
            with console.working(f"loading {base}"):
                loaded = Encoder.load(base, revision=revision).loaded
            for method in self.methods:
                yield self._made(console, "base", Encoder(loaded, EncoderSettings(method=method)))
            del loaded
        names = adapter_names(self.adapters)
        for folder in self.adapters:
            with console.working(f"loading {shown(folder)}"):
                encoder = Encoder.load(base, adapter_path=folder, revision=revision)
            methods = self.adapter_methods or (encoder.settings.method,)
            scales = self.scales or (encoder.settings.adapter_scale,)
            for scale, method in product(scales, methods):
                name = at_scale(names[folder], scale)
                settings = encoder.settings.with_method(method)
                if settings.post is not None and settings.adapter_scale != scale:
                    console.say(f"{name}: without the {settings.post.kind} fitted at another scale")
                    settings = replace(settings, post=None)
                settings = replace(settings, adapter_scale=scale)
                yield self._made(console, name, Encoder(encoder.loaded, settings))

    def _made(self, console: Console, name: str, encoder: "Encoder") -> tuple[str, "Encoder"]:
        name = f"{name} {encoder.settings.method}{self.options.suffix}"
        encoder = self.options.apply(console, name, encoder)
        if not reads_final_states(encoder):
            console.say(f"{name}: {parameters_of(encoder)}")
        return name, encoder


def adapter_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Return what tables call adapters: the name of the folder, or its path if names are alike."""
    from sempa_mlx.model.released import shown

    names = {folder: folder_name(folder) for folder in folders}
    taken = list(names.values())
    return {
        folder: name if taken.count(name) == 1 else shown(folder) for folder, name in names.items()
    }


def at_scale(name: str, scale: float) -> str:
    """Return what tables call an adapter at a scale; full strength goes without saying."""
    return name if scale == 1 else f"{name} x{scale:g}"


def folder_name(folder: Path) -> str:
    """Return the last name of a folder's path, also of the one we are in."""
    return folder.name or folder.resolve().name


def defined(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with None in the place of NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in values.items()
    }


def finish(console: Console, document: dict[str, Any], out: Path | None) -> None:
    """Add where it was measured; write the results to `out` if given, print them in JSON mode."""
    from sempa_mlx.runtime import machine, package_versions

    document |= {"machine": asdict(machine()), "versions": package_versions()}
    if out is not None:
        write_text(out, json_text(document))
        console.say(f"results: {out}")
    console.document(document)
