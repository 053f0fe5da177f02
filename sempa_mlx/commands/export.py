"""`sempa-mlx export`."""

import shlex
from pathlib import Path

from sempa_mlx.console import Console
from sempa_mlx.errors import Problem, UsageError


def run_export(console: Console, adapter_path: Path, coder: Path | None, out: Path) -> None:
    """Write the adapter for mlx-lm and print the command that uses it."""
    from sempa_mlx.export.mlx import export_mlx

    if coder is not None:
        what = "--coder goes with --to sparse-autoencoder"
        raise UsageError(Problem(what), state="nothing was written")
    with console.working(f"exporting {adapter_path}"):
        exported = export_mlx(adapter_path, out)
    console.result(str(exported.adapter))
    console.document({"adapter_path": str(exported.adapter), "model": exported.model})
    command = (
        f"python -m mlx_lm generate --model {shlex.quote(exported.model)} "
        f"--adapter-path {shlex.quote(str(exported.adapter))} --prompt 'Hello'"
    )
    console.say(f"\nuse it:  {command}")


def run_export_coder(console: Console, coder: Path | None, out: Path) -> None:
    """Write a sparse coder for sentence-transformers and print the line that opens it."""
    from sempa_mlx.encoder.coder_file import describe_coder, read_coder
    from sempa_mlx.export.sparse_autoencoder import check_kind, export_sparse_autoencoder

    if coder is None:
        what = "--to sparse-autoencoder needs a coder"
        raise UsageError(Problem(what, fix="add --coder FILE"), state="nothing was written")
    check_kind(describe_coder(coder)["kind"])  # a lexical coder cannot be read without its model
    export_sparse_autoencoder(read_coder(coder), out)
    console.result(str(out))
    console.document({"path": str(out), "coder": str(coder)})
    path = "sentence_transformers.sparse_encoder.modules.SparseAutoEncoder"
    console.say(
        f"\nuse it:  {path}.load({str(out)!r})\n"
        "on embeddings as they leave the model, not of unit length: codes are the coder's; what "
        "the module rebuilds from them is not, as it has no scale"
    )
