"""`sempa-mlx import-peft`."""

import shlex
from pathlib import Path

from sempa_mlx.console import Console


def run_import_peft(console: Console, folder: Path, out: Path, model: str | None) -> None:
    """Turn an adapter of PEFT into an adapter folder, and say what it is."""
    from sempa_mlx.export.import_peft import import_peft

    with console.working(f"importing {folder}"):
        found = import_peft(folder, out, model=model)
    settings = found.settings
    if model is not None and found.named_base not in (None, model):
        console.warn(f"the adapter names `{found.named_base}` as its base; it is put on `{model}`")
    console.facts(
        {
            "adapter": f"{settings.kind}, rank {settings.rank}, scale {settings.scale:g}, on "
            f"{found.num_layers} layers of {found.base}",
            "embeds": "PromptEOL, as encoder.json says; change it there or with options",
        }
    )
    console.result(str(out))
    console.document(
        {
            "adapter_path": str(out),
            "model": found.base,
            "kind": settings.kind,
            "rank": settings.rank,
            "scale": settings.scale,
            "layers": found.num_layers,
        }
    )
    console.say(f"\nuse it:  sempa-mlx embed FILE --adapter-path {shlex.quote(str(out))}")
