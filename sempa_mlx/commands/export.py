"""`sempa-mlx export`."""

import shlex
from pathlib import Path

from sempa_mlx.console import Console


def run_export(console: Console, adapter_path: Path, out: Path) -> None:
    """Write the adapter for mlx-lm and print the command that uses it."""
    from sempa_mlx.export.mlx import export_mlx

    with console.working(f"exporting {adapter_path}"):
        exported = export_mlx(adapter_path, out)
    console.result(str(exported.adapter))
    console.document({"adapter_path": str(exported.adapter), "model": exported.model})
    command = (
        f"python -m mlx_lm generate --model {shlex.quote(exported.model)} "
        f"--adapter-path {shlex.quote(str(exported.adapter))} --prompt 'Hello'"
    )
    console.say(f"\nuse it:  {command}")
